"""Where speech comes from: each source yields rows, in one shape, for preparation to judge.

A new source is a module here with a function that yields `Row`s, a name in `config.SOURCES`, and a branch in `_reader`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from asr.online.sources.row import Announce, Row
from asr.shared.tables.columns import named_columns
from config import Data, Whisper
from utils import UserError

Check = Callable[[], object]
Read = Callable[[Announce], Iterator[Row]]

# Which flags say that a source is meant.
OWN_FLAGS: dict[str, tuple[str, ...]] = {
    "common-voice": ("common_voice",),
    "hub": ("hub_dataset",),
    "table": ("table",),
    "folder": ("folder",),
    "sql": ("db_url", "db_query", "db_table"),
}


def check_sources(data: Data, whisper: Whisper) -> None:
    """Look whether every source is there and well described, before anything long begins.

    Raises:
        UserError: it is not; the message names the flag.
    """
    for check, _ in _readers(data, whisper, Path()):
        check()


def read_rows(data: Data, whisper: Whisper, work_dir: Path, announce: Announce = lambda count: None) -> Iterator[Row]:
    """Yield the rows of every source that the configuration names, one source after the other.

    Args:
        data: which sources.
        whisper: the language, where a source holds several.
        work_dir: where a source may put what it unpacks or downloads.
        announce: called by a source with how many rows it is about to yield, as soon as it knows.

    Raises:
        UserError: a source is not what it should be.
    """
    limit = data.source.limit

    def announce_what_is_read(count: int) -> None:
        announce(min(count, limit or count))

    for _, read in _readers(data, whisper, work_dir):
        yield from itertools.islice(read(announce_what_is_read), limit or None)


def named_sources(data: Data) -> list[str]:
    """Return the sources that the configuration means, in the order in which they are read.

    Raises:
        UserError: a source's flags are given, but not the source; or the other way round.
    """
    values = {**vars(data.common_voice), **vars(data.hub), **vars(data.files), **vars(data.database)}
    meant = {name: next((flag for flag in flags if values[flag]), None) for name, flags in OWN_FLAGS.items()}
    if data.source.source == ("auto",):
        return [name for name, flag in meant.items() if flag] or ["common-voice"]
    named = list(dict.fromkeys(data.source.source))
    for name, flag in meant.items():
        if flag and name not in named:
            raise UserError(f"--{flag.replace('_', '-')} is given, but --source does not name {name}")
    for name in named:
        if name in OWN_FLAGS and not meant[name] and name != "common-voice":
            raise UserError(f"--source {name} needs --{OWN_FLAGS[name][0].replace('_', '-')}")
    return named


def _readers(data: Data, whisper: Whisper, work_dir: Path) -> list[tuple[Check, Read]]:
    """Return for each source what checks it and what reads it."""
    return [_reader(name, data, whisper, work_dir) for name in named_sources(data)]


def _reader(name: str, data: Data, whisper: Whisper, work_dir: Path) -> tuple[Check, Read]:
    if name == "common-voice":
        from asr.online.sources import common_voice

        wanted, locale = data.common_voice, whisper.language_abbr
        return partial(common_voice.check, wanted, locale), partial(common_voice.read, wanted, locale, work_dir)
    if name in ("table", "folder"):
        from asr.online.sources import table

        if name == "folder":
            return partial(table.check_folders, data), partial(table.read_folders, data)
        return partial(table.check, data), partial(table.read, data)
    if name == "sql":
        from asr.online.sources import sql

        return partial(sql.check, data), partial(sql.read, data)
    from asr.online.sources import hub

    dataset = hub.described(data) if name == "hub" else hub.preset(name)
    return partial(hub.check, dataset), partial(hub.read, dataset, named_columns(data.columns, data.source))
