"""Parity: does an exported model write what its run writes?"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from asr.offline.ctranslate import CTranslate2Writer
from asr.offline.error_rates import score
from asr.offline.saved_rows import rows_of_bundle
from asr.offline.systems import Opener, Speaking, System
from asr.shared.bundle import Bundle
from config import Device, Inference
from utils import write_json

# An export is opened as it is stored: plain weights, or what CTranslate2 calls default.
AS_STORED = {"whisper": Device(quantization="none"), "ctranslate2": Device(quantization="auto")}


@dataclass(frozen=True)
class Written:
    """What a model wrote of the clips, and how it was opened."""

    texts: list[str]
    cer: float
    details: dict[str, Any]


class Parity:
    """A run beside its exports, over the first test clips, each padded to the whole window that other tools have.

    Args:
        system: the run.
        bundle: with the clips.
        config: how many, how far apart their CER may be, and how the run is opened.
        file: where the outcome is kept, by the name of the export.

    Raises:
        UserError: there are no clips.
    """

    def __init__(self, system: System, bundle: Bundle, config: Inference, file: Path) -> None:
        self.system, self.config, self.file = system, config, file
        self.speaking = Speaking(bundle.language, bundle.task)
        self.clips: Any = []
        count = config.export.parity_clips
        if count:
            rows = rows_of_bundle(bundle, "test", f"--parity-clips {count}: {bundle.data_dir}")
            self.clips = rows.select(range(min(count, len(rows))))

    def forget(self, name: str) -> None:
        """Drop the outcome of an export that is about to be replaced."""
        known = self._known()
        if known.pop(name, None):
            write_json(self.file, known)

    def check(self, name: str, kind: str, folder: Path) -> list[str]:
        """Compare an export with the run, print and keep the outcome; return what is wrong, if anything is.

        Args:
            name: of the export.
            kind: of the system in it, whisper or ctranslate2.
            folder: with its model.
        """
        if not len(self.clips):
            return []
        run = self.of_the_run
        export = self._written(System(name, kind, folder, folder, called=name), AS_STORED[kind])
        outcome = self._outcome(run, export)
        write_json(self.file, self._known() | {name: outcome})
        print(
            f"{name}: {outcome['same']} of {outcome['clips']} texts are the same; CER {export.cer:.4f}, of the run "
            f"{run.cer:.4f}, difference {outcome['difference']:+.4f}",
            flush=True,
        )
        if outcome["passed"]:
            return []
        return [
            f"{folder} has a CER of {export.cer:.4f} and its run {run.cer:.4f}, further apart than --parity-limit "
            f"{self.config.export.parity_limit:g}: it stays, and {self.file} lists the texts that differ"
        ]

    @cached_property
    def of_the_run(self) -> Written:
        """What the run itself writes."""
        return self._written(self.system, self.config.device)

    def _written(self, system: System, device: Device) -> Written:
        opener = Opener(device, self.config.decoding, self.speaking)
        with opener.open(system) as transcriber:
            # Other tools have whole windows alone.
            transcriber.trimmed = False
            texts = transcriber.transcribe_clips(self.clips, f"parity, {system.name}")
            details = opener.describe(system)
            if isinstance(transcriber.writer, CTranslate2Writer):
                details |= transcriber.writer.describe()
        return Written(texts, score(texts, self.clips["text"])["cer"].total().rate, details)

    def _outcome(self, run: Written, export: Written) -> dict[str, Any]:
        said = self.clips["source_id"], self.clips["text"]
        rows = list(zip(*said, run.texts, export.texts, strict=True))
        different = [
            dict(zip(("source_id", "reference", "run", "export"), row, strict=True)) for row in rows if row[2] != row[3]
        ]
        difference, limit = export.cer - run.cer, self.config.export.parity_limit
        return {
            "passed": abs(difference) <= limit,
            "clips": len(rows),
            "same": len(rows) - len(different),
            "cer": {"run": run.cer, "export": export.cer},
            "difference": difference,
            "limit": limit,
            "run": run.details,
            "export": export.details,
            "different": different,
        }

    def _known(self) -> dict[str, Any]:
        try:
            known = json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}
