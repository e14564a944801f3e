"""evaluate_model.py as it is used: several systems and sets, data of one's own, and an end at any moment."""

from __future__ import annotations

import csv
import json
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from asr.offline.runs import Run
from tests.conftest import DEMO_CORPUS, DEMO_MODEL
from tests.sessions import Session, Sessions

FILES = ("metrics.json", "report.html", "utterances.csv")


@pytest.fixture(scope="module")
def sessions(tmp_path_factory) -> Iterator[Sessions]:
    sessions = Sessions(tmp_path_factory.mktemp("sessions"))
    yield sessions
    sessions.close()


@pytest.fixture(scope="module")
def runs(sessions, mini_bundle, tmp_path_factory) -> Path:
    """Two runs, of trimmed windows and of packed ones."""
    folder = tmp_path_factory.mktemp("evaluated") / "runs"
    for name, layout in (("first", "trimmed"), ("second", "packed")):
        session = sessions.run("--bundle-dir", mini_bundle, "--output-dir", folder, "--run-name", name, "--max-steps",
                               4, "--warmup-steps", 0, "--audio-layout", layout,
                               "--generation-max-length", 24)  # fmt: skip
        assert session.wait() == 0, session.told
    return folder


@pytest.fixture
def evaluate(sessions, mini_bundle, runs, tmp_path):
    """Evaluate with some flags into a folder, with no journal but those of this test."""
    mine = tmp_path / "runs"
    shutil.copytree(runs, mine)

    def run(*flags: object, into: str = "evaluation", **how: object) -> Session:
        where = ("--bundle-dir", mini_bundle, "--output-dir", mine, "--evaluation-dir", tmp_path / into)
        shape = ("--generation-max-length", 24, "--per-device-eval-batch-size", 1)
        return sessions.run(*where, *shape, *flags, script="evaluate_model", **how)

    return run


def figures(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def timeless(folder: Path) -> dict[str, str]:
    """What the files say, less what a clock measured."""
    told = {name: (folder / name).read_text(encoding="utf-8") for name in FILES}
    metrics = json.loads(told["metrics.json"])
    assert metrics.pop("speed")
    told["metrics.json"] = json.dumps(metrics)
    told["report.html"], speeds = re.subn(r'(?s)<section id="speed">.*?</section>', "", told["report.html"])
    assert speeds == 1
    return told


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """Recordings of one's own, with a broken one and a lost one among them."""
    folder = tmp_path_factory.mktemp("own") / "통화 기록"
    folder.mkdir()
    rows = ["파일,전사,화자"]
    with open(DEMO_CORPUS / "test.tsv", encoding="utf-8", newline="") as file:
        for row in list(csv.DictReader(file, delimiter="\t"))[:5]:
            shutil.copy(DEMO_CORPUS / "clips" / row["path"], folder)
            rows.append(f"{row['path']},{row['sentence']},가람")
    (folder / "broken.wav").write_bytes(b"no audio")
    rows += ["broken.wav,가나다,가람", "lost.wav,가나다,가람"]
    table = folder / "calls.csv"
    table.write_text("\n".join(rows), encoding="cp949")
    return table


# Ends


@pytest.mark.parametrize("batch", [2, 7, 11])
def test_killed_half_way_it_ends_with_the_same_files(evaluate, tmp_path, batch):
    """kill -9 in a batch of the base, of the tuned model, and of the second window."""
    flags = ("--run", "first")
    assert evaluate(*flags, into="whole", raise_in_batch=[10_000, signal.SIGKILL]).wait() == 0
    shutil.rmtree(tmp_path / "runs" / ".decoded")
    killed = evaluate(*flags, raise_in_batch=[batch, signal.SIGKILL])
    assert killed.wait() == -signal.SIGKILL
    assert not list((tmp_path / "evaluation").iterdir()), "there are no figures of a half"
    resumed = evaluate(*flags)
    assert resumed.wait() == 0, resumed.told
    assert timeless(tmp_path / "evaluation") == timeless(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_in_a_line_and_loses_nothing(evaluate, tmp_path, number):
    stopped = evaluate("--run", "first", raise_in_batch=[3, number])
    assert stopped.wait() == 75
    assert f"error: interrupted: {tmp_path / 'runs' / '.decoded'} keeps what was decoded" in stopped.told
    assert "Traceback" not in stopped.told
    assert evaluate("--run", "first").wait() == 0
    again = evaluate("--run", "first", into="again")
    assert "base: 1 of 1 decoded before" in again.told
    assert "loading" not in again.told, "nothing was left to decode"
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "evaluation" / name).read_bytes()


# Systems and sets


def test_several_runs_stand_beside_their_base(evaluate, tmp_path):
    done = evaluate("--run", "first", "--run", "second")
    assert done.wait() == 0, done.told
    (found,) = figures(tmp_path / "evaluation")["sets"]
    assert [(each["label"], each["window"]) for each in found["systems"]] == [
        ("base", "padded"),
        ("first", "trimmed"),
        ("second", "padded"),
        ("first (padded)", "padded"),
    ]
    for label in ("base", "first", "second", "first (padded)"):
        assert label in done.told
    assert "The systems heard the same clips in different windows: base padded, first trimmed" in (
        tmp_path / "evaluation" / "report.html"
    ).read_text(encoding="utf-8")


def test_the_base_is_decoded_once_for_all_runs(evaluate):
    assert evaluate("--run", "second").wait() == 0
    second = evaluate("--run", "first")
    assert second.wait() == 0
    assert "base: 1 of 1 decoded before" in second.told
    assert "loading tuned" in second.told
    assert "loading base" not in second.told


def test_a_table_of_ones_own_with_any_model_and_no_bundle(sessions, tmp_path, table):
    """What cannot be measured is counted, listed and told, and does not stop the rest."""
    done = sessions.run("--model", DEMO_MODEL, "--data", table, "--bundle-dir", tmp_path / "none", "--output-dir",
                        tmp_path / "runs", "--evaluation-dir", tmp_path / "out",
                        "--windows", "both", script="evaluate_model")  # fmt: skip
    assert done.wait() == 0, done.told
    (found,) = figures(tmp_path / "out")["sets"]
    assert (found["name"], found["utterances"], found["speakers"]) == ("calls", 5, 1)
    assert [each["window"] for each in found["systems"]] == ["padded", "trimmed"]
    assert "note: 2 of 7 rows were left out (" in done.told
    left_out = (tmp_path / "out" / "left_out.csv").read_bytes().decode("utf-8-sig")
    rows = [(row["set"], row["reason"]) for row in csv.DictReader(left_out.splitlines())]
    assert rows == [("calls", "unreadable audio"), ("calls", "missing audio")]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "2 of 7 rows were left out" in page
    assert "data:audio/flac;base64," in page, "a browser plays it, whatever the file was"
    assert "language of calls: Korean (where no bundle tells)" in done.told


def test_what_is_left_out_no_longer_is_not_listed(sessions, tmp_path, table):
    own = shutil.copytree(table.parent, tmp_path / "own") / "calls.csv"
    flags = ("--model", DEMO_MODEL, "--data", own, "--output-dir", tmp_path / "runs", "--evaluation-dir", tmp_path)
    assert sessions.run(*flags, script="evaluate_model").wait() == 0
    assert (tmp_path / "left_out.csv").is_file()
    own.write_text("\n".join(own.read_text(encoding="cp949").splitlines()[:6]), encoding="utf-8")
    assert sessions.run(*flags, script="evaluate_model").wait() == 0
    assert not (tmp_path / "left_out.csv").exists()


def test_sets_of_one_name_stay_apart(sessions, tmp_path, table):
    """Each utterance plays its own audio."""
    one, two = (shutil.copytree(table.parent, tmp_path / name) / "calls.csv" for name in ("a", "b"))
    shutil.copy(one, one.with_name("calls-2.csv"))
    flags = ("--data", one, "--also", one.with_name("calls-2.csv"), two)
    done = sessions.run("--model", DEMO_MODEL, *flags, "--output-dir", tmp_path / "runs", "--evaluation-dir",
                        tmp_path / "out", script="evaluate_model")  # fmt: skip
    assert done.wait() == 0, done.told
    assert [each["name"] for each in figures(tmp_path / "out")["sets"]] == ["calls", "calls-2", "calls-3"]
    assert len(figures(tmp_path / "out")["settings"]["sets"]) == 3


def test_each_set_is_decoded_in_its_own_language(evaluate, mini_bundle, tmp_path):
    from asr.shared.bundle import open_bundle, seal

    foreign = shutil.copytree(mini_bundle, tmp_path / "foreign")
    sealed = open_bundle(foreign).manifest
    seal(foreign, sealed["base_model"], sealed["config"] | {"language": "Japanese"}, sealed["data"])
    done = evaluate("--run", "second", "--also", foreign)
    assert done.wait() == 0, done.told
    assert "language of test: Korean (as its bundle tells)" in done.told
    assert "language of foreign: Japanese (as its bundle tells)" in done.told
    languages = [each["systems"][0]["details"]["language"] for each in figures(tmp_path / "evaluation")["sets"]]
    assert languages == ["korean", "japanese"]
    told = evaluate("--run", "second", "--also", foreign, "--language", "English").told
    assert "language of foreign: English (as set)" in told


def test_only_test_rows_of_a_table_with_splits_are_measured(sessions, tmp_path, table):
    """The table that made a bundle names what was trained on."""
    own = shutil.copytree(table.parent, tmp_path / "own") / "calls.csv"
    rows = own.read_text(encoding="cp949").splitlines()[:6]
    split = ["split", "train", "test", "test", "train", "dev"]
    own.write_text("\n".join(f"{row},{name}" for row, name in zip(rows, split, strict=True)), encoding="utf-8")
    done = sessions.run("--model", DEMO_MODEL, "--data", own, "--output-dir", tmp_path / "runs", "--evaluation-dir",
                        tmp_path / "out", script="evaluate_model")  # fmt: skip
    assert done.wait() == 0, done.told
    assert "note: 3 of 5 rows were left out (not of the test split 3)" in done.told


def test_forgetting_stands_beside_learning(evaluate, mini_bundle, tmp_path, table):
    done = evaluate("--run", "second", "--also", table, "--also", mini_bundle / "data" / "validation")
    assert done.wait() == 0, done.told
    assert [each["name"] for each in figures(tmp_path / "evaluation")["sets"]] == ["test", "calls", "validation"]
    told = done.told[done.told.index("learnt and forgotten") :].splitlines()
    assert [line.split()[-1] for line in told[1:4]] == ["test", "calls", "validation"]


def test_report_goes_to_the_run_unless_several_are_compared(mini_bundle, runs, table, tmp_path):
    runs = shutil.copytree(runs, tmp_path / "runs")
    from config import EvaluateModel, Measuring, UseRuns
    from evaluate_model import default_folder

    def folder(*names: str, data: Path | None = None, models: tuple[Path, ...] = ()) -> Path:
        from asr.offline.systems import find_systems
        from asr.offline.test_sets import bundle_test_set
        from asr.shared.bundle import open_bundle

        bundle = open_bundle(mini_bundle)
        use = UseRuns(runs, tuple(map(Path, names)), models)
        config = EvaluateModel(use=use, measuring=Measuring(data=data))
        return default_folder(config, find_systems(use, bundle), [bundle_test_set(bundle)])

    assert folder("first") == runs / "first" / "evaluation"
    long = f"{'한글' * 25}-"
    for name in ("1", "2"):
        shutil.copytree(runs / "first", runs / f"{long}{name}")
    one, other = folder(f"{long}1", "first").name, folder(f"{long}2", "first").name
    assert len(one.encode()) < 200, "file systems hold 255 bytes"
    assert one != other
    assert folder("first", data=table) == runs / "first" / "evaluation-on-test"
    assert folder("first", "second") == Path("evaluations/base-vs-first-vs-second")
    assert folder("first", models=(DEMO_MODEL,)) == Path("evaluations/base-vs-tuned-vs-tiny-whisper-ko")
    assert folder(models=(DEMO_MODEL,)) == Path("evaluations/tiny-whisper-ko")


def test_a_run_is_not_changed_by_its_evaluation(evaluate, tmp_path):
    before = Run(tmp_path / "runs" / "first").record
    assert evaluate("--run", "first").wait() == 0
    assert Run(tmp_path / "runs" / "first").record == before


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--data", "nowhere.csv"), "--data nowhere.csv: there is no such file or folder"),
        (("--also", "README.md"), "--also README.md: this is none of what can be measured"),
        (("--run", "third"), "--run third: there is no run in that folder"),
        (("--model", "openai/whisper-small"), "--model openai/whisper-small: there is no such folder"),
    ],
)
def test_what_is_not_there_is_told_in_a_line(evaluate, flags, told):
    done = evaluate(*flags)
    assert done.wait() == 2
    assert f"error: {told}" in done.told
    assert "loading" not in done.told, "before anything long begins"
