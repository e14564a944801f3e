"""Symptoms: found in outputs that show them, and never in what people say."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from asr.offline.symptoms import (
    KINDS,
    Loop,
    Symptom,
    count_symptoms,
    find_loop,
    find_symptoms,
    loudness_of,
    symptoms_of,
)
from tests.conftest import DEMO_CORPUS, MEASURING_DATA

TRANSCRIPTS = MEASURING_DATA / "korean-speech" / "transcripts.tsv"


def names(*arguments: object) -> list[str]:
    return [symptom.name for symptom in symptoms_of(*arguments)]


# References show none


def test_references_of_the_demo_show_no_symptom():
    for split in ("train", "dev", "test"):
        with open(DEMO_CORPUS / f"{split}.tsv", encoding="utf-8", newline="") as file:
            texts = [row["sentence"] for row in csv.DictReader(file, delimiter="\t")]
        assert not any(find_symptoms(texts, texts))
        assert not any(map(find_loop, texts))


@pytest.mark.skipif(not TRANSCRIPTS.is_file(), reason="the measuring data are not here")
def test_references_of_the_measuring_data_show_no_symptom():
    with open(TRANSCRIPTS, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    texts = [row["sentence"] for row in rows]
    assert not any(find_symptoms(texts, texts, [float(row["duration_s"]) for row in rows]))
    assert not any(map(find_loop, texts))


@pytest.mark.parametrize(
    "text",
    [
        "네 네 네",
        "하하하",
        "네, 네, 네, 네, 네.",
        "ㅋㅋㅋㅋㅋㅋ",
        "빨리빨리빨리빨리",
        "아니 아니 아니 아니 그게 아니라",
        "고마워요 고마워요 고마워요",
        "1,000,000,000원",
        "01012341234",
        "",
    ],
)
def test_natural_repeats_are_no_loop(text):
    assert find_loop(text) is None
    assert names(text, text, 5.0) == []


# Loops


@pytest.mark.parametrize(
    ("text", "loop"),
    [
        ("감사합니다. 감사합니다. 감사합니다. 감사합니다.", Loop("감사합니다", 4)),
        ("시청해 주셔서 감사합니다. " * 3, Loop("시청해주셔서감사합니다", 3)),
        ("그" * 200, Loop("그", 200)),
        ("Thank you. thank you, " * 3, Loop("thankyou", 6)),
        ("오늘은 날씨가 좋고 바람이 붑니다 그래서 나는 밖에 나가서 걸었습니다 " + "그래서 " * 8, Loop("그래서", 8)),
    ],
)
def test_loops_are_found(text, loop):
    assert find_loop(text) == loop
    assert Symptom("loop", f"{loop.unit} {loop.times} times in a row") in symptoms_of(text, "감사합니다")


def test_a_few_repeats_in_a_long_text_are_no_loop():
    """12 characters are a loop by themselves, and not beside 30 others."""
    assert find_loop("그래서 " * 4) == Loop("그래서", 4)
    assert find_loop("오늘은 날씨가 좋고 바람이 붑니다 나는 밖에 나가서 걸었습니다 " + "그래서 " * 4) is None


def test_what_is_said_over_and_over_is_no_loop_of_the_model():
    said = "둥글게 " * 5
    assert names("둥글게 " * 6, said) == []
    assert names("둥글게 " * 40, said) == ["loop"]


# Too long, empty, over silence


def test_more_text_than_speech_allows():
    """16 syllables in a second are more than the 15 that a clip of the preparation may have; 15 are not."""
    said = "가나다라마바사아자차카타파하거"
    assert names(said, said, 1.0) == []
    assert symptoms_of(said + "너", said, 1.0) == [Symptom("too_long", "16 syllables in 1.0 s, 16 a second")]
    assert names(said + "너", said, None) == names(said + "너", said, 1.1) == []


def test_no_text_where_something_is_said():
    assert symptoms_of(" ", "네") == [Symptom("empty", "nothing written")]
    assert symptoms_of("…", "네") == [Symptom("empty", "nothing but signs")]
    assert symptoms_of("", "") == symptoms_of(".", "") == []


def test_text_where_nothing_is_said():
    assert symptoms_of("감사합니다", "", 2.0) == [Symptom("text_over_silence", "the reference is empty")]
    assert symptoms_of("감사합니다", "네", 2.0, -75.2) == [
        Symptom("text_over_silence", "the loudest 25 ms reach -75 dB")
    ]
    assert names("감사합니다", "네", 2.0, -59.9) == []
    # Heard, though faint; and where there is nothing to hear, nothing is the right answer.
    assert names("네.", "네", 2.0, -75.2) == names("", "네", 2.0, -75.2) == []


def test_loudness_is_that_of_the_loudest_25_ms():
    """A sine of full scale has an RMS of 1 / sqrt 2, -3.01 dB; half of it 6.02 dB less; 25 ms of it are enough."""
    sine = np.sin(np.arange(16_000) * 2 * np.pi * 400 / 16_000).astype(np.float32)
    assert loudness_of(sine) == pytest.approx(-3.01, abs=0.01)
    assert loudness_of(sine / 2) == pytest.approx(-9.03, abs=0.01)
    quiet = np.zeros(16_000, dtype=np.float32)
    quiet[4000:4400] = sine[:400]
    assert loudness_of(quiet) == pytest.approx(-3.01, abs=0.01)
    assert loudness_of(np.zeros(16_000, dtype=np.float32)) == loudness_of(np.zeros(0, dtype=np.float32)) == -180
    assert np.isfinite(loudness_of(sine[:7]))


# Wrong language


@pytest.mark.parametrize(
    ("hypothesis", "reference", "share"),
    [
        ("Thank you for watching.", "시청해 주셔서 감사합니다", "0% of the text is Hangul"),
        ("谢谢", "고맙습니다", "0% of the text is Hangul"),
        ("네 ありがとうございます", "네 고맙습니다", "9% of the text is Hangul"),
        ("네, thank you for watching", "네 고맙습니다", "14% of the text is Hangul"),
        ("오늘은 날씨가", "the weather is", "0% of the text is Latin"),
        ("ｙｏｕ", "네", "0% of the text is Hangul"),
    ],
)
def test_another_script_than_the_reference_has(hypothesis, reference, share):
    assert symptoms_of(hypothesis, reference) == [Symptom("wrong_language", share)]


@pytest.mark.parametrize(
    ("hypothesis", "reference"),
    [
        ("스마트폰 앱을 켜요", "smartphone 앱을 켜요"),
        ("smartphone 앱", "스마트폰 앱"),
        ("OK", "오케이"),
        ("KBS는 TV", "케이비에스는 티비"),
        ("AI 시대의 ChatGPT 활용법", "에이아이 시대의 챗지피티 활용법"),
        ("3, 2, 1", "삼 이 일"),
        ("ﾡﾱ", "ㄱㅁ"),
        ("東京に行く", "とうきょうにいく"),
        ("abc", "123"),
    ],
)
def test_mixed_text_is_not_another_language(hypothesis, reference):
    assert names(hypothesis, reference) == []


# Over a corpus


def test_symptoms_of_a_corpus_are_listed_by_utterance_and_counted():
    found = find_symptoms(
        ["네", "", "감사합니다 " * 9, "you"],
        ["네", "아니요", "감사합니다", "네"],
        np.array([1.0, 1.0, 2.0, 1.0], dtype=np.float32),
    )
    assert [[symptom.name for symptom in symptoms] for symptoms in found] == [
        [],
        ["empty"],
        ["loop", "too_long"],
        ["wrong_language"],
    ]
    assert count_symptoms(found) == {
        "loop": 1,
        "too_long": 1,
        "text_over_silence": 0,
        "empty": 1,
        "wrong_language": 1,
    }
    assert list(count_symptoms([])) == list(KINDS)


def test_columns_of_another_length_are_refused():
    with pytest.raises(ValueError, match="zip"):
        find_symptoms(["가"], ["가"], [1.0, 2.0])
