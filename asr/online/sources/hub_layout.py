"""Layout of a dataset on the Hugging Face Hub: how it is stored, and which files make which split."""

from __future__ import annotations

import re
import shutil
import tempfile
import zipfile
from pathlib import Path

from asr.online.sources.hub_files import CARD, Repository, quietly
from asr.shared.tables.cells import printable
from utils import UserError, log

PARQUET, AUDIO_FOLDER = "parquet", "audiofolder"
# Where the Hub keeps its own parquet copy of a dataset, as CONFIG/SPLIT/0000.parquet and without a card.
CONVERTED_REVISION = "refs/convert/parquet"
CONVERTED = re.compile(r"(?P<config>[^/]+)/(?P<split>[^/]+)/\d+\.parquet")
MANY = 5000


def lay_out(repository: Repository, config: str | None) -> tuple[str, dict[str, list[str]]]:
    """Say how a dataset is stored, PARQUET or AUDIO_FOLDER, and which files each of its splits has.

    Args:
        repository: its files.
        config: the configuration (subset) that is wanted, or None for the default one.

    Raises:
        UserError: it is stored in another way, or has no such configuration.
    """
    copy = f"try its parquet copy: --hub-dataset {repository.id} --hub-revision {CONVERTED_REVISION}"
    copy += f" --hub-config {config}" if config else ""
    script = f"{repository.id.rpartition('/')[2]}.py"
    if script in repository.sizes:
        raise UserError(f"{repository.flag} has a loading script ({script}), which is never run: {copy}")
    converted = [match for name in repository.sizes if (match := CONVERTED.fullmatch(name))]
    if converted and not set(CARD[:2]) & repository.sizes.keys():
        return PARQUET, _converted_splits(repository, config, converted)
    stored, splits = _as_datasets_sees_it(repository, config)
    if stored not in (PARQUET, AUDIO_FOLDER):
        raise UserError(f"{repository.flag} is stored as {stored}, not as parquet or an audio folder: {copy}")
    return stored, splits


def _converted_splits(repository: Repository, wanted: str | None, files: list[re.Match[str]]) -> dict[str, list[str]]:
    configs = list(dict.fromkeys(file["config"] for file in files))
    config = wanted or ("default" if "default" in configs else configs[0])
    if config not in configs or (not wanted and config != "default" and len(configs) > 1):
        raise UserError(_which_config(repository, wanted, configs))
    splits: dict[str, list[str]] = {}
    for file in sorted(files, key=lambda file: file[0]):
        if file["config"] == config:
            splits.setdefault(file["split"], []).append(file[0])
    return splits


def _as_datasets_sees_it(repository: Repository, config: str | None) -> tuple[str, dict[str, list[str]]]:
    """Let `datasets` apply its rules to the card and to the names of the files, which are empty here."""
    from datasets import get_dataset_config_names, load_dataset_builder
    from datasets.data_files import EmptyDatasetError
    from datasets.exceptions import DataFilesNotFoundError

    if len(repository.sizes) > MANY:
        log.info("%s: looking for the splits among %d files", repository.id, len(repository.sizes))
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch).resolve() / "repository"
        _write_skeleton(repository, root)
        try:
            with quietly():
                builder = load_dataset_builder(str(root), config, cache_dir=str(root.with_name("cache")))
        except (DataFilesNotFoundError, EmptyDatasetError):
            raise UserError(f"{repository.flag}: it holds no parquet files and no audio folder") from None
        except zipfile.BadZipFile:
            return "zip archives", {}
        # A card can be wrong in whatever way its author found.
        except Exception as error:
            reason = printable((str(error).splitlines() or [type(error).__name__])[0], 200)
            if isinstance(error, ValueError) and reason.startswith(("BuilderConfig", "Config name is missing")):
                raise UserError(_which_config(repository, config, get_dataset_config_names(str(root)))) from None
            raise UserError(f"{repository.flag}: its card does not tell its splits: {reason}") from None
        files = (builder.config.data_files or {}).items()
        return builder.name, {
            str(split): [Path(path).relative_to(root).as_posix() for path in paths] for split, paths in files
        }


def _write_skeleton(repository: Repository, root: Path) -> None:
    root.mkdir()
    for name in repository.sizes:
        # An old kind of card, which would have to have content, and says nothing about files.
        if ".." not in name.split("/") and name != "dataset_infos.json":
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
    for name in CARD:
        if name in repository.sizes:
            shutil.copyfile(repository.folder / name, root / name)


def _which_config(repository: Repository, wanted: str | None, configs: list[str]) -> str:
    trouble = f"there is no configuration '{wanted}'" if wanted else "it has several configurations"
    return f"{repository.flag}: {trouble}; name one with --hub-config: {', '.join(configs)}"
