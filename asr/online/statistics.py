"""Statistics: what has been kept and what dropped, in the figures of data.json and data.html."""

from __future__ import annotations

import time
import unicodedata
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from asr.online.splitting import NONE, SPLITS, TRAIN, Clips, Decision

if TYPE_CHECKING:
    import numpy as np

EXAMPLES = 5
DURATION_EDGES = [float(edge) for edge in range(31)]
RATE_EDGES = [edge / 2 for edge in range(31)]


class Statistics:
    """Counts rows as they are stored or dropped."""

    def __init__(self) -> None:
        self.kept: dict[str, Counter[str]] = defaultdict(Counter)
        self.seconds: dict[str, float] = defaultdict(float)
        self.reasons: Counter[str] = Counter()
        self.dropped: dict[str, int] = defaultdict(int)
        self.examples: dict[str, list[dict[str, str]]] = defaultdict(list)
        self.characters = {name: Counter[str]() for name in SPLITS}

    def keep(self, split: str, source: str, text: str, seconds: float) -> None:
        """Count a clip that is stored."""
        self.kept[source][split] += 1
        self.seconds[source] += seconds
        self.characters[split].update(text)

    def drop(self, source: str, source_id: str, reason: str, detail: str, text: str) -> None:
        """Count a row that is not."""
        self.dropped[source] += 1
        self.reasons[reason] += 1
        if len(self.examples[reason]) < EXAMPLES:
            self.examples[reason].append({"source_id": source_id, "detail": detail, "text": text})

    @property
    def rows_kept(self) -> int:
        """Clips that are stored."""
        return sum(counts.total() for counts in self.kept.values())

    @property
    def rows_dropped(self) -> int:
        """Rows that are not."""
        return sum(self.dropped.values())

    def figures(self, clips: Clips, decision: Decision, settings: dict[str, Any]) -> dict[str, Any]:
        """Return everything as JSON holds it; rows read = rows kept + rows dropped."""
        return {
            "rows_read": self.rows_kept + self.rows_dropped,
            "rows_kept": self.rows_kept,
            "rows_dropped": self.rows_dropped,
            "reasons": dict(self.reasons.most_common()),
            "splits": self._splits(clips, decision),
            "sources": self._sources(),
            "shared": {"speakers": _shared(clips.speaker, decision), "sentences": _shared(clips.text, decision)},
            "duration_s": _distribution(clips.seconds, decision, DURATION_EDGES),
            "syllables_per_second": _distribution(clips.syllables / clips.seconds, decision, RATE_EDGES),
            "characters": self._characters(),
            "examples": dict(self.examples),
            "settings": settings,
            "made": time.strftime("%Y-%m-%d %H:%M"),
        }

    def _splits(self, clips: Clips, decision: Decision) -> dict[str, Any]:
        import numpy as np

        told = {}
        for code, name in enumerate(SPLITS):
            rows = decision.split == code
            speakers = np.unique(clips.speaker[rows])
            told[name] = {
                "clips": int(np.count_nonzero(rows)),
                "hours": round(float(clips.seconds[rows].sum(dtype=np.float64)) / 3600, 4),
                "speakers": int(np.count_nonzero(speakers)),
                "sentences": len(np.unique(clips.text[rows])),
                "characters": self.characters[name].total(),
            }
        return told

    def _sources(self) -> dict[str, Any]:
        return {
            name: {
                "read": self.kept[name].total() + self.dropped[name],
                "kept": self.kept[name].total(),
                "dropped": self.dropped[name],
                "hours": round(self.seconds[name] / 3600, 4),
                "splits": {split: self.kept[name][split] for split in SPLITS},
            }
            for name in sorted({*self.kept, *self.dropped})
        }

    def _characters(self) -> dict[str, Any]:
        every = sum(self.characters.values(), Counter())
        kinds: Counter[str] = Counter()
        for char, count in every.items():
            kinds[_kind(char)] += count
        visible = [(char, count) for char, count in every.most_common() if not char.isspace()]
        train = self.characters[SPLITS[TRAIN]]
        return {
            "distinct": len(visible),
            "kinds": dict(kinds.most_common()),
            "most": [list(pair) for pair in visible[:40]],
            "rarest": sorted(char for char, count in visible if count == 1)[:100],
            "unseen": sorted(char for char, _ in visible if not train[char])[:100],
        }


def _shared(key: np.ndarray, decision: Decision) -> int:
    """Return how many keys stand in train and also on the held-out side."""
    import numpy as np

    train, held_out = decision.split == TRAIN, decision.split > TRAIN
    common = np.intersect1d(key[train], key[held_out])
    return int(np.count_nonzero(common))


def _distribution(values: np.ndarray, decision: Decision, edges: list[float]) -> dict[str, Any]:
    import numpy as np

    kept = values[decision.split != NONE]
    counted = {
        name: np.histogram(np.clip(values[decision.split == code], edges[0], edges[-1]), edges)[0].tolist()
        for code, name in enumerate(SPLITS)
    }
    middle = {"mean": kept.mean(), "median": np.median(kept), "p95": np.percentile(kept, 95)} if len(kept) else {}
    return {"edges": edges, **counted, **{name: round(float(value), 3) for name, value in middle.items()}}


def _kind(char: str) -> str:
    if "가" <= char <= "힣" or "ᄀ" <= char <= "ᇿ" or "ㄱ" <= char <= "ㆎ":
        return "Hangul"
    if char.isspace():
        return "space"
    if char.isdigit():
        return "digit"
    if unicodedata.category(char)[0] in "PS":
        return "punctuation"
    return "Latin" if unicodedata.name(char, "").startswith("LATIN") else "other"
