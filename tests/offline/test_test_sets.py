"""Test sets: data of a team's own is measured as a bundle's test split is, and no bad row ends it or goes unsaid."""

from __future__ import annotations

import csv
import io
import os
import shutil
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, load_from_disk

from asr.offline import hearing
from asr.offline.hearing import Clip, hear_all
from asr.offline.results import Utterances
from asr.offline.symptoms import loudness_of
from asr.offline.test_sets import MAY_BE, LeftOut, TestSet, bundle_test_set, left_out_csv, open_test_set
from asr.online.judging import Judge
from asr.online.sources import table as online_table
from asr.shared.audio import load_audio
from asr.shared.bundle import Bundle, open_bundle, seal
from asr.shared.clips import clip_columns, pack_spectrum, spectrum_of
from asr.shared.features import LogMel
from config import Cleaning, Data, Files, TableColumns
from tests.sounds import in_format, noise, wav
from utils import BundleError, UserError

# Values of float16 between 8 and 16 lie 1/128 apart, and log10 of the mel spectrum lies between -10 and 4.
HALF_STEP = 1 / 256
FORMATS = {"wav": "wav 24 bit", "flac": "flac", "mp3": "mp3", "m4a": "m4a"}


def opened(path: Path, flag: str = "--data", **columns: Any) -> TestSet:
    return open_test_set(path, TableColumns(**columns), flag)


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as raised:
        call()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def write_csv(path: Path, *rows: list[str], encoding: str = "utf-8") -> Path:
    file = io.StringIO()
    csv.writer(file).writerows(rows)
    path.write_bytes(file.getvalue().encode(encoding))
    return path


def write_parquet(path: Path, columns: dict[str, Any]) -> Path:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path)
    return path


def sounds(folder: Path, count: int = 3) -> list[str]:
    """Files of different lengths, by name."""
    for number in range(count):
        (folder / f"{number}.wav").write_bytes(wav(noise(0.5 + number / 10, seed=number)))
    return [f"{number}.wav" for number in range(count)]


def calls(folder: Path, names: list[str], text: str = "네", stem: str = "calls") -> Path:
    return write_csv(folder / f"{stem}.csv", ["audio", "text"], *([name, text] for name in names))


@pytest.fixture(scope="module")
def mini(mini_bundle: Path) -> Bundle:
    return open_bundle(mini_bundle)


@pytest.fixture(scope="module")
def features_bundle(mini: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of the small bundle as log-mel, sealed."""
    log_mel, columns = LogMel(80, 500), clip_columns("features")

    def stored(row: dict[str, Any]) -> dict[str, Any]:
        packed = {"log_mel": pack_spectrum(spectrum_of(row, log_mel))}
        return {name: (row | packed)[name] for name in columns}

    splits = load_from_disk(str(mini.data_dir))
    data = {name: Dataset.from_list(list(map(stored, rows)), features=columns) for name, rows in splits.items()}
    folder = tmp_path_factory.mktemp("features") / "small"
    DatasetDict(data).save_to_disk(str(folder / "data"))
    return seal(folder, mini.base_name, mini.manifest["config"], mini.manifest["data"]).path


def rows_of(bundle: Bundle, split: str = "test") -> Dataset:
    return load_from_disk(str(bundle.data_dir))[split]


# Bundles


def test_the_test_split_of_a_bundle(mini: Bundle) -> None:
    """Texts, times, speakers and sounds are those of the dataset, in its order."""
    found, rows = bundle_test_set(mini), rows_of(mini)
    said = found.utterances
    assert (said.name, len(found), found.left_out, found.has_audio) == ("test", len(rows), [], True)
    for names, column in {
        "source_ids": "source_id",
        "references": "text",
        "speakers": "speaker",
        "sources": "source",
    }.items():
        assert getattr(said, names) == list(rows[column])
    assert said.durations_s == pytest.approx(list(rows["duration_s"]), abs=1e-6)
    log_mel = LogMel(80, 3000)
    for at, row in enumerate(rows):
        waveform = load_audio(row["audio"]["bytes"])
        np.testing.assert_array_equal(found.waveform(at), waveform)
        assert found.samples(at) == len(waveform)
        assert said.loudness_db[at] == loudness_of(waveform)
        assert torch.equal(found.spectrum(at, log_mel), spectrum_of(row, log_mel))
        np.testing.assert_array_equal(load_audio(found.audio(at) or b""), waveform)


def test_a_bundle_is_called_by_its_folder_and_a_split_by_its_own_name(mini: Bundle) -> None:
    """The main data's test split is "test"; of others a reader has to see which they are."""
    by_path, data = opened(mini.path), opened(mini.data_dir)
    validation = opened(mini.data_dir / "validation", "--also")
    assert [one.utterances.name for one in (by_path, data, validation)] == ["bundle", "bundle", "validation"]
    assert by_path.utterances.source_ids == data.utterances.source_ids == list(rows_of(mini)["source_id"])
    assert validation.utterances.source_ids == list(rows_of(mini, "validation")["source_id"])
    assert by_path.fingerprint == data.fingerprint == bundle_test_set(mini).fingerprint != validation.fingerprint
    assert bundle_test_set(mini, "validation").fingerprint == validation.fingerprint


def test_a_split_is_known_from_within_its_folder(mini: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path must not make an unsealed dataset of a sealed split."""
    monkeypatch.chdir(mini.data_dir)
    found = opened(Path("validation"))
    assert found.utterances.name == "validation"
    assert found.fingerprint == bundle_test_set(mini, "validation").fingerprint
    monkeypatch.chdir(mini.path)
    assert opened(Path(".")).utterances.name == "bundle"


def test_a_fingerprint_is_made_of_what_the_manifest_says_of_the_clips(mini: Bundle) -> None:
    """It costs no reading, changes with the clips, and not with what `datasets` notes beside them."""

    def altered(part: str) -> str:
        files = {
            name: {**entry, "sha256": "0" * 64} if part in name else entry
            for name, entry in mini.manifest["files"].items()
        }
        assert files != mini.manifest["files"]
        return bundle_test_set(replace(mini, manifest={**mini.manifest, "files": files})).fingerprint

    known = bundle_test_set(mini).fingerprint
    assert len(bytes.fromhex(known)) == 32
    assert altered("data/test/data-") != known
    assert altered("data/test/state.json") == altered("data/train/") == altered("model/") == known


def test_a_damaged_bundle_is_not_measured(features_bundle: Path, tmp_path: Path) -> None:
    """Figures of a file that was cut short on its way would pass for those of the whole."""
    copy = tmp_path / "bundle"
    shutil.copytree(features_bundle, copy)
    (arrow,) = (copy / "data" / "test").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:-1])
    for path in (copy, copy / "data" / "validation"):
        with pytest.raises(BundleError, match=r"data-00000-of-00001\.arrow has .* bytes instead of"):
            opened(path)


def test_a_split_without_clips_is_refused(mini: Bundle, tmp_path: Path) -> None:
    splits = load_from_disk(str(mini.data_dir))
    splits["test"] = splits["test"].select([])
    splits.save_to_disk(str(tmp_path / "bundle" / "data"), num_shards=dict.fromkeys(splits, 1))
    bundle = seal(tmp_path / "bundle", "m", {}, {})
    told = f"{bundle.data_dir} has no test clips: there is nothing to measure"
    assert refused(lambda: bundle_test_set(bundle)) == told
    assert (
        refused(lambda: opened(bundle.path)) == f"--data {bundle.path} has no test clips: there is nothing to measure"
    )
    assert "has no nosuch clips" in refused(lambda: bundle_test_set(bundle, "nosuch"))


# Features


def test_a_bundle_that_stores_features(mini: Bundle, features_bundle: Path) -> None:
    """What the model hears is the same; there is no sound to play, and no level of it."""
    sound, stored = bundle_test_set(mini), opened(features_bundle)
    assert (stored.has_audio, stored.utterances.name) == (False, "small")
    assert stored.utterances.loudness_db == [None] * len(sound)
    assert stored.utterances.references == sound.utterances.references
    assert stored.fingerprint != sound.fingerprint
    log_mel = LogMel(80, 500)
    for at in range(len(sound)):
        assert stored.samples(at) == sound.samples(at)
        assert stored.audio(at) is None
        spectrum = stored.spectrum(at, log_mel)
        torch.testing.assert_close(spectrum, sound.spectrum(at, log_mel), rtol=0, atol=HALF_STEP)
    told = refused(lambda: stored.waveform(0))
    assert told == "small stores features, no sound: prepare its bundle with --store audio"


@pytest.mark.parametrize("bins", [128, 40])
def test_features_for_another_number_of_mel_bins_are_refused(features_bundle: Path, bins: int) -> None:
    """80 bins laid out as 128 would be noise to the model, and its figures those of noise."""
    stored = opened(features_bundle)
    told = f"small stores features for a model with other than {bins} mel bins: prepare its bundle with --store audio"
    for at in range(len(stored)):
        assert refused(lambda at=at: stored.spectrum(at, LogMel(bins))) == told


# Datasets that lie elsewhere


def test_a_dataset_without_a_manifest(mini: Bundle, features_bundle: Path, tmp_path: Path) -> None:
    """Its audio alone makes the fingerprint: where it lies and what is said of it does not count."""
    for name, data in (("sound", mini.data_dir), ("features", features_bundle / "data")):
        shutil.copytree(data, tmp_path / name)
        found, dict_found = opened(tmp_path / name / "validation"), opened(tmp_path / name)
        assert (found.utterances.name, dict_found.utterances.name) == ("validation", name)
        assert dict_found.utterances.source_ids == list(rows_of(mini)["source_id"])
        rows = load_from_disk(str(tmp_path / name / "validation"))
        texts = rows.map(lambda row: {"text": "다른 말", "speaker": ""}, load_from_cache_file=False)
        texts.save_to_disk(str(tmp_path / f"{name} texts"))
        other = opened(tmp_path / f"{name} texts")
        assert (other.utterances.references, other.utterances.speakers) == (["다른 말"] * 4, [None] * 4)
        assert other.fingerprint == found.fingerprint
        rows.with_format("pandas").save_to_disk(str(tmp_path / f"{name} format"))
        assert opened(tmp_path / f"{name} format").utterances.loudness_db == found.utterances.loudness_db
        rows.select([1, 0, 2, 3]).save_to_disk(str(tmp_path / f"{name} order"))
        assert opened(tmp_path / f"{name} order").fingerprint != found.fingerprint


def test_bad_rows_of_a_dataset_cost_only_themselves(mini: Bundle, tmp_path: Path) -> None:
    rows = rows_of(mini).to_list()
    for row, audio in zip(
        rows, (None, {"bytes": b"", "path": "x"}, {"bytes": b"no sound at all", "path": None}), strict=False
    ):
        row["audio"] = audio
    rows[3]["source_id"] = rows[3]["text"] = None
    rows.append({**rows[3], "source_id": "last", "text": "가"})
    Dataset.from_list(rows, features=clip_columns("audio")).save_to_disk(str(tmp_path / "own"))
    found = opened(tmp_path / "own")
    assert found.utterances.source_ids == ["own:3", "last"]
    assert found.utterances.references == ["", "가"]
    np.testing.assert_array_equal(found.waveform(0), load_audio(rows[3]["audio"]["bytes"]))
    none = "no audio named", "column audio holds no bytes"
    assert [(row.reason, row.detail) for row in found.left_out[:2]] == [none, none]
    assert found.left_out[2].reason == "unreadable audio"
    assert [row.source_id for row in found.left_out] == [row["source_id"] for row in rows[:3]]


def test_datasets_that_cannot_be_measured_are_refused(mini: Bundle, tmp_path: Path) -> None:
    splits = load_from_disk(str(mini.data_dir))
    DatasetDict({"dev": splits["validation"], "eval": splits["test"]}).save_to_disk(str(tmp_path / "splits"))
    splits["test"].remove_columns("speaker").save_to_disk(str(tmp_path / "columns"))
    splits["test"].select([]).save_to_disk(str(tmp_path / "empty"), num_shards=1)
    splits["test"].save_to_disk(str(tmp_path / "damaged"))
    (arrow,) = (tmp_path / "damaged").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:100])
    told = {
        name: refused(lambda name=name: opened(tmp_path / name, "--also"))
        for name in ("splits", "columns", "empty", "damaged")
    }
    assert told["splits"].endswith("splits has no split 'test', only dev, eval: name the folder of one")
    assert told["columns"].endswith("columns: column 'speaker' is missing, or of another type than in a bundle's data")
    assert told["empty"].endswith("empty has no clips: there is nothing to measure")
    assert "damaged cannot be opened: " in told["damaged"]
    assert all(message.startswith(f"--also {tmp_path / name}") for name, message in told.items())


# Tables


def test_a_table_of_audio_in_many_formats(tmp_path: Path) -> None:
    """What the systems hear is what any other part of the suite hears of the same file."""
    for ending, kind in FORMATS.items():
        (tmp_path / f"a.{ending}").write_bytes(in_format(kind))
    found = opened(write_csv(
        tmp_path / "calls.csv", ["path", "sentence", "speaker"],
        *([f"a.{ending}", f" {ending}\u200b  하나 ", "김" if ending == "mp3" else ""] for ending in FORMATS),
    ))  # fmt: skip
    said = found.utterances
    assert (said.name, found.left_out, found.has_audio) == ("calls", [], True)
    assert said.source_ids == ["calls:2", "calls:3", "calls:4", "calls:5"]
    assert said.references == [f"{ending} 하나" for ending in FORMATS]
    assert said.speakers == ["김" if ending == "mp3" else None for ending in FORMATS]
    assert said.sources == [None] * len(FORMATS)
    for at, ending in enumerate(FORMATS):
        expected = load_audio(tmp_path / f"a.{ending}")
        np.testing.assert_array_equal(found.waveform(at), expected)
        assert found.waveform(at).dtype == np.float32
        assert said.durations_s[at] == len(expected) / 16_000 == found.samples(at) / 16_000
        assert said.loudness_db[at] == loudness_of(expected)
        assert torch.equal(found.spectrum(at, LogMel()), LogMel().spectrum(torch.from_numpy(expected)))
        flac = found.audio(at) or b""
        assert flac.startswith(b"fLaC")
        np.testing.assert_allclose(load_audio(flac), expected, atol=1 / 32768)


def test_bad_rows_are_left_out_in_the_words_of_the_preparation(tmp_path: Path) -> None:
    """The two halves judge the same files; a row must not be bad for one reason here and for another there."""
    (tmp_path / "good.wav").write_bytes(wav(noise(1.0)))
    (tmp_path / "cut.wav").write_bytes(wav(noise(1.0))[:20_000])
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "silent.wav").write_bytes(wav(noise(0.0)))
    (tmp_path / "text.wav").write_text("this is no sound")
    (tmp_path / "nan.wav").write_bytes(wav(np.full(16_000, np.nan, np.float32), subtype="FLOAT"))
    names = ["nowhere.wav", "good.wav", "cut.wav", "empty.wav", "silent.wav", "text.wav", "nan.wav", "", "a\0.wav", "."]
    rows = [["audio", "text", "speaker"], *([name, "네 그래요", "김"] for name in names)]
    path = write_csv(tmp_path / "calls.csv", *rows, ["one cell too many", "a", "b", "c"], ["good.wav", "끝", "이"])
    found = opened(path)
    assert found.utterances.source_ids == ["calls:3", "calls:13"]
    judge = Judge(Cleaning(min_syllables_per_second=0), None)
    verdicts = list(map(judge, online_table.read(Data(files=Files(table=(path,))), print)))
    dropped = [
        LeftOut(verdict.row.source_id.replace("table/calls.csv", "calls"), verdict.reason, verdict.detail)
        for verdict in verdicts
        if verdict.reason
    ]
    assert found.left_out == dropped
    assert [row.reason for row in found.left_out] == [
        "missing audio", "truncated audio", "empty audio", "empty audio", "unreadable audio", "samples not finite",
        "no audio named", "malformed row", "unreadable audio", "malformed row",
    ]  # fmt: skip


def test_a_row_that_nobody_thought_of_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = sounds(tmp_path)
    decode = hearing.read_audio

    def fail(data: bytes) -> Any:
        if data == (tmp_path / "1.wav").read_bytes():
            raise RuntimeError("the decoder\nfell over")
        return decode(data)

    monkeypatch.setattr(hearing, "read_audio", fail)
    found = opened(calls(tmp_path, names))
    assert found.left_out == [LeftOut("calls:3", "could not be judged", "RuntimeError: the decoder fell over")]
    assert found.utterances.source_ids == ["calls:2", "calls:4"]


def test_what_training_would_drop_is_measured(tmp_path: Path) -> None:
    """Text over silence is looked for where nothing is said, and long calls are what some teams have."""
    (tmp_path / "silence.wav").write_bytes(wav(np.zeros(8000, np.float32)))
    (tmp_path / "long.wav").write_bytes(wav(noise(31.0)))
    rows = [["silence.wav", ""], ["long.wav", "네"], ["long.wav", "네"], ["long.wav", "train"]]
    found = opened(write_csv(tmp_path / "t.csv", ["audio", "text", "split"], *([*row, "train"] for row in rows)))
    assert found.utterances.references == ["", "네", "네", "train"]
    assert found.utterances.durations_s == [0.5, 31.0, 31.0, 31.0]
    assert found.utterances.loudness_db[0] == -180.0
    assert len(found.waveform(2)) == 31 * 16_000


def test_a_table_as_excel_saves_it_in_korea(tmp_path: Path) -> None:
    sounds(tmp_path, 2)
    rows = [["0.wav", "뷁 같은 소리", "김"], ["1.wav", "똠얌꿍", "이"]]
    path = write_csv(tmp_path / "통화 기록.csv", ["경로", "전사", "화자"], *rows, encoding="cp949")
    said = opened(path).utterances
    assert (said.name, said.source_ids) == ("통화 기록", ["통화 기록:2", "통화 기록:3"])
    assert (said.references, said.speakers) == (["뷁 같은 소리", "똠얌꿍"], ["김", "이"])


def test_columns_root_and_path_map(tmp_path: Path) -> None:
    """The flags mean what they mean to the preparation."""
    (tmp_path / "mnt").mkdir()
    sounds(tmp_path / "mnt", 2)
    rows = [["/cul_m01/0.wav", "하나", "x"], ["1.wav", "둘", "y"]]
    path = write_csv(tmp_path / "t.csv", ["파일들", "내용", "누구"], *rows)
    named = {"audio_column": "파일들", "text_column": "내용", "speaker_column": "누구"}
    found = opened(path, audio_root=tmp_path / "mnt", path_map=(f"/cul_m01={tmp_path / 'mnt'}",), **named)
    assert (found.utterances.references, found.utterances.speakers, found.left_out) == (["하나", "둘"], ["x", "y"], [])
    told = refused(lambda: opened(path, "--also", **named | {"text_column": "자막"}))
    assert told == f"--also {path}: there is no column '자막' (--text-column), only 파일들, 내용, 누구"
    told = refused(lambda: opened(path, "--also"))
    assert told == f"--also {path}: which column is the audio? Name it with --audio-column: 파일들, 내용, 누구"
    told = refused(lambda: opened(path, audio_root=tmp_path / "nowhere", **named))
    assert told == f"--audio-root {tmp_path / 'nowhere'}: there is no such folder"


def test_audio_within_a_parquet(tmp_path: Path) -> None:
    """The same audio as in files: the same sound, the same fingerprint, and bad bytes cost one row."""
    blobs = [in_format("wav"), in_format("mp3"), b"", b"no sound at all"]
    (tmp_path / "a.wav").write_bytes(blobs[0])
    (tmp_path / "a.mp3").write_bytes(blobs[1])
    found = opened(write_parquet(tmp_path / "b.parquet", {"audio": blobs, "text": list("가나다라")}))
    assert (found.utterances.source_ids, found.utterances.references) == (["b:1", "b:2"], ["가", "나"])
    assert [(row.source_id, row.reason) for row in found.left_out] == [
        ("b:3", "no audio named"),
        ("b:4", "unreadable audio"),
    ]
    files = opened(calls(tmp_path, ["a.wav", "a.mp3"]))
    assert found.fingerprint == files.fingerprint
    for at in (0, 1):
        np.testing.assert_array_equal(found.waveform(at), files.waveform(at))
    structs = [{"bytes": blobs[0], "path": "x"}, {"bytes": None, "path": "a.mp3"}]
    assert (
        opened(write_parquet(tmp_path / "s.parquet", {"audio": structs, "text": ["가", "나"]})).fingerprint
        == files.fingerprint
    )


def test_equal_audio_has_an_equal_fingerprint_and_one_bit_makes_another(tmp_path: Path) -> None:
    """By it a text that was decoded once is used again: never for other audio, and always for the same."""
    names = sounds(tmp_path)
    known = opened(calls(tmp_path, names)).fingerprint
    (tmp_path / "copy").mkdir()
    for name in names:
        shutil.copy(tmp_path / name, tmp_path / "copy" / f"x{name}")
    assert opened(calls(tmp_path / "copy", [f"x{name}" for name in names], "다른 말", "other")).fingerprint == known
    assert opened(calls(tmp_path, [*names, "nowhere.wav"])).fingerprint == known
    for different in (names[::-1], names[:2], [*names, names[0]]):
        assert opened(calls(tmp_path, different)).fingerprint != known
    content = bytearray((tmp_path / names[1]).read_bytes())
    content[-100] ^= 1
    (tmp_path / names[1]).write_bytes(content)
    assert opened(calls(tmp_path, names)).fingerprint != known


def test_the_order_is_that_of_the_table(tmp_path: Path) -> None:
    """Many threads listen; the last clip may be heard first."""
    names = sounds(tmp_path, 20)[::-1]
    found = opened(calls(tmp_path, names))
    assert found.utterances.durations_s == [0.5 + number / 10 for number in range(19, -1, -1)]
    assert [found.samples(at) for at in range(20)] == [len(load_audio(tmp_path / name)) for name in names]


def test_audio_that_is_gone_or_changed_is_told(tmp_path: Path) -> None:
    """What it would decode to does not belong to the fingerprint."""
    names = sounds(tmp_path, 2)
    found = opened(calls(tmp_path, names))
    (tmp_path / "0.wav").unlink()
    (tmp_path / "1.wav").write_bytes(wav(noise(0.6, seed=7)))
    gone = f"calls:2: the file does not exist ({tmp_path / '0.wav'}); it was there when the set was opened"
    for read in (found.waveform, found.audio, lambda at: found.spectrum(at, LogMel())):
        assert refused(lambda read=read: read(0)) == gone
        told = refused(lambda read=read: read(1))
        assert told == "calls:3: its audio has changed since the set was opened; start again"


def test_no_sound_stays_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten hours of a table would be 2.3 GB, whether its clips are good or cut short."""
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    for number in range(32):
        content = wav(noise(5.0, seed=number))
        (tmp_path / f"{number}.wav").write_bytes(content if number % 2 else content[:-10_000])
    path = calls(tmp_path, [f"{number}.wav" for number in range(32)])
    opened(path)
    tracemalloc.start()
    try:
        found = opened(path)
        kept, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (len(found), len(found.left_out)) == (16, 16)
    of_one = 4 * found.samples(0)
    assert kept < of_one
    assert most < 16 * of_one


def test_ctrl_c_does_not_wait_for_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = []

    def interrupt(items: Iterator[Any], **_: Any) -> Iterator[Any]:
        yield next(items)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(hearing, "progress_bar", interrupt)

    def slow() -> bytes:
        time.sleep(0.005)
        heard.append(1)
        return b""

    clips = [Clip(str(at), "", None, None, slow) for at in range(4000)]
    with pytest.raises(KeyboardInterrupt):
        hear_all(clips, "listening")
    assert len(heard) < 3000


# What is none of them


def test_what_cannot_be_measured_is_told_with_what_can(mini: Bundle, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("audio,text")
    (tmp_path / "folder").mkdir()
    for flag in ("--data", "--also"):
        told = refused(lambda flag=flag: opened(tmp_path / "nowhere", flag))
        assert told == f"{flag} {tmp_path / 'nowhere'}: there is no such file or folder; {MAY_BE}"
        told = refused(lambda flag=flag: opened(tmp_path / "notes.txt", flag))
        assert told == f"{flag} {tmp_path / 'notes.txt'}: this is none of what can be measured; {MAY_BE}"
        for folder in (tmp_path / "folder", mini.model_dir):
            told = refused(lambda flag=flag, folder=folder: opened(folder, flag))
            assert told == f"{flag} {folder}: this folder is none of what can be measured; {MAY_BE}"
    for path in (Path("x" * 5000 + ".csv"), Path("a\0.csv")):
        assert "there is no such file or folder" in refused(lambda path=path: opened(path))
    for part in ("a bundle", "bundle/data/validation", "load_from_disk", ".csv .tsv .jsonl .ndjson .parquet .xlsx"):
        assert part in MAY_BE


def test_trouble_with_a_table_is_told_by_the_flag(tmp_path: Path) -> None:
    (tmp_path / "t.xlsx").write_bytes(b"audio,text")
    told = refused(lambda: opened(tmp_path / "t.xlsx", "--also"))
    assert told == f"--also {tmp_path / 't.xlsx'} is damaged or no .xlsx: File is not a zip file"


def test_a_table_of_which_nothing_is_left_is_refused(tmp_path: Path) -> None:
    """With the first reason, which is most often a path that wants --path-map."""
    path = calls(tmp_path, ["a.wav", "b.wav"])
    told = refused(lambda: opened(path))
    first = f"calls:2: missing audio (the file does not exist ({tmp_path / 'a.wav'}))"
    assert told == f"--data {path}: none of its 2 rows can be measured; {first}"
    assert refused(lambda: opened(calls(tmp_path, []))) == f"--data {path}: none of its 0 rows can be measured"


# left_out.csv


def test_left_out_rows_open_in_a_spreadsheet() -> None:
    """Korean is shown, and no cell is computed."""

    def one(name: str, *rows: LeftOut) -> TestSet:
        return TestSet(Utterances(name, [], [], [], [], [], []), "", list(rows), [], lambda _: {})

    rows = LeftOut("통화:2", "missing audio", '한\n글, "따옴표"'), LeftOut("=1+1:3", "malformed row", "@x")
    text = left_out_csv([one("통화", *rows), one("empty"), one("-b", LeftOut("b:1", "silent", "+2"))])
    assert text.startswith("\ufeffset,source_id,reason,detail\r\n")
    assert list(csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline="")))[1:] == [
        ["통화", "통화:2", "missing audio", '한\n글, "따옴표"'],
        ["통화", "'=1+1:3", "malformed row", "'@x"],
        ["'-b", "b:1", "silent", "'+2"],
    ]
