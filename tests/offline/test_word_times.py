"""Word times: those that transformers' own code finds, in the words that a reader sees."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.offline.encoder_window import encoder_window
from asr.offline.greedy import GreedyDecoder
from asr.offline.whisper import load_whisper
from asr.offline.word_times import _path, alignment_heads, token_times, words_of
from asr.shared.audio import load_audio
from asr.shared.features import LogMel
from asr.shared.processor import load_processor
from tests.conftest import DEMO_CORPUS, DEMO_MODEL
from tests.offline.test_greedy import CPU

CLIPS = [DEMO_CORPUS / "clips" / f"common_voice_ko_test_{number:04}.mp3" for number in range(3)]


@pytest.fixture(scope="module")
def model():
    return load_whisper(DEMO_MODEL, CPU).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return load_processor(DEMO_MODEL, "Korean", "transcribe").tokenizer


def heard(model, tokenizer, frames: int):
    """Encoder output, texts and lengths of the clips."""
    log_mel, waveforms = LogMel(), [load_audio(clip) for clip in CLIPS]
    features = torch.stack([log_mel(torch.from_numpy(waveform), frames) for waveform in waveforms])
    with torch.no_grad(), encoder_window(model, frames):
        audio = model.model.encoder(features).last_hidden_state
        texts = GreedyDecoder(model, list(tokenizer.prefix_tokens), 60).write(audio)
    return features, audio, texts, [len(waveform) / 16000 for waveform in waveforms]


def test_times_are_those_of_another_implementation(model, tokenizer, tmp_path):
    """CTranslate2's, which like this one follows OpenAI's."""
    pytest.importorskip("ctranslate2")
    from ctranslate2.converters import TransformersConverter

    from asr.offline.ctranslate import CTranslate2Writer
    from asr.offline.whisper_writer import WhisperWriter

    TransformersConverter(str(DEMO_MODEL), copy_files=["tokenizer.json"]).convert(tmp_path / "ct2")
    features, _, _, seconds = heard(model, tokenizer, 400)
    other = CTranslate2Writer(tmp_path / "ct2", "Korean", "transcribe", "none", 60)(features, seconds)
    writer = WhisperWriter(model, tokenizer, CPU, 60)
    with writer.ready():
        ours = writer(features, seconds)
    for mine, theirs in zip(ours, other, strict=True):
        assert [word.text for word in mine.words] == [word.text for word in theirs.words]
        apart = [abs(a.start - b.start) for a, b in zip(mine.words, theirs.words, strict=True)]
        assert np.median(apart) <= 0.02, "a position"
        assert max(apart) <= 0.3, "the median filter's edges differ"


@pytest.mark.parametrize("frames", [400, 3000])
def test_words_stand_in_their_order_within_the_sound(model, tokenizer, frames):
    """In a cut window as in a whole one."""
    _, audio, texts, seconds = heard(model, tokenizer, frames)
    with torch.no_grad():
        found = token_times(model, audio, list(tokenizer.prefix_tokens), texts, seconds)
    for text, times, length in zip(texts, found, seconds, strict=True):
        assert len(times) == len(text) + 1
        assert (np.diff(times) >= 0).all()
        assert 0 <= times[0] <= times[-1] <= length
        words = words_of(tokenizer, text, times)
        assert [word.text for word in words] == tokenizer.decode(text, skip_special_tokens=True).split()
        assert words[-1].end - words[0].start > 0.5 * length, "they fill the sound"


def test_an_empty_text_has_no_words(model, tokenizer):
    _, audio, _, seconds = heard(model, tokenizer, 400)
    with torch.no_grad():
        times = token_times(model, audio[:2], list(tokenizer.prefix_tokens), [[], [300]], seconds[:2])
    assert [len(each) for each in times] == [1, 2]
    assert words_of(tokenizer, [], times[0]) == []


def test_a_syllable_of_several_tokens_is_one_piece(tokenizer):
    """뷁 is in no vocabulary: three bytes, three tokens, one syllable."""
    ids = tokenizer("네 뷁 가", add_special_tokens=False).input_ids
    times = np.arange(len(ids) + 1, dtype=float)
    words = words_of(tokenizer, ids, times)
    assert [word.text for word in words] == ["네", "뷁", "가"]
    assert [word.start for word in words[1:]] == [word.end for word in words[:-1]]
    assert words[-1].end == len(ids)


def test_heads_without_any_named_are_those_of_the_upper_layers(model, monkeypatch):
    monkeypatch.setattr(model.generation_config, "alignment_heads", None)
    assert alignment_heads(model) == [(1, 0), (1, 1), (1, 2), (1, 3)]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 1000))
def test_the_path_is_the_best_of_all(rows, columns, seed):
    """Against the plain recursion: every step goes right, down or both, and none is worth more."""
    fits = np.random.default_rng(seed).normal(size=(rows, columns))
    reached = _path(fits)
    assert list(reached) == sorted(reached)
    assert reached[0] == 0

    best = np.full((rows, columns), -np.inf)
    for i in range(rows):
        for j in range(columns):
            before = [best[a, b] for a, b in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if a >= 0 and b >= 0]
            best[i, j] = fits[i, j] + (max(before) if before else 0)
    # Between two rows it goes down, or right and down at once: whichever is worth more.
    ends = [*reached[1:], columns - 1]
    worth = 0.0
    for row, (begin, end) in enumerate(zip(reached, ends, strict=True)):
        down, across = fits[row, begin : end + 1].sum(), fits[row, begin : max(begin + 1, end)].sum()
        worth += down if row == rows - 1 or begin == end else max(down, across)
    assert worth == pytest.approx(best[-1, -1])
