"""CTranslate2: it writes what transformers writes, and says what is wrong with a folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from asr.offline.ctranslate import CTranslate2Writer, is_ctranslate2
from asr.offline.decoding import Transcriber
from asr.offline.precision import Precision
from asr.offline.whisper import load_whisper
from asr.shared.audio import load_audio
from asr.shared.processor import load_processor
from config import Decoding
from tests.conftest import DEMO_CORPUS, DEMO_MODEL
from utils import UserError

ctranslate2 = pytest.importorskip("ctranslate2")
CPU = Precision("cpu", "none", torch.float32)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's Whisper as faster-whisper opens it."""
    from ctranslate2.converters import TransformersConverter

    folder = tmp_path_factory.mktemp("converted") / "tiny-ct2"
    TransformersConverter(str(DEMO_MODEL), copy_files=["tokenizer.json", "preprocessor_config.json"]).convert(folder)
    return folder


@pytest.mark.parametrize(("trimmed", "most"), [(False, 225), (True, 225), (True, 12)])
def test_writes_what_transformers_writes(converted, trimmed, most):
    """In whole windows and in cut ones, to the end of the text and to a limit."""
    clips = [load_audio(DEMO_CORPUS / "clips" / f"common_voice_ko_test_{number:04}.mp3") for number in range(4)]
    decoding = Decoding(per_device_eval_batch_size=2, generation_max_length=most)
    processor = load_processor(DEMO_MODEL, "Korean", "transcribe")
    expected = Transcriber.of(load_whisper(DEMO_MODEL, CPU), processor, CPU, decoding, trimmed).transcribe(clips)
    writer = CTranslate2Writer(converted, "Korean", "transcribe", "none", most)
    assert Transcriber(writer, decoding, trimmed).transcribe(clips) == expected
    assert len(set(expected)) == 4


def test_tells_device_and_format(converted):
    assert CTranslate2Writer(converted, "Korean", "transcribe", "8bit", 30).describe() == {
        "device": "CPU",
        "compute_type": "int8_float32",
    }


def test_is_told_from_other_folders(converted):
    assert is_ctranslate2(converted)
    assert not is_ctranslate2(DEMO_MODEL)


def broken(converted: Path, folder: Path) -> Path:
    return shutil.copytree(converted, folder / "broken")


def test_a_missing_tokenizer_is_named(converted, tmp_path):
    folder = broken(converted, tmp_path)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"broken has no tokenizer\.json"):
        CTranslate2Writer(folder, "Korean", "transcribe", "auto", 30)


def test_a_cut_off_model_is_named(converted, tmp_path):
    folder = broken(converted, tmp_path)
    with open(folder / "model.bin", "r+b") as file:
        file.truncate(100_000)
    with pytest.raises(UserError, match="broken cannot be opened: "):
        CTranslate2Writer(folder, "Korean", "transcribe", "auto", 30)


def test_formats_that_it_has_not_are_refused(converted):
    with pytest.raises(UserError, match="no 4bit weights: use --quantization 8bit, none or auto"):
        CTranslate2Writer(converted, "Korean", "transcribe", "4bit", 30)
