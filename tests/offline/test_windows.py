"""Windows: what the model trains on is what was said, with as little silence as fits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

from asr.offline.windows import GAP_FRAMES, IGNORE, WindowCollator, encoder_window, pack
from asr.shared.audio import SAMPLE_RATE, encode_flac
from asr.shared.clips import pack_spectrum, spectrum_of
from asr.shared.features import LogMel
from asr.shared.processor import load_processor
from tests.conftest import DEMO_MODEL, MEASURING_DATA

WINDOW = 3000


@pytest.fixture(scope="module")
def tokenizer():
    return load_processor(DEMO_MODEL, "Korean", "transcribe").tokenizer


def row(tokenizer, text: str, seconds: float, pitch: float = 220.0) -> dict:
    """A bundle row whose audio is a tone."""
    tone = 0.1 * np.sin(2 * np.pi * pitch * np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE)
    return {
        "audio": {"bytes": encode_flac(tone.astype(np.float32))},
        "text": text,
        "duration_s": len(tone) / SAMPLE_RATE,
        "labels": tokenizer(text).input_ids,
    }


def collator(tokenizer, layout: str = "packed") -> WindowCollator:
    return WindowCollator(tokenizer, LogMel(), layout, max_tokens=448)


@given(st.lists(st.tuples(st.integers(1, WINDOW), st.integers(1, 448)), min_size=1, max_size=40))
def test_packing_keeps_every_clip_once_and_within_limits(clips):
    frames, tokens = [c[0] for c in clips], [c[1] for c in clips]
    windows = pack(frames, tokens, WINDOW, 448)
    assert sorted(i for window in windows for i in window) == list(range(len(clips)))
    for window in windows:
        assert window == sorted(window)
        assert sum(frames[i] for i in window) + GAP_FRAMES * (len(window) - 1) <= WINDOW
        assert sum(tokens[i] for i in window) <= 448


def test_packing_fills_windows():
    """Eight clips of 3.5 s fit one window; a window a clip would be eight times the work."""
    assert len(pack([350] * 8, [20] * 8, WINDOW, 448)) == 1


def test_labels_begin_with_the_language_token_and_the_start_token_comes_once(tokenizer):
    """Public scripts strip the wrong token and train with a doubled start token."""
    batch = collator(tokenizer)([row(tokenizer, "감사합니다", 1), row(tokenizer, "비가 왔습니다", 29.5)])
    start, language = tokenizer.convert_tokens_to_ids(["<|startoftranscript|>", "<|ko|>"])
    assert batch["decoder_input_ids"][:, 0].tolist() == [start, start]
    assert batch["labels"][:, 0].tolist() == [language, language]
    assert not (batch["labels"] == start).any()
    assert (batch["decoder_input_ids"] == start).sum() == 2


def test_labels_end_with_one_end_token_and_padding_is_ignored(tokenizer):
    rows = [row(tokenizer, "아주 긴 문장을 여기에 적었습니다", 29.5), row(tokenizer, "짧다", 29.5)]
    batch = collator(tokenizer)(rows)
    for labels, one in zip(batch["labels"], rows, strict=True):
        kept = labels[labels != IGNORE].tolist()
        assert kept == one["labels"][1:]
        assert kept.count(tokenizer.eos_token_id) == 1


def test_a_packed_window_reads_as_one_text(tokenizer):
    """Tokens of a window are those of its clips' texts joined by a space, with one prompt and one end."""
    texts = ["날씨가 맑았습니다", "기차가 떠났습니다", "고맙습니다"]
    batch = collator(tokenizer)([row(tokenizer, text, 2) for text in texts])
    assert batch["input_features"].shape == (1, 80, 3000)
    assert tokenizer.decode(batch["labels"][0], skip_special_tokens=True) == " ".join(texts)
    assert [batch["decoder_input_ids"][0, 0].item(), *batch["labels"][0].tolist()] == tokenizer(
        " ".join(texts)
    ).input_ids


def test_packed_audio_stands_where_it_belongs(tokenizer):
    """The second clip begins one gap after the first ends, and is itself."""
    rows = [row(tokenizer, "하나", 2, 300), row(tokenizer, "둘", 3, 900)]
    features = collator(tokenizer)(rows)["input_features"][0]
    loudest = features.argmax(dim=0)
    first, gap, second = loudest[20:180], features[:, 205:215], loudest[225:515]
    assert first.float().std() == 0
    assert second.float().std() == 0
    assert second[0] > first[0]
    assert gap.max() < features.max() - 1


def test_one_clip_packed_equals_one_clip_padded(tokenizer):
    one = [row(tokenizer, "같은 것", 4)]
    packed = collator(tokenizer)(one)
    padded = collator(tokenizer, "padded")(one)
    assert all(torch.equal(packed[key], padded[key]) for key in packed)


@pytest.mark.parametrize("layout", ["packed", "trimmed", "padded"])
@pytest.mark.parametrize("mel_bins", [80, 128])
def test_stored_log_mel_gives_the_batch_that_stored_sound_gives(tokenizer, layout, mel_bins):
    """To the rounding of float16: log10 of the spectrum lies between -10 and 4, where half a step is 1/256 at most,
    and a quarter of it is what the encoder reads."""
    log_mel = LogMel(mel_bins)
    collate = WindowCollator(tokenizer, log_mel, layout, max_tokens=448)
    sound = [row(tokenizer, "하나", 1.3), row(tokenizer, "둘", 4.7, 500), row(tokenizer, "셋", 2.003, 300)]
    stored = [
        {
            **{name: one[name] for name in ("text", "duration_s", "labels")},
            "log_mel": pack_spectrum(spectrum_of(one, log_mel)),
        }
        for one in sound
    ]
    expected, found = collate(sound), collate(stored)
    torch.testing.assert_close(found.pop("input_features"), expected.pop("input_features"), rtol=0, atol=1 / 1024)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)


def test_clips_lie_a_gap_apart_to_the_frame(tokenizer):
    """And fill the window to its last frame: 14.9 s, 0.2 s and 14.9 s. Only the fading of the last has no room."""
    rows = [row(tokenizer, "하나", 14.9), row(tokenizer, "둘", 14.9)]
    (features,) = collator(tokenizer)(rows)["input_features"]
    assert features.shape == (80, 3000)
    assert torch.equal(features[:, :1490], features[:, 1510:])


def test_padded_layout_is_the_plain_recipe(tokenizer):
    """Each clip has its own window, bit for bit what WhisperFeatureExtractor makes of it."""
    rows = [row(tokenizer, "하나", 1.3), row(tokenizer, "둘", 4.7, 500)]
    batch = collator(tokenizer, "padded")(rows)
    from asr.shared.audio import load_audio

    plain = WhisperFeatureExtractor()(
        [load_audio(r["audio"]["bytes"]) for r in rows], sampling_rate=SAMPLE_RATE, return_tensors="pt"
    ).input_features
    assert torch.equal(batch["input_features"], plain)


def test_real_tokenizer_gives_the_published_ids():
    """The check sentence that comes with the real Whisper vocabulary."""
    folder = MEASURING_DATA / "whisper-processor"
    if not folder.is_dir():
        pytest.skip("the real processor files are not here")
    real = load_processor(folder, "Korean", "transcribe").tokenizer
    sentence = "저는 서울중앙지검 지능범죄수사팀 최인호 검사입니다."
    expected = """50258 50264 50359 50363 11738 1098 31039 13907 48808 1831 1368 222 4704 16102 15810 242 3354 226 8449
    5727 169 3638 14571 4215 14705 20282 5727 7416 13 50257"""
    ids = [int(i) for i in expected.split()]
    assert real(sentence).input_ids == ids
    batch = collator(real)([row(real, sentence, 3)])
    assert batch["decoder_input_ids"][0].tolist() == ids[:-1]
    assert batch["labels"][0].tolist() == ids[1:]


def test_a_spelled_out_token_stays_text_in_a_packed_window(tokenizer):
    rows = [{**row(tokenizer, "앞", 2), "text": "앞 <|endoftext|>"}, row(tokenizer, "뒤", 2)]
    labels = collator(tokenizer)(rows)["labels"][0].tolist()
    assert labels.count(tokenizer.eos_token_id) == 1
    assert labels[-1] == tokenizer.eos_token_id


def test_collator_travels_to_a_worker_process(tokenizer):
    """On Windows and macOS the loader's workers get it through a pipe."""
    import io
    from multiprocessing.reduction import ForkingPickler

    sent = io.BytesIO()
    ForkingPickler(sent).dump(collator(tokenizer))
    assert sent.getvalue()


def test_trimmed_layout_is_the_beginning_of_the_padded_one(tokenizer):
    """The same features as far as the longest clip and a little silence go; the rest is not computed."""
    rows = [row(tokenizer, "하나", 1.3), row(tokenizer, "둘", 4.7, 500)]
    trimmed, padded = (collator(tokenizer, layout)(rows)["input_features"] for layout in ("trimmed", "padded"))
    assert trimmed.shape == (2, 80, 500)
    assert torch.equal(trimmed, padded[..., :500])


def test_encoder_window_is_there_and_gone_again(mini_model):
    """A shorter window computes the same for the same audio as a model of that window, and is restored."""
    model = WhisperForConditionalGeneration.from_pretrained(mini_model).eval()
    short = torch.randn(1, 80, 200)
    with torch.no_grad(), encoder_window(model, 200):
        assert model.model.encoder(short).last_hidden_state.shape == (1, 100, 64)
        cut = model.model.encoder(short).last_hidden_state
    assert model.config.max_source_positions == 250
    config = WhisperConfig.from_pretrained(mini_model, max_source_positions=100)
    other = WhisperForConditionalGeneration(config).eval()
    weights = {name: value for name, value in model.state_dict().items() if "encoder.embed_positions" not in name}
    other.load_state_dict(weights, strict=False)
    with torch.no_grad():
        torch.testing.assert_close(other.model.encoder(short).last_hidden_state, cut)
        assert model.model.encoder(torch.randn(1, 80, 500)).last_hidden_state.shape == (1, 250, 64)
