"""python evaluate_model.py [--run NAME ...] [--model FOLDER ...] [--data PATH] [--also PATH ...] [flags]

OFFLINE. Decodes the bundle's test split, or another test set, with the base model and with tuned ones, or with any
other Whispers; prints error rates with 95 % intervals and paired differences, and writes report.html, metrics.json and
utterances.csv to runs/<name>/evaluation. What was decoded once is not decoded again.
"""

from __future__ import annotations

import gc
import hashlib
import signal
from dataclasses import replace
from pathlib import Path

import utils
from asr.shared.cli import run_script
from config import EvaluateModel
from utils import Interrupted, UserError, log

JOURNALS = ".decoded"
# Bytes of a folder's name; file systems hold 255.
LONGEST_NAME = 150


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
    from asr.offline.systems import Opener, find_systems
    from asr.offline.test_sets import left_out_csv, notes_of

    transformers_logging.disable_progress_bar()
    # What is imported stays: else every collection, and the end, goes through a million objects of libraries.
    gc.freeze()
    stop_on_signals()

    # What is compared, and on what.
    bundle = open_what_is_needed(config)
    systems = find_systems(config.use, bundle)
    tests = open_test_sets(config, bundle)
    folder = config.measuring.evaluation_dir or default_folder(config, systems, tests)
    journals, fresh = config.use.output_dir / JOURNALS, config.measuring.overwrite_cache
    make_folders(folder, journals)
    whole = any(system.kind == "full" for system in systems)
    opener = Opener(config.device, config.decoding, default_speaking(config, bundle, tests), whole)

    # Texts.
    try:
        outputs = listen(systems, tests, opener, config.measuring.windows, journals, fresh)
    except KeyboardInterrupt:
        again = "the same command without --overwrite-cache goes on" if fresh else "the same command goes on"
        raise Interrupted(f"interrupted: {journals} keeps what was decoded, {again}") from None

    # Figures.
    found = [Evaluation(test.utterances, heard, notes_of(test)) for test, heard in zip(tests, outputs, strict=True)]
    if any(test.left_out for test in tests):
        utils.write_atomically(folder / "left_out.csv", left_out_csv(tests))
    else:
        # What an earlier evaluation left out is no longer so.
        (folder / "left_out.csv").unlink(missing_ok=True)
    by_name = {test.utterances.name: test for test in tests}
    write_results(folder, found, settings_of(config, systems, tests), lambda name, at: by_name[name].audio(at))
    print("\n".join(summary_lines(found)))
    log.info("written: %s", folder / "report.html")


def open_what_is_needed(config: EvaluateModel):
    """Return the bundle where a run, an adapter or the test split comes from it; else None."""
    from asr.offline.systems import needs_bundle
    from asr.shared.bundle import open_bundle

    needed = needs_bundle(config.use) or config.measuring.data is None
    return open_bundle(config.bundle.bundle_dir) if needed else None


def open_test_sets(config: EvaluateModel, bundle):
    """Return the test sets, the main one first, each under a name of its own."""
    from asr.offline.test_sets import bundle_test_set, open_test_set, with_own_names

    wanted, columns = config.measuring, config.columns
    main_set = open_test_set(wanted.data, columns, "--data") if wanted.data else bundle_test_set(bundle)
    tests = with_own_names([main_set, *(open_test_set(path, columns, "--also") for path in wanted.also)])
    return [replace(test, language=wanted.language) for test in tests] if wanted.language else tests


def default_speaking(config: EvaluateModel, bundle, tests):
    """Return language and task where a test set does not tell them: the bundle's that is in use, or lies there."""
    from asr.offline.systems import Speaking
    from asr.shared.bundle import MANIFEST, read_manifest

    there = config.bundle.bundle_dir
    if bundle is None and (there / MANIFEST).is_file():
        bundle = read_manifest(there)
    language = config.measuring.language or (bundle.language if bundle else "Korean")
    for test in tests:
        reason = f"as {there} tells" if bundle else "where no bundle tells"
        told = (test.language, "as its bundle tells") if test.language else (language, reason)
        told = (told[0], "as set") if config.measuring.language else told
        log.info("language of %s: %s (%s)", test.utterances.name, *told)
    return Speaking(language, bundle.task if bundle else "transcribe")


def make_folders(*folders: Path) -> None:
    """Make the folders that will be written to, before anything long begins."""
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder} cannot be made: {error.strerror}") from None


def default_folder(config: EvaluateModel, systems, tests) -> Path:
    """Return where the report goes: to the run, or where several are compared to a folder named after them."""
    on = f"-on-{tests[0].utterances.name}" if config.measuring.data else ""
    runs = [system.run_dir for system in systems if system.run_dir]
    if len(runs) == 1 and not config.use.model:
        return runs[0] / f"evaluation{on}"
    names = "-vs-".join(system.name for system in systems) + on
    if len(names.encode()) > LONGEST_NAME:
        # Long ones that begin alike are told apart by what was cut off.
        digest = hashlib.sha256(names.encode()).hexdigest()[:8]
        names = names.encode()[:LONGEST_NAME].decode(errors="ignore") + f"…{digest}"
    return Path("evaluations") / names.strip(" .")


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
