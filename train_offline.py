"""python train_offline.py [--check] [--config FILE.toml] [--resume] [flags]

OFFLINE. Fine-tunes the bundle's Whisper on the bundle's speech and leaves runs/<name>/: the adapter with the best
validation CER, config.toml, run.json, metrics.jsonl, TensorBoard events, and checkpoints for --resume.
`torchrun --nproc-per-node N train_offline.py [flags]` trains on N GPUs, and so does `accelerate launch`.
"""

from __future__ import annotations

from pathlib import Path

import utils
from asr.offline.ranks import Ranks, forget_others, launched, one_voice, together
from asr.shared.bundle import Bundle, open_bundle, read_manifest
from asr.shared.cli import run_script
from config import TrainOffline
from utils import log


def main(config: TrainOffline) -> None:
    """Bundle in, runs/<name> out."""
    utils.go_offline()
    from asr.offline.precision import limit_devices

    limit_devices(config.device.cuda_visible_devices)
    if config.check:
        from asr.offline.preflight import check

        if launched().is_main:
            forget_others()
            check(config)
        return
    with together() as ranks:
        fine_tune(config, ranks)


def fine_tune(config: TrainOffline, ranks: Ranks) -> None:
    """Train on as many processes as there are; the first one writes the run's folder."""
    from asr.offline.runs import Run, finish_run, start_run

    bundle = open_everywhere(config.bundle.bundle_dir, ranks)
    log.info("bundle: %s (every file verified)", bundle.path)
    run = Run(Path(ranks.first(lambda: str(start_run(config, bundle, ranks.world).path))))
    if not run.record:
        raise utils.UserError(f"--output-dir: {run.path} must lie on a disk that all machines of the job share")
    if run.finished:
        log.info("already finished: best validation CER %s", run.record["results"].get("best_validation_cer"))
        return

    from asr.offline.card import write_card
    from asr.offline.curves import draw_curves
    from asr.offline.hardware import describe_machine
    from asr.offline.precision import choose_precision
    from asr.offline.screen import tell, tell_end
    from asr.offline.trainer import build_trainer, train

    precision = choose_precision(config.device, config.lora.method)
    if ranks.is_main:
        run.update(precision=precision.describe(), hardware=describe_machine())
    trainer = build_trainer(config, bundle, run, precision, ranks)
    if ranks.is_main:
        tell(config, bundle, run, trainer)
    try:
        results = train(trainer, run, bundle.base_name)
    finally:
        if ranks.is_main:
            draw_curves(run)
    if ranks.is_main:
        write_card(run, bundle, results)
        finish_run(run, results)
        tell_end(run, results)


def open_everywhere(path: Path, ranks: Ranks) -> Bundle:
    """Verify the bundle, once on each machine, and return it.

    Raises:
        UserError: there is none, or not the same on all machines.
        BundleError: it is damaged.
    """
    ranks.first(lambda: open_bundle(path).manifest_sha256, each_machine=True)
    bundle = read_manifest(path)
    if ranks.first(lambda: bundle.manifest_sha256) != bundle.manifest_sha256:
        raise utils.UserError(f"--bundle-dir {path}: another machine of this job has another bundle there")
    return bundle


if __name__ == "__main__":
    with one_voice():
        run_script(main, TrainOffline, __doc__)
