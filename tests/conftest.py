"""What many tests share: a Whisper small enough to train in seconds, and a bundle made with it."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

# Two programs of many threads on two cores slow each other down fourfold; set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Under nohup or in a shell's background, tests of signals would find them ignored, as they should be.
if threading.current_thread() is threading.main_thread():
    for number in filter(None, (getattr(signal, name, None) for name in ("SIGHUP", "SIGTERM"))):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
# What the scripts remember of verified bundles stays out of the user's own cache.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="whisper-tests-")

ROOT = Path(__file__).resolve().parent.parent
DEMO_CORPUS = ROOT / "demo" / "cv-corpus-demo" / "ko"
DEMO_MODEL = ROOT / "demo" / "tiny-whisper-ko"
MEASURING_DATA = ROOT.parent / "shared" / "data"
CLIPS = {"train": 24, "dev": 4, "test": 4}


@pytest.fixture(scope="session")
def mini_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random-initialised Whisper with the demo's tokenizer, d_model 64 and a window of 5 s."""
    import torch
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

    folder = tmp_path_factory.mktemp("model") / "mini-whisper"
    shutil.copytree(DEMO_MODEL, folder)
    config = WhisperConfig.from_pretrained(
        DEMO_MODEL,
        d_model=64,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        max_source_positions=250,
        dropout=0.0,
    )
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig.from_pretrained(DEMO_MODEL, alignment_heads=[[0, 0]])
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def mini_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Common Voice release with a few clips of the demo corpus."""
    folder = tmp_path_factory.mktemp("release") / "cv-corpus-mini" / "ko"
    (folder / "clips").mkdir(parents=True)
    for split, count in CLIPS.items():
        with open(DEMO_CORPUS / f"{split}.tsv", encoding="utf-8", newline="") as file:
            lines = file.read().splitlines(keepends=True)[: count + 1]
        (folder / f"{split}.tsv").write_text("".join(lines), encoding="utf-8")
        for row in csv.DictReader(lines, delimiter="\t"):
            shutil.copy(DEMO_CORPUS / "clips" / row["path"], folder / "clips")
    return folder.parent


@pytest.fixture(scope="session")
def mini_bundle(tmp_path_factory: pytest.TempPathFactory, mini_model: Path, mini_release: Path) -> Path:
    """A sealed bundle of the two; treat it as read-only."""
    bundle = tmp_path_factory.mktemp("mini") / "bundle"
    script("run_online_setup.py", "--model-name-or-path", mini_model, "--common-voice", mini_release,
           "--bundle-dir", bundle, "--num-proc", 1, check=True)  # fmt: skip
    return bundle


def script(
    name: str,
    *arguments: object,
    check: bool = False,
    cwd: Path = ROOT,
    env: dict[str, str] | None = None,
    prefix: tuple[str, ...] = (),
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """Run one of the project's scripts as a user would, on one thread, so that results repeat."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8", **(env or {})}
    done = subprocess.run(
        [*prefix, sys.executable, str(ROOT / name), *map(str, arguments)],
        capture_output=True, text=True, encoding="utf-8", cwd=cwd, env=environment, timeout=timeout,
    )  # fmt: skip
    if check and done.returncode:
        raise AssertionError(f"{name} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done
