"""python -m benchmarks.inference [--speech FOLDER --transcripts FILE.tsv] [--model-size base small demo] [flags]

Whole transcriptions, each in a process of its own, one after the other: transformers' pipeline and faster-whisper, as
anyone would call them (`benchmarks/plain_transcribing.py`), against inference.py with its two engines, on a CPU. All of
them hear the same files with the same float32 weights, which lie on the disk before any time is taken: one clip alone,
which tells what starting costs; short clips as they are; and one long recording, in which the clips are heard again and
again with 1 to 4 s of silence between them. The pipeline hears that with its default for long files, the sequential
algorithm; inference.py hears speech alone, and cuts off what a text repeats on and on, so that it writes other windows
and fewer characters. Models of Whisper's dimensions have random weights, write as many tokens of each window as they
are told to, and are sure of them. `demo` is the embedded model on the embedded test clips, tuned in windows that are
cut to the speech: real texts.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from asr.shared.text import clean_text
from benchmarks.evaluate import DEMO, PROMPT_TOKENS, train_adapter
from benchmarks.flags import parse_trial, speech_parser
from benchmarks.layouts import make_demo_bundle, visible
from benchmarks.measuring import DEMO_CORPUS, ROOT, Usage, call, machine, measure_script, read_json, tell
from benchmarks.models import SIZES, make_model
from benchmarks.speech import PAUSES_S, Clip, choose, copy_files, read_clips, write_recording

PACKAGES = ("torch", "transformers", "ctranslate2", "faster-whisper")
# CTranslate2 takes so many threads, and no more than there are cores; it does not tell how many they are.
MOST_THREADS = 4
WHISPER, CTRANSLATE2, RUN = "whisper", "ctranslate2", "run"
COLUMNS = ["whole process", "times real time", "to row 2", "to row 1", "work alone", "peak memory", "characters"]
COLUMNS += ["same text"]


@dataclass(frozen=True)
class Contender:
    """A way to transcribe.

    Attributes:
        row: what other rows call it.
        name: of its program.
        weights: which of the trial's it opens.
        program: of `benchmarks.plain_transcribing`; "" for inference.py.
        like: row whose texts should be the same, or ""; the search is as wide there.
    """

    row: str
    name: str
    weights: str
    program: str = ""
    like: str = ""


CONTENDERS = (
    Contender("1", "transformers pipeline", WHISPER, "pipeline"),
    Contender("2", "faster-whisper", CTRANSLATE2, "faster-whisper", like="1"),
    Contender("3", "faster-whisper, greedy", CTRANSLATE2, "faster-whisper-greedy"),
    Contender("4a", "inference.py, torch", WHISPER, like="4b"),
    Contender("4b", "inference.py, CTranslate2", CTRANSLATE2, like="3"),
    Contender("4c", "inference.py, the run in its own windows", RUN, like="4b"),
)
PIPELINE, DEFAULTS = CONTENDERS[0].row, CONTENDERS[1].row


@dataclass(frozen=True)
class Work:
    """What a process hears.

    Attributes:
        name: of the table.
        folder: with the files alone; their names tell their order.
        said: in each file.
        seconds: of all files.
        joined: it is one recording of many clips, whose texts are compared by their characters.
    """

    name: str
    folder: Path
    said: list[str]
    seconds: float
    joined: bool = False


@dataclass(frozen=True)
class Trial:
    """What is compared.

    Attributes:
        name: of the model.
        weights: folders of the one model, by `WHISPER`, `CTRANSLATE2` and, where it was trained, `RUN`.
        work: folder for what is written.
        tokens: that are written of a window, those of the prompt not included; None for as many as there are.
        bundle: of the run.
    """

    name: str
    weights: dict[str, Path]
    work: Path
    tokens: int | None = None
    bundle: Path | None = None


@dataclass(frozen=True)
class Result:
    """What a contender took, and what came out.

    Attributes:
        texts: of each file, clean.
        told: what a plain program says of itself, `seconds` from the loaded model to the last text among it; nothing
            of inference.py.
    """

    contender: Contender
    usage: Usage
    texts: list[str]
    told: dict[str, Any] = field(default_factory=dict)


def main() -> None:
    """Make models and files, transcribe all in every way, print the tables."""
    options = parse()
    os.environ["CUDA_VISIBLE_DEVICES"] = visible(options.device)
    tables = []
    for size in options.model_size:
        with tempfile.TemporaryDirectory() as scratch:
            trial = make_trial(options, size, Path(scratch))
            for work in make_works(options, clips_for(options, size), trial.work):
                tables.append(as_table(run_all(trial, work), trial, work))
                print(tables[-1], flush=True)
    if options.out:
        options.out.write_text("\n".join(tables), encoding="utf-8")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = speech_parser(__doc__)
    parser.add_argument("--model-size", nargs="+", choices=[*SIZES, DEMO], default=["base", "small", DEMO])
    parser.add_argument("--clips", type=int, default=64, help="at most so many")
    parser.add_argument("--minutes", type=float, default=60, help="of the long recording")
    parser.add_argument("--tokens", type=int, default=24, help="of a window, where the weights are random")
    parser.set_defaults(device="cpu")
    return parse_trial(parser)


# What is compared


def make_trial(options: argparse.Namespace, size: str, work: Path) -> Trial:
    """Write the model in both formats: with random weights, or the demo's, tuned."""
    from asr.offline.export import convert

    if size == DEMO:
        return make_demo_trial(options, work)
    tell(f"{size}: making the model")
    whisper, converted = work / f"whisper-{size}", work / f"whisper-{size}-ctranslate2"
    make_model(size, whisper, options.processor, endless=True, sure=True, half=False)
    convert(whisper, converted, "float32")
    weights = {WHISPER: whisper, CTRANSLATE2: converted}
    return Trial(f"whisper-{size} dimensions, random weights", weights, work, options.tokens)


def make_demo_trial(
    options: argparse.Namespace, work: Path, training: tuple[Any, ...] = (), exporting: tuple[Any, ...] = ()
) -> Trial:
    """Tune the embedded model, with flags for `training`, and export it in both formats, with flags for `exporting`."""
    tell("demo: training and exporting the model")
    bundle = make_demo_bundle(work / "bundle")
    run = train_adapter(bundle, work / "runs", training, options)
    flags = ["--export", "both", "--export-quantization", "float32", "--run", run, "--bundle-dir", bundle, *exporting]
    call([sys.executable, str(ROOT / "inference.py"), *map(str, flags)])
    weights = {WHISPER: run / "export/merged", CTRANSLATE2: run / "export/ctranslate2", RUN: run}
    return Trial("the demo's model, tuned", weights, work, bundle=bundle)


def clips_for(options: argparse.Namespace, size: str) -> list[Clip]:
    """Draw the clips that a model hears; the demo's are of its test split."""
    demo = (DEMO_CORPUS / "clips", DEMO_CORPUS / "test.tsv")
    clips = read_clips(*(demo if size == DEMO else (options.speech, options.transcripts)))
    return choose(clips, min(options.clips, len(clips)), options.seed)


def make_works(options: argparse.Namespace, clips: list[Clip], work: Path) -> list[Work]:
    """Write the files of one clip, of all clips and of the long recording."""
    works: list[Work] = []
    for name, some in {"one clip alone": clips[:1], f"{len(clips)} clips": clips}.items():
        folder = work / f"audio-{len(works)}"
        copy_files(some, folder)
        works.append(Work(name, folder, [clip.text for clip in some], sum(clip.seconds for clip in some)))
    tell(f"joining {options.minutes:g} minutes of clips")
    folder = work / f"audio-{len(works)}"
    recording = write_recording(clips, 60 * options.minutes, folder / "recording.flac", options.seed)
    low, high = PAUSES_S
    name = f"one recording of {len(clips)} clips again and again, {low:g} to {high:g} s of silence between them"
    return [*works, Work(name, folder, [recording.text], recording.seconds, joined=True)]


# Ways to transcribe


def run_all(trial: Trial, work: Work) -> list[Result]:
    """Run every contender for which the trial has weights, in the order of their rows."""
    return [
        (plain if contender.program else ours)(contender, trial, work)
        for contender in CONTENDERS
        if contender.weights in trial.weights
    ]


def plain(contender: Contender, trial: Trial, work: Work) -> Result:
    """Run a program of `benchmarks.plain_transcribing`."""
    out = trial.work / "plain.json"
    flags = [contender.program, "--model", trial.weights[contender.weights], "--audio", work.folder, "--out", out]
    flags += ["--tokens", trial.tokens] if trial.tokens else []
    usage, _ = measure_script(ROOT / "benchmarks/plain_transcribing.py", flags, trial.work, gpu=False)
    told = read_json(out)
    return Result(contender, usage, list(map(clean_text, told.pop("texts"))), told)


def ours(contender: Contender, trial: Trial, work: Work) -> Result:
    """Run inference.py into an empty folder."""
    model = trial.weights[contender.weights]
    with tempfile.TemporaryDirectory(dir=trial.work) as out:
        flags = [work.folder, "--format", "json", "--transcript-dir", out]
        flags += ["--run", model, "--bundle-dir", trial.bundle] if contender.weights == RUN else ["--model", model]
        flags += ["--generation-max-length", trial.tokens + PROMPT_TOKENS] if trial.tokens else []
        usage, _ = measure_script(ROOT / "inference.py", flags, trial.work, gpu=False)
        return Result(contender, usage, read_texts(work, Path(out)))


def read_texts(work: Work, folder: Path) -> list[str]:
    """Return the text of each file of a work, of which inference.py wrote one JSON each into `folder`."""
    files = sorted(work.folder.iterdir())
    return [clean_text(read_json(folder / f"{file.stem}.json")["text"]) for file in files]


# The table


def as_table(results: list[Result], trial: Trial, work: Work) -> str:
    """Return a Markdown table of one work, with what is to be known of the rows below it."""
    by_row = {result.contender.row: result for result in results}
    real = trial.tokens is None
    limit = "as many tokens as there are" if real else f"{trial.tokens} tokens of a window"
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    columns = [*COLUMNS, "CER"] if real else COLUMNS
    lines = [
        f"{trial.name}, float32, {limit}; {work.name}, {work.seconds:,.1f} s of audio",
        f"{machine()}, {versions}",
        threads(by_row[PIPELINE]),
        "",
        f"| | {' | '.join(columns)} |",
        "|---" * (1 + len(columns)) + "|",
        *(f"| {' | '.join(_cells(result, by_row, work, real))} |" for result in results),
        "",
        *(f"- {note}" for note in notes(results, real)),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _cells(result: Result, by_row: dict[str, Result], work: Work, real: bool) -> list[str]:
    seconds, contender = result.usage.seconds, result.contender
    cells = [f"{contender.row} {contender.name}", f"{seconds:.1f} s", f"{work.seconds / seconds:.2f}"]
    cells += [f"{by_row[row].usage.seconds / seconds:.2f}" for row in (DEFAULTS, PIPELINE)]
    cells += [f"{result.told['seconds']:.1f} s" if "seconds" in result.told else ""]
    cells += [f"{result.usage.memory / 1e6:,.0f} MB", f"{sum(map(len, result.texts)):,}"]
    cells += [alike(result, by_row[contender.like], work.joined) if contender.like else ""]
    return [*cells, f"{cer(result.texts, work.said):.4f}"] if real else cells


def alike(result: Result, other: Result, joined: bool) -> str:
    """Return the share of files with the same text as in another row, or how far one long text is from its."""
    row = other.contender.row
    if joined:
        return f"CER {cer(result.texts, other.texts):.4f} to {row}" if any(other.texts) else f"{row} has none"
    same = sum(mine == theirs for mine, theirs in zip(result.texts, other.texts, strict=True))
    return f"{100 * same / len(result.texts):.1f} % of {row}"


def cer(written: list[str], said: list[str]) -> float:
    """Return the error rate of characters, spaces left out, of all texts together."""
    from asr.offline.error_rates import count_edits, without_spaces

    texts = ([without_spaces(clean_text(text)) for text in side] for side in (written, said))
    return count_edits(*texts).total().rate


def threads(pipeline: Result) -> str:
    """Return in a line how many threads each program takes by default."""
    theirs = os.environ.get("OMP_NUM_THREADS") or min(MOST_THREADS, os.cpu_count() or 1)
    return f"threads by default: {theirs} of faster-whisper, {pipeline.told['threads']} of torch, and so of the others"


def notes(results: list[Result], real: bool) -> Iterator[str]:
    """Yield what the numbers alone do not tell; `real` where the weights are trained."""
    theirs = [result for result in results if "multilingual" in result.told]
    if not all(result.told["multilingual"] for result in theirs):
        rows = ", ".join(result.contender.row for result in theirs)
        yield (
            f"{rows}: CTranslate2 takes a model with so few tokens for one of English alone, and faster-whisper then "
            "prompts it with neither language nor task, whatever it is told; inference.py gives the whole prompt"
        )
    if theirs and not real:
        yield (
            "faster-whisper fills up a window that is not full with zeros of the log-mel, and the others with silence, "
            "which is less: random weights make other texts of that"
        )
    for result in theirs:
        if again := result.told["again"]:
            yield f"{result.contender.row}: {again} of {result.told['segments']} segments at a higher temperature"
    if any(not result.told for result in results):
        yield "inference.py does not tell its work alone: what starting takes is in the table of one clip alone"


if __name__ == "__main__":
    main()
