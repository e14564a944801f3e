"""Examples: the few utterances of a test set that a reader should see and hear, with what each system made of them."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from asr.offline.alignment import Segment, align
from asr.offline.results import Evaluation
from asr.offline.symptoms import KINDS, Symptom

OF_A_LIST = 10
OF_A_SYMPTOM = 3
LONGEST_TEXT = 500
# Of the files themselves; in the page they take a third more.
AUDIO_BYTES = 4_000_000
AUDIO_TYPES = {b"fLaC": "audio/flac", b"RIFF": "audio/wav", b"OggS": "audio/ogg", b"ID3": "audio/mpeg"}

OpenAudio = Callable[[str, int], bytes | None]


@dataclass(frozen=True)
class Line:
    """What one system wrote for an utterance.

    Attributes:
        cer: without spaces, raw; None where the reference is empty.
        segments: the reference and the text laid side by side, cut after about `LONGEST_TEXT` characters.
        left_out: characters behind the cut.
    """

    label: str
    cer: float | None
    errors: int
    segments: list[Segment]
    left_out: int
    symptoms: Sequence[Symptom]


@dataclass(frozen=True)
class Example:
    """One utterance.

    Attributes:
        audio: a data: URI that plays; None where there is no audio, or it was left out to keep the page small.
        audio_left_out: there is audio that was left out.
    """

    source_id: str
    speaker: str | None
    source: str | None
    duration_s: float
    reference: str
    lines: list[Line]
    audio: str | None
    audio_left_out: bool


def chosen(evaluation: Evaluation, label: str) -> dict[str, list[int]]:
    """Return the places of the utterances to show: worst, improved, worsened and symptoms, none of them twice.

    All are ranked by errors, not by rate: an utterance of one syllable would have 100 % for each.

    Args:
        label: the system that is looked at; it is compared with the first.
    """
    at = evaluation.labels.index(label)
    errors = evaluation.scores[at]["cer"].errors
    gained = evaluation.scores[0]["cer"].errors - errors
    lists = {"worst": _highest(errors), "improved": _highest(gained), "worsened": _highest(-gained)}
    lists["symptoms"] = _with_symptoms(evaluation.symptoms[at])
    shown: set[int] = set()
    told = {}
    for name, places in lists.items():
        limit = OF_A_LIST if name != "symptoms" else len(places)
        told[name] = [place for place in places if place not in shown][:limit]
        shown.update(told[name])
    return told


def audio_of(
    evaluations: Sequence[tuple[Evaluation, dict[str, list[int]]]], open_audio: OpenAudio
) -> dict[tuple[str, int], bytes | None]:
    """Return the audio of all chosen utterances, up to `AUDIO_BYTES`; None for what was left out for its size.

    What stands first in each list goes first.
    """
    columns = [[(e.utterances.name, at) for at in places] for e, lists in evaluations for places in lists.values()]
    found: dict[tuple[str, int], bytes | None] = {}
    budget = AUDIO_BYTES
    for name, at in (key for row in zip_longest(*columns) for key in row if key):
        audio = open_audio(name, at)
        if audio:
            fits = len(audio) <= budget
            found[name, at] = audio if fits else None
            budget -= len(audio) if fits else 0
    return found


def example(evaluation: Evaluation, at: int, audio: dict[tuple[str, int], bytes | None]) -> Example:
    """Return utterance number `at` as it is shown."""
    said = evaluation.utterances
    key = (said.name, at)
    sound = audio.get(key)
    return Example(
        source_id=said.source_ids[at],
        speaker=said.speakers[at],
        source=said.sources[at],
        duration_s=said.durations_s[at],
        reference=said.references[at],
        lines=[_line(evaluation, system, at) for system in range(len(evaluation.outputs))],
        audio=None if sound is None else data_uri(sound),
        audio_left_out=key in audio and sound is None,
    )


def data_uri(audio: bytes) -> str:
    """Return an audio file as a data: URI, its type told by its first bytes."""
    kind = next((kind for mark, kind in AUDIO_TYPES.items() if audio.startswith(mark)), "audio/mpeg")
    return f"data:{kind};base64,{base64.b64encode(audio).decode()}"


def _highest(values: np.ndarray) -> list[int]:
    """Return the places of values above 0, the highest first, enough of them to leave some out."""
    order = np.argsort(-values, kind="stable")[: 4 * OF_A_LIST]
    return [int(place) for place in order if values[place] > 0]


def _with_symptoms(found: Sequence[Sequence[Symptom]]) -> list[int]:
    """Return the first utterances that show each symptom."""
    places: dict[str, list[int]] = {name: [] for name in KINDS}
    for at, symptoms in enumerate(found):
        for symptom in symptoms:
            if len(places[symptom.name]) < OF_A_SYMPTOM:
                places[symptom.name].append(at)
    return list(dict.fromkeys(at for kind in places.values() for at in kind))


def _line(evaluation: Evaluation, system: int, at: int) -> Line:
    counts = evaluation.scores[system]["cer"]
    rate = float(counts.rates[at])
    segments = align(evaluation.utterances.references[at], evaluation.outputs[system].texts[at])
    shown, left_out = _cut(segments)
    return Line(
        label=evaluation.labels[system],
        cer=None if np.isnan(rate) else rate,
        errors=int(counts.errors[at]),
        segments=shown,
        left_out=left_out,
        symptoms=evaluation.symptoms[system][at],
    )


def _cut(segments: Iterable[Segment]) -> tuple[list[Segment], int]:
    """Return the segments of the first `LONGEST_TEXT` characters, and how many characters come after."""
    shown, left_out, room = [], 0, LONGEST_TEXT
    for segment in segments:
        length = max(len(segment.reference), len(segment.hypothesis))
        if room > 0:
            shown.append(Segment(segment.kind, segment.reference[:room], segment.hypothesis[:room]))
        left_out += max(0, length - max(room, 0))
        room -= length
    return shown, left_out
