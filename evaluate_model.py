"""python evaluate_model.py [--run NAME ...] [--model FOLDER ...] [--data PATH] [--also PATH ...] [flags]

OFFLINE. Decodes the bundle's test split, or another test set, with the base model and with tuned ones, or with any
other Whispers; prints error rates with 95 % intervals and paired differences, and writes report.html, metrics.json and
utterances.csv to runs/<name>/evaluation. What was decoded once is not decoded again.
"""

from __future__ import annotations

import signal
from pathlib import Path

import utils
from asr.shared.cli import run_script
from config import EvaluateModel
from utils import Interrupted, log

JOURNALS = ".decoded"


def main(config: EvaluateModel) -> None:
    """Systems and test sets in, figures and report out."""
    utils.go_offline()
    from asr.offline.precision import limit_devices

    limit_devices(config.device.cuda_visible_devices)
    from transformers.utils import logging as transformers_logging

    from asr.offline.evaluation_report import write_results
    from asr.offline.listening import listen
    from asr.offline.results import Evaluation
    from asr.offline.summary import summary_lines
    from asr.offline.systems import Opener, Speaking, find_systems
    from asr.offline.test_sets import left_out_csv, notes_of

    transformers_logging.disable_progress_bar()
    stop_on_signals()

    # What is compared, and on what.
    bundle = open_what_is_needed(config)
    systems = find_systems(config.use, bundle)
    tests = open_test_sets(config, bundle)
    folder = config.measuring.evaluation_dir or default_folder(config, systems, tests)
    language = config.measuring.language or (bundle.language if bundle else "Korean")
    opener = Opener(config.device, config.decoding, Speaking(language, bundle.task if bundle else "transcribe"))

    # Texts.
    journals, fresh = config.use.output_dir / JOURNALS, config.measuring.overwrite_cache
    try:
        outputs = listen(systems, tests, opener, config.measuring.windows, journals, fresh)
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted: {journals} keeps what was decoded, the same command goes on") from None

    # Figures.
    found = [Evaluation(test.utterances, heard, notes_of(test)) for test, heard in zip(tests, outputs, strict=True)]
    if any(test.left_out for test in tests):
        utils.write_atomically(folder / "left_out.csv", left_out_csv(tests))
    by_name = {test.utterances.name: test for test in tests}
    write_results(folder, found, settings_of(config, systems, tests), lambda name, at: by_name[name].audio(at))
    print("\n".join(summary_lines(found)))
    log.info("written: %s", folder / "report.html")


def open_what_is_needed(config: EvaluateModel):
    """Return the bundle where a run, an adapter or the test split comes from it; else None."""
    from asr.shared.bundle import open_bundle

    use = config.use
    adapters = any((path / "adapter_config.json").is_file() for path in use.model)
    needed = use.run or not use.model or config.measuring.data is None or adapters
    return open_bundle(config.bundle.bundle_dir) if needed else None


def open_test_sets(config: EvaluateModel, bundle):
    """Return the test sets, the main one first, each under a name of its own."""
    from asr.offline.test_sets import bundle_test_set, open_test_set, with_own_names

    wanted, columns = config.measuring, config.columns
    main_set = open_test_set(wanted.data, columns, "--data") if wanted.data else bundle_test_set(bundle)
    return with_own_names([main_set, *(open_test_set(path, columns, "--also") for path in wanted.also)])


def default_folder(config: EvaluateModel, systems, tests) -> Path:
    """Return where the report goes: to the run, or where several are compared to a folder named after them."""
    on = f"-on-{tests[0].utterances.name}" if config.measuring.data else ""
    runs = [system.run_dir for system in systems if system.run_dir]
    if len(runs) == 1 and not config.use.model:
        return runs[0] / f"evaluation{on}"
    return Path("evaluations") / ("-vs-".join(system.name for system in systems)[:100] + on)


def settings_of(config: EvaluateModel, systems, tests) -> dict:
    """Return what was asked for and used, for the record."""
    sets = {test.utterances.name: {"audio_sha256": test.fingerprint, "left_out": len(test.left_out)} for test in tests}
    runs = [system.run_dir.name for system in systems if system.run_dir]
    return {
        "run": " and ".join(runs or [system.name for system in systems]),
        "data": config.measuring.data or "test split of the bundle",
        "also": list(config.measuring.also),
        "windows": config.measuring.windows,
        "sets": sets,
    }


def stop_on_signals() -> None:
    """Have SIGTERM and a closed terminal end it as Ctrl-C does: with one line, and everything kept."""
    for name in ("SIGTERM", "SIGHUP", "SIGBREAK"):
        number = getattr(signal, name, None)
        # What was told to be ignored, as by nohup, stays so.
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


if __name__ == "__main__":
    run_script(main, EvaluateModel, __doc__)
