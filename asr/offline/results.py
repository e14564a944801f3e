"""Results: which utterances were decoded, with what, and what came out; all figures and reports are made of these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, count
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asr.offline.error_rates import Scores
    from asr.offline.symptoms import Symptom


def told_apart(names: Sequence[str]) -> list[str]:
    """Return names with a number behind each that stands before it, too; none is there twice."""
    told: list[str] = []
    for name in names:
        numbered = (f"{name}-{number}" for number in count(2))
        told.append(next(one for one in chain([name], numbered) if one not in told))
    return told


@dataclass(frozen=True)
class Utterances:
    """One test set, in its order.

    Attributes:
        name: "test", or the stem of the table that it was read from.
        source_ids: what each clip is called where it came from.
        references: what was said.
        durations_s: length of the audio, in seconds.
        speakers, sources: names; None where they are not known.
        loudness_db: level of the loudest 25 ms (`asr.offline.symptoms.loudness_of`); None where it was not measured.

    Raises:
        ValueError: the columns are not of one length.
    """

    name: str
    source_ids: list[str]
    references: list[str]
    durations_s: list[float]
    speakers: list[str | None]
    sources: list[str | None]
    loudness_db: list[float | None]

    def __post_init__(self) -> None:
        columns = (self.references, self.durations_s, self.speakers, self.sources, self.loudness_db)
        for column in columns:
            if len(column) != len(self):
                raise ValueError(f"{self.name}: columns of {len(self)} and {len(column)} utterances")

    def __len__(self) -> int:
        return len(self.source_ids)

    @property
    def hours(self) -> float:
        """Length of all audio."""
        return sum(self.durations_s) / 3600


@dataclass(frozen=True)
class Output:
    """What one system wrote for one test set, with one window.

    Attributes:
        system: "base", "tuned", the name of a run or the stem of a path. The same system may have a second output,
            with the other window.
        window: "padded" or "trimmed".
        texts: what was written, in the order of the utterances.
        decode_s: seconds that decoding took, for all utterances together, loading apart; an output from the cache
            keeps those of its making.
        details: what the system is and how it decoded: kind, model, quantization, compute_type, device and so on.
    """

    system: str
    window: str
    texts: list[str]
    decode_s: float
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """One test set with the outputs of every system; what is counted of them is counted once.

    Attributes:
        outputs: the first is the one that all others are compared with (base). Of a system with two windows the
            first output is the one that counts for it.
        notes: what was left out and why, for the reader.

    Raises:
        ValueError: there is no output, one is not as long as the set, or two have the same system and window.
    """

    utterances: Utterances
    outputs: list[Output]
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.outputs:
            raise ValueError(f"{self.utterances.name}: there is no output")
        for output in self.outputs:
            if len(output.texts) != len(self.utterances):
                raise ValueError(
                    f"{self.utterances.name}: {output.system} wrote {len(output.texts)} texts for "
                    f"{len(self.utterances)} utterances"
                )
        if len({(output.system, output.window) for output in self.outputs}) < len(self.outputs):
            raise ValueError(f"{self.utterances.name}: two outputs have the same system and window")

    @property
    def labels(self) -> list[str]:
        """What each output is called: its system, and its window too where it is that system's second output."""
        seen: set[str] = set()
        labels = []
        for output in self.outputs:
            labels.append(f"{output.system} ({output.window})" if output.system in seen else output.system)
            seen.add(output.system)
        return labels

    @cached_property
    def scores(self) -> list[Scores]:
        """Errors of each output by utterance and metric."""
        from asr.offline.error_rates import score

        return [score(output.texts, self.utterances.references) for output in self.outputs]

    @cached_property
    def symptoms(self) -> list[Sequence[Sequence[Symptom]]]:
        """Symptoms of each output by utterance."""
        from asr.offline.symptoms import find_symptoms

        said = self.utterances
        return [
            find_symptoms(output.texts, said.references, said.durations_s, said.loudness_db) for output in self.outputs
        ]

    @cached_property
    def figures(self) -> dict[str, Any]:
        """Everything that is counted, as metrics.json has it."""
        from asr.offline.figures import set_figures

        return set_figures(self)
