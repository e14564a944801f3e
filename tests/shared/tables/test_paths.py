"""Paths that a table has land on this machine, whichever system wrote them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.shared.tables.paths import PathMap

ROOT = Path("/tables")
modest = settings(deadline=None, max_examples=200, derandomize=True)


@pytest.mark.parametrize(
    ("written", "expected"),
    {
        "/cul_m01/a/b.wav": "/mnt/cul/a/b.wav",
        "/cul_m01/b.wav": "/mnt/cul/b.wav",
        "//cul_m01/b.wav": "//cul_m01/b.wav",
        "/cul_m01//a/./b.wav": "/mnt/cul/a/b.wav",
        "/cul_m01/deep/b.wav": "/mnt/deep/b.wav",
        "/cul_m01/deeper/b.wav": "/mnt/cul/deeper/b.wav",
        "/cul_m012/b.wav": "/cul_m012/b.wav",
        "/CUL_M01/b.wav": "/CUL_M01/b.wav",
        "/else/cul_m01/b.wav": "/else/cul_m01/b.wav",
        "cul_m01/b.wav": "/tables/cul_m01/b.wav",
        "\\\\nas\\음성\\a\\b.wav": "/mnt/nas/a/b.wav",
        "\\\\NAS\\음성\\b.wav": "/mnt/nas/b.wav",
        "//nas/음성/b.wav": "/mnt/nas/b.wav",
        "D:\\녹음\\a\\b.wav": "/mnt/d/a/b.wav",
        "d:/녹음/b.wav": "/mnt/d/b.wav",
        "clips/b.wav": "/tables/clips/b.wav",
        "./clips/b.wav": "/tables/clips/b.wav",
        "clips\\b.wav": "/tables/clips/b.wav",
        "raw\\x\\b.wav": "/mnt/raw/x/b.wav",
        "/elsewhere\\b.wav": "/elsewhere/b.wav",
        "/elsewhere/b.wav": "/elsewhere/b.wav",
    }.items(),
)
def test_path_map(written: str, expected: str) -> None:
    """The longest rule wins, by whole components, with either slash; case matters but for Windows' paths."""
    rules = (
        "/cul_m01=/mnt/cul",
        "/cul_m01/deep/=/mnt/deep",
        "\\\\nas\\음성=/mnt/nas",
        "D:\\녹음\\=/mnt/d",
        "raw=/mnt/raw",
    )
    assert PathMap(rules, ROOT)(written) == Path(expected)


def test_the_root_can_be_mapped() -> None:
    assert PathMap(("/=/mnt/old",), ROOT)("/a/b.wav") == Path("/mnt/old/a/b.wav")
    assert PathMap(("/=/mnt/old",), ROOT)("a/b.wav") == Path("/tables/a/b.wav")


def test_a_file_with_a_backslash_in_its_name_is_found(tmp_path: Path) -> None:
    (tmp_path / "a\\b.wav").touch()
    assert PathMap((), tmp_path)("a\\b.wav") == tmp_path / "a\\b.wav"


@modest
@given(st.text(min_size=1), st.lists(st.text(min_size=1).filter(lambda text: "=" not in text), max_size=3))
def test_no_path_makes_it_raise(written: str, froms: list[str]) -> None:
    paths = PathMap(tuple(f"{old}=/mnt" for old in froms), ROOT)
    for path in (written, f"a\\{written}", written * 3000, f"{'한' * 300}\\b.wav", "a\0\\b.wav"):
        assert isinstance(paths(path), Path)


@modest
@given(st.lists(st.sampled_from(["a", "b", "가", "c d", ".."]), min_size=1), st.integers(1, 4), st.sampled_from("/\\"))
def test_a_rule_replaces_what_it_names_and_nothing_else(parts: list[str], length: int, slash: str) -> None:
    mapped = PathMap(("/" + slash.join(parts[:length]) + "=/mnt/x",), ROOT)("/" + "/".join(parts))
    assert mapped == Path("/mnt/x", *parts[length:])
