"""Preparation: every row ends as a clip or, with its reason, in the report; and an interruption shows nowhere."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, load_from_disk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import WhisperProcessor

from asr.online import parts
from asr.online.prepare import prepare
from asr.online.sealing import report_model
from asr.online.sources.row import Announce, Row
from asr.shared.audio import load_audio
from asr.shared.processor import load_processor
from config import Bundle, Cleaning, Data, Storage
from download_data import tell
from tests.conftest import DEMO_CORPUS, DEMO_MODEL, MEASURING_DATA, ROOT, script
from tests.online.test_workers import Deadly, still_running
from tests.sounds import in_format, noise, wav
from utils import Interrupted, UserError, log

COLUMNS = {"audio", "text", "speaker", "duration_s", "source", "source_id", "labels"}
SPLITS = ("train", "validation", "test")
REAL_PROCESSOR = MEASURING_DATA / "whisper-processor"
REPEATABLE = settings(derandomize=True, deadline=None, database=None)


@pytest.fixture(scope="module")
def processor() -> WhisperProcessor:
    return load_processor(DEMO_MODEL, "Korean", "transcribe")


Prepare = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def run(processor: WhisperProcessor) -> Prepare:
    """Prepares rows into a bundle; settings are those of cleaning and storage."""

    def prepared(rows: Iterable[Row], bundle: Path, mel: tuple[int, int] = (80, 3000), **values: Any) -> dict[str, Any]:
        storage = Storage(store=values.pop("store", "audio"), num_proc=values.pop("num_proc", 1))
        data = Data(cleaning=Cleaning(**values), storage=storage)
        return prepare(lambda announce: rows, processor.tokenizer, data, bundle, {}, mel)

    return prepared


def row(number: int, split: str = "", text: str = "", **values: Any) -> Row:
    """A row that is unlike any other, with 0.4 s of noise of its own."""
    made = Row("test", f"test:{number}", wav(noise(0.4, seed=number)), text or f"{number}번", split, f"s{number % 7}")
    return replace(made, **values)


def good_rows(count: int = 8) -> list[Row]:
    return [row(number, ["train", "train", "validation", "test"][number % 4]) for number in range(count)]


def spoilt_rows(tmp_path: Path) -> list[tuple[str, Row]]:
    """Rows that must be dropped, each with its reason."""
    first, held_out = row(0), row(3)
    samples = noise(0.4)
    samples[7] = np.nan
    return [
        ("missing audio", row(100, "train", audio=tmp_path / "none.wav")),
        ("unreadable audio", row(101, "train", audio=b"<html>503</html>" * 50)),
        ("truncated audio", row(102, "train", audio=wav(noise(2))[:40_000])),
        ("empty audio", row(103, "test", audio=b"")),
        ("silent", row(104, "train", audio=wav(np.zeros(8000, np.float32)))),
        ("clipped", row(105, "train", audio=wav(np.ones(8000, np.float32)))),
        ("too short", row(106, "train", audio=wav(noise(0.2)))),
        ("too long", row(107, "validation", audio=wav(noise(30.1, 8_000), 8_000))),
        ("samples not finite", row(108, "train", audio=wav(samples, subtype="FLOAT"))),
        ("empty text", row(109, "train", " \u200b\t")),
        ("speaks too fast", row(110, "train", "가나다라마바사아자차")),
        ("speaks too slowly", row(111, "train", "네", audio=wav(noise(6)))),
        ("text too long", row(112, "train", "!" * 460 + "네")),
        ("malformed row", row(113, "train", "\ud800네")),
        (
            "no audio named",
            row(114, "", "네", audio=b"", refused="no audio named", detail="column audio holds nothing"),
        ),
        ("duplicate audio", row(115, "train", audio=first.audio)),
        ("duplicate text of the speaker", row(116, "train", first.text, speaker=first.speaker)),
        ("audio leaks from a held-out split", row(117, "train", audio=held_out.audio)),
        ("speaker and text leak from a held-out split", row(118, "train", held_out.text, speaker=held_out.speaker)),
    ]


def stored(bundle: Path, split: str = "train") -> list[dict[str, Any]]:
    return list(load_from_disk(str(bundle / "data" / split)))


def dropped_csv(bundle: Path) -> list[dict[str, str]]:
    return read_dropped(bundle / "reports" / "dropped.csv")


def read_dropped(file: Path) -> list[dict[str, str]]:
    with open(file, encoding="utf-8-sig", newline="") as table:
        return list(csv.DictReader(table))


def result(bundle: Path) -> dict[str, bytes]:
    """Every byte that must not hang on how the work was interrupted or shared out."""
    files = [file for file in (bundle / "data").rglob("*") if file.is_file()]
    return {str(file.relative_to(bundle)): file.read_bytes() for file in [*files, bundle / "reports" / "dropped.csv"]}


# Every row is accounted for


def test_each_bad_row_is_dropped_with_its_reason(tmp_path: Path, run: Prepare) -> None:
    spoilt, good = spoilt_rows(tmp_path), good_rows()
    rows = [*good[:4], *(bad for _, bad in spoilt), *good[4:]]
    figures = run(rows, tmp_path / "bundle")
    listed = dropped_csv(tmp_path / "bundle")
    assert {line["source_id"]: line["reason"] for line in listed} == {bad.source_id: reason for reason, bad in spoilt}
    assert {line["source_id"]: line["split"] for line in listed} == {bad.source_id: bad.split for _, bad in spoilt}
    assert figures["rows_read"] == len(rows)
    assert figures["reasons"] == dict.fromkeys(dict(spoilt), 1)
    kept = {split: [clip["source_id"] for clip in stored(tmp_path / "bundle", split)] for split in SPLITS}
    assert kept == {split: [r.source_id for r in good if r.split == split] for split in SPLITS}


def test_details_tell_what_was_found(tmp_path: Path, run: Prepare) -> None:
    run([*good_rows(), *(bad for _, bad in spoilt_rows(tmp_path))], tmp_path / "bundle")
    details = {line["reason"]: line["detail"] for line in dropped_csv(tmp_path / "bundle")}
    assert "none.wav" in details["missing audio"]
    assert details["too short"] == "0.20 s"
    assert details["too long"] == "30.10 s"
    assert "448" in details["text too long"]
    assert details["no audio named"] == "column audio holds nothing"
    for reason, other in {
        "duplicate audio": 0,
        "duplicate text of the speaker": 0,
        "audio leaks from a held-out split": 3,
        "speaker and text leak from a held-out split": 3,
    }.items():
        assert details[reason] == f"see test:{other}"


def test_the_row_that_a_repeat_points_to_may_lie_in_another_part(
    tmp_path: Path, run: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PART_ROWS", 3)
    rows = [row(number, "train") for number in range(12)]
    rows += [row(100 + number, "train", audio=rows[number].audio) for number in range(12)]
    run(rows, tmp_path / "bundle")
    found = [(line["source_id"], line["detail"]) for line in dropped_csv(tmp_path / "bundle")]
    assert found == [(f"test:{100 + number}", f"see test:{number}") for number in range(12)]


def test_reports_agree_with_each_other_and_with_the_data(
    tmp_path: Path, run: Prepare, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [*good_rows(), *(bad for _, bad in spoilt_rows(tmp_path))]
    bundle = tmp_path / "bundle"
    figures = run(rows, bundle)
    assert_totals_add_up(figures, bundle, len(rows))
    page = (bundle / "reports" / "data.html").read_text(encoding="utf-8")
    for name in ("rows_read", "rows_kept", "rows_dropped"):
        assert re.search(rf"\b{figures[name]}\b", page)
    assert [reason for reason in figures["reasons"] if reason not in page] == []
    assert "This is a fault of the suite" not in page
    with caplog.at_level("INFO", logger=log.name):
        tell(figures, Bundle(bundle))
    assert f"rows read {len(rows)} = kept 8 + dropped {len(rows) - 8}" in caplog.text
    assert all(f"dropped {count}: {reason}" in caplog.text for reason, count in figures["reasons"].items())


def assert_totals_add_up(figures: dict[str, Any], bundle: Path, rows: int) -> None:
    listed = dropped_csv(bundle)
    clips = {split: stored(bundle, split) for split in SPLITS}
    assert figures["rows_read"] == rows == sum(source["read"] for source in figures["sources"].values())
    assert figures["rows_dropped"] == len(listed) == sum(figures["reasons"].values())
    assert figures["rows_kept"] == sum(map(len, clips.values())) == rows - len(listed)
    assert Counter(line["reason"] for line in listed) == figures["reasons"]
    for split, counted in figures["splits"].items():
        assert counted["clips"] == len(clips[split])
        assert counted["hours"] == pytest.approx(sum(clip["duration_s"] for clip in clips[split]) / 3600, abs=1e-4)
        assert counted["characters"] == sum(len(clip["text"]) for clip in clips[split])


ANY = st.text(st.characters(codec=None), max_size=20)
SOUNDS = st.sampled_from(["wav", "flac", "ogg", "mp3", "m4a"]).map(lambda name: in_format(name, 0.5))
AUDIO = st.one_of(
    st.binary(max_size=100),
    SOUNDS,
    st.tuples(SOUNDS, st.floats(0, 1)).map(lambda pair: pair[0][: int(pair[1] * len(pair[0]))]),
    st.integers(0, 5).map(lambda seed: wav(noise(0.5, seed=seed))),
    st.sampled_from(["none.wav", "\udcff.wav", "a\0b.wav", ".", "x" * 5000]).map(Path),
)
ROWS = st.lists(
    st.builds(
        Row,
        source=st.sampled_from(["table", "sql"]),
        source_id=ANY,
        audio=AUDIO,
        text=ANY | st.sampled_from(["네", "안녕", "\ud800", "가\0나", "가" * 100_000]),
        split=st.sampled_from(["", "train", "validation", "test"]),
        speaker=ANY | st.sampled_from(["", "kim", "lee"]),
        refused=st.sampled_from(["", "", "", "malformed row"]),
        detail=ANY,
    ),
    max_size=14,
)


@given(ROWS, st.booleans())
@settings(REPEATABLE, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
def test_no_row_vanishes_whatever_it_holds(
    tmp_path_factory: pytest.TempPathFactory, run: Prepare, rows: list[Row], features: bool
) -> None:
    bundle = tmp_path_factory.mktemp("any") / "bundle"
    rows = [*rows, row(1, "train", "네"), row(2, "train", "넷")]
    figures = run(rows, bundle, store="features" if features else "audio")
    assert_totals_add_up(figures, bundle, len(rows))
    assert "could not be judged" not in figures["reasons"]
    json.dumps(figures, ensure_ascii=False).encode()


# What is kept


@pytest.mark.parametrize(("tokens", "kept"), [(448, True), (449, False)])
def test_the_longest_text_that_whisper_can_write_is_kept(
    tmp_path: Path, run: Prepare, processor: WhisperProcessor, tokens: int, kept: bool
) -> None:
    """448 tokens with prompt and end; one more does not fit the decoder."""
    syllables = "".join("가나다라마바사아"[n % 8] for n in range(448))
    texts = {len(processor.tokenizer(syllables[:count]).input_ids): syllables[:count] for count in range(449)}
    rows = [row(1, "train"), row(2, "train", texts[tokens])]
    figures = run(rows, tmp_path / "bundle", max_syllables_per_second=10_000)
    assert figures["reasons"] == ({} if kept else {"text too long": 1})
    assert (max(len(clip["labels"]) for clip in stored(tmp_path / "bundle")) == 448) == kept


def test_repeats_stay_where_that_is_asked_for(tmp_path: Path, run: Prepare) -> None:
    rows = [row(1, "train"), row(8, "train", "1번"), row(15, "train", "1번", audio=row(1).audio)]
    assert run(rows, tmp_path / "drop")["reasons"] == {"duplicate audio": 1, "duplicate text of the speaker": 1}
    assert run(rows, tmp_path / "keep", keep_repeats=True)["reasons"] == {"duplicate audio": 1}


def test_unknown_speakers_may_say_the_same(tmp_path: Path, run: Prepare) -> None:
    rows = [row(number, "train", "네", speaker="") for number in range(5)]
    assert run(rows, tmp_path / "bundle")["rows_kept"] == 5


def test_equal_samples_in_two_formats_are_duplicates(tmp_path: Path, run: Prepare) -> None:
    pcm = (noise(0.5) * 32767).astype(np.int16)
    rows = [row(1, "train", audio=wav(pcm)), row(2, "train", audio=wav(pcm, file_format="FLAC"))]
    assert run(rows, tmp_path / "bundle")["reasons"] == {"duplicate audio": 1}


def test_clips_are_no_longer_than_the_models_window(
    tmp_path: Path, run: Prepare, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [row(1, "train"), row(2, "train", audio=wav(noise(5.1)))]
    with caplog.at_level("INFO", logger=log.name):
        assert run(rows, tmp_path / "bundle", mel=(80, 500))["reasons"] == {"too long": 1}
    assert "up to 5 s" in caplog.text


def test_splits_that_no_source_gives_are_made(tmp_path: Path, run: Prepare) -> None:
    rows = [row(number, speaker=f"s{number // 2}") for number in range(60)]
    figures = run(rows, tmp_path / "bundle")
    assert {split: figures["splits"][split]["clips"] for split in SPLITS} == {"train": 48, "validation": 6, "test": 6}
    assert figures["shared"] == {"speakers": 0, "sentences": 0}
    run(rows, tmp_path / "again", split_seed=43)
    assert result(tmp_path / "again") != result(tmp_path / "bundle")


def test_groups_that_cannot_be_divided_leave_the_bundle_as_it_is(tmp_path: Path, run: Prepare) -> None:
    run([row(1, "train")], tmp_path / "bundle")
    before = result(tmp_path / "bundle")
    with pytest.raises(UserError, match="--group-column"):
        run([row(number, group="one call") for number in range(20)], tmp_path / "bundle")
    assert result(tmp_path / "bundle") == before


# What is stored


def test_data_open_with_plain_datasets(tmp_path: Path, run: Prepare) -> None:
    run(good_rows(), tmp_path)
    opened = load_from_disk(str(tmp_path / "data"))
    assert isinstance(opened, DatasetDict)
    assert set(opened) == set(SPLITS)
    for split in opened.values():
        assert isinstance(split, Dataset)
        assert set(split.column_names) == COLUMNS


def test_a_split_without_clips_opens_as_an_empty_one(tmp_path: Path, run: Prepare) -> None:
    """Training says that there is nothing to validate on; it can only do so where the data open."""
    run([row(1, "train")], tmp_path)
    opened = load_from_disk(str(tmp_path / "data"))
    assert {split: len(rows) for split, rows in opened.items()} == {"train": 1, "validation": 0, "test": 0}
    assert set(opened["test"].column_names) == COLUMNS


def test_data_can_be_moved(tmp_path: Path, run: Prepare) -> None:
    """Audio lies in the tables themselves: neither the sources nor the old path are needed."""
    (tmp_path / "원본.wav").write_bytes(wav(noise(0.5)))
    run([row(1, "train", audio=tmp_path / "원본.wav")], tmp_path / "bundle")
    moved = (tmp_path / "bundle").rename(tmp_path / "다른 곳")
    (clip,) = stored(moved)
    assert clip["audio"]["path"] == "원본.flac"
    assert load_audio(clip["audio"]["bytes"]).size == 8000
    tables = b"".join(file.read_bytes() for file in moved.rglob("*") if file.is_file())
    assert str(tmp_path).encode() not in tables


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has file names of any bytes")
def test_a_file_whose_name_is_of_another_encoding_is_read(tmp_path: Path, run: Prepare) -> None:
    """Shares that a Korean Windows wrote have names in CP949."""
    file = tmp_path / os.fsdecode("녹음".encode("cp949") + b".wav")
    file.write_bytes(wav(noise(0.5)))
    missing = tmp_path / os.fsdecode("없음".encode("cp949") + b".wav")
    run([row(1, "train", audio=file), row(2, "train", audio=missing, source_id=str(missing))], tmp_path / "bundle")
    assert [clip["audio"]["path"] for clip in stored(tmp_path / "bundle")] == [r"\udcb3\udcec\udcc0\udcbd.flac"]
    (listed,) = dropped_csv(tmp_path / "bundle")
    assert listed["reason"] == "missing audio"
    assert r"\udcbe\udcf8" in listed["source_id"]
    assert r"\udcbe\udcf8" in listed["detail"]


def test_audio_is_16_khz_mono_flac_of_the_whole_clip(tmp_path: Path, run: Prepare) -> None:
    stereo = np.stack([noise(0.5, 48_000)] * 2, axis=1)
    run([row(1, "train", audio=wav(stereo, 48_000))], tmp_path)
    (clip,) = stored(tmp_path)
    assert clip["audio"]["bytes"][:4] == b"fLaC"
    assert clip["duration_s"] == pytest.approx(0.5, abs=1e-6)
    heard = load_audio(clip["audio"]["bytes"])
    assert len(heard) == 8000
    assert float(np.abs(heard - load_audio(wav(stereo, 48_000))).max()) <= 1 / 32768


def test_text_is_cleaned_and_the_rest_is_kept(tmp_path: Path, run: Prepare) -> None:
    run([row(4, "train", "  큰\u3000소리\n")], tmp_path)
    clip = stored(tmp_path)[0]
    told = (clip["text"], clip["speaker"], clip["source"], clip["source_id"])
    assert told == ("큰 소리", "s4", "test", "test:4")


@pytest.mark.parametrize("bins", [80, 128])
def test_features_are_half_floats_of_the_real_length(tmp_path: Path, run: Prepare, bins: int) -> None:
    rows = [row(1, "train", audio=wav(noise(0.5))), row(2, "train", audio=wav(noise(3, seed=1)))]
    run(rows, tmp_path, mel=(bins, 3000), store="features")
    opened = load_from_disk(str(tmp_path / "data"))["train"]
    assert set(opened.column_names) == COLUMNS - {"audio"} | {"log_mel"}
    for clip in opened:
        values = np.frombuffer(clip["log_mel"], "<f2")
        frames = round(100 * clip["duration_s"])
        assert frames * bins < len(values) <= (frames + 3) * bins
        assert np.isfinite(values).all()


@pytest.mark.parametrize(
    "text", ["안녕하세요", "한 낱말", "<|startoftranscript|>", "앞 <|endoftext|> 뒤", "<|ko|>", "뷁!"]
)
def test_labels_have_one_start_token_and_one_end(tmp_path: Path, run: Prepare, text: str) -> None:
    """Whatever a sentence looks like: `decoder_start_token_id` once and first, EOS once and last."""
    config = json.loads((DEMO_MODEL / "config.json").read_text(encoding="utf-8"))
    run([row(1, "train", text, audio=wav(noise(1)))], tmp_path)
    labels = stored(tmp_path)[0]["labels"]
    assert labels[0] == config["decoder_start_token_id"]
    assert labels.count(config["decoder_start_token_id"]) == 1
    assert labels[-1] == config["eos_token_id"]
    assert labels.count(config["eos_token_id"]) == 1


def test_labels_begin_with_language_and_task_and_decode_to_the_text(
    tmp_path: Path, run: Prepare, processor: WhisperProcessor
) -> None:
    run(good_rows(), tmp_path)
    tokenizer = processor.tokenizer
    for clip in stored(tmp_path):
        prompt = ["<|startoftranscript|>", "<|ko|>", "<|transcribe|>", "<|notimestamps|>"]
        assert tokenizer.convert_ids_to_tokens(clip["labels"][:4]) == prompt
        assert tokenizer.decode(clip["labels"], skip_special_tokens=True) == clip["text"]


@pytest.mark.skipif(not REAL_PROCESSOR.is_dir(), reason="the real tokenizer lies beside the project, not in it")
def test_labels_of_the_real_tokenizer(tmp_path: Path) -> None:
    """The check sentence, and what OpenAI's tokenizer makes of it."""
    real = load_processor(REAL_PROCESSOR, "Korean", "transcribe")
    sentence = "저는 서울중앙지검 지능범죄수사팀 최인호 검사입니다."
    expected = """50258 50264 50359 50363 11738 1098 31039 13907 48808 1831 1368 222 4704 16102 15810 242 3354 226 8449
    5727 169 3638 14571 4215 14705 20282 5727 7416 13 50257"""
    ids = [int(token) for token in expected.split()]
    assert real.tokenizer(sentence).input_ids == ids
    rows = [row(1, "train", sentence, audio=wav(noise(3)))]
    prepare(lambda announce: rows, real.tokenizer, Data(storage=Storage(num_proc=1)), tmp_path)
    assert stored(tmp_path)[0]["labels"] == ids


def test_a_language_that_whisper_does_not_know_is_told() -> None:
    with pytest.raises(UserError, match="--language Elvish"):
        load_processor(DEMO_MODEL, "Elvish", "transcribe")


# When something goes wrong


def failing(rows: list[Row], error: BaseException) -> Iterator[Row]:
    yield from rows
    raise error


def test_an_exception_in_the_middle_leaves_the_old_data(tmp_path: Path, run: Prepare) -> None:
    bundle = tmp_path / "bundle"
    run([row(1, "train", "옛 글")], bundle)
    before = result(bundle)
    with pytest.raises(OSError, match="the disk went away"):
        run(failing(good_rows(), OSError("the disk went away")), bundle)
    assert result(bundle) == before
    assert {path.name for path in bundle.iterdir()} == {"data", "reports"}


def test_new_data_replace_the_old_and_nothing_else_stays(tmp_path: Path, run: Prepare) -> None:
    bundle = tmp_path / "bundle"
    run(good_rows(), bundle)
    run([row(1, "train", "새 글")], bundle)
    assert [clip["text"] for clip in stored(bundle)] == ["새 글"]
    assert {path.name for path in bundle.iterdir()} == {"data", "reports"}
    assert {path.name for path in tmp_path.iterdir()} == {"bundle"}, "the parts are gone"


@pytest.mark.parametrize("rows", ["none at all", "none that is good", "none to train on"])
def test_nothing_to_train_on_is_the_users_error(tmp_path: Path, run: Prepare, rows: str) -> None:
    spoilt = [bad for _, bad in spoilt_rows(tmp_path)][:15]
    given_rows = {"none at all": [], "none that is good": spoilt, "none to train on": [row(1, "test")]}[rows]
    with pytest.raises(UserError, match="no training clip") as raised:
        run(given_rows, tmp_path / "bundle")
    assert raised.value.exit_code == 2
    assert "\n" not in str(raised.value)
    assert f"{len(given_rows)} rows" in str(raised.value)
    assert not (tmp_path / "bundle" / "data").exists()
    listed = read_dropped(tmp_path / "bundle.work" / "dropped.csv")
    assert len(listed) == len(given_rows) - (rows == "none to train on")
    assert str(tmp_path / "bundle.work" / "dropped.csv") in str(raised.value)


def test_strict_fails_on_any_drop_and_says_which(tmp_path: Path, run: Prepare) -> None:
    rows = [*good_rows(), row(100, "train", audio=b"")]
    with pytest.raises(UserError, match="--strict: 1 of 9 rows") as raised:
        run(rows, tmp_path / "bundle", strict=True)
    assert "test:100" in str(raised.value)
    assert not (tmp_path / "bundle" / "data").exists()
    assert [line["reason"] for line in read_dropped(tmp_path / "bundle.work" / "dropped.csv")] == ["empty audio"]
    assert run(good_rows(), tmp_path / "bundle", strict=True)["rows_dropped"] == 0


def test_two_preparations_of_one_bundle_do_not_mix(tmp_path: Path, run: Prepare) -> None:
    """The second would take the first one's parts away."""

    def rows_while_another_tries() -> Iterator[Row]:
        with pytest.raises(UserError, match="another process is preparing this bundle"):
            run(good_rows(), tmp_path / "bundle")
        yield from good_rows()

    assert run(rows_while_another_tries(), tmp_path / "bundle")["rows_kept"] == len(good_rows())
    assert run(good_rows(), tmp_path / "bundle")["rows_kept"] == len(good_rows())


def test_data_before_model_is_told(tmp_path: Path) -> None:
    done = script("download_data.py", "--common-voice", DEMO_CORPUS, "--bundle-dir", tmp_path / "bundle")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "download_model.py first" in done.stderr


def test_progress_is_of_all_rows_that_are_announced(processor: WhisperProcessor, tmp_path: Path, capsys: Any) -> None:
    def read(announce: Announce) -> Iterator[Row]:
        for source in (good_rows()[:5], good_rows()[5:]):
            announce(len(source))
            yield from source

    prepare(read, processor.tokenizer, Data(storage=Storage(num_proc=1)), tmp_path / "bundle")
    assert "8/8" in capsys.readouterr().err


# On several cores


def test_any_number_of_processes_gives_the_same_bytes(tmp_path: Path, run: Prepare) -> None:
    rows = [*good_rows(40), *(bad for _, bad in spoilt_rows(tmp_path))]
    for processes in (1, 2, 3):
        run(rows, tmp_path / str(processes), num_proc=processes)
    assert result(tmp_path / "1") == result(tmp_path / "2") == result(tmp_path / "3")


def test_an_error_of_the_source_comes_through_two_processes(tmp_path: Path, run: Prepare) -> None:
    with pytest.raises(UserError, match="the column path is missing"):
        run(failing(good_rows(), UserError("train.tsv: the column path is missing")), tmp_path / "bundle", num_proc=2)
    assert not (tmp_path / "bundle" / "data").exists()


def test_a_sound_that_kills_the_decoder_costs_its_row_alone(
    tmp_path: Path, run: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asr.online.prepare.Judge", Deadly)
    rows = [row(number, "train", "끝" if number in (3, 17) else "") for number in range(20)]
    figures = run(rows, tmp_path / "bundle", num_proc=2)
    assert_totals_add_up(figures, tmp_path / "bundle", 20)
    listed = [(line["source_id"], line["reason"], line["detail"]) for line in dropped_csv(tmp_path / "bundle")]
    told = ("unreadable audio", "decoding it ended the process")
    assert listed == [("test:3", *told), ("test:17", *told)]


# Interrupted


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Small parts, and a list that grows with each clip that is decoded."""
    from asr.online import judging

    monkeypatch.setattr(parts, "PART_ROWS", 16)
    decoded: list[int] = []

    def counting(*arguments: Any, **options: Any) -> Any:
        decoded.append(1)
        return read_audio(*arguments, **options)

    read_audio = judging.read_audio
    monkeypatch.setattr(judging, "read_audio", counting)
    return decoded


def many_rows(count: int = 70) -> list[Row]:
    """Good ones, repeats, and bad ones, none of them with a split."""
    rows = [row(number, speaker=f"s{number // 3}") for number in range(count)]
    return [
        replace(one, audio=rows[n - 9].audio) if n % 10 == 9 else replace(one, audio=b"?") if n % 10 == 4 else one
        for n, one in enumerate(rows)
    ]


@pytest.mark.parametrize("at", [0, 1, 15, 16, 17, 40, 69, 70])
def test_interrupted_and_run_again_ends_bit_identical(tmp_path: Path, run: Prepare, judged: list[int], at: int) -> None:
    run(many_rows(), tmp_path / "whole" / "bundle")
    with pytest.raises(Interrupted, match="the same command goes on"):
        run(failing(many_rows()[:at], KeyboardInterrupt()), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
    judged.clear()
    run(many_rows(), tmp_path / "bundle")
    assert result(tmp_path / "bundle") == result(tmp_path / "whole" / "bundle")
    assert len(judged) == 70 - at // 16 * 16
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "bundle"}


def test_interrupted_on_two_cores(
    tmp_path: Path, run: Prepare, judged: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was under way is lost, no more."""
    monkeypatch.setattr("asr.online.workers.CHUNKS_AHEAD", 4)
    run(many_rows(150), tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(failing(many_rows(150)[:140], KeyboardInterrupt()), tmp_path / "bundle", num_proc=2)
    judged.clear()
    run(many_rows(150), tmp_path / "bundle")
    assert result(tmp_path / "bundle") == result(tmp_path / "whole")
    assert len(judged) <= 150 - 64


def test_interrupted_while_storing(
    tmp_path: Path, run: Prepare, judged: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(many_rows(), tmp_path / "whole")

    def interrupted(folder: Path, splits: tuple[str, ...]) -> None:
        raise KeyboardInterrupt(folder, splits)

    with monkeypatch.context() as patched:
        patched.setattr("asr.online.prepare.write_dict", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(many_rows(), tmp_path / "bundle")
    assert not (tmp_path / "bundle" / "data").exists()
    judged.clear()
    run(many_rows(), tmp_path / "bundle")
    assert result(tmp_path / "bundle") == result(tmp_path / "whole")
    assert len(judged) == 6, "only the last part, which may have been short for want of rows"


CHANGES: dict[str, Callable[[list[Row]], list[Row]]] = {
    "rows appended": lambda rows: [*rows, row(200), row(201)],
    "a row inserted": lambda rows: [*rows[:20], row(200), *rows[20:]],
    "rows removed from the end": lambda rows: rows[:50],
    "whole parts removed from the end": lambda rows: rows[:32],
    "rows removed from the beginning": lambda rows: rows[3:],
    "a text changed": lambda rows: [*rows[:20], replace(rows[20], text="다른 글"), *rows[21:]],
    "a sound changed": lambda rows: [*rows[:20], replace(rows[20], audio=wav(noise(0.4, seed=999))), *rows[21:]],
    "a speaker changed": lambda rows: [replace(rows[0], speaker="other"), *rows[1:]],
    "a split given": lambda rows: [replace(one, split="test") if n < 9 else one for n, one in enumerate(rows)],
    "a refusal with another detail": lambda rows: [replace(rows[0], refused="no", detail="b"), *rows[1:]],
    "another order": lambda rows: rows[::-1],
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_before_the_second_run_is_as_in_a_fresh_one(
    tmp_path: Path, run: Prepare, judged: list[int], change: str
) -> None:
    before = [replace(one, refused="no", detail="a") if n == 0 and "detail" in change else one
              for n, one in enumerate(many_rows())]  # fmt: skip
    after = CHANGES[change](before)
    with pytest.raises(Interrupted):
        run(failing(before, KeyboardInterrupt()), tmp_path / "bundle")
    assert len(judged) >= 69
    run(after, tmp_path / "bundle")
    run(after, tmp_path / "fresh")
    assert result(tmp_path / "bundle") == result(tmp_path / "fresh")


def test_a_file_that_was_written_again_is_read_again(tmp_path: Path, run: Prepare, judged: list[int]) -> None:
    files = [tmp_path / f"{number}.wav" for number in range(40)]
    for number, file in enumerate(files):
        file.write_bytes(wav(noise(0.4, seed=number)))
    rows = [row(number, audio=file) for number, file in enumerate(files)]
    files[30].unlink()
    with pytest.raises(Interrupted):
        run(failing(rows, KeyboardInterrupt()), tmp_path / "bundle")
    files[5].write_bytes(wav(noise(0.4, seed=500)))
    files[30].write_bytes(wav(noise(0.4, seed=30)))
    judged.clear()
    figures = run(rows, tmp_path / "bundle")
    assert len(judged) == 40
    assert figures["rows_kept"] == 40, "the missing file has come"
    run(rows, tmp_path / "fresh")
    assert result(tmp_path / "bundle") == result(tmp_path / "fresh")


@pytest.mark.parametrize(
    "limits",
    [{"min_seconds": 0.45}, {"max_clipped": 0.5}, {"strip_caption_marks": True}, {"max_seconds": 20.0},
     {"max_syllables_per_second": 9.0}, {"store": "features"}, {"mel": (80, 1000)}],
    ids=lambda limits: next(iter(limits)),
)  # fmt: skip
def test_other_settings_use_nothing_of_an_interrupted_run(
    tmp_path: Path, run: Prepare, judged: list[int], limits: dict[str, Any]
) -> None:
    rows = [*many_rows(), row(300, audio=wav(noise(0.5)))]
    with pytest.raises(Interrupted):
        run(failing(rows, KeyboardInterrupt()), tmp_path / "bundle")
    judged.clear()
    run([*rows, row(301, audio=wav(noise(0.6)))], tmp_path / "bundle", **limits)
    assert len(judged) == 72
    run([*rows, row(301, audio=wav(noise(0.6)))], tmp_path / "fresh", **limits)
    assert result(tmp_path / "bundle") == result(tmp_path / "fresh")


@pytest.mark.parametrize(
    "later", [{"split_seed": 7}, {"split": "0.5,0.25,0.25"}, {"keep_repeats": True}, {"num_proc": 2}]
)
def test_settings_of_the_second_half_keep_the_first(
    tmp_path: Path, run: Prepare, judged: list[int], later: dict[str, Any]
) -> None:
    """Who wants other shares does not decode for a night again."""
    rows = many_rows(64)
    with pytest.raises(Interrupted):
        run(failing(rows, KeyboardInterrupt()), tmp_path / "bundle")
    judged.clear()
    run(rows, tmp_path / "bundle", **later)
    assert judged == []


def test_another_tokenizer_makes_its_own_labels(tmp_path: Path, run: Prepare, judged: list[int]) -> None:
    rows = many_rows(40)
    with pytest.raises(Interrupted):
        run(failing(rows, KeyboardInterrupt()), tmp_path / "bundle")
    judged.clear()
    tokenizer = load_processor(DEMO_MODEL, "Korean", "translate").tokenizer
    prepare(lambda announce: rows, tokenizer, Data(storage=Storage(num_proc=1)), tmp_path / "bundle")
    assert len(judged) == 40
    (translate,) = tokenizer.convert_tokens_to_ids(["<|translate|>"])
    assert all(clip["labels"][2] == translate for clip in stored(tmp_path / "bundle"))


# Killed


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 1,300 clips, more than two parts, with some that are bad."""
    folder = tmp_path_factory.mktemp("recordings")
    lines = ["path\ttext\tspeaker"]
    whole = noise(60)
    for number in range(1300):
        begin = number * 700
        data = wav(whole[begin : begin + 6400])
        (folder / f"{number}.wav").write_bytes(data[:3000] if number % 100 == 50 else data)
        lines.append(f"{number}.wav\t{number}번\ts{number % 50}")
    lines.append("none.wav\t없음\ts0")
    (folder / "table.tsv").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="asks Linux which processes there are")
def test_stopped_killed_and_run_again_ends_bit_identical_and_leaves_no_process(
    recordings: Path, tmp_path: Path
) -> None:
    """Ctrl-C when the first part is on the disk, kill -9 when the second is, and then to the end."""
    for name in ("whole", "killed"):
        shutil.copytree(DEMO_MODEL, tmp_path / name / "model")
        report_model(tmp_path / name, "base", "main", None)
    arguments = ("download_data.py", "--table", recordings / "table.tsv", "--num-proc", 2, "--bundle-dir")
    for number, (sign, code) in enumerate([(signal.SIGINT, 75), (signal.SIGKILL, -9)]):
        part = f"*/part-{number:06d}.arrow"
        ended, workers, messages = send_when_there(
            (*arguments, tmp_path / "killed"), sign, tmp_path / "killed.work", part
        )
        assert ended == code
        assert "Traceback" not in messages
        assert len(workers) >= 2
        assert still_running(workers, 10) == []
        assert not (tmp_path / "killed" / "data").exists()

    again = script(*arguments, tmp_path / "killed", check=True)
    assert "going on with what an earlier run prepared" in again.stderr
    script(*arguments, tmp_path / "whole", check=True)
    assert result(tmp_path / "killed") == result(tmp_path / "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"killed", "whole"}
    told = json.loads((tmp_path / "killed" / "reports" / "data.json").read_text(encoding="utf-8"))
    assert told["rows_read"] == 1301
    assert told["reasons"] == {"truncated audio": 13, "missing audio": 1}
    assert "rows read 1301 = kept 1287 + dropped 14" in again.stderr


def send_when_there(
    arguments: tuple[Any, ...], sign: signal.Signals, folder: Path, pattern: str
) -> tuple[int, list[str], str]:
    """Start a script, send it a signal when a file is there; return its exit code, what it started, what it said.

    Ctrl-C reaches the whole group of processes, as from a terminal; kill -9 only the first.
    """
    command = [sys.executable, str(ROOT / arguments[0]), *map(str, arguments[1:])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(folder.glob(pattern)):
        assert process.poll() is None, "it ended too soon"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    workers = children_of(process.pid)
    if sign == signal.SIGINT:
        os.killpg(process.pid, sign)
    else:
        process.send_signal(sign)
    _, messages = process.communicate(timeout=60)
    return process.returncode, workers, messages


def children_of(pid: int) -> list[str]:
    """Processes whose parent it is, as /proc tells."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1] == str(pid):
                found.append(stat.parent.name)
        except OSError:
            continue
    return found
