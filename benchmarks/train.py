"""python -m benchmarks.train [--speech FOLDER --transcripts FILE.tsv] [--seconds 3.3 5] [--model-size tiny] [flags]

Whole trainings, each in a process of its own, one after the other: the plain recipe of the public notebooks
(`benchmarks/plain_recipe.py`) against train_offline.py in each audio layout, on the same utterances, for the same
optimiser steps, with the same LoRA and labels, on a Whisper of the true dimensions with random weights. What the
online half and `Dataset.map` prepare lies on the disk before any time is taken. Nothing is evaluated in between, and
one checkpoint is saved at the end. On a GPU, say, `--model-size small large-v3 --quantization 8bit 4bit none`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.flags import parse_trial, trial_parser
from benchmarks.measuring import ROOT, Usage, call, gpu_cells, machine, measure_script, read_json, tell
from benchmarks.models import SIZES, make_model
from benchmarks.speech import Clip, choose, join_neighbours, mean_seconds, read_clips, write_table

LAYOUTS = ("packed", "trimmed", "padded")
FRAMES_PER_SECOND, WINDOW_FRAMES = 100, 3000
SETUP = ["--split", "1,0,0", "--strict", "--keep-repeats", "--min-seconds", "0.1", "--max-clipped", "1"]
SETUP += ["--min-syllables-per-second", "0", "--max-syllables-per-second", "1000"]


@dataclass(frozen=True)
class Trial:
    """What every recipe is given: a bundle, the plain recipe's features, and how long to train.

    Attributes:
        speech_s: of all clips of an epoch.
        batch: utterances of a step.
    """

    bundle: Path
    features: Path
    work: Path
    clips: int
    speech_s: float
    epochs: int
    steps: int
    batch: int
    device: str
    seed: int
    quantization: str = "none"

    @property
    def folder(self) -> Path:
        """Where the recipes write."""
        return self.work / f"runs-{self.quantization}"

    @property
    def utterances(self) -> int:
        """Utterances that are trained on, repeats in later epochs included."""
        return self.steps * self.batch

    @property
    def rhythm(self) -> list[Any]:
        """Flags of the steps of warm-up, and between two lines of the log."""
        return ["--warmup-steps", max(1, self.steps // 4), "--logging-steps", max(1, self.steps // 10)]


@dataclass(frozen=True)
class Result:
    """What one recipe took.

    Attributes:
        loop_s: seconds of the training alone, and of saving it.
        loss: over the last tenth of the steps.
        silent: share of the encoder's frames in which nobody speaks.
        gpu_memory: bytes of the GPU that torch reserved at most; None without one.
    """

    name: str
    usage: Usage
    loop_s: float
    loss: float
    silent: float
    gpu_memory: int | None = None


def main() -> None:
    """Make speech and models, run each recipe on each, print the tables."""
    options = parse()
    os.environ["CUDA_VISIBLE_DEVICES"] = "0" if options.device == "cuda" else ""
    clips = read_clips(options.speech, options.transcripts)
    tables = []
    for size, seconds in itertools.product(options.model_size, options.seconds or [mean_seconds(clips)]):
        with tempfile.TemporaryDirectory() as scratch:
            made = make_trial(options, join_neighbours(clips, seconds), size, Path(scratch))
            for quantization in options.quantization:
                trial = replace(made, quantization=quantization)
                results = [plain(trial), *(ours(trial, layout) for layout in options.layouts)]
                tables.append(as_table(results, trial, size))
                print(tables[-1], flush=True)
    if options.out:
        options.out.write_text("\n".join(tables), encoding="utf-8")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = trial_parser(__doc__)
    parser.add_argument("--model-size", nargs="+", choices=SIZES, default=["tiny"])
    parser.add_argument("--steps", type=int, default=20, help="optimiser steps; fewer if they would break an epoch off")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=LAYOUTS)
    return parse_trial(parser)


def plan(available: int, steps: int, batch: int) -> tuple[int, int, int]:
    """Return clips, epochs and steps: whole epochs of full batches, so that every recipe hears each clip as often."""
    if available < batch:
        raise SystemExit(f"{available} clips are less than a batch of {batch}")
    epochs = -(-steps // (available // batch))
    each = steps // epochs
    return each * batch, epochs, each * epochs


def make_trial(options: argparse.Namespace, clips: list[Clip], size: str, work: Path) -> Trial:
    """Choose clips, and make the bundle and the plain recipe's features of them."""
    count, epochs, steps = plan(len(clips), options.steps, options.batch)
    chosen = choose(clips, count, options.seed)
    tell(f"whisper-{size}: preparing {count} clips of {mean_seconds(chosen):.2f} s")
    bundle, features = work / "bundle", work / "features"
    make_bundle(chosen, make_model(size, work / f"whisper-{size}", options.processor), bundle, work / "clips")
    recipe = [sys.executable, str(ROOT / "benchmarks/plain_recipe.py"), "prepare"]
    call([*recipe, "--bundle", str(bundle), "--out", str(features)])
    speech_s = sum(clip.seconds for clip in chosen)
    return Trial(bundle, features, work, count, speech_s, epochs, steps, options.batch, options.device, options.seed)


def make_bundle(clips: list[Clip], model: Path, bundle: Path, work: Path) -> None:
    """Bring clips and model into a bundle with the online half; every clip goes to the training split."""
    table = write_table(clips, work)
    command = [sys.executable, str(ROOT / "run_online_setup.py"), "--table", str(table), "--bundle-dir", str(bundle)]
    call([*command, "--model-name-or-path", str(model), *SETUP])
    splits = read_json(bundle / "manifest.json")["data"]["splits"]
    if [splits[name]["clips"] for name in ("train", "validation", "test")] != [len(clips), 0, 0]:
        raise SystemExit(f"not all of {len(clips)} clips came into the training split: {splits}")


def plain(trial: Trial) -> Result:
    """Run the plain recipe."""
    out = trial.folder / "plain"
    flags = ["train", "--bundle", trial.bundle, "--features", trial.features, "--out", out, "--steps", trial.steps]
    flags += ["--batch", trial.batch]
    flags += ["--quantization", trial.quantization, "--device", trial.device, "--seed", trial.seed, *trial.rhythm]
    usage, gpu_memory = measure_script(ROOT / "benchmarks/plain_recipe.py", flags, trial.work, trial.device == "cuda")
    told = read_json(out / "results.json")
    return Result("plain recipe", usage, told["seconds"], last_loss(told["log"]), padded_silence(trial), gpu_memory)


def ours(trial: Trial, layout: str) -> Result:
    """Run train_offline.py in a layout."""
    flags = training_flags(trial, layout)
    usage, gpu_memory = measure_script(ROOT / "train_offline.py", flags, trial.work, trial.device == "cuda")
    folder = trial.folder / layout
    loop_s = read_json(folder / "run.json")["results"]["seconds"]
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    silent = silent_share(trial, layout)
    return Result(f"train_offline.py, {layout}", usage, loop_s, last_loss(map(json.loads, lines)), silent, gpu_memory)


def training_flags(trial: Trial, layout: str) -> list[str]:
    """Return train_offline.py's flags; what is not named is the same on both sides by default."""
    flags = ["--bundle-dir", trial.bundle, "--output-dir", trial.folder, "--run-name", layout, "--audio-layout", layout]
    flags += [
        "--per-device-train-batch-size",
        trial.batch,
        "--num-train-epochs",
        trial.epochs,
        "--max-steps",
        trial.steps,
    ]
    flags += ["--save-steps", trial.steps, "--seed", trial.seed, "--timestamp-probability", 0, *trial.rhythm]
    flags += ["--quantization", trial.quantization, "--cuda-visible-devices", os.environ["CUDA_VISIBLE_DEVICES"]]
    return [*map(str, flags)]


def last_loss(log: Iterable[dict[str, Any]]) -> float:
    """Return the last loss that Trainer logged, a mean over the steps since the one before."""
    return [entry["loss"] for entry in log if "loss" in entry][-1]


def padded_silence(trial: Trial) -> float:
    """Return the share of the encoder's frames without speech where each clip has a window of its own."""
    return 1 - trial.speech_s * FRAMES_PER_SECOND / (trial.clips * WINDOW_FRAMES)


def silent_share(trial: Trial, layout: str) -> float:
    """Return the share of the encoder's frames without speech in a layout, as train_offline.py plans its epochs."""
    from datasets import load_from_disk
    from transformers import WhisperConfig

    from asr.offline.sampling import WindowSampler
    from asr.shared.cli import parse
    from config import TrainOffline

    rows = load_from_disk(str(trial.bundle / "data"))["train"]
    config, _ = parse(TrainOffline, training_flags(trial, layout))
    sampler = WindowSampler.of(rows, config, WhisperConfig.from_pretrained(trial.bundle / "model"), layout)
    shares = []
    for epoch in range(trial.epochs):
        sampler.set_epoch(epoch)
        shares.append(sampler.silent_share)
    return sum(shares) / len(shares)


def as_table(results: list[Result], trial: Trial, size: str) -> str:
    """Return a Markdown table; ratios are of utterances a second, against the first result."""
    gpu = trial.device == "cuda"
    weights = f"{trial.quantization} weights" if trial.quantization != "none" else "weights not quantised"
    lines = [
        f"whisper-{size} dimensions, random weights, {weights}; {trial.clips} clips of "
        f"{trial.speech_s / trial.clips:.1f} s, {trial.steps} steps of {trial.batch}, {trial.utterances} utterances",
        machine(trial.device),
        "",
        "| | whole process | utterances/s | ratio | loop alone | utterances/s | ratio | silent frames | peak memory |"
        + (" GPU memory | GPU busy |" if gpu else "")
        + " last loss |",
        "|---" * (12 if gpu else 10) + "|",
    ]
    lines += [_row(result, results[0], trial.utterances, gpu) for result in results]
    return "\n".join(lines) + "\n"


def _row(result: Result, first: Result, utterances: int, gpu: bool) -> str:
    seconds, loop_s = result.usage.seconds, result.loop_s
    cells = [result.name, f"{seconds:.0f} s", f"{utterances / seconds:.2f}", f"{first.usage.seconds / seconds:.1f}"]
    cells += [f"{loop_s:.0f} s", f"{utterances / loop_s:.2f}", f"{first.loop_s / loop_s:.1f}"]
    cells += [f"{100 * result.silent:.1f} %", f"{result.usage.memory / 1e6:,.0f} MB"]
    if gpu:
        cells += gpu_cells(result.usage, result.gpu_memory)
    return "| " + " | ".join([*cells, f"{result.loss:.3f}"]) + " |"


if __name__ == "__main__":
    main()
