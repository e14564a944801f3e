"""The benchmark of inference: every contender hears the same files with the same weights, and the tables say so."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import inference, plain_transcribing
from benchmarks.inference import CONTENDERS, CTRANSLATE2, RUN, WHISPER, Result, Trial, Work
from benchmarks.measuring import Usage
from benchmarks.models import SIZES, make_model
from benchmarks.plain_transcribing import GREEDY, WINDOW_S, limit_for
from benchmarks.speech import PAUSES_S, choose, copy_files, mean_seconds, read_clips, write_recording

SHORT_CLIPS, LONG_S = 2, WINDOW_S + 3


@pytest.fixture(scope="module")
def options() -> argparse.Namespace:
    return argparse.Namespace(clips=SHORT_CLIPS, minutes=LONG_S / 60, seed=42, device="cpu")


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory, options: argparse.Namespace) -> Trial:
    """The demo's model after one step; that its exports write the same is seen below."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        return inference.make_demo_trial(
            options, tmp_path_factory.mktemp("trial"), ("--max-steps", 1), ("--parity-clips", 0)
        )


@pytest.fixture(scope="module")
def work(trial: Trial, options: argparse.Namespace) -> Work:
    """A few short clips and a recording that is longer than a window, to be heard by one process."""
    _, clips, recording = inference.make_works(options, inference.clips_for(options, "demo"), trial.work)
    for file in recording.folder.iterdir():
        file.rename(clips.folder / file.name)
    return replace(clips, said=clips.said + recording.said, seconds=clips.seconds + recording.seconds)


@pytest.fixture(scope="module")
def results(trial: Trial, work: Work) -> dict[str, Result]:
    """What the whole programs took and wrote, by row."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        return {result.contender.row: result for result in inference.run_all(trial, work)}


def test_every_program_writes_down_every_file_short_and_long(results: dict[str, Result], work: Work) -> None:
    assert list(results) == [contender.row for contender in CONTENDERS]
    for row, result in results.items():
        assert len(result.texts) == len(work.said) == SHORT_CLIPS + 1
        assert result.usage.memory > 5 * 10**7
        # What faster-whisper draws at higher temperatures may be nothing.
        assert row == "2" or all(result.texts)
        assert result.contender.program or len(result.texts[-1]) > max(map(len, result.texts[:-1]))
    alone = {row: result.told["seconds"] for row, result in results.items() if result.contender.program}
    assert list(alone) == ["1", "2", "3"]
    assert all(0 < seconds < results[row].usage.seconds for row, seconds in alone.items())


def test_both_engines_write_the_same_and_know_the_language_that_faster_whisper_is_not_told(
    results: dict[str, Result], trial: Trial, work: Work
) -> None:
    assert inference.cer(results["4a"].texts, results["4b"].texts) < 0.05
    table = inference.as_table(list(results.values()), trial, work)
    assert len([line for line in table.splitlines() if line.endswith(" |") and "% of 4b" in line]) == 2
    assert "- 2, 3: CTranslate2 takes a model with so few tokens for one of English alone" in table
    rates = {row: inference.cer(result.texts[:SHORT_CLIPS], work.said[:SHORT_CLIPS]) for row, result in results.items()}
    assert rates["4a"] < 1, "real texts are meant, if not good ones"


def test_the_weights_are_one_model_in_float32(trial: Trial) -> None:
    import ctranslate2
    from safetensors import safe_open

    (file,) = trial.weights[WHISPER].glob("*.safetensors")
    with safe_open(file, "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"F32"}  # noqa: SIM118
    assert ctranslate2.models.Whisper(str(trial.weights[CTRANSLATE2])).compute_type == "float32"
    assert (trial.weights[RUN] / "run.json").is_file()


# Models with random weights


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with random weights, made as those of Whisper's dimensions are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "mini", (64, 1, 2, 80))
        patch.setattr(inference, "tell", lambda message: None)
        options = argparse.Namespace(processor=None, tokens=12)
        made = inference.make_trial(options, "mini", tmp_path_factory.mktemp("random"))
    assert (made.tokens, set(made.weights)) == (12, {WHISPER, CTRANSLATE2})
    return made.weights[CTRANSLATE2]


@pytest.mark.parametrize("how", [{}, GREEDY])
def test_faster_whisper_writes_all_tokens_of_a_window_and_none_of_them_again(model: Path, how: dict) -> None:
    from faster_whisper import WhisperModel

    listen = WhisperModel(str(model), device="cpu")
    (file,) = read_clips()[0].files
    limit = limit_for(12, listen.model.is_multilingual, plain_transcribing.is_long(file), how)
    (segment,) = listen.transcribe(str(file), language="ko", max_new_tokens=limit, **how)[0]
    assert len(segment.tokens) == 12
    assert segment.avg_logprob > -1, "what is less likely is written again at other temperatures"
    assert segment.temperature == 0


def test_the_text_before_is_room_for_the_tokens_of_a_long_file() -> None:
    assert limit_for(24, True, False, {}) == 45
    assert limit_for(24, True, False, GREEDY) == limit_for(24, True, True, GREEDY) == 44
    assert limit_for(24, False, False, {}) == 47
    assert limit_for(24, True, True, {}) == 24
    assert limit_for(1, True, False, GREEDY) == 1


def test_a_model_that_is_sure_writes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import WhisperForConditionalGeneration

    monkeypatch.setitem(SIZES, "mini", (64, 1, 2, 80))
    features, tokens = torch.randn(2, 80, 3000), torch.arange(20).reshape(2, 10)
    scores = []
    for sure in (False, True):
        folder = make_model("mini", tmp_path / str(sure), endless=True, sure=sure, half=False)
        model = WhisperForConditionalGeneration.from_pretrained(folder)
        assert model.dtype == torch.float32
        with torch.no_grad():
            scores.append(model(input_features=features, decoder_input_ids=tokens).logits)
    assert torch.equal(scores[0].argmax(-1), scores[1].argmax(-1))
    assert scores[1].softmax(-1).amax(-1).mean() > 0.7 > scores[0].softmax(-1).amax(-1).mean()


# Speech


def test_a_long_recording_holds_all_clips_with_silence_between_them(tmp_path: Path) -> None:
    import numpy as np

    from asr.shared.audio import SAMPLE_RATE, load_audio

    clips = choose(read_clips(), 3, seed=1)
    said = [clip.text for clip in clips]
    twice = 2 * sum(clip.seconds for clip in clips)
    recording = write_recording(clips, twice, tmp_path / "a" / "long.flac", seed=1)
    (file,) = recording.files
    sound = load_audio(file)
    assert len(sound) == round(recording.seconds * SAMPLE_RATE)
    assert twice <= recording.seconds <= twice + max(clip.seconds for clip in clips) + PAUSES_S[1]
    first = next(clip for clip in clips if recording.text.startswith(clip.text))
    begins = load_audio(first.files[0])
    np.testing.assert_allclose(sound[: len(begins)], begins, atol=1e-4)
    assert not sound[len(begins) : len(begins) + int(PAUSES_S[0] * SAMPLE_RATE)].any()
    assert all(text in recording.text for text in said)
    again = write_recording(clips, twice, tmp_path / "again.flac", seed=1)
    assert (again.text, again.files[0].read_bytes()) == (recording.text, file.read_bytes())


def test_clips_are_copied_as_they_are_in_their_order(tmp_path: Path) -> None:
    clips = choose(read_clips(), 12, seed=1)
    copy_files(clips, tmp_path / "audio")
    copied = sorted((tmp_path / "audio").iterdir())
    assert [file.read_bytes() for file in copied] == [clip.files[0].read_bytes() for clip in clips]
    assert mean_seconds(clips) < WINDOW_S
    assert not any(map(plain_transcribing.is_long, copied))
    with pytest.raises(ValueError, match="too many"):
        copy_files([clips[0] + clips[1]], tmp_path / "joined")


@pytest.mark.parametrize("ffmpeg", ["", "/usr/bin/ffmpeg"])
def test_the_pipeline_gets_a_waveform_where_there_is_no_ffmpeg(monkeypatch: pytest.MonkeyPatch, ffmpeg: str) -> None:
    from asr.shared.audio import load_audio

    monkeypatch.setattr(plain_transcribing.shutil, "which", lambda name: ffmpeg or None)
    (file,) = read_clips()[0].files
    read = plain_transcribing.readable(file)
    if ffmpeg:
        assert read == str(file)
    else:
        assert abs(len(read) - len(load_audio(file))) < 2000, "decoders differ in what they leave of an mp3's beginning"


# Tables


def results_of(texts: dict[str, list[str]]) -> list[Result]:
    told = {"1": {"seconds": 60.0, "threads": 2}, "2": {"seconds": 30.0, "multilingual": True}}
    told["2"] |= {"segments": 9, "again": 4}
    seconds = {"1": 80.0, "2": 40.0, "4a": 20.0, "4b": 10.0}
    return [
        Result(contender, Usage(seconds[contender.row], 10**9), texts[contender.row], told.get(contender.row, {}))
        for contender in CONTENDERS
        if contender.row in texts
    ]


def test_a_table_compares_time_and_texts_with_the_rows_that_it_names(tmp_path: Path) -> None:
    work = Work("2 clips", tmp_path, ["가 나", "다"], 100.0)
    results = results_of({"1": ["가나", "다"], "2": ["가나", "라"], "4a": ["가", "다"], "4b": ["가", "다"]})
    results[-1] = replace(results[-1], contender=replace(results[-1].contender, like="2"))
    table = inference.as_table(results, Trial("mini", {}, tmp_path), work).splitlines()
    assert table[0] == "mini, float32, as many tokens as there are; 2 clips, 100.0 s of audio"
    assert table[2].endswith("of faster-whisper, 2 of torch, and so of the others")
    rows = [line for line in table if line.startswith("| ")]
    assert rows[1:] == [
        "| 1 transformers pipeline | 80.0 s | 1.25 | 0.50 | 1.00 | 60.0 s | 1,000 MB | 3 |  | 0.0000 |",
        "| 2 faster-whisper | 40.0 s | 2.50 | 1.00 | 2.00 | 30.0 s | 1,000 MB | 3 | 50.0 % of 1 | 0.3333 |",
        "| 4a inference.py, torch | 20.0 s | 5.00 | 2.00 | 4.00 |  | 1,000 MB | 2 | 100.0 % of 4b | 0.3333 |",
        "| 4b inference.py, CTranslate2 | 10.0 s | 10.00 | 4.00 | 8.00 |  | 1,000 MB | 2 | 0.0 % of 2 | 0.3333 |",
    ]
    assert len({line.count("|") for line in table if line.startswith("|")}) == 1
    assert table[-2:] == [
        "- 2: 4 of 9 segments at a higher temperature",
        "- inference.py does not tell its work alone: what starting takes is in the table of one clip alone",
    ]


def test_a_long_text_is_compared_by_its_characters_and_random_ones_with_no_transcript(tmp_path: Path) -> None:
    work = Work("one recording", tmp_path, ["가"], 100.0, joined=True)
    results = results_of({"1": ["가 나 다 라"], "2": ["가나다마"]})
    table = inference.as_table(results, Trial("mini", {}, tmp_path, tokens=24), work)
    assert "24 tokens of a window; one recording" in table
    assert "- faster-whisper fills up a window" in table
    assert "| CER 0.2500 to 1 |" in table
    assert "| CER |" not in table
    assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) == 1
    (_, theirs) = results_of({"1": [""], "2": ["가"]})
    assert inference.alike(theirs, replace(theirs, texts=[""]), joined=True) == "2 has none"


def test_texts_are_read_in_the_order_of_the_files(tmp_path: Path) -> None:
    work = Work("2 clips", tmp_path / "audio", ["가", "나"], 1.0)
    for folder, name, content in [
        ("audio", "000001.mp3", ""),
        ("audio", "000000.flac", ""),
        ("out", "000000.json", '{"text": " 가  나 "}'),
        ("out", "000001.json", '{"text": ""}'),
    ]:
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_text(content, encoding="utf-8")
    assert inference.read_texts(work, tmp_path / "out") == ["가 나", ""]


def test_the_command_line_names_what_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["inference", "--model-size", "demo", "--clips", "3", "--minutes", "0.5"])
    options = inference.parse()
    assert (options.model_size, options.clips, options.minutes, options.tokens) == (["demo"], 3, 0.5, 24)
    assert options.device == "cpu"
    clips = inference.clips_for(options, "demo")
    assert len(clips) == 3
    assert all("_test_" in clip.files[0].name for clip in clips)
