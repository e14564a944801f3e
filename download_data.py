"""python download_data.py [--common-voice PATH] [flags]

ONLINE. Reads speech from a source, judges every clip, and stores what is good in bundle/data: 16 kHz FLAC, text,
and the token ids of the bundled Whisper's tokenizer (so download_model.py comes first). What was dropped, and why,
stands in bundle/reports/dropped.csv.
"""

from __future__ import annotations

from asr.shared.cli import run_script
from config import Bundle, Data, DownloadData, Whisper
from utils import UserError, log


def main(config: DownloadData) -> None:
    """Source in, bundle/data and bundle/reports out."""
    from asr.online.sealing import seal_if_complete

    bring_data(config.bundle, config.whisper, config.data)
    seal_if_complete(config.bundle.bundle_dir)


def bring_data(bundle: Bundle, whisper: Whisper, data: Data) -> None:
    """Read, judge, store, and account for every row."""
    from asr.online.prepare import prepare
    from asr.online.sealing import report_data
    from asr.online.sources import check_source, read_rows
    from asr.shared.bundle import unseal
    from asr.shared.cli import settings_of
    from asr.shared.processor import load_processor

    bundle_dir, model_dir = bundle.bundle_dir, bundle.bundle_dir / "model"
    check_source(data, whisper)
    if not model_dir.is_dir():
        raise UserError(f"{model_dir} is missing: run download_model.py first, its tokenizer makes the labels")
    processor = load_processor(model_dir, whisper.language, whisper.task)

    unseal(bundle_dir)
    unpack_dir = bundle_dir.absolute().with_name(f"{bundle_dir.absolute().name}.unpacked")
    tally = prepare(read_rows(data, whisper, unpack_dir), processor.tokenizer, data, bundle_dir)
    counted = tally.summary()
    report_data(bundle_dir, settings_of(DownloadData(bundle, whisper, data)), counted)

    for split, clips in counted["splits"].items():
        log.info("%-10s %6d clips, %.2f h", split, clips["clips"], clips["hours"])
    log.info("rows read %d = kept %d + dropped %d", tally.read, tally.kept.total(), len(tally.dropped))
    for reason, count in counted["reasons"].items():
        log.info("  dropped %d: %s (%s)", count, reason, bundle_dir / "reports" / "dropped.csv")


if __name__ == "__main__":
    run_script(main, DownloadData, __doc__)
