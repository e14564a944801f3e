"""The embedded demo: honest splits, a real Whisper, small enough to carry, and what its script would make again."""

from __future__ import annotations

import csv

import pytest
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from asr.shared.audio import load_audio
from demo.make_demo import BASE_VOICES, CORPUS_VOICES, base_sentences, corpus_sentences
from demo.tiny_whisper import jamo
from tests.conftest import DEMO_CORPUS, DEMO_MODEL, ROOT


@pytest.fixture(scope="module")
def tables() -> dict[str, list[dict[str, str]]]:
    found = {}
    for split in ("train", "dev", "test"):
        with open(DEMO_CORPUS / f"{split}.tsv", encoding="utf-8", newline="") as file:
            found[split] = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return found


def test_no_sentence_stands_in_two_splits_or_in_the_base_models_training(tables):
    texts = {split: {row["sentence"] for row in rows} for split, rows in tables.items()}
    assert sum(map(len, texts.values())) == sum(map(len, tables.values()))
    assert len(set.union(*texts.values())) == sum(map(len, texts.values()))
    assert not set.union(*texts.values()) & set(base_sentences())


def test_corpus_is_what_its_script_makes(tables):
    made = corpus_sentences()
    assert {split: [row["sentence"] for row in rows] for split, rows in tables.items()} == made


def test_no_voice_of_the_corpus_was_heard_by_the_base_model():
    heard = {voice.variant for voice in BASE_VOICES}
    assert not heard & {voice.variant for voices in CORPUS_VOICES.values() for voice in voices}


def test_splits_share_no_speaker(tables):
    speakers = [{row["client_id"] for row in rows} for rows in tables.values()]
    assert len(set.union(*speakers)) == sum(map(len, speakers))


def test_every_clip_is_there_at_48_khz_and_no_other(tables):
    import soundfile

    named = {row["path"] for rows in tables.values() for row in rows}
    assert named == {file.name for file in (DEMO_CORPUS / "clips").iterdir()}
    for row in tables["test"][:5]:
        clip = DEMO_CORPUS / "clips" / row["path"]
        assert soundfile.info(clip).samplerate == 48_000
        assert 0.5 < len(load_audio(clip)) / 16_000 < 6


def test_corpus_and_model_stay_under_10_mb():
    files = [*(ROOT / "demo" / "cv-corpus-demo").rglob("*"), *DEMO_MODEL.rglob("*")]
    assert sum(file.stat().st_size for file in files if file.is_file()) < 10_000_000


def test_model_is_a_whisper_with_the_full_window_and_all_special_tokens():
    model = WhisperForConditionalGeneration.from_pretrained(DEMO_MODEL)
    processor = WhisperProcessor.from_pretrained(DEMO_MODEL, language="korean", task="transcribe")
    assert model.config.max_source_positions == 1500
    tokens = processor.tokenizer.convert_ids_to_tokens(processor.tokenizer("안녕").input_ids)
    assert tokens[:4] == ["<|startoftranscript|>", "<|ko|>", "<|transcribe|>", "<|notimestamps|>"]
    assert processor.tokenizer.convert_tokens_to_ids("<|30.00|>") == len(processor.tokenizer) - 1
    assert model.config.vocab_size == len(processor.tokenizer)
    assert processor.tokenizer.decode(processor.tokenizer("뷁! 🎤").input_ids, skip_special_tokens=True) == "뷁! 🎤"


def test_jamo_are_the_letters_of_the_syllables():
    assert jamo("각") == [ord(letter) - 0x1100 for letter in "\u1100\u1161\u11a8"]
    assert jamo("가 가")[2] == 256
