"""Preparation: every row ends as a clip in the bundle or, with its reason, in the report."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from datasets import Dataset, DatasetDict, load_from_disk
from transformers import WhisperProcessor

from asr.online.prepare import Tally, prepare
from asr.online.sources import Row
from asr.shared.audio import SAMPLE_RATE, load_audio
from asr.shared.processor import load_processor
from config import Data
from tests.conftest import DEMO_CORPUS, DEMO_MODEL, MEASURING_DATA, script
from utils import UserError

COLUMNS = {"audio", "text", "speaker", "duration_s", "source_id", "labels"}
REAL_PROCESSOR = MEASURING_DATA / "whisper-processor"
ONE_PROCESS = Data(num_proc=1)


@pytest.fixture(scope="module")
def processor() -> WhisperProcessor:
    return load_processor(DEMO_MODEL, "Korean", "transcribe")


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of known lengths, good and bad."""
    folder = tmp_path_factory.mktemp("sounds")
    for name, seconds, rate in [("1s", 1.0, 48_000), ("300ms", 0.3, 16_000), ("200ms", 0.2, 16_000)]:
        write_noise(folder / f"{name}.wav", seconds, rate)
    write_noise(folder / "30s.wav", 30.0, SAMPLE_RATE)
    write_noise(folder / "30.1s.wav", 30.1, SAMPLE_RATE)
    (folder / "garbage.mp3").write_bytes(b"<html>503</html>" * 100)
    (folder / "empty.mp3").write_bytes(b"")
    return folder


def write_noise(file: Path, seconds: float, rate: int) -> None:
    noise = 0.1 * np.random.default_rng(1).standard_normal((round(seconds * rate), 2))
    soundfile.write(file, noise, rate)


def row(audio: Path, text: str = "안녕하세요", split: str = "train", number: int = 0) -> Row:
    return Row(split, audio, text, f"speaker{number % 3}", f"test/{split}.tsv:{number}")


def good_rows(sounds: Path, count: int = 6) -> list[Row]:
    splits = ["train", "train", "validation", "test"]
    return [row(sounds / "1s.wav", f"문장 번호 {n}", splits[n % 4], n) for n in range(count)]


def spoilt_rows(sounds: Path) -> list[tuple[str, Row]]:
    """Rows that must be dropped, each with its reason."""
    return [
        ("empty text", row(sounds / "1s.wav", " \u200b\t", number=100)),
        ("unreadable audio", row(sounds / "missing.mp3", number=101)),
        ("unreadable audio", row(sounds / "garbage.mp3", split="test", number=102)),
        ("unreadable audio", row(sounds / "empty.mp3", number=103)),
        ("unreadable audio", row(sounds, number=104)),
        ("too short", row(sounds / "200ms.wav", number=105)),
        ("too long", row(sounds / "30.1s.wav", split="validation", number=106)),
        ("text too long", row(sounds / "1s.wav", "가나다라마" * 100, number=107)),
    ]


def stored(bundle: Path, split: str) -> list[dict[str, Any]]:
    return list(load_from_disk(str(bundle / "data" / split)))


def dropped_csv(bundle: Path) -> list[dict[str, str]]:
    with open(bundle / "reports" / "dropped.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def assert_data_holds(bundle: Path, texts: list[str]) -> None:
    assert [clip["text"] for clip in stored(bundle, "train")] == texts


# Every row is accounted for


def test_each_bad_row_is_dropped_with_its_reason(sounds: Path, tmp_path: Path, processor: WhisperProcessor) -> None:
    spoilt, good = spoilt_rows(sounds), good_rows(sounds)
    rows = [*good[:3], *(bad for _, bad in spoilt), *good[3:]]
    tally = prepare(rows, processor.tokenizer, ONE_PROCESS, tmp_path)
    assert [(verdict.reason, verdict.row) for verdict in tally.dropped] == spoilt
    assert tally.read == len(rows) == tally.kept.total() + len(tally.dropped)
    kept = {split: [clip["source_id"] for clip in stored(tmp_path, split)] for split in ("train", "validation", "test")}
    expected = {split: [r.source_id for r in good if r.split == split] for split in kept}
    assert kept == expected


def test_reports_agree_with_each_other_and_with_the_data(
    sounds: Path, tmp_path: Path, processor: WhisperProcessor
) -> None:
    spoilt = spoilt_rows(sounds)
    rows = [*good_rows(sounds), *(bad for _, bad in spoilt)]
    summary = prepare(rows, processor.tokenizer, ONE_PROCESS, tmp_path).summary()
    listed = dropped_csv(tmp_path)
    assert [(line["reason"], line["source_id"], line["split"]) for line in listed] == [
        (reason, bad.source_id, bad.split) for reason, bad in spoilt
    ]
    assert [line["text"] for line in listed] == [bad.text for _, bad in spoilt]
    assert summary["rows_read"] == 6 + len(spoilt)
    assert summary["rows_dropped"] == len(listed) == sum(summary["reasons"].values())
    assert summary["reasons"] == {reason: sum(line["reason"] == reason for line in listed) for reason in dict(spoilt)}
    for split, counted in summary["splits"].items():
        clips = stored(tmp_path, split)
        assert counted["clips"] == len(clips)
        assert counted["hours"] == pytest.approx(sum(clip["duration_s"] for clip in clips) / 3600, abs=1e-4)


def test_details_tell_lengths_and_causes(sounds: Path, tmp_path: Path, processor: WhisperProcessor) -> None:
    rows = [*good_rows(sounds), *(bad for _, bad in spoilt_rows(sounds))]
    details = [verdict.detail for verdict in prepare(rows, processor.tokenizer, ONE_PROCESS, tmp_path).dropped]
    assert "does not exist" in details[1]
    assert "decoded" in details[2]
    assert "empty" in details[3]
    assert details[5:7] == ["0.20 s", "30.10 s"]
    assert "tokens" in details[7]
    assert "448" in details[7]


@pytest.mark.parametrize(("name", "kept"), [("200ms", False), ("300ms", True), ("30s", True), ("30.1s", False)])
def test_limits_of_length_belong_to_what_is_kept(
    sounds: Path, tmp_path: Path, processor: WhisperProcessor, name: str, kept: bool
) -> None:
    tally = prepare([*good_rows(sounds, 1), row(sounds / f"{name}.wav")], processor.tokenizer, ONE_PROCESS, tmp_path)
    assert (len(tally.dropped) == 0) == kept


def test_limits_of_length_are_the_configurations(sounds: Path, tmp_path: Path, processor: WhisperProcessor) -> None:
    rows = [row(sounds / f"{name}.wav") for name in ("200ms", "300ms", "1s", "30s")]
    tally = prepare(rows, processor.tokenizer, Data(min_seconds=0.1, max_seconds=0.5, num_proc=1), tmp_path)
    assert [verdict.row.audio.stem for verdict in tally.dropped] == ["1s", "30s"]


def test_the_longest_text_that_whisper_can_write_is_kept(
    sounds: Path, tmp_path: Path, processor: WhisperProcessor
) -> None:
    """448 tokens with prompt and end; one more does not fit the decoder."""

    def text(tokens: int) -> str:
        syllables = ["가나다라마바사아"[n % 8] for n in range(448)]
        return next(
            candidate
            for candidate in ("".join(syllables[:count]) for count in range(1, 449))
            if len(processor.tokenizer(candidate).input_ids) == tokens
        )

    tally = prepare(
        [row(sounds / "1s.wav", text(tokens)) for tokens in (448, 449)], processor.tokenizer, ONE_PROCESS, tmp_path
    )
    assert [verdict.reason for verdict in tally.dropped] == ["text too long"]
    assert [len(clip["labels"]) for clip in stored(tmp_path, "train")] == [448]


# What is stored


def test_data_opens_with_plain_datasets(sounds: Path, tmp_path: Path, processor: WhisperProcessor) -> None:
    prepare(good_rows(sounds), processor.tokenizer, ONE_PROCESS, tmp_path)
    opened = load_from_disk(str(tmp_path / "data"))
    assert isinstance(opened, DatasetDict)
    assert set(opened) == {"train", "validation", "test"}
    for split in opened.values():
        assert isinstance(split, Dataset)
        assert set(split.column_names) == COLUMNS


def test_a_split_without_clips_opens_as_an_empty_one(sounds: Path, tmp_path: Path, processor: WhisperProcessor) -> None:
    """Training says that there is nothing to validate on; it can only do so where the data open."""
    prepare([row(sounds / "1s.wav")], processor.tokenizer, ONE_PROCESS, tmp_path)
    opened = load_from_disk(str(tmp_path / "data"))
    assert {split: len(rows) for split, rows in opened.items()} == {"train": 1, "validation": 0, "test": 0}
    assert set(opened["test"].column_names) == COLUMNS


def test_data_can_be_moved(sounds: Path, tmp_path: Path, processor: WhisperProcessor) -> None:
    """Audio lies in the tables themselves: neither the sources nor the old path are needed."""
    prepare(good_rows(sounds), processor.tokenizer, ONE_PROCESS, tmp_path / "bundle")
    moved = (tmp_path / "bundle").rename(tmp_path / "다른 곳")
    assert all(load_audio(clip["audio"]["bytes"]).size for clip in stored(moved, "train"))
    tables = b"".join(file.read_bytes() for file in moved.rglob("*") if file.is_file())
    assert str(tmp_path).encode() not in tables


def test_audio_is_16_khz_mono_flac_of_the_whole_clip(sounds: Path, tmp_path: Path, processor: WhisperProcessor) -> None:
    rows = good_rows(sounds)
    prepare(rows, processor.tokenizer, ONE_PROCESS, tmp_path)
    for clip in stored(tmp_path, "train"):
        data = clip["audio"]["bytes"]
        assert data[:4] == b"fLaC"
        file = tmp_path / "clip.flac"
        file.write_bytes(data)
        info = soundfile.info(file)
        assert (info.samplerate, info.channels, info.subtype) == (16_000, 1, "PCM_16")
        assert info.frames / 16_000 == pytest.approx(clip["duration_s"], abs=1e-6)
        assert clip["duration_s"] == pytest.approx(1.0, abs=0.001)
        source = load_audio(rows[0].audio)
        assert float(np.abs(load_audio(data) - source).max()) <= 1 / 32768


def test_text_is_cleaned_and_the_rest_is_kept(sounds: Path, tmp_path: Path, processor: WhisperProcessor) -> None:
    prepare([row(sounds / "1s.wav", "  큰\u3000소리\n", number=4)], processor.tokenizer, ONE_PROCESS, tmp_path)
    clip = stored(tmp_path, "train")[0]
    assert (clip["text"], clip["speaker"], clip["source_id"]) == ("큰 소리", "speaker1", "test/train.tsv:4")


@pytest.mark.parametrize(
    "text", ["안녕하세요", "한 낱말", "<|startoftranscript|>", "앞 <|endoftext|> 뒤", "<|ko|>", "뷁!"]
)
def test_labels_have_one_start_token_and_one_end(
    sounds: Path, tmp_path: Path, processor: WhisperProcessor, text: str
) -> None:
    """Whatever a sentence looks like: `decoder_start_token_id` once and first, EOS once and last."""
    config = json.loads((DEMO_MODEL / "config.json").read_text(encoding="utf-8"))
    prepare([row(sounds / "1s.wav", text)], processor.tokenizer, ONE_PROCESS, tmp_path)
    labels = stored(tmp_path, "train")[0]["labels"]
    assert labels[0] == config["decoder_start_token_id"]
    assert labels.count(config["decoder_start_token_id"]) == 1
    assert labels[-1] == config["eos_token_id"]
    assert labels.count(config["eos_token_id"]) == 1


def test_labels_begin_with_language_and_task_and_decode_to_the_text(
    sounds: Path, tmp_path: Path, processor: WhisperProcessor
) -> None:
    prepare(good_rows(sounds), processor.tokenizer, ONE_PROCESS, tmp_path)
    tokenizer = processor.tokenizer
    for clip in stored(tmp_path, "train"):
        prompt = ["<|startoftranscript|>", "<|ko|>", "<|transcribe|>", "<|notimestamps|>"]
        assert tokenizer.convert_ids_to_tokens(clip["labels"][:4]) == prompt
        assert tokenizer.decode(clip["labels"], skip_special_tokens=True) == clip["text"]


@pytest.mark.skipif(not REAL_PROCESSOR.is_dir(), reason="the real tokenizer lies beside the project, not in it")
def test_labels_of_the_real_tokenizer(sounds: Path, tmp_path: Path) -> None:
    """The check sentence, and what OpenAI's tokenizer makes of it."""
    real = load_processor(REAL_PROCESSOR, "Korean", "transcribe")
    sentence = "저는 서울중앙지검 지능범죄수사팀 최인호 검사입니다."
    expected = """50258 50264 50359 50363 11738 1098 31039 13907 48808 1831 1368 222 4704 16102 15810 242 3354 226 8449
    5727 169 3638 14571 4215 14705 20282 5727 7416 13 50257"""
    ids = [int(token) for token in expected.split()]
    assert real.tokenizer(sentence).input_ids == ids
    prepare([row(sounds / "1s.wav", sentence)], real.tokenizer, ONE_PROCESS, tmp_path)
    assert stored(tmp_path, "train")[0]["labels"] == ids


def test_a_language_that_whisper_does_not_know_is_told() -> None:
    with pytest.raises(UserError, match="--language Elvish"):
        load_processor(DEMO_MODEL, "Elvish", "transcribe")


# When something goes wrong


def test_an_exception_in_the_middle_leaves_the_old_data(
    sounds: Path, tmp_path: Path, processor: WhisperProcessor
) -> None:
    def rows() -> Iterator[Row]:
        yield from good_rows(sounds)
        raise OSError("the disk went away")

    prepare([row(sounds / "1s.wav", "옛 문장")], processor.tokenizer, ONE_PROCESS, tmp_path)
    with pytest.raises(OSError, match="the disk went away"):
        prepare(rows(), processor.tokenizer, ONE_PROCESS, tmp_path)
    assert_data_holds(tmp_path, ["옛 문장"])
    assert {path.name for path in tmp_path.iterdir()} == {"data", "reports"}


def test_new_data_replace_the_old_and_nothing_else_stays(
    sounds: Path, tmp_path: Path, processor: WhisperProcessor
) -> None:
    prepare(good_rows(sounds), processor.tokenizer, ONE_PROCESS, tmp_path)
    prepare([row(sounds / "1s.wav", "새 문장")], processor.tokenizer, ONE_PROCESS, tmp_path)
    assert_data_holds(tmp_path, ["새 문장"])
    assert {path.name for path in tmp_path.iterdir()} == {"data", "reports"}


@pytest.mark.parametrize("rows", ["none at all", "none that is good", "none to train on"])
def test_nothing_to_train_on_is_the_users_error(
    sounds: Path, tmp_path: Path, processor: WhisperProcessor, rows: str
) -> None:
    given = {
        "none at all": [],
        "none that is good": [bad for _, bad in spoilt_rows(sounds)],
        "none to train on": [row(sounds / "1s.wav", split="test")],
    }[rows]
    with pytest.raises(UserError, match="no training clip") as raised:
        prepare(given, processor.tokenizer, ONE_PROCESS, tmp_path)
    assert raised.value.exit_code == 2
    assert "\n" not in str(raised.value)
    assert f"{len(given)} rows" in str(raised.value)
    assert not (tmp_path / "data").exists()


def test_data_before_model_is_told(tmp_path: Path) -> None:
    done = script("download_data.py", "--common-voice", DEMO_CORPUS, "--bundle-dir", tmp_path / "bundle")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "download_model.py first" in done.stderr


# On several cores


def test_two_processes_give_what_one_gives(sounds: Path, tmp_path: Path, processor: WhisperProcessor) -> None:
    rows = [*good_rows(sounds, 20), *(bad for _, bad in spoilt_rows(sounds))]
    results: list[tuple[Tally, list[Any], bytes]] = []
    for processes in (1, 2):
        bundle = tmp_path / str(processes)
        tally = prepare(rows, processor.tokenizer, Data(num_proc=processes), bundle)
        clips = [stored(bundle, split) for split in ("train", "validation", "test")]
        results.append((tally, clips, (bundle / "reports" / "dropped.csv").read_bytes()))
    assert results[0] == results[1]


def test_an_error_of_the_source_comes_through_two_processes(
    sounds: Path, tmp_path: Path, processor: WhisperProcessor
) -> None:
    def rows() -> Iterator[Row]:
        yield from good_rows(sounds)
        raise UserError("train.tsv: the column path is missing")

    with pytest.raises(UserError, match="the column path is missing"):
        prepare(rows(), processor.tokenizer, Data(num_proc=2), tmp_path)
    assert not (tmp_path / "data").exists()
