"""python evaluate_model.py [--run NAME] [flags]

OFFLINE. Decodes the bundle's test split with the base model and with the tuned one, prints error rates of both with
95 % intervals, and writes report.html, metrics.json and utterances.csv to runs/<name>/evaluation.
"""

from __future__ import annotations

import time

import utils
from asr.shared.cli import run_script
from config import EvaluateModel
from utils import UserError, log


def main(config: EvaluateModel) -> None:
    """Run and bundle in, figures and report out."""
    utils.go_offline()
    from asr.offline.precision import limit_devices

    limit_devices(config.device.cuda_visible_devices)
    from asr.offline.evaluation_report import write_results
    from asr.offline.results import Evaluation
    from asr.offline.session import open_session
    from asr.offline.summary import summary_lines

    session = open_session(config.bundle.bundle_dir, config.use, config.device, config.decoding)
    rows = open_test_split(session.bundle.data_dir)
    with session.base() as base:
        outputs = [decode("base", base, rows)]
    outputs.append(decode("tuned", session.tuned, rows))

    evaluation = Evaluation(utterances_of(rows), outputs)
    folder = session.run.path / "evaluation"
    settings = {"split": "test", "bundle_sha256": session.bundle.manifest_sha256, "run": session.run.path.name}
    settings |= session.tuned.precision.describe()
    write_results(folder, [evaluation], settings, lambda _name, index: audio_of(rows[index]))
    print("\n".join(summary_lines([evaluation])))
    log.info("written: %s", folder / "report.html")


def open_test_split(data_dir):
    """Return the test rows of the bundle."""
    from datasets import load_from_disk

    rows = load_from_disk(str(data_dir))["test"]
    if not len(rows):
        raise UserError(f"{data_dir} has no test clips: there is nothing to measure")
    return rows


def decode(name: str, transcriber, rows):
    """Return what a model writes of the test clips, and how long that took."""
    from asr.offline.results import Output

    began = time.monotonic()
    texts = transcriber.transcribe_clips(rows, progress=name)
    window = "trimmed" if transcriber.trimmed else "padded"
    return Output(name, window, texts, time.monotonic() - began, transcriber.precision.describe())


def utterances_of(rows):
    """Return what is known of the test clips; how loud they are, where the bundle holds their sound."""
    from asr.offline.results import Utterances
    from asr.offline.symptoms import loudness_of
    from asr.shared.audio import load_audio

    sounds = map(audio_of, rows)
    loudness = [None if sound is None else loudness_of(load_audio(sound)) for sound in sounds]
    return Utterances(
        name="test",
        source_ids=list(rows["source_id"]),
        references=list(rows["text"]),
        durations_s=list(rows["duration_s"]),
        speakers=list(rows["speaker"]),
        sources=list(rows["source"]),
        loudness_db=loudness,
    )


def audio_of(row) -> bytes | None:
    """Return the FLAC of a clip; None where the bundle stores features."""
    return row["audio"]["bytes"] if "audio" in row else None


if __name__ == "__main__":
    run_script(main, EvaluateModel, __doc__)
