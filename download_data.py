"""python download_data.py [--common-voice PATH | --table FILE | --folder DIR | --db-url URL ... ] [flags]

ONLINE. Reads speech from one source or several, judges every clip, and stores what is good in bundle/data: 16 kHz
FLAC, text, and the token ids of the bundled Whisper's tokenizer (so download_model.py comes first). What was kept
stands in bundle/reports/data.html, what was dropped, and why, in bundle/reports/dropped.csv.
"""

from __future__ import annotations

import functools
from typing import Any

from asr.shared.cli import run_script
from config import Bundle, Data, DownloadData, Whisper
from utils import UserError, log


def main(config: DownloadData) -> None:
    """Source in, bundle/data and bundle/reports out."""
    from asr.online.sealing import seal_if_complete
    from asr.online.sources import check_sources

    check_sources(config.data, config.whisper)
    bring_data(config.bundle, config.whisper, config.data)
    seal_if_complete(config.bundle.bundle_dir)


def bring_data(bundle: Bundle, whisper: Whisper, data: Data) -> None:
    """Read, judge, store, and account for every row."""
    from asr.online.prepare import prepare
    from asr.online.sealing import report_data, unseal_data
    from asr.online.sources import read_rows
    from asr.shared.cli import settings_of
    from asr.shared.processor import load_tokenizer, mel_window

    bundle_dir, model_dir = bundle.bundle_dir, bundle.bundle_dir / "model"
    if not model_dir.is_dir():
        raise UserError(f"{model_dir} is missing: run download_model.py first, its tokenizer makes the labels")
    tokenizer, mel = load_tokenizer(model_dir, whisper.language, whisper.task), mel_window(model_dir)
    settings = settings_of(DownloadData(bundle, whisper, data))

    unpack_dir = bundle_dir.absolute().with_name(f"{bundle_dir.absolute().name}.unpacked")
    read = functools.partial(read_rows, data, whisper, unpack_dir)
    unsealed = functools.partial(unseal_data, bundle_dir)
    figures = prepare(read, tokenizer, data, bundle_dir, settings, mel, before_replacing=unsealed)
    report_data(bundle_dir, settings, mel, figures)
    tell(figures, bundle)


def tell(figures: dict[str, Any], bundle: Bundle) -> None:
    """Print what was kept and what was dropped."""
    reports = bundle.bundle_dir / "reports"
    for split, clips in figures["splits"].items():
        log.info("%-10s %6d clips, %.2f h", split, clips["clips"], clips["hours"])
        if not clips["clips"]:
            log.info("           (without %s clips, training cannot tell how good it is; see --split)", split)
    log.info("rows read %d = kept %d + dropped %d", *(figures[f"rows_{name}"] for name in ("read", "kept", "dropped")))
    for reason, count in figures["reasons"].items():
        log.info("  dropped %d: %s (%s)", count, reason, reports / "dropped.csv")
    log.info("report: %s", reports / "data.html")


if __name__ == "__main__":
    run_script(main, DownloadData, __doc__)
