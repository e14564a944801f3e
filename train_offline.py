"""python train_offline.py [--check] [--config FILE.toml] [--resume] [flags]

OFFLINE. Fine-tunes the bundle's Whisper on the bundle's speech and leaves runs/<name>/: the adapter with the best
validation CER, config.toml, run.json, metrics.jsonl, TensorBoard events, and checkpoints for --resume.
"""

from __future__ import annotations

import utils
from asr.shared.cli import run_script
from config import TrainOffline
from utils import log


def main(config: TrainOffline) -> None:
    """Bundle in, runs/<name> out."""
    utils.go_offline()
    from asr.offline.precision import choose_precision, limit_devices
    from asr.shared.bundle import open_bundle

    limit_devices(config.device.cuda_visible_devices)
    if config.check:
        from asr.offline.preflight import check

        check(config)
        return

    bundle = open_bundle(config.bundle.bundle_dir)
    log.info("bundle: %s (every file verified)", bundle.path)

    from asr.offline.runs import finish_run, start_run

    run = start_run(config, bundle)
    if run.finished:
        log.info("already finished: best validation CER %s", run.record["results"].get("best_validation_cer"))
        return

    from asr.offline.trainer import build_trainer, train

    precision = choose_precision(config.device, config.lora.method)
    run.update(precision=precision.describe())
    trainer = build_trainer(config, bundle, run, precision)
    tell(config, bundle.manifest["data"]["splits"], trainer)
    results = train(trainer, run, bundle.base_name)

    finish_run(run, results)
    log.info("done in %.0f s: %s", results["seconds"], run.weights_dir)
    log.info("next: python evaluate_model.py")


def tell(config: TrainOffline, splits: dict, trainer) -> None:
    """Show what is about to happen."""
    from asr.offline.whisper import count_parameters

    training, method = config.training, config.lora.method
    trained, total = count_parameters(trainer.model)
    train, validation = splits["train"], splits["validation"]
    batch = f"{training.per_device_train_batch_size} x {training.gradient_accumulation_steps}"
    share = 100 * trained / total
    log.info(
        "data: %d training clips, %.2f h; %d validation clips", train["clips"], train["hours"], validation["clips"]
    )
    log.info("method: %s, %s of %s parameters train (%.2f %%)", method, f"{trained:,}", f"{total:,}", share)
    log.info("steps: batch %s, peak learning rate %g", batch, trainer.args.learning_rate)


if __name__ == "__main__":
    run_script(main, TrainOffline, __doc__)
