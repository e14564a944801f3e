"""python evaluate_model.py [--run NAME] [flags]

OFFLINE. Decodes the bundle's test split with the base model and with the tuned one, prints CER and WER of both, and
writes runs/<name>/evaluation/metrics.json and utterances.csv.
"""

from __future__ import annotations

import csv
import io

import utils
from asr.shared.cli import run_script
from config import EvaluateModel
from utils import UserError, log

HEADINGS = {"cer": "CER", "cer_with_spaces": "CER with spaces", "wer": "WER"}


def main(config: EvaluateModel) -> None:
    """Run and bundle in, figures out."""
    utils.go_offline()
    from asr.offline.precision import limit_devices

    limit_devices(config.device.cuda_visible_devices)
    from asr.offline.error_rates import error_rates
    from asr.offline.session import open_session

    session = open_session(config.bundle.bundle_dir, config.use, config.device, config.decoding)
    rows = open_test_split(session.bundle.data_dir)
    references = list(rows["text"])

    texts = {}
    with session.base() as base:
        texts["base"] = base.transcribe_clips(rows, progress="base")
    texts["tuned"] = session.tuned.transcribe_clips(rows, progress="tuned")
    figures = {name: error_rates(written, references) for name, written in texts.items()}

    print_table(figures, len(references))
    folder = session.run.path / "evaluation"
    settings = {"split": "test", "bundle_sha256": session.bundle.manifest_sha256, "run": session.run.path.name}
    settings |= session.tuned.precision.describe()
    utils.write_json(folder / "metrics.json", {**figures, "utterances": len(references), **settings})
    utils.write_atomically(folder / "utterances.csv", utterances_csv(rows["source_id"], references, texts))
    log.info("written: %s", folder / "metrics.json")


def open_test_split(data_dir):
    """Return the test rows of the bundle."""
    from datasets import load_from_disk

    rows = load_from_disk(str(data_dir))["test"]
    if not len(rows):
        raise UserError(f"{data_dir} has no test clips: there is nothing to measure")
    return rows


def print_table(figures: dict[str, dict[str, float]], utterances: int) -> None:
    """Print base, tuned and their difference."""
    rates = {**figures, "change": {key: figures["tuned"][key] - figures["base"][key] for key in HEADINGS}}
    print(f"test split, {utterances} utterances")
    print(f"{'':8}" + "".join(f"{heading:>17}" for heading in HEADINGS.values()))
    for name, values in rates.items():
        cells = (f"{values[key]:+.4f}" if name == "change" else f"{values[key]:.4f}" for key in HEADINGS)
        print(f"{name:8}" + "".join(f"{cell:>17}" for cell in cells))


def utterances_csv(source_ids: list[str], references: list[str], texts: dict[str, list[str]]) -> str:
    """Return what was said and what each model wrote, for Excel too (it needs the byte order mark)."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["source_id", "reference", *texts])
    writer.writerows(zip(source_ids, references, *texts.values(), strict=True))
    return "\ufeff" + table.getvalue()


if __name__ == "__main__":
    run_script(main, EvaluateModel, __doc__)
