"""The SQL source: the rows of a SELECT or of a table, streamed, never all in memory."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asr.online.sources.database import READ_ONLY, database_name, database_url, read_only_session, shown, told
from asr.online.sources.row import Announce, Row, row_from
from asr.online.sources.statement import Statement, one_select
from asr.shared.tables.cells import as_text, printable
from asr.shared.tables.columns import Columns, find_columns, named_columns
from asr.shared.tables.paths import PathMap
from config import Data
from utils import UserError, log

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, CursorResult, Inspector, Select

    Selection = Statement | Select[Any]

# Rows a round trip: few, for each may hold minutes of audio; preparing them takes far longer than fetching.
BATCH = 16


def check(data: Data) -> None:
    """Look whether the database can be reached, and gives the columns that are needed; reads one row at most.

    Raises:
        UserError: it does not; or what is to be read is not a single SELECT.
    """
    with _selected(data) as (_, connection, selection), _unread_left(_run(connection, selection, batch=1)) as result:
        _find(result, data)
        result.fetchone()


def read(data: Data, announce: Announce) -> Iterator[Row]:
    """Yield the rows of the query or the table, as they come.

    Raises:
        UserError: as from `check`; or the connection breaks.
    """
    paths = PathMap(data.columns.path_map, data.columns.audio_root or Path.cwd())
    with _selected(data) as (url, connection, selection):
        log.info("reading %s from %s", data.database.db_table or "a query's rows", shown(url))
        if isinstance(selection, Statement) and not selection.ordered:
            log.info("the query has no ORDER BY: rows that come in another order next time are prepared anew")
        if url.get_backend_name() not in READ_ONLY:
            log.info(
                "%s knows no read-only session here: that the query is a SELECT has been checked, no more",
                url.drivername,
            )
        count = _count(connection, selection, data.source.limit)
        if count is not None:
            announce(count)
        with _unread_left(_run(connection, selection, BATCH)) as result:
            columns, identity = _find(result, data)
            for number, record in enumerate(_records(result, _what(data), url), start=1):
                name = _identity(record.get(identity)) or number
                yield row_from(record, columns, paths, "sql", f"sql/{database_name(url)}:{name}")
                if number == data.source.limit:
                    break


@contextlib.contextmanager
def _selected(data: Data) -> Iterator[tuple[URL, Connection, Selection]]:
    """Give a session and what to select in it; what the database then refuses is told in one line."""
    from sqlalchemy.exc import SQLAlchemyError

    database = data.database
    if not database.db_url:
        raise UserError(f"{_what(data)} needs --db-url, as mysql+pymysql://user@host/name")
    if bool(database.db_query) == bool(database.db_table):
        raise UserError("--db-url needs either --db-query with a SELECT, or --db-table")
    url = database_url(database.db_url)
    query = one_select(database.db_query, url.get_backend_name(), data.source.limit) if database.db_query else None
    with read_only_session(url) as connection:
        try:
            yield url, connection, query or _of_table(connection, data)
        except SQLAlchemyError as error:
            raise UserError(f"{_what(data)}: {told(error, url)}") from None


def _what(data: Data) -> str:
    return f"--db-table {data.database.db_table}" if data.database.db_table else "--db-query"


# What to select


def _of_table(connection: Connection, data: Data) -> Select[Any]:
    """Select of a table what is needed; in the order of its key, so that rows come in the same order again."""
    from sqlalchemy import column, inspect, select, table

    inspector = inspect(connection)
    schema, name, names = _described(inspector, data.database.db_table or "")
    found = find_columns(names, named_columns(data.columns, data.source), _what(data))
    wanted = {found.audio, found.text, found.speaker, found.group, found.split, *_ids(names)} - {""}
    key = inspector.get_pk_constraint(name, schema=schema)["constrained_columns"]
    given = table(name, *map(column, names), schema=schema)
    selection = select(*(given.c[name] for name in names if name in wanted)).order_by(*(given.c[name] for name in key))
    return selection.limit(data.source.limit) if data.source.limit else selection


def _described(inspector: Inspector, written: str) -> tuple[str | None, str, list[str]]:
    """Return schema, name and columns of a table or view that is written as table or schema.table."""
    from sqlalchemy.exc import NoSuchTableError

    schema, _, short = written.rpartition(".")
    for place, name in dict.fromkeys([(None, written), (schema or None, short)]):
        # Types that SQLAlchemy does not know are no matter here.
        with contextlib.suppress(NoSuchTableError), warnings.catch_warnings(action="ignore"):
            return place, name, [column["name"] for column in inspector.get_columns(name, schema=place)]
    there = [*inspector.get_table_names(schema or None), *inspector.get_view_names(schema or None)]
    listed = ", ".join(sorted(there)[:10]) + (", ..." if len(there) > 10 else "")
    raise UserError(f"--db-table {written}: there is no such table or view, only {listed or 'none at all'}")


def _ids(names: list[str]) -> list[str]:
    return [name for name in names if name.lower() == "id"]


# Reading


def _run(connection: Connection, selection: Selection, batch: int) -> CursorResult[Any]:
    """Start reading with a cursor on the server, so many rows a round trip."""
    options: dict[str, Any] = {"stream_results": True, "yield_per": batch}
    if isinstance(selection, Statement):
        # Without parameters a % or a : in the query is what it looks like.
        return connection.exec_driver_sql(selection.text, execution_options={**options, "no_parameters": True})
    return connection.execute(selection, execution_options=options)


@contextlib.contextmanager
def _unread_left(result: CursorResult[Any]) -> Iterator[CursorResult[Any]]:
    """Give the result, and make its cursor forget what is unread at the end: PyMySQL's reads it all when it is closed,
    and complains when the connection is cut first, as it is here."""
    try:
        yield result
    finally:
        cursor: Any = result.cursor
        unread: Any = getattr(cursor, "_result", None)
        if getattr(unread, "unbuffered_active", False):
            unread.unbuffered_active = False
            cursor.connection = None
        else:
            result.close()


def _find(result: CursorResult[Any], data: Data) -> tuple[Columns, str]:
    """Return which column of a result is what, and the one that identifies rows, or ""."""
    names = list(result.keys())
    columns = find_columns(names, named_columns(data.columns, data.source), _what(data))
    twice = [name for name in vars(columns).values() if names.count(name) > 1]
    if twice:
        raise UserError(f"{_what(data)}: two columns are called '{twice[0]}': name one of them with AS")
    ids = _ids(names)
    return columns, ids[0] if len(ids) == 1 else ""


def _records(result: CursorResult[Any], what: str, url: URL) -> Iterator[dict[str, Any]]:
    """Yield column to value, a row at a time."""
    from sqlalchemy.exc import OperationalError, SQLAlchemyError

    names, done = list(result.keys()), 0
    try:
        for values in result:
            yield dict(zip(names, values, strict=True))
            done += 1
    except (SQLAlchemyError, UnicodeError) as error:
        advice = "; run it again, and it goes on where it was" if isinstance(error, OperationalError) else ""
        raise UserError(f"{what}: reading broke off after {done} rows: {told(error, url)}{advice}") from None


def _identity(value: Any) -> str:
    """Return the value of an id column as part of a row's name, or ""."""
    text = value.hex() if isinstance(value, bytes) else as_text(value)
    return text and f"id={printable(text)}"


def _count(connection: Connection, selection: Selection, limit: int) -> int | None:
    """Count the rows that will come, where the database can."""
    from sqlalchemy import func, literal_column, select
    from sqlalchemy.exc import DBAPIError

    if isinstance(selection, Statement):
        counts: list[Any] = list(selection.counts)
    else:
        one: Select[Any] = selection.with_only_columns(literal_column("1"), maintain_column_froms=True).order_by(None)
        counts = [select(func.count()).select_from(one.subquery())]
    for count in counts:
        try:
            # A savepoint, for in PostgreSQL an error would end the transaction.
            with connection.begin_nested():
                query = Statement(count) if isinstance(count, str) else count
                rows = _run(connection, query, batch=1).scalar_one()
                return min(rows, limit) if limit else rows
        except DBAPIError as error:
            if error.connection_invalidated:
                raise
    return None
