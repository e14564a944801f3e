"""Error rates: equal to jiwer and to counting by hand; also as modules of `evaluate`, with no network."""

from __future__ import annotations

import socket
import unicodedata

import evaluate
import jiwer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.offline.error_rates import METRICS, Counts, score, to_jamo, without_spaces
from asr.offline.metrics import ErrorRate, error_rates
from asr.offline.normalizer import Normalizer
from asr.shared.text import clean_text
from tests.conftest import ROOT

KOREAN = st.text("가나다라마바사 아자차카", min_size=1, max_size=20)
# With empty texts, texts of signs alone, and consonants and vowels that differ in one jamo.
MIXED = st.text("가각간거 ,.aA1", max_size=12)


def counts_of(prediction: str, reference: str, metric: str) -> tuple[int, int, int, int]:
    total = score([prediction, "끝"], [reference, "끝"])[metric]
    return tuple(int(part[0]) for part in (total.hits, total.substitutions, total.deletions, total.insertions))


# Counted by hand: hits, substitutions, deletions, insertions


def test_hand_counted_example():
    """안녕하세요 여러분 -> 안넝하세요여러분: 1 of 8 syllables; with spaces 2 of 9; both words are wrong."""
    rates = error_rates(["안넝하세요여러분"], ["안녕하세요 여러분"])
    assert rates == {"cer": pytest.approx(1 / 8), "cer_with_spaces": pytest.approx(2 / 9), "wer": pytest.approx(1.0)}


def test_all_units_of_one_example():
    """오늘은 날씨가 좋다 -> 오늘 날시가 아주 좋다.

    Syllables 오늘은날씨가좋다 -> 오늘날시가아주좋다: 은 is missed, 씨 became 시, 아 and 주 were added; 6 are right.
    With spaces, 10 characters: the same edits, and the space before 아주 is added; 6 syllables and 2 spaces are right.
    Words: 오늘은 became 오늘, 날씨가 became 날시가, 아주 was added; 좋다 is right.
    Jamo, 20 of them (2+3+3, 3+2+2, 3+2): 은 is 3 missed, ㅆ became ㅅ, 아주 is 4 added; 16 are right.
    """
    said, written = "오늘은 날씨가 좋다", "오늘 날시가 아주 좋다"
    assert counts_of(written, said, "cer") == (6, 1, 1, 2)
    assert counts_of(written, said, "cer_with_spaces") == (8, 1, 1, 3)
    assert counts_of(written, said, "wer") == (1, 2, 0, 1)
    assert counts_of(written, said, "jer") == (16, 1, 3, 4)


def test_signs_and_case_count_raw_and_not_normalized():
    """네, KBS입니다. -> 네 kbs입니다: two signs and three capitals of 10 characters; in normal form nothing of 7."""
    said, written = "네, KBS입니다.", "네 kbs입니다"
    assert counts_of(written, said, "cer") == (4, 3, 2, 0)
    assert counts_of(written, said, "wer") == (0, 2, 0, 0)
    assert counts_of(written, said, "cer_normalized") == (7, 0, 0, 0)
    assert counts_of(written, said, "wer_normalized") == (2, 0, 0, 0)
    # Jamo of 네KBS입니다: 2 + 3 + 3 + 2 + 2.
    assert counts_of(written, said, "jer_normalized") == (12, 0, 0, 0)


def test_jamo_are_those_of_unicode_and_nothing_else_changes():
    """한 is ㅎㅏㄴ; initial and final consonants differ; ㅋ, é and Latin letters are no syllables."""
    assert to_jamo("한 글") == unicodedata.normalize("NFD", "한글")
    assert len(to_jamo("값")) == 3
    assert to_jamo("ㅋé가A") == "ㅋé" + unicodedata.normalize("NFD", "가") + "A"


def test_rates_are_micro_averages():
    """One wrong syllable of ten is 0.1, however the ten are spread over utterances."""
    assert error_rates(["나", "가나다라마바사아자"], ["가", "가나다라마바사아자"])["cer"] == pytest.approx(0.1)


def test_the_same_text_in_nfd_is_no_error():
    text = "각하와 값"
    assert error_rates([unicodedata.normalize("NFD", text)], [text]) == {"cer": 0, "cer_with_spaces": 0, "wer": 0}


def test_rates_above_one_are_told():
    assert error_rates(["가나다라"], ["하"])["cer"] == 4.0


# Empty texts


def test_an_empty_output_is_all_deletions():
    assert error_rates([""], ["세 글자"])["cer"] == 1.0
    assert counts_of(" ", "세 글자", "cer") == (0, 0, 3, 0)


def test_an_empty_reference_adds_insertions_and_no_length():
    """3 characters over an empty reference and none over 2 of the other: 3 / 2; alone it has no rate."""
    scores = score(["세 글자", "가나"], ["", "가나"])
    assert scores["cer"].total() == Counts(hits=2, substitutions=0, deletions=0, insertions=3)
    assert scores["cer"].total().rate == 1.5
    np.testing.assert_array_equal(scores["cer"].rates, [np.nan, 0])


def test_nothing_written_where_nothing_is_said_is_no_error():
    scores = score(["", "가나"], [" ", "가다"])
    assert scores["cer"].errors.tolist() == [0, 1]
    assert scores["wer"].lengths.tolist() == [0, 1]


def test_no_reference_at_all_is_refused():
    with pytest.raises(ValueError, match="not empty"):
        error_rates(["가"], [" "])
    with pytest.raises(ValueError, match=r"cer: .*not empty"):
        score(["가"], [" "])
    with pytest.raises(ValueError, match=r"cer_normalized: .*not empty"):
        score(["가"], ["…"])


def test_as_many_predictions_as_references():
    with pytest.raises(ValueError, match="zip"):
        score(["가"], ["가", "나"])


# Against jiwer


@settings(max_examples=20)
@given(st.lists(st.tuples(KOREAN.filter(str.strip), KOREAN), min_size=1, max_size=8))
def test_equal_to_jiwer(pairs):
    references = [" ".join(r.split()) for r, _ in pairs]
    predictions = [" ".join(p.split()) for _, p in pairs]
    rates = error_rates(predictions, references)
    assert rates["cer_with_spaces"] == pytest.approx(jiwer.cer(references, predictions))
    assert rates["wer"] == pytest.approx(jiwer.wer(references, predictions))


@given(st.lists(st.tuples(MIXED, MIXED), max_size=6))
def test_every_count_is_jiwers(pairs):
    """Hits, substitutions, deletions and insertions, empty texts included."""
    predictions, references = [p for p, _ in pairs] + ["가 나"], [r for _, r in pairs] + ["가 다"]
    scores = score(predictions, references)
    for metric in METRICS:
        prepare = Normalizer() if metric.endswith("_normalized") else clean_text
        unit = {"cer": without_spaces, "jer": to_jamo}.get(metric.removesuffix("_normalized"), str)
        process = jiwer.process_words if metric.startswith("wer") else jiwer.process_characters
        theirs = process([unit(prepare(r)) for r in references], [unit(prepare(p)) for p in predictions])
        ours = scores[metric].total()
        assert ours == Counts(theirs.hits, theirs.substitutions, theirs.deletions, theirs.insertions)


# As modules of `evaluate`


@pytest.mark.parametrize("metric", METRICS)
def test_each_metric_is_a_module_of_evaluate(metric, tmp_path):
    predictions, references = ["오늘 날시가, 아주 좋다", "OK"], ["오늘은 날씨가 좋다.", "ok"]
    module = ErrorRate(metric, keep_in_memory=True, cache_dir=str(tmp_path))
    figures = score(predictions, references).figures()[metric]
    told = module.compute(predictions=predictions, references=references)
    assert told.pop(metric) == figures["rate"]
    assert told == {f"{metric}_{name}": figures[name] for name in ("hits", "substitutions", "deletions", "insertions")}


def test_an_unknown_metric_is_refused():
    with pytest.raises(ValueError, match="there is no metric mer: choose among cer "):
        ErrorRate("mer")


def test_evaluate_loads_the_file_without_a_network(monkeypatch, tmp_path):
    """What `evaluate.load("cer")` cannot do: it fetches a script, and fails on a box without a network."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    file = ROOT / "asr" / "offline" / "metrics.py"
    metric = evaluate.load(str(file), "wer", keep_in_memory=True, cache_dir=str(tmp_path))
    assert metric.compute(predictions=["가 나"], references=["가 다"])["wer"] == 0.5
