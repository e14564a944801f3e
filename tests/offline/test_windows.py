"""Windows: what the model trains on is what was said, with as little silence as fits."""

from __future__ import annotations

import itertools
import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer

from asr.offline.augmentation import Augmenter
from asr.offline.encoder_window import encoder_window
from asr.offline.layouts import GAP_FRAMES
from asr.offline.precision import Precision
from asr.offline.sampling import Heard, Window, fitted_frames
from asr.offline.trainer import token_mean_loss
from asr.offline.whisper import load_whisper
from asr.offline.windows import IGNORE, Labels, WindowCollator
from asr.shared.audio import SAMPLE_RATE, encode_flac
from asr.shared.clips import pack_spectrum, samples_of, spectrum_of
from asr.shared.features import LogMel
from asr.shared.processor import label_ids, load_processor
from config import Augmentation
from tests.conftest import DEMO_MODEL, MEASURING_DATA


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
        "source_id": f"{text}.flac",
    }


def collator(tokenizer, layout: str = "packed", log_mel: LogMel | None = None, **augmentation) -> WindowCollator:
    return WindowCollator(tokenizer, log_mel or LogMel(), layout, Augmenter(Augmentation(**augmentation)))


def window(*rows: dict, timestamps: bool = False, speeds: tuple[float, ...] = (), seed: int = 0) -> Heard:
    """The rows in one window."""
    return Heard(Window(tuple(range(len(rows))), speeds or (1.0,) * len(rows), timestamps, seed), list(rows))


def each(*rows: dict, timestamps: bool = False) -> list[Heard]:
    """Each row in a window of its own."""
    return [window(one, timestamps=timestamps) for one in rows]


def test_labels_begin_with_the_language_token_and_the_start_token_comes_once(tokenizer):
    """Public scripts strip the wrong token and train with a doubled start token."""
    batch = collator(tokenizer)(each(row(tokenizer, "감사합니다", 1), row(tokenizer, "비가 왔습니다", 29.5)))
    start, language = tokenizer.convert_tokens_to_ids(["<|startoftranscript|>", "<|ko|>"])
    assert batch["decoder_input_ids"][:, 0].tolist() == [start, start]
    assert batch["labels"][:, 0].tolist() == [language, language]
    assert not (batch["labels"] == start).any()
    assert (batch["decoder_input_ids"] == start).sum() == 2


def test_labels_end_with_one_end_token_and_padding_is_ignored(tokenizer):
    rows = [row(tokenizer, "아주 긴 문장을 여기에 적었습니다", 29.5), row(tokenizer, "짧다", 29.5)]
    batch = collator(tokenizer)(each(*rows))
    for labels, one in zip(batch["labels"], rows, strict=True):
        kept = labels[labels != IGNORE].tolist()
        assert kept == one["labels"][1:]
        assert kept.count(tokenizer.eos_token_id) == 1


def test_a_packed_window_reads_as_one_text(tokenizer):
    """Tokens of a window are those of its clips' texts joined by a space, with one prompt and one end."""
    texts = ["날씨가 맑았습니다", "기차가 떠났습니다", "고맙습니다"]
    batch = collator(tokenizer)([window(*(row(tokenizer, text, 2) for text in texts))])
    assert batch["input_features"].shape == (1, 80, 3000)
    assert tokenizer.decode(batch["labels"][0], skip_special_tokens=True) == " ".join(texts)
    assert [batch["decoder_input_ids"][0, 0].item(), *batch["labels"][0].tolist()] == tokenizer(
        " ".join(texts)
    ).input_ids


def test_packed_audio_stands_where_it_belongs(tokenizer):
    """The second clip begins one gap after the first ends, and is itself."""
    rows = [row(tokenizer, "하나", 2, 300), row(tokenizer, "둘", 3, 900)]
    features = collator(tokenizer)([window(*rows)])["input_features"][0]
    loudest = features.argmax(dim=0)
    first, gap, second = loudest[20:180], features[:, 205:215], loudest[225:515]
    assert first.float().std() == 0
    assert second.float().std() == 0
    assert second[0] > first[0]
    assert gap.max() < features.max() - 1


@pytest.mark.parametrize("timestamps", [False, True])
def test_one_clip_packed_equals_one_clip_padded(tokenizer, timestamps):
    one = each(row(tokenizer, "같은 것", 4), timestamps=timestamps)
    packed = collator(tokenizer)(one)
    padded = collator(tokenizer, "padded")(one)
    assert packed.pop("source_ids") == padded.pop("source_ids") == [["같은 것.flac"]]
    assert packed.keys() == padded.keys() == {"input_features", "decoder_input_ids", "labels"}
    assert all(torch.equal(packed[key], padded[key]) for key in packed)


def test_each_window_tells_its_clips(tokenizer):
    one, two, three = (row(tokenizer, text, 1) for text in ("하나", "둘", "셋"))
    batch = collator(tokenizer)([window(two, one), window(three)])
    assert batch["source_ids"] == [["둘.flac", "하나.flac"], ["셋.flac"]]


@pytest.mark.parametrize("layout", ["packed", "trimmed", "padded"])
@pytest.mark.parametrize("mel_bins", [80, 128])
def test_stored_log_mel_gives_the_batch_that_stored_sound_gives(tokenizer, layout, mel_bins):
    """To the rounding of float16: log10 of the spectrum lies between -10 and 4, where half a step is 1/256 at most,
    and a quarter of it is what the encoder reads."""
    log_mel = LogMel(mel_bins)
    collate = collator(tokenizer, layout, log_mel)
    sound = [row(tokenizer, "하나", 1.3), row(tokenizer, "둘", 4.7, 500), row(tokenizer, "셋", 2.003, 300)]
    stored = [
        {**{name: one[name] for name in one if name != "audio"}, "log_mel": pack_spectrum(spectrum_of(one, log_mel))}
        for one in sound
    ]
    lay = (lambda rows: [window(*rows)]) if layout == "packed" else (lambda rows: each(*rows))
    expected, found = collate(lay(sound)), collate(lay(stored))
    torch.testing.assert_close(found.pop("input_features"), expected.pop("input_features"), rtol=0, atol=1 / 1024)
    assert found.pop("source_ids") == expected.pop("source_ids")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)


def test_clips_lie_a_gap_apart_to_the_frame(tokenizer):
    """And fill the window to its last frame: 14.9 s, 0.2 s and 14.9 s. Only the fading of the last has no room."""
    rows = [row(tokenizer, "하나", 14.9), row(tokenizer, "둘", 14.9)]
    (features,) = collator(tokenizer)([window(*rows)])["input_features"]
    assert features.shape == (80, 3000)
    assert torch.equal(features[:, :1490], features[:, 1510:])


def test_padded_layout_is_the_plain_recipe(tokenizer):
    """Each clip has its own window, bit for bit what WhisperFeatureExtractor makes of it."""
    rows = [row(tokenizer, "하나", 1.3), row(tokenizer, "둘", 4.7, 500)]
    batch = collator(tokenizer, "padded")(each(*rows))
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
    batch = collator(real)(each(row(real, sentence, 3)))
    assert batch["decoder_input_ids"][0].tolist() == ids[:-1]
    assert batch["labels"][0].tolist() == ids[1:]


def test_a_spelled_out_token_stays_text_in_a_packed_window(tokenizer):
    rows = [{**row(tokenizer, "앞", 2), "text": "앞 <|endoftext|>"}, row(tokenizer, "뒤", 2)]
    labels = collator(tokenizer)([window(*rows)])["labels"][0].tolist()
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
    trimmed, padded = (collator(tokenizer, layout)(each(*rows))["input_features"] for layout in ("trimmed", "padded"))
    assert trimmed.shape == (2, 80, 490)
    assert torch.equal(trimmed, padded[..., :490])


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


# Labels with times


def told_times(labels: list[int], tokenizer) -> list[float]:
    zero = tokenizer.convert_tokens_to_ids("<|0.00|>")
    return [(token - zero) * 0.02 for token in labels if token >= zero]


def test_times_are_written_in_whispers_own_format(tokenizer):
    """Start, language, task; then each text between its times, the later ones behind a space; no <|notimestamps|>."""
    rows = [row(tokenizer, "날씨가 맑았습니다", 2), row(tokenizer, "기차가 떠났습니다", 3.131)]
    batch = collator(tokenizer)([window(*rows, timestamps=True)])
    ids = [*batch["decoder_input_ids"][0].tolist(), batch["labels"][0, -1].item()]
    assert batch["labels"][0].tolist() == ids[1:]
    token = tokenizer.convert_tokens_to_ids
    words = [
        tokenizer(text, add_special_tokens=False).input_ids for text in ("날씨가 맑았습니다", " 기차가 떠났습니다")
    ]
    assert ids == [
        *token(["<|startoftranscript|>", "<|ko|>", "<|transcribe|>"]),
        token("<|0.00|>"), *words[0], token("<|2.00|>"),
        token("<|2.20|>"), *words[1], token("<|5.34|>"),
        token("<|endoftext|>"),
    ]  # fmt: skip
    assert tokenizer.decode(ids, skip_special_tokens=True) == "날씨가 맑았습니다 기차가 떠났습니다"


def test_what_whisper_decodes_from_such_labels_is_where_the_sound_lies(tokenizer):
    """transformers' own reader of timestamps finds the clips and their times."""
    rows = [row(tokenizer, text, seconds) for text, seconds in (("하나", 1.5), ("둘", 4.25), ("셋", 0.4))]
    batch = collator(tokenizer)([window(*rows, timestamps=True)])
    ids = batch["labels"][0].tolist()
    found = tokenizer.decode(ids, output_offsets=True)["offsets"]
    assert [one["text"].strip() for one in found] == ["하나", "둘", "셋"]
    begins, ends = zip(*(one["timestamp"] for one in found), strict=True)
    assert begins == pytest.approx([0.0, 1.7, 6.14], abs=0.011)
    assert ends == pytest.approx([1.5, 5.96, 6.56], abs=0.011)


@settings(deadline=None, max_examples=100)
@given(frames=st.lists(st.integers(1, 3000), min_size=1, max_size=8))
def test_times_rise_and_stay_in_the_window(tokenizer, frames):
    """In steps of 0.02 s, around each clip to the step; a clip that fills the window ends with it."""
    spans, begin = [], 0
    for end in itertools.accumulate(frames, lambda end, more: end + GAP_FRAMES + more):
        if end <= 3000:
            spans.append((begin, end))
            begin = end + GAP_FRAMES
    ids = Labels(tokenizer).timed(["말"] * len(spans), spans)
    zero = tokenizer.convert_tokens_to_ids("<|0.00|>")
    times = [token - zero for token in ids if token >= zero]
    assert times == sorted(times)
    assert times[-1] <= 1500
    for (begin, end), told_begin, told_end in zip(spans, times[::2], times[1::2], strict=True):
        assert begin - 1 <= 2 * told_begin <= begin
        assert end <= 2 * told_end <= end + 1


def test_the_window_of_a_smaller_model_bounds_the_times(tokenizer):
    """The tests' model hears 5 s."""
    rows = [row(tokenizer, "하나", 2.0), row(tokenizer, "둘", 2.8)]
    batch = collator(tokenizer, log_mel=LogMel(80, 500))([window(*rows, timestamps=True)])
    assert batch["input_features"].shape == (1, 80, 500)
    assert max(told_times(batch["labels"][0].tolist(), tokenizer)) == pytest.approx(5.0)


def test_a_spelled_out_token_stays_text_between_times(tokenizer):
    text = "앞 <|endoftext|>"
    rows = [{**row(tokenizer, "앞", 2), "text": text, "labels": label_ids(tokenizer, text)}, row(tokenizer, "뒤", 2)]
    labels = collator(tokenizer)([window(*rows, timestamps=True)])["labels"][0].tolist()
    assert labels.count(tokenizer.eos_token_id) == 1
    assert told_times(labels, tokenizer) == pytest.approx([0.0, 2.0, 2.2, 4.2])


class OldTokenizer(WhisperTokenizer):
    """As the first ones on the Hub: no tokens for times, so that they count as unknown."""

    def convert_tokens_to_ids(self, tokens: str | list[str]) -> int | list[int]:
        known = "<|notimestamps|>" if tokens == "<|0.00|>" else tokens
        return super().convert_tokens_to_ids(known) if known == tokens else self.unk_token_id


def test_a_tokenizer_without_times_writes_none_and_says_so(caplog):
    """The unknown token is the end of the text: labels would be taught to end before they begin."""
    old = OldTokenizer.from_pretrained(DEMO_MODEL)
    old.set_prefix_tokens(language="korean", task="transcribe")
    with caplog.at_level(logging.INFO, logger="whisper"):
        collate = collator(old)
    rows = [row(old, "하나", 1), row(old, "둘", 1)]
    plain, timed = collate([window(*rows)]), collate([window(*rows, timestamps=True)])
    assert torch.equal(plain["labels"], timed["labels"])
    told = [record.getMessage() for record in caplog.records if "timestamps" in record.getMessage()]
    assert told == ["labels: none with timestamps (the tokenizer has no tokens for them)"]


def test_times_that_make_labels_longer_than_planned_are_left_out(tokenizer):
    """The decoder has 448 positions, and the plan knows the labels of single clips alone."""
    rows = [row(tokenizer, "하나", 1), row(tokenizer, "둘", 1)]
    short = [{**one, "labels": one["labels"][:3]} for one in rows]
    collate = collator(tokenizer)
    plain, timed = (collate([window(*rows, timestamps=told)])["labels"] for told in (False, True))
    assert not torch.equal(plain, timed)
    assert torch.equal(collate([window(*short, timestamps=True)])["labels"], plain)


# Waveforms that are changed


def test_waveforms_are_changed_before_their_spectrum_is_made(tokenizer):
    """Faster is shorter, and the times go with it."""
    rows = [row(tokenizer, "하나", 2.2), row(tokenizer, "둘", 1.8)]
    collate = collator(tokenizer, speed_perturb=0.1)
    batch = collate([window(*rows, speeds=(1.1, 0.9), timestamps=True)])
    assert told_times(batch["labels"][0].tolist(), tokenizer) == pytest.approx([0.0, 2.0, 2.2, 4.2])
    plain = collate([window(*rows, timestamps=True)])
    assert told_times(plain["labels"][0].tolist(), tokenizer) == pytest.approx([0.0, 2.2, 2.4, 4.2])


def test_augmentation_hangs_on_the_windows_seed_alone(tokenizer):
    """Twice the same for the same key, in whichever worker; other noise for another epoch, and for each clip."""
    one, two = row(tokenizer, "하나", 1), row(tokenizer, "둘", 1)
    collate = collator(tokenizer, noise_snr_db=0.0)

    def features(seed: int) -> torch.Tensor:
        return collate([window(one, two, seed=seed)])["input_features"][0]

    assert torch.equal(features(1), features(1))
    assert not torch.equal(features(1), features(2))
    first, second = features(1)[:, :100], features(1)[:, 120:220]
    assert not torch.allclose(first, second, atol=0.05), "each clip has noise of its own"


@settings(deadline=None, max_examples=40)
@given(samples=st.integers(160, 80_000), speed=st.floats(0.5, 1.5))
def test_a_changed_clip_fits_what_the_plan_keeps_for_it(tokenizer, samples, speed):
    """Otherwise clips would lie over each other, and windows overflow."""
    collate = collator(tokenizer, log_mel=LogMel(80, 500), speed_perturb=0.5)
    clip = row(tokenizer, "말", samples / SAMPLE_RATE)
    (laid,) = collate._laid(window(clip, speeds=(speed,)))
    kept = fitted_frames(np.array(-(-samples_of(clip) // 160)), np.array(speed), 500)
    assert kept - 2 <= laid.end <= kept <= 500
    assert laid.spectrum.shape[-1] <= laid.end + 3


# The layouts train alike


@pytest.fixture(scope="module")
def model(mini_model):
    return load_whisper(mini_model, Precision("cpu", "none", torch.float32)).train()


def step(model, tokenizer, layout: str, micro_batches: list[list[Heard]]) -> tuple[torch.Tensor, dict]:
    """One optimiser step as the trainer runs it: loss over the tokens of all its micro-batches, and the gradients."""
    collate = collator(tokenizer, layout, LogMel(80, 500))
    batches = [collate(windows) for windows in micro_batches]
    tokens = torch.tensor(sum(int(batch["labels"].ne(IGNORE).sum()) for batch in batches))
    model.zero_grad()
    total = torch.tensor(0.0)
    for batch in batches:
        with encoder_window(model, batch["input_features"].shape[-1]):
            outputs = model(input_features=batch["input_features"], decoder_input_ids=batch["decoder_input_ids"])
        loss = token_mean_loss(outputs, batch["labels"], tokens)
        loss.backward()
        total += loss.detach()
    return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def clips(tokenizer) -> list[dict]:
    texts = ("날씨가 맑았습니다", "네", "기차가 떠났습니다", "고맙습니다")
    return [row(tokenizer, t, 0.6 + 0.3 * i, 200 + 150 * i) for i, t in enumerate(texts)]


def same(one: dict, other: dict, tolerance: float) -> bool:
    return all(torch.allclose(one[name], other[name], rtol=tolerance, atol=tolerance) for name in one)


@pytest.mark.parametrize("timestamps", [False, True])
def test_a_step_of_lone_clips_is_the_same_packed_and_padded(model, tokenizer, timestamps):
    """To the last bit: a window with one clip is the padded one. Trimmed differs by what it does not compute."""
    windows = each(*clips(tokenizer), timestamps=timestamps)
    packed, padded, trimmed = (step(model, tokenizer, layout, [windows]) for layout in ("packed", "padded", "trimmed"))
    assert torch.equal(packed[0], padded[0])
    assert all(torch.equal(packed[1][name], padded[1][name]) for name in packed[1])
    assert trimmed[1].keys() == padded[1].keys()
    torch.testing.assert_close(trimmed[0], padded[0], rtol=0.02, atol=0)
    cosine = torch.nn.functional.cosine_similarity
    flat = [torch.cat([gradients[name].flatten() for name in sorted(gradients)]) for _, gradients in (trimmed, padded)]
    assert cosine(*flat, dim=0) > 0.9


@pytest.mark.parametrize("layout", ["packed", "trimmed", "padded"])
def test_a_step_is_the_same_in_one_micro_batch_and_in_several(model, tokenizer, layout):
    """The loss is the mean over the step's tokens: long and short labels weigh by their tokens, however they are cut.

    Of equal length, since `trimmed` cuts the encoder to the longest of a micro-batch.
    """
    rows = [row(tokenizer, one["text"], 1.0, 200 + 150 * i) for i, one in enumerate(clips(tokenizer))]
    windows = [window(rows[0], rows[1]), *each(*rows[2:])] if layout == "packed" else each(*rows)
    whole = step(model, tokenizer, layout, [windows])
    cut = step(model, tokenizer, layout, [[one] for one in windows])
    torch.testing.assert_close(cut[0], whole[0])
    assert same(cut[1], whole[1], 1e-5)
    assert not same(step(model, tokenizer, layout, [windows[:1]])[1], whole[1], 1e-5), "a part is not the whole"


@pytest.mark.parametrize("timestamps", [False, True])
def test_clips_that_share_a_window_train_the_same_tokens(tokenizer, timestamps):
    """Each text's tokens are there once, as alone; what differs are prompt, end, times and the spaces between."""
    rows = clips(tokenizer)
    special = tokenizer.convert_tokens_to_ids("<|endoftext|>")

    def words(windows: list[Heard]) -> str:
        labels = collator(tokenizer)(windows)["labels"]
        ids = [token for label in labels.tolist() for token in label if 0 <= token < special]
        return tokenizer.decode(ids).replace(" ", "")

    def counted(windows: list[Heard]) -> int:
        return int(collator(tokenizer)(windows)["labels"].ne(IGNORE).sum())

    together, alone = [window(*rows, timestamps=timestamps)], each(*rows, timestamps=timestamps)
    assert words(together) == words(alone) == "".join(one["text"] for one in rows).replace(" ", "")
    # Of the prompt the first token is no label: 3 more of it and the end, of each window but one.
    beside = 4 - timestamps
    spaces = len(tokenizer(" " + rows[1]["text"]).input_ids) - len(tokenizer(rows[1]["text"]).input_ids)
    assert counted(alone) - counted(together) == 3 * (beside - spaces)
