"""utterances.csv: every utterance with what each system wrote, for a spreadsheet and for other programs.

It is UTF-8 with a byte order mark, without which Excel takes Korean for another encoding. A spreadsheet would compute
a cell that begins with = + - or @ (or their full-width forms, or a tab): such a text gets an apostrophe in front, and
so does one that begins with apostrophes and then one of these. To read the texts back, take one apostrophe away from
what matches `'+[=+\\-@＝＋－＠\\t\\r\\n]`.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence

import numpy as np

from asr.offline.results import Evaluation

BYTE_ORDER_MARK = "\ufeff"
COMPUTED = re.compile("'*[=+\\-@＝＋－＠\t\r\n]")
SAID = ("set", "source_id", "speaker", "source", "duration_s", "reference")


def utterances_csv(evaluations: Sequence[Evaluation]) -> str:
    """Return the table of all sets, one row an utterance.

    Columns: set, source_id, speaker, source, duration_s, reference; then of each system its text (under its own
    name), `_cer` (without spaces, raw; empty where the reference is) and `_errors`; then `_symptoms` of each system,
    their names with spaces between. A system that did not decode a set leaves its cells empty.
    """
    labels = list(dict.fromkeys(label for evaluation in evaluations for label in evaluation.labels))
    counted = [f"{guarded(label)}{column}" for label in labels for column in ("", "_cer", "_errors")]
    symptoms = [f"{guarded(label)}_symptoms" for label in labels]
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow([*SAID, *counted, *symptoms])
    for evaluation in evaluations:
        writer.writerows(_rows(evaluation, labels))
    return BYTE_ORDER_MARK + table.getvalue()


def guarded(text: str | None) -> str:
    """Return `text` so that no spreadsheet takes it for a formula; nothing for None."""
    return f"'{text}" if text and COMPUTED.match(text) else text or ""


def _rows(evaluation: Evaluation, labels: Sequence[str]) -> Iterator[list[object]]:
    said = evaluation.utterances
    outputs = dict(zip(evaluation.labels, zip(evaluation.outputs, evaluation.scores, strict=True), strict=True))
    symptoms = dict(zip(evaluation.labels, evaluation.symptoms, strict=True))
    columns: list[Sequence[object]] = [
        [guarded(said.name)] * len(said),
        *(list(map(guarded, column)) for column in (said.source_ids, said.speakers, said.sources)),
        [f"{seconds:.3f}" for seconds in said.durations_s],
        list(map(guarded, said.references)),
    ]
    nothing = [""] * len(said)
    for label in labels:
        if label not in outputs:
            columns += [nothing] * 3
            continue
        output, scores = outputs[label]
        rates = ["" if np.isnan(rate) else f"{rate:.4f}" for rate in scores["cer"].rates]
        columns += [list(map(guarded, output.texts)), rates, scores["cer"].errors.tolist()]
    for label in labels:
        columns.append([" ".join(symptom.name for symptom in found) for found in symptoms.get(label, [()] * len(said))])
    for row in zip(*columns, strict=True):
        yield list(row)
