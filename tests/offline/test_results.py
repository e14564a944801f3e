"""What is counted of an evaluation: metrics.json, the table in the terminal and utterances.csv."""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.offline.figures import all_figures, set_figures
from asr.offline.results import Evaluation, Output, Utterances
from asr.offline.summary import WIDTH, summary_lines
from asr.offline.utterance_table import guarded, utterances_csv
from utils import UserError

# 5 + 3 + 2 + 4 characters without spaces. The base misses 1, writes 1 wrong, adds 3 and is right once.
SAID = ["안녕 하세요", "고맙다", "네네", "학교에서"]
BASE = ["안녕 하세", "고맙디", "네네네네네", "학교에서"]
# Right, right, 1 added, all 4 missed.
TUNED = ["안녕하세요", "고맙다", "네네네", ""]


def utterances(references: list[str] = SAID, name: str = "test") -> Utterances:
    count = len(references)
    return Utterances(
        name=name,
        source_ids=[f"clip-{at}.mp3" for at in range(count)],
        references=references,
        durations_s=[2.0] * count,
        speakers=[None, *["가람"] * (count - 1)],
        sources=[None] * count,
        loudness_db=[None] * count,
    )


def output(system: str, texts: list[str], window: str = "padded", seconds: float = 4.0) -> Output:
    return Output(system, window, texts, seconds, {"quantization": "none", "decoding": {"batch_size": 8}})


def worked(name: str = "test", *more: Output) -> Evaluation:
    return Evaluation(utterances(name=name), [output("base", BASE), output("tuned", TUNED), *more])


# Results


def test_columns_of_one_length():
    with pytest.raises(ValueError, match="test: columns of 2 and 1 utterances"):
        Utterances("test", ["a", "b"], ["가"], [1.0, 1.0], [None] * 2, [None] * 2, [None] * 2)
    with pytest.raises(ValueError, match="test: tuned wrote 1 texts for 4 utterances"):
        Evaluation(utterances(), [output("base", BASE), output("tuned", ["가"])])


def test_every_output_can_be_told_from_the_others():
    with pytest.raises(ValueError, match="same system and window"):
        Evaluation(utterances(), [output("base", BASE), output("base", TUNED)])
    both = worked("test", output("base", BASE, "trimmed"), output("tuned", TUNED, "trimmed"))
    assert both.labels == ["base", "tuned", "base (trimmed)", "tuned (trimmed)"]


# Figures


def test_figures_are_those_worked_by_hand():
    base, tuned = worked().figures["systems"]
    cer = {"rate": 5 / 14, "errors": 5, "length": 14, "hits": 12}
    assert cer.items() <= base["metrics"]["cer"].items()
    assert {name: base["metrics"]["cer"][name] for name in ("substitutions", "deletions", "insertions")} == {
        "substitutions": 1, "deletions": 1, "insertions": 3,
    }  # fmt: skip
    assert tuned["metrics"]["cer"]["rate"] == 5 / 14
    assert tuned["against_first"]["cer"]["difference"] == 0
    # Words: base writes 하세, 고맙디 and the long 네 wrong; tuned 안녕하세요 for two, the 네, and misses 학교에서.
    assert (base["metrics"]["wer"]["errors"], tuned["metrics"]["wer"]["errors"]) == (3, 4)
    assert tuned["against_first"]["wer"]["difference"] == pytest.approx(1 / 5)
    assert base["against_first"] is None
    for rate in base["metrics"].values():
        assert rate["low"] <= rate["rate"] <= rate["high"]


def test_headline_of_the_main_set_is_plain_numbers():
    evaluations = [worked("test", output("tuned", BASE, "trimmed")), worked("other")]
    figures = all_figures(evaluations, {"quantization": "8bit", "run": "a"})
    assert set(figures["base"]) == set(figures["tuned"]) == {"cer", "cer_with_spaces", "wer"}
    assert figures["tuned"]["wer"] == 4 / 5, "the first window of a system is the one that counts"
    assert (figures["utterances"], figures["quantization"]) == (4, "8bit")
    assert all_figures(evaluations, {})["quantization"] == "none", "else as the outputs say"
    assert [each["name"] for each in figures["sets"]] == ["test", "other"]


def test_metrics_are_strict_json_for_any_test_set():
    """One utterance has no interval, an empty reference no rate of its own, and a decoder may take no time."""
    evaluations = [
        Evaluation(utterances(["가나"], "one"), [output("base", ["가"], seconds=0.0), output("tuned", ["가나"])]),
        Evaluation(utterances(["", "가"], "empty"), [output("base", ["네", "가"]), output("tuned", ["", ""])]),
    ]
    figures = json.loads(json.dumps(all_figures(evaluations, {}), allow_nan=False))
    assert figures["sets"][0]["systems"][0]["metrics"]["cer"]["low"] is None
    assert figures["sets"][1]["empty_references"] == 1
    assert figures["sets"][1]["systems"][1]["utterance_change"]["worse"] == 1
    assert figures["speed"][0]["systems"]["base"]["times_real_time"] is None


def test_a_set_without_any_text_is_the_users_to_mend():
    with pytest.raises(UserError, match=r"test set test: .* reference that is not empty"):
        set_figures(Evaluation(utterances(["", "  "]), [output("base", ["가", ""])]))


def test_change_of_window_is_that_of_the_same_system():
    both = worked("test", output("tuned", SAID, "trimmed"))
    base, tuned, trimmed = both.figures["systems"]
    assert base["against_other_window"] is tuned["against_other_window"] is None
    change = trimmed["against_other_window"]
    assert change["window"] == "padded"
    assert change["metrics"]["wer"]["difference"] == pytest.approx(-4 / 5), "from tuned, not from base"


def test_distributions_by_hand():
    """CER by utterance: base 20 %, 33 %, 150 %, 0; tuned 0, 0, 50 %, 100 %."""
    base, tuned = worked().figures["systems"]
    found = base["utterance_cer"]
    assert (found["perfect"], found["above"]) == (1, 1)
    assert found["counts"] == [0, 1, 0, 1, 0, 0, 0, 0, 0, 0], "an edge belongs to the bin below it"
    assert tuned["utterance_cer"]["counts"] == [0, 0, 0, 0, 1, 0, 0, 0, 0, 1]
    change = tuned["utterance_change"]
    assert (change["better"], change["same"], change["worse"]) == (3, 0, 1)
    # -100, -33, -20 and +100 points, in bins of 10 from -100 on.
    assert [at for at, count in enumerate(change["counts"]) if count] == [0, 6, 8, 19]


def test_confusions_count_each_system():
    found = worked().figures["confusions"]
    assert {"reference": "다", "hypothesis": "디", "counts": [1, 0]} in found["substituted"]
    assert found["inserted"] == [{"hypothesis": "네", "counts": [3, 1]}]
    assert {"reference": "학", "counts": [0, 1]} in found["deleted"]


def test_most_frequent_confusion_comes_first():
    said = utterances(["가나", "가가", "하나", "하나"])
    written = ["나나", "가바", "나나", "나나"]
    found = Evaluation(said, [output("base", written), output("tuned", written)]).figures["confusions"]["substituted"]
    assert [(row["reference"], row["hypothesis"], row["counts"]) for row in found] == [
        ("하", "나", [2, 2]), ("가", "나", [1, 1]), ("가", "바", [1, 1]),
    ]  # fmt: skip


def test_only_speed_hangs_on_the_clock():
    slow = Evaluation(utterances(), [output("base", BASE, seconds=9.0), output("tuned", TUNED, seconds=8.0)])
    figures, slower = all_figures([worked()], {}), all_figures([slow], {})
    assert figures.pop("speed")[0]["systems"]["base"]["times_real_time"] == 2.0
    assert slower.pop("speed")[0]["systems"]["tuned"]["times_real_time"] == 1.0
    assert figures == slower


# The table in the terminal


def columns_of(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in line)


def test_table_tells_rates_intervals_and_changes():
    lines = summary_lines([worked()])
    assert lines[0].startswith("test: 4 utterances, 0.1 min; ")
    (base,) = (line for line in lines if line.startswith("base "))
    assert base.split() == ["base", "0.3571", "0.3333", "0.6000", "0.3571"]
    (change,) = (line for line in lines if line.startswith("  less base "))
    assert change.split()[2:] == ["+0.0000", "+0.0667", "+0.2000", "+0.0000"]
    assert "symptoms: base none; tuned empty 1" in lines
    assert lines[-1] == "speed, times real time: base 2, tuned 2"


def test_table_stays_within_its_width():
    long = output("2026-11-22-한국어-전화-음성-large-v3-첫번째", TUNED)
    hundred = [f"row {at}: the file is no audio" for at in range(100)]
    evaluation = Evaluation(utterances(), [output("base", BASE), long, output("base", SAID, "trimmed")], hundred)
    lines = summary_lines([evaluation, worked("other-set")])
    assert max(map(columns_of, lines)) <= WIDTH
    rows = [line for line in lines if line.count(" 0.3571") == 2]
    assert [columns_of(line) for line in rows] == [WIDTH] * 4, "Hangul takes two columns"
    assert sum(line.startswith("note:") for line in lines) == 4
    assert "97 more" in " ".join(lines)


def test_forgetting_stands_beside_learning():
    outputs = [output("base", BASE), output("tuned", SAID), output("base", SAID, "trimmed")]
    better = Evaluation(utterances(), outputs)
    worse = Evaluation(utterances(name="before"), [output("base", SAID), output("tuned", BASE)])
    lines = summary_lines([better, worse])
    block = lines[lines.index("learnt and forgotten: CER less that of base") + 1 :]
    assert [line.split()[:2] for line in block] == [["tuned", "-0.3571"], ["tuned", "+0.3571"]]
    assert [line.split()[-1] for line in block] == ["test", "before"]


def test_table_of_a_single_utterance_has_no_interval():
    one = Evaluation(utterances(["가나"]), [output("base", ["가"]), output("tuned", ["가나"])])
    assert any(line.split() == ["–"] * 4 for line in summary_lines([one]))


# utterances.csv


def rows_of(text: str) -> list[dict[str, str]]:
    assert text.startswith("\ufeff")
    return list(csv.DictReader(io.StringIO(text[1:], newline="")))


def read_back(cell: str) -> str:
    """As the module says it is done."""
    return cell[1:] if re.match("'+[=+\\-@＝＋－＠\t\r\n]", cell) else cell


def test_every_utterance_has_a_row():
    other = Evaluation(utterances(["", "가"], "other"), [output("base", ["네", "가"])])
    rows = rows_of(utterances_csv([worked(), other]))
    assert len(rows) == 6
    expected = {"set": "test", "source_id": "clip-3.mp3", "speaker": "가람", "source": "", "duration_s": "2.000"}
    expected |= {"reference": "학교에서", "base": "학교에서", "base_cer": "0.0000", "base_errors": "0"}
    assert rows[3] == expected | {
        "tuned": "", "tuned_cer": "1.0000", "tuned_errors": "4", "base_symptoms": "", "tuned_symptoms": "empty",
    }  # fmt: skip
    assert (rows[4]["base_cer"], rows[4]["base_errors"]) == ("", "1"), "an empty reference has no rate"
    assert rows[5]["tuned"] == rows[5]["tuned_cer"] == rows[5]["tuned_symptoms"] == "", "it did not decode that set"


@pytest.mark.parametrize("text", ["=1+1", "+82", "-3도", "@SUM(A1)", "＝1", "\t=1", "'=1", "''@", "\r\n=1"])
def test_no_cell_is_a_formula(text: str):
    assert guarded(text) == "'" + text


@pytest.mark.parametrize("text", ["가 = 나", "'안녕'", "3-4", "", "'"])
def test_other_cells_stay_as_they_are(text: str):
    assert guarded(text) == text


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.one_of(st.sampled_from("'=+-@＝\t\r\n,\"가 "), st.characters(codec="utf-8"))))
def test_texts_can_be_read_back(text: str):
    said = Utterances("test", [text], ["가"], [1.0], [text], [text], [None])
    (row,) = rows_of(utterances_csv([Evaluation(said, [output("base", [text])])]))
    for column in ("source_id", "speaker", "source", "base"):
        assert read_back(row[column]) == text
