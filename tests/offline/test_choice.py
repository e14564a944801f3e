"""The choice of what transcribes: an export stands for its run only where it writes the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from asr.offline.choice import choose
from asr.shared.bundle import open_bundle
from asr.shared.cli import parse
from config import Inference
from tests.offline.test_export import trained
from utils import UserError, write_json


@pytest.fixture(scope="module")
def made(mini_bundle, tmp_path_factory):
    return trained(open_bundle(mini_bundle), tmp_path_factory.mktemp("choice"), "--audio-layout", "trimmed")


@pytest.fixture
def case(made, tmp_path):
    return made.copy(tmp_path)


def exported(case, passed: bool | None = True) -> Path:
    """What an export leaves, as far as the choice looks at it; None without a comparison."""
    case.converted.mkdir(parents=True)
    (case.converted / "model.bin").write_bytes(b"weights")
    if passed is not None:
        write_json(case.run.path / "export" / "parity.json", {"ctranslate2": {"passed": passed}})
    return case.converted


def chosen(case, *flags: str, with_base: bool = False):
    return choose(parse(Inference, [*case.flags, *flags])[0], with_base)


def test_without_an_export_transformers_runs_it(case):
    choice = chosen(case)
    assert choice.system.engine == "transformers"
    assert choice.system.run_dir == case.run.path


def test_an_export_that_writes_the_same_is_taken_with_the_window_of_the_run(case):
    folder = exported(case)
    system = chosen(case).system
    assert (system.engine, system.model_dir, system.window) == ("ctranslate2", folder, "trimmed")
    assert system.run_dir == case.run.path, "the page shows the run's evaluation"
    assert chosen(case, "--engine", "ctranslate2").system.engine == "ctranslate2"
    assert chosen(case, "--engine", "transformers").system.engine == "transformers"


def test_what_is_compared_runs_in_one_engine(case):
    exported(case)
    choice = chosen(case, with_base=True)
    assert choice.base is not None
    assert (choice.system.engine, choice.base.engine) == ("transformers", "transformers")


@pytest.mark.parametrize("quantization", ["8bit", "4bit", "none"])
def test_an_export_stands_for_the_run_in_the_format_that_was_compared_alone(case, quantization):
    exported(case)
    assert chosen(case, "--quantization", quantization).system.engine == "transformers"


@pytest.mark.parametrize(
    ("passed", "told"), [(False, "does not write what the run writes"), (None, "was not compared with the run")]
)
def test_an_export_that_is_not_known_to_write_the_same(case, caplog, passed, told):
    exported(case, passed)
    assert chosen(case).system.engine == "transformers"
    assert told in caplog.text
    with pytest.raises(UserError, match=told):
        chosen(case, "--engine", "ctranslate2")


def test_an_export_that_is_older_than_the_run(case, caplog):
    folder = exported(case)
    os.utime(folder / "model.bin", (1, 1))
    assert chosen(case).system.engine == "transformers"
    assert "is older than the run: python inference.py --export ctranslate2 --run" in caplog.text


def test_no_export_where_it_is_asked_for(case):
    with pytest.raises(UserError, match=r"--engine ctranslate2: .*ctranslate2 is not there: python inference\.py"):
        chosen(case, "--engine", "ctranslate2")


def test_windows_are_those_of_the_training(case, mini_bundle):
    """Trimmed: three times the mean clip, at least 5 s; else 30 s, and filled."""
    assert chosen(case).windowing.longest_s >= 5.0
    assert not chosen(case).windowing.filled
    whole = choose(parse(Inference, ["--model", str(mini_bundle / "model")])[0], with_base=True)
    assert (whole.windowing.longest_s, whole.windowing.filled, whole.base) == (30.0, True, None)
