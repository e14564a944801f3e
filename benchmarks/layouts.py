"""python -m benchmarks.layouts [--bundle FOLDER] [--seeds 42 43] [--max-steps N] [--out FILE.md]

What a layout does to the error rate: trains the bundle's Whisper in each audio layout, otherwise alike, and decodes the
test split with the base and each tuned model, both with the window cut to the speech and with the window of 30 s. By
default the bundle is the demo's.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measuring import ROOT, ask_gpu, call, machine, measure, tell

# Packed costs so much less that it may train longer for the same time.
TRAININGS = {
    "packed": ("--audio-layout", "packed"),
    "packed, 9 epochs": ("--audio-layout", "packed", "--num-train-epochs", "9"),
    "trimmed": ("--audio-layout", "trimmed"),
    "padded": ("--audio-layout", "padded"),
}
BASE = "base model"


@dataclass(frozen=True)
class Judged:
    """What a model writes of the test split.

    Attributes:
        name: of its training, or `BASE`.
        cer: in the window cut to the speech, and in the one of 30 s.
        seconds: that its training took, start included; None for the base.
    """

    name: str
    cer: tuple[float, float]
    seconds: float | None = None


def main() -> None:
    """Train, decode, print the table."""
    options = parse()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        bundle = options.bundle.resolve() if options.bundle else make_demo_bundle(work / "bundle")
        judged = [one for seed in options.seeds for one in judge_all(options, bundle, work / "runs", seed)]
    table = as_table(judged, options)
    print(table)
    if options.out:
        options.out.write_text(table, encoding="utf-8")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--bundle", type=Path, metavar="FOLDER", help="with a test split; by default the demo's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43], help="one training each, in every layout")
    parser.add_argument("--max-steps", type=int, default=-1, help="stop sooner than the default training does")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if ask_gpu("name") else "cpu")
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="also write the table to this file")
    return parser.parse_args()


def make_demo_bundle(folder: Path) -> Path:
    """Bring the embedded speech and Whisper into a bundle."""
    call([sys.executable, str(ROOT / "run_online_setup.py"), "--demo", "--bundle-dir", str(folder)])
    return folder


def judge_all(options: argparse.Namespace, bundle: Path, runs: Path, seed: int) -> Iterable[Judged]:
    """Train with a seed in each layout, and yield what base and tuned models make of the test split."""
    for place, (training, chosen) in enumerate(TRAININGS.items()):
        name = f"{place}-{seed}"
        tell(f"training {training}, seed {seed}")
        flags = ["--bundle-dir", bundle, "--output-dir", runs, "--run-name", name, *chosen]
        flags += ["--seed", seed, f"--max-steps={options.max_steps}", "--cuda-visible-devices", visible(options.device)]
        usage = measure([sys.executable, str(ROOT / "train_offline.py"), *map(str, flags)])
        tell(f"decoding {training}, seed {seed}")
        base, tuned = judge(bundle, runs / name, options.device, with_base=place == 0)
        yield from [Judged(BASE, base)] if base else []
        yield Judged(training, tuned, usage.seconds)


def visible(device: str) -> str:
    """Return what --cuda-visible-devices is to be."""
    return "0" if device == "cuda" else ""


def judge(
    bundle: Path, run: Path, device: str, with_base: bool
) -> tuple[tuple[float, float] | None, tuple[float, float]]:
    """Return the error rates of the base, where they are asked for, and of the run's model."""
    from datasets import load_from_disk
    from transformers.utils import logging

    from asr.offline.metrics import error_rates
    from asr.offline.systems import Opener, Speaking, System, find_systems
    from asr.shared.bundle import open_bundle
    from config import Decoding, Device, UseRuns

    logging.set_verbosity_error()
    opened = open_bundle(bundle)
    base, tuned = find_systems(UseRuns(run=(run,)), opened)
    speaking = Speaking(opened.language, opened.task)
    opener = Opener(Device(cuda_visible_devices=visible(device)), Decoding(), speaking, tuned.kind == "full")
    rows = load_from_disk(str(opened.data_dir))["test"]

    def rates(system: System) -> tuple[float, float]:
        written: list[float] = []
        with opener.open(system) as transcriber:
            for transcriber.trimmed in (True, False):
                written.append(error_rates(transcriber.transcribe_clips(rows), rows["text"])["cer"])
        return written[0], written[1]

    return (rates(base) if with_base else None), rates(tuned)


def as_table(judged: list[Judged], options: argparse.Namespace) -> str:
    """Return a Markdown table; of several seeds the mean, with the lowest and the highest."""
    seeds = f"seeds {', '.join(map(str, options.seeds))}"
    steps = f"{options.max_steps} steps" if options.max_steps > 0 else "the default training"
    lines = [
        f"CER on the test split of {options.bundle.name if options.bundle else 'the demo'}, {steps}, {seeds}",
        machine(options.device),
        "",
        "| trained | decoded trimmed | decoded in 30 s | training |",
        "|---|---|---|---|",
    ]
    for name in (BASE, *TRAININGS):
        of_it = [one for one in judged if one.name == name]
        rates = [_spread([one.cer[window] for one in of_it], "{:.4f}".format) for window in (0, 1)]
        seconds = [one.seconds for one in of_it if one.seconds is not None]
        cost = _spread(seconds, "{:.0f} s".format) if seconds else ""
        lines.append(f"| {name} | {' | '.join(rates)} | {cost} |")
    return "\n".join(lines) + "\n"


def _spread(values: list[float], spell: Callable[[float], str]) -> str:
    mean = spell(sum(values) / len(values))
    low, high = spell(min(values)), spell(max(values))
    return mean if low == high else f"{mean} ({low} to {high})"


if __name__ == "__main__":
    main()
