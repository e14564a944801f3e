"""python download_data.py [--common-voice PATH] [flags]

ONLINE. Reads speech from a source, judges every clip, and stores what is good in bundle/data: 16 kHz FLAC, text,
and the token ids of the bundled Whisper's tokenizer (so download_model.py comes first). What was dropped, and why,
stands in bundle/reports/dropped.csv.
"""

from __future__ import annotations

from asr.shared.cli import run_script
from config import DownloadData
from utils import UserError, log


def main(config: DownloadData) -> None:
    """Source in, bundle/data and bundle/reports out."""
    from asr.online.prepare import Tally, prepare
    from asr.online.sources import read_rows
    from asr.shared.bundle import unseal
    from asr.shared.processor import load_processor

    bundle_dir = config.bundle.bundle_dir
    model_dir = bundle_dir / "model"
    if not model_dir.is_dir():
        raise UserError(f"{model_dir} is missing: run download_model.py first, its tokenizer makes the labels")
    processor = load_processor(model_dir, config.whisper.language, config.whisper.task)

    unseal(bundle_dir)
    unpack_dir = bundle_dir.with_name(f"{bundle_dir.name}.unpacked")
    rows = read_rows(config.data, config.whisper, unpack_dir)
    tally: Tally = prepare(rows, processor.tokenizer, config.data, bundle_dir)

    for split, counted in tally.summary()["splits"].items():
        log.info("%-10s %6d clips, %.2f h", split, counted["clips"], counted["hours"])
    log.info("rows read %d = kept %d + dropped %d", tally.read, tally.kept.total(), len(tally.dropped))
    for reason, count in tally.summary()["reasons"].items():
        log.info("  dropped %d: %s (bundle/reports/dropped.csv)", count, reason)


if __name__ == "__main__":
    run_script(main, DownloadData, __doc__)
