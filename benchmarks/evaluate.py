"""python -m benchmarks.evaluate [--speech FOLDER --transcripts FILE.tsv] [--seconds 3.3 5] [--model-size tiny] [flags]

Whole evaluations, each in a process of its own, one after the other: the loop of the public notebooks
(`benchmarks/plain_evaluation.py`) against evaluate_model.py with windows of 30 s and with windows that are cut to the
speech. All of them hear the same clips with the same base and the same adapter, which lie on the disk before any time
is taken. Models of Whisper's dimensions have random weights, and write as many tokens of each clip as the texts have on
the average; the plain loop, which waits for the longest text of a batch, is better off with that than with real texts.
`demo` is the embedded model on the embedded test split, tuned in windows that are cut to the speech: real texts.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from asr.shared.text import clean_text
from benchmarks.flags import parse_trial, trial_parser
from benchmarks.layouts import make_demo_bundle, visible
from benchmarks.measuring import ROOT, Usage, call, gpu_cells, machine, measure_script, read_json, tell
from benchmarks.models import SIZES, make_model
from benchmarks.speech import choose, join_neighbours, mean_seconds, read_clips
from benchmarks.train import make_bundle
from config import Decoding

DEMO = "demo"
LAYOUTS = ("padded", "trimmed")
PROMPT_TOKENS = 4
ONE_STEP = ("--max-steps", 1, "--warmup-steps", 0)
# An apostrophe with which utterances.csv keeps spreadsheets from computing a text.
GUARD = re.compile(r"^'(?='*[=+\-@＝＋－＠\t\r\n])")


@dataclass(frozen=True)
class Trial:
    """What is evaluated.

    Attributes:
        name: of the model.
        bundle: with the base and the clips.
        split: that is heard.
        run: folder of the run with the adapter, trained in windows that are cut.
        most_tokens: of a text, the prompt's included.
        speech_s: of all clips.
        batch: clips of 30 s that are decoded together.
    """

    name: str
    bundle: Path
    split: str
    run: Path
    work: Path
    most_tokens: int
    clips: int
    speech_s: float
    batch: int
    device: str
    quantization: str = "none"


@dataclass(frozen=True)
class Result:
    """What one way of evaluating took, and what came out.

    Attributes:
        decode_s: seconds of the decoding alone, log-mel included.
        texts: of each clip, in the order of the split.
        cer: with spaces, as jiwer counts it.
        gpu_memory: bytes of the GPU that torch reserved at most; None without one.
    """

    name: str
    usage: Usage
    decode_s: float
    texts: list[str]
    cer: float
    gpu_memory: int | None = None


def main() -> None:
    """Make clips and models, evaluate each in every way, print the tables."""
    options = parse()
    os.environ["CUDA_VISIBLE_DEVICES"] = visible(options.device)
    tables = []
    for size, seconds in planned(options):
        with tempfile.TemporaryDirectory() as scratch:
            made = make_trial(options, size, seconds, Path(scratch))
            for quantization in options.quantization:
                trial = replace(made, quantization=quantization)
                tables.append(as_table([plain(trial), *(ours(trial, layout) for layout in LAYOUTS)], trial))
                print(tables[-1], flush=True)
    if options.out:
        options.out.write_text("\n".join(tables), encoding="utf-8")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = trial_parser(__doc__)
    parser.add_argument("--model-size", nargs="+", choices=[*SIZES, DEMO], default=["tiny", DEMO])
    parser.add_argument("--clips", type=int, default=128, help="at most so many; of the demo it is the test split")
    return parse_trial(parser)


def planned(options: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """Yield every model with every mean length of clips; with 0 they stay as they are."""
    for size in options.model_size:
        yield from itertools.product([size], [0] if size == DEMO else options.seconds or [0])


# What is evaluated


def make_trial(options: argparse.Namespace, size: str, seconds: float, work: Path) -> Trial:
    """Make a bundle with model and clips, and an adapter."""
    from datasets import load_from_disk

    bundle, demo = work / "bundle", size == DEMO
    if demo:
        make_demo_bundle(bundle)
    else:
        make_random_bundle(options, size, seconds, work)
    split = "test" if demo else "train"
    rows = load_from_disk(str(bundle / "data"))[split]
    tell(f"{size}: training the adapter for {len(rows)} clips")
    run = train_adapter(bundle, work / "runs", [] if demo else ONE_STEP, options)
    return Trial(
        name="the demo's model, tuned" if demo else f"whisper-{size} dimensions, random weights",
        bundle=bundle,
        split=split,
        run=run,
        work=work,
        most_tokens=Decoding().generation_max_length if demo else mean_tokens(rows["labels"]),
        clips=len(rows),
        speech_s=sum(rows["duration_s"]),
        batch=options.batch,
        device=options.device,
    )


def make_random_bundle(options: argparse.Namespace, size: str, seconds: float, work: Path) -> None:
    """Bring chosen clips and a model with random weights into a bundle; the clips are its training split."""
    clips = join_neighbours(read_clips(options.speech, options.transcripts), seconds)
    chosen = choose(clips, min(options.clips, len(clips)), options.seed)
    tell(f"{size}: preparing {len(chosen)} clips of {mean_seconds(chosen):.2f} s")
    model = make_model(size, work / f"whisper-{size}", options.processor, endless=True)
    make_bundle(chosen, model, work / "bundle", work / "clips")


def mean_tokens(labels: list[list[int]]) -> int:
    """Return how many tokens texts have on the average, those of prompt and end included."""
    return round(sum(map(len, labels)) / len(labels))


def train_adapter(bundle: Path, runs: Path, rhythm: tuple[Any, ...] | list[Any], options: argparse.Namespace) -> Path:
    """Train in windows that are cut, and return the run's folder."""
    flags = ["--bundle-dir", bundle, "--output-dir", runs, "--run-name", "tuned", "--audio-layout", "trimmed"]
    flags += ["--quantization", "none", "--seed", options.seed, "--cuda-visible-devices", visible(options.device)]
    call([sys.executable, str(ROOT / "train_offline.py"), *map(str, [*flags, *rhythm])])
    return runs / "tuned"


# Ways to evaluate


def plain(trial: Trial) -> Result:
    """Run the notebooks' loop."""
    out = trial.work / f"plain-{trial.quantization}.json"
    flags = ["--bundle", trial.bundle, "--split", trial.split, "--adapter", trial.run / "adapter", "--out", out]
    flags += ["--batch", trial.batch, "--max-new-tokens", trial.most_tokens - PROMPT_TOKENS]
    flags += ["--quantization", trial.quantization, "--device", trial.device]
    script = ROOT / "benchmarks/plain_evaluation.py"
    usage, gpu_memory = measure_script(script, flags, trial.work, trial.device == "cuda")
    told = read_json(out)
    return Result("plain loop", usage, told["seconds"], list(map(clean_text, told["texts"])), told["cer"], gpu_memory)


def ours(trial: Trial, layout: str) -> Result:
    """Run evaluate_model.py, with nothing that was decoded before."""
    out = trial.work / f"{layout}-{trial.quantization}"
    flags = ["--model", adapter_of(trial, layout), "--windows", "own", "--bundle-dir", trial.bundle]
    flags += ["--data", trial.bundle / "data" / trial.split, "--output-dir", out, "--evaluation-dir", out / "report"]
    flags += ["--per-device-eval-batch-size", trial.batch, "--generation-max-length", trial.most_tokens]
    flags += ["--quantization", trial.quantization, "--cuda-visible-devices", visible(trial.device)]
    usage, gpu_memory = measure_script(ROOT / "evaluate_model.py", flags, trial.work, trial.device == "cuda")
    return Result(f"evaluate_model.py, {layout}", usage, *read_report(out / "report", layout), gpu_memory)


def adapter_of(trial: Trial, layout: str) -> Path:
    """Return where the adapter is decoded in a layout: that of its run, or padded where no run says so."""
    own = trial.run / "adapter"
    return own if layout == "trimmed" else Path(shutil.copytree(own, trial.work / "adapter", dirs_exist_ok=True))


def read_report(folder: Path, layout: str) -> tuple[float, list[str], float]:
    """Return the seconds of decoding, texts and CER of the one system that was measured."""
    figures = read_json(folder / "metrics.json")
    (found,) = figures["sets"][0]["systems"]
    if found["window"] != layout:
        raise SystemExit(f"{folder} was decoded {found['window']}, not {layout}")
    with open(folder / "utterances.csv", encoding="utf-8-sig", newline="") as file:
        texts = [GUARD.sub("", row[found["label"]]) for row in csv.DictReader(file)]
    seconds = figures["speed"][0]["systems"][found["label"]]["decode_s"]
    return seconds, texts, found["metrics"]["cer_with_spaces"]["rate"]


# The table


def as_table(results: list[Result], trial: Trial) -> str:
    """Return a Markdown table; ratios and texts are compared with the first result's."""
    gpu = trial.device == "cuda"
    weights = f"{trial.quantization} weights" if trial.quantization != "none" else "weights not quantised"
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "peft"))
    lines = [
        f"{trial.name}, {weights}; {trial.clips} clips of {trial.speech_s / trial.clips:.1f} s, "
        f"at most {trial.most_tokens} tokens, {len(set(results[0].texts))} different texts",
        f"{machine(trial.device)}, {versions}",
        "",
        "| | whole process | utterances/s | ratio | decoding alone | utterances/s | ratio | peak memory |"
        + (" GPU memory | GPU busy |" if gpu else "")
        + " same text | CER |",
        "|---" * (12 if gpu else 10) + "|",
    ]
    lines += [_row(result, results[0], trial.clips, gpu) for result in results]
    return "\n".join(lines) + "\n"


def _row(result: Result, first: Result, clips: int, gpu: bool) -> str:
    seconds, decode_s = result.usage.seconds, result.decode_s
    cells = [result.name, f"{seconds:.1f} s", f"{clips / seconds:.2f}", f"{first.usage.seconds / seconds:.1f}"]
    cells += [f"{decode_s:.1f} s", f"{clips / decode_s:.2f}", f"{first.decode_s / decode_s:.1f}"]
    cells += [f"{result.usage.memory / 1e6:,.0f} MB"]
    if gpu:
        cells += gpu_cells(result.usage, result.gpu_memory)
    same = sum(ours == theirs for ours, theirs in zip(result.texts, first.texts, strict=True))
    return "| " + " | ".join([*cells, f"{100 * same / clips:.1f} %", f"{result.cer:.4f}"]) + " |"


if __name__ == "__main__":
    main()
