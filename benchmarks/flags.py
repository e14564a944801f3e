"""Flags that the benchmarks of whole processes share: on which speech, with which models, on what."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.measuring import ROOT, ask_gpu

PROCESSOR = ROOT.parent / "shared" / "data" / "whisper-processor"


def speech_parser(about: str | None) -> argparse.ArgumentParser:
    """Return a parser with the flags that name speech and processor, and where the tables go.

    Args:
        about: docstring of the benchmark; its first line is the command.
    """
    parser = argparse.ArgumentParser(description=(about or "").partition("\n\n")[2])
    parser.add_argument("--speech", type=Path, metavar="FOLDER", help="audio files; by default the demo corpus")
    parser.add_argument("--transcripts", type=Path, metavar="FILE.tsv", help="their path, sentence and speaker")
    parser.add_argument("--processor", type=Path, metavar="FOLDER", help="tokenizer and settings of a Whisper")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="also write the tables to this file")
    return parser


def trial_parser(about: str | None) -> argparse.ArgumentParser:
    """Return a parser with these flags, and those of what computes with what; arguments as for `speech_parser`."""
    parser = speech_parser(about)
    parser.add_argument("--seconds", type=float, nargs="+", help="mean lengths, reached by joining neighbours")
    parser.add_argument("--batch", type=int, default=8, help="utterances at a time")
    parser.add_argument("--quantization", nargs="+", choices=["8bit", "4bit", "none"], default=["none"])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if ask_gpu("name") else "cpu")
    return parser


def parse_trial(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Read the command line with a parser that has these flags."""
    options = parser.parse_args()
    if (options.speech is None) != (options.transcripts is None):
        parser.error("--speech and --transcripts go together")
    if options.processor is None and PROCESSOR.is_dir():
        options.processor = PROCESSOR
    return options
