"""The picture of a training: what was logged is what it shows, whatever there is, and it never costs a training."""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
from PIL import Image

from asr.offline.curves import draw, draw_curves, rates_at, read_metrics
from asr.offline.runs import Run
from tests.conftest import ROOT

LOSSES = [
    {"step": step, "epoch": step / 100, "loss": 3 * math.exp(-step / 60), "grad_norm": 1.0, "learning_rate": 1e-3}
    for step in range(10, 301, 10)
]
EVALUATIONS = [
    {"step": step, "epoch": step / 100, "eval_cer": cer, "eval_cer_with_spaces": cer, "eval_wer": 2 * cer}
    for step, cer in ((100, 0.4), (200, 0.2), (300, 0.3))
]
END = {"step": 300, "epoch": 3.0, "train_runtime": 9.0, "train_loss": 1.0}


def run_with(folder: Path, lines: list[dict], best: tuple[int, float] | None = None) -> Run:
    run = Run(folder)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    if best:
        run.keep_best(*best)
    return run


def lines_by_label(axes) -> dict[str, list[tuple[float, float]]]:
    return {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.get_lines()}


def test_the_picture_shows_what_was_logged():
    loss, rates, learning_rate = draw([*LOSSES, *EVALUATIONS, END], 200).axes
    assert lines_by_label(loss)["as logged"] == [(line["step"], line["loss"]) for line in LOSSES]
    drawn = lines_by_label(rates)
    assert drawn["CER (spaces left out)"] == [(100, 0.4), (200, 0.2), (300, 0.3)]
    assert drawn["WER"] == [(100, 0.8), (200, 0.4), (300, 0.6)]
    assert list(lines_by_label(learning_rate).values()) == [[(line["step"], 1e-3) for line in LOSSES]]


def test_the_step_whose_weights_are_kept_is_marked():
    """It is the one that the run kept, which after a resume need not be the lowest of the lines that are left."""
    rates = draw([*LOSSES, *EVALUATIONS], 300).axes[1]
    assert rates.get_title(loc="left") == "best: step 300, CER 0.3000, WER 0.6000"
    assert [(300, 0.3)] in lines_by_label(rates).values()


def test_the_file_has_the_mark_too(tmp_path):
    pictures = []
    for best in (None, None, (200, 0.2)):
        run = run_with(tmp_path, [*LOSSES, *EVALUATIONS], best)
        draw_curves(run)
        pictures.append((tmp_path / "curves.png").read_bytes())
    assert pictures[0] == pictures[1] != pictures[2]


def test_a_single_spike_hides_nothing():
    """Neither does it bend the smoothed curve, nor press it against the axis; the picture says how high it was."""
    lines = [*LOSSES[:20], {**LOSSES[20], "loss": 900.0}, *LOSSES[21:]]
    loss = draw(lines, None).axes[0]
    assert max(value for _, value in lines_by_label(loss)["smoothed"]) < 3
    assert loss.get_ylim()[1] < 5
    assert loss.get_title(loc="left") == "highest: 900 at step 210"


@pytest.mark.parametrize(
    ("lines", "best", "panels"),
    [
        ([*LOSSES, *EVALUATIONS, END], (200, 0.2), 3),
        (LOSSES[:1], None, 2),
        (LOSSES, None, 2),
        (EVALUATIONS[:1], (100, 0.4), 1),
        ([LOSSES[0], EVALUATIONS[0]], (100, 0.4), 3),
        ([{"step": 10, "loss": 0.0, "learning_rate": 0.0}, {"step": 10, "eval_cer": 0.0, "eval_wer": 0.0}], (10, 0), 3),
        ([*LOSSES, {"step": 310, "loss": None, "learning_rate": None}], None, 2),
        ([{"step": 0, "eval_cer": 1.5, "eval_wer": 1}], (0, 1.5), 1),
    ],
)
def test_whatever_was_logged_gives_a_picture_without_a_warning(tmp_path, lines, best, panels):
    run = run_with(tmp_path, lines, best)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_curves(run)
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 800
    assert len(draw(read_metrics(run), run.best.get("step")).axes) == panels
    assert [file.name for file in tmp_path.iterdir() if file.suffix == ".tmp"] == []


def test_the_picture_needs_no_font_for_korean():
    figure = draw([*LOSSES, *EVALUATIONS], 200)
    texts = [text.get_text() for text in figure.findobj(lambda part: hasattr(part, "get_text"))]
    assert any("CER" in text for text in texts)
    # The axes' own minus and multiplication signs are in every font.
    assert {char for text in texts for char in text if ord(char) > 127} <= {"−", "×"}


@pytest.mark.parametrize("lines", [None, [], [END]])
def test_nothing_to_draw_is_told(tmp_path, caplog, lines):
    run = Run(tmp_path) if lines is None else run_with(tmp_path, lines)
    with caplog.at_level(logging.INFO, "whisper"):
        draw_curves(run)
    assert caplog.messages == ["no curves.png: metrics.jsonl has nothing to draw yet"]
    assert not (tmp_path / "curves.png").exists()


def test_a_line_that_was_cut_short_is_passed_over(tmp_path):
    run = run_with(tmp_path, LOSSES[:2])
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 30, "lo\n\xec\x95\n\0\0\0\n[]\n')
    assert read_metrics(run) == LOSSES[:2]


def test_error_rates_are_found_by_their_step(tmp_path):
    run = run_with(tmp_path, [*LOSSES, *EVALUATIONS, END])
    assert rates_at(run, 200) == {"cer": 0.2, "cer_with_spaces": 0.2, "wer": 0.4}
    assert rates_at(run, 210) == rates_at(run, None) == {}


@pytest.mark.parametrize("trouble", ["no matplotlib", "no place"])
def test_a_picture_that_cannot_be_drawn_costs_one_line(tmp_path, caplog, monkeypatch, trouble):
    """The training is done by then: it must not end as a failed one."""
    run = run_with(tmp_path, LOSSES)
    if trouble == "no matplotlib":
        monkeypatch.setitem(sys.modules, "matplotlib", None)
    else:
        (tmp_path / "curves.png").mkdir()
    with caplog.at_level(logging.INFO, "whisper"):
        draw_curves(run)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("warning: curves.png could not be drawn (")


def test_a_home_that_cannot_be_written_changes_nothing(tmp_path):
    """No warning, no cache left behind, and no pyplot, which would keep figures and look for a display."""
    run_with(tmp_path, [*LOSSES, *EVALUATIONS], (200, 0.2))
    (tmp_path / "home").write_text("a file, in which nobody can make a folder")
    (tmp_path / "temporary").mkdir()
    (tmp_path / "matplotlibrc").write_text("axes.facecolor: no colour at all\n")
    program = f"""
import sys, utils
utils.set_up_logging()
from pathlib import Path
from asr.offline.curves import draw_curves
from asr.offline.runs import Run
draw_curves(Run(Path({str(tmp_path)!r})))
assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "MPL"))}
    environment = {**kept, "HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "temporary"),
                   "PYTHONPATH": str(ROOT)}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "curves.png").is_file()
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to send")
def test_an_interrupted_training_is_drawn_too(mini_bundle, tmp_path):
    arguments = ("--bundle-dir", mini_bundle, "--output-dir", tmp_path, "--run-name", "night", "--logging-steps", 1,
                 "--num-train-epochs", 1000, "--eval-steps", 10000, "--dataloader-num-workers", 0)  # fmt: skip
    training = subprocess.Popen(
        [sys.executable, str(ROOT / "train_offline.py"), *map(str, arguments)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 240
        while len(read_metrics(Run(tmp_path / "night"))) < 3:
            assert training.poll() is None, "training ended before it could be interrupted"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        training.terminate()
        assert training.wait(120) == 75
    finally:
        training.kill()
        training.wait()
    assert (tmp_path / "night" / "curves.png").is_file()
