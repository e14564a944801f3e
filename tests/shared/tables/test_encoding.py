"""The encoding of a text is found by the whole of it, wherever the chunks end in which it is read."""

from __future__ import annotations

import io

import pytest

from asr.shared.tables.encoding import CHUNK, decode, find_encoding


@pytest.mark.parametrize("encoding", ["utf-8", "cp949", "utf-16-le"])
def test_characters_across_the_chunks_in_which_a_file_is_looked_at(encoding: str) -> None:
    for shift in range(3):
        text = " " * shift + "가, 나. " * (CHUNK // 6)
        assert find_encoding(io.BytesIO(text.encode(encoding))) == encoding
        assert decode(text.encode(encoding)) == text


def test_the_misfit_is_told_however_far_it_is() -> None:
    data = "가".encode() * CHUNK
    with pytest.raises(UnicodeError, match=rf"UTF-8 \(byte {len(data)} does not fit\)"):
        find_encoding(io.BytesIO(data + b"\xff"))


@pytest.mark.parametrize(
    "text", ["audio,text\na.wav,\0\0\0\0\n", "파일,글\n뷁\0\0,네 \0\n", "나다 \0", "audio\0", "\0", "a\0\0b", "\0\0"]
)
def test_stray_nuls_are_no_utf_16(text: str) -> None:
    assert find_encoding(io.BytesIO(text.encode())) == "utf-8"
