"""Symptoms: outputs that no listener would write, found by utterance; each is named and told with its reason.

They say where a model fails, not how often it errs: loops, more text than speech allows, text over silence, empty
output, and output in another script than the speaker's language has. A correct transcript shows none of them.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from asr.offline.error_rates import without_spaces
from asr.offline.normalizer import Normalizer
from asr.shared.audio import SAMPLE_RATE
from asr.shared.text import clean_text, count_syllables
from config import Cleaning

KINDS = {
    "loop": "the same characters over and over",
    "too_long": "more text than speech allows",
    "text_over_silence": "text where nothing is said",
    "empty": "no text where something is said",
    "wrong_language": "another script than the reference",
}
FASTEST_SPEECH = Cleaning.max_syllables_per_second
# As in the preparation: the loudest 25 ms below this is silence.
SILENCE_DB = -60.0
LOWEST_DB = -180.0

# Fewer than 8 characters 4 times in a row, or 8 to 60 of them 3 times.
REPEATS = re.compile(r"(?P<short>.{1,7}?)(?P=short){3,}|(?P<long>.{8,60}?)(?P=long){2,}")
# 하하하하, 네 네 네 네 and 빨리빨리빨리빨리 are said: a loop takes 12 characters and half of the text, or 24.
LOOP_CHARACTERS = 12
LONG_LOOP_CHARACTERS = 24
LOOP_SHARE = 0.5

OWN_SCRIPT_SHARE = 0.2
REFERENCE_SHARE = 0.7
# Written together in one language, or told apart by no listener.
SCRIPTS = {"HIRAGANA": "HAN AND KANA", "KATAKANA": "HAN AND KANA", "CJK": "HAN AND KANA"}
# A letter of these is a syllable, which takes an alphabet about three: 스마트폰 is as much text as smartphone.
LETTERS_A_SYLLABLE = {"HANGUL": 3, "HAN AND KANA": 3}
ABBREVIATION = re.compile(r"(?<![A-Za-z])[A-Z]{1,4}(?![A-Za-z])")

_SPOKEN = Normalizer()
_WITH_CASE = Normalizer(fold_case=False)


@dataclass(frozen=True)
class Symptom:
    """Something that is wrong with an output.

    Attributes:
        name: one of `KINDS`.
        reason: what was found, in a few words.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class Loop:
    """A stretch of text that repeats one unit.

    Attributes:
        unit: what is repeated, in normal form and without spaces.
        times: how often it stands there in a row.
    """

    unit: str
    times: int


def symptoms_of(
    hypothesis: str, reference: str, duration_s: float | None = None, loudness_db: float | None = None
) -> list[Symptom]:
    """Return what is wrong with one output.

    Args:
        hypothesis: what was written.
        reference: what was said.
        duration_s: length of the audio in seconds; without it the speed of the text is not judged.
        loudness_db: level of the audio (`loudness_of`); without it silence is known by an empty reference alone.
    """
    written, said = _SPOKEN(hypothesis), _SPOKEN(reference)
    silent = loudness_db is not None and loudness_db < SILENCE_DB
    found = (
        _empty(hypothesis, written, said, silent),
        _loop(written, said),
        _too_long(written, duration_s),
        _over_silence(written, said, f"the loudest 25 ms reach {loudness_db:.0f} dB" if silent else ""),
        _wrong_language(hypothesis, reference),
    )
    return [symptom for symptom in found if symptom]


def find_symptoms(
    hypotheses: Sequence[str],
    references: Sequence[str],
    durations_s: Sequence[float | None] | None = None,
    loudness_db: Sequence[float | None] | None = None,
) -> list[list[Symptom]]:
    """Return the symptoms of each utterance of a corpus; arguments as for `symptoms_of`.

    Raises:
        ValueError: the arguments are not of one length.
    """
    nothing = [None] * len(references)
    durations = nothing if durations_s is None else durations_s
    levels = nothing if loudness_db is None else loudness_db
    return [symptoms_of(*row) for row in zip(hypotheses, references, durations, levels, strict=True)]


def count_symptoms(found: Sequence[Sequence[Symptom]]) -> dict[str, int]:
    """Return how many utterances show each of `KINDS`."""
    counts = Counter(symptom.name for symptoms in found for symptom in symptoms)
    return {name: counts[name] for name in KINDS}


def find_loop(text: str) -> Loop | None:
    """Return the longest loop of a text, if there is one that speech does not explain.

    A unit of 1 to 7 characters (punctuation, case and spaces apart) must stand there 4 times in a row, one of 8 to 60
    characters 3 times; together these are 12 characters and half of the text, or 24 characters.
    """
    squeezed = without_spaces(_SPOKEN(text))
    longest = max(REPEATS.finditer(squeezed), key=lambda match: len(match[0]), default=None)
    if longest is None:
        return None
    length = len(longest[0])
    if length < LOOP_CHARACTERS or length < min(LOOP_SHARE * len(squeezed), LONG_LOOP_CHARACTERS):
        return None
    unit = longest["short"] or longest["long"]
    return Loop(unit, length // len(unit))


def loudness_of(waveform: np.ndarray) -> float:
    """Return the level of the loudest 25 ms in dB of full scale; -180 for an empty waveform or digital silence.

    Args:
        waveform: float32 in [-1, 1], 16 kHz, shape (samples,).
    """
    if not waveform.size:
        return LOWEST_DB
    frame = min(SAMPLE_RATE // 40, len(waveform))
    frames = waveform[: len(waveform) // frame * frame].reshape(-1, frame)
    power = float(np.square(frames, dtype=np.float64).mean(axis=1).max())
    return 10 * math.log10(power) if power else LOWEST_DB


def _empty(hypothesis: str, written: str, said: str, silent: bool) -> Symptom | None:
    if written or not said or silent:
        return None
    return Symptom("empty", "nothing but signs" if clean_text(hypothesis) else "nothing written")


def _loop(written: str, said: str) -> Symptom | None:
    loop = find_loop(written)
    if loop is None:
        return None
    spoken = find_loop(said)
    # A song may repeat itself; the model then adds nothing of its own.
    if spoken and loop.times * len(loop.unit) <= 1.5 * spoken.times * len(spoken.unit):
        return None
    return Symptom("loop", f"{loop.unit} {loop.times} times in a row")


def _too_long(written: str, duration_s: float | None) -> Symptom | None:
    syllables = count_syllables(written)
    if not duration_s or syllables <= FASTEST_SPEECH * duration_s:
        return None
    return Symptom("too_long", f"{syllables} syllables in {duration_s:.1f} s, {syllables / duration_s:.0f} a second")


def _over_silence(written: str, said: str, silence: str) -> Symptom | None:
    if written and not said:
        return Symptom("text_over_silence", silence or "the reference is empty")
    # Who writes what is said heard something, however faint.
    return Symptom("text_over_silence", silence) if silence and written not in ("", said) else None


def _wrong_language(hypothesis: str, reference: str) -> Symptom | None:
    expected, written = _scripts(reference), _scripts(hypothesis)
    if not expected or not written:
        return None
    script, most = expected.most_common(1)[0]
    share = written[script] / written.total()
    if most < REFERENCE_SHARE * expected.total() or share >= OWN_SCRIPT_SHARE:
        return None
    return Symptom("wrong_language", f"{share:.0%} of the text is {script.capitalize()}")


def _scripts(text: str) -> Counter[str]:
    """Return how much of a text is in each script; abbreviations in capitals (KBS), of no language, are left out."""
    letters = (char for char in ABBREVIATION.sub("", _WITH_CASE(text)) if char.isalpha())
    names = (unicodedata.name(char, "UNKNOWN").split()[0] for char in letters)
    counts = Counter(SCRIPTS.get(name, name) for name in names)
    return Counter({script: count * LETTERS_A_SYLLABLE.get(script, 1) for script, count in counts.items()})
