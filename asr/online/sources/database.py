"""The database: its URL, which holds no password, and a session in which nothing can be written."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from utils import UserError

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, Engine

MYSQL = ("mysql", "mariadb")
READ_ONLY = (*MYSQL, "postgresql", "sqlite")
# Where a URL names no driver: those of requirements.txt.
DRIVERS = {"mysql": "mysql+pymysql", "mariadb": "mariadb+pymysql", "postgresql": "postgresql+psycopg"}
DRIVERS |= {"postgres": "postgresql+psycopg"}
# Where pip calls a driver otherwise than Python does.
PACKAGES = {"MySQLdb": "mysqlclient", "mysql": "mysql-connector-python"}
PACKAGES |= {"psycopg": "'psycopg[binary]'", "psycopg2": "psycopg2-binary"}
CONNECT: dict[str, dict[str, Any]] = {
    "pymysql": {"charset": "utf8mb4"},
    "mysqldb": {"charset": "utf8mb4"},
    # Of a database that has no encoding psycopg would give bytes, which look like audio.
    "psycopg": {"client_encoding": "utf8", "connect_timeout": 15},
}
DAY_S = 86400
PG_TIMEOUTS = "'statement_timeout', 'transaction_timeout', 'idle_in_transaction_session_timeout'"
PASSWORD = re.compile(r"(password|passwd|passphrase|pwd|(?<![a-z])pass)\s*=", re.IGNORECASE)


def database_url(written: str) -> URL:
    """Return where the database is, with the password of the environment.

    Raises:
        UserError: it is no URL, holds a password, or needs a package that is not here. The message never shows the
            URL: what is wrong with it may be a password.
    """
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(written)
    except (ArgumentError, ValueError):
        raise UserError("--db-url is no database URL: write it as mysql+pymysql://user@host:port/name") from None
    url = url.set(drivername=DRIVERS.get(url.drivername, url.drivername))
    is_file = url.drivername.partition("+")[0] == "sqlite"
    if url.password or any(PASSWORD.search(f"{key}={value}") for key, value in url.query.items()):
        raise UserError("--db-url holds a password: take it out, and put it into the variable DB_PASSWORD")
    if not is_file and "@" in f"{url.host}{url.database}":
        raise UserError("--db-url has more than one @: take out the password, if it is one, or write %40 for it")
    _check_driver(url)
    if is_file:
        _check_file(url)
        return url
    return url.set(password=os.environ.get("DB_PASSWORD") or None)


def _check_driver(url: URL) -> None:
    """Raise UserError unless SQLAlchemy knows the database, and the driver's package is installed."""
    from sqlalchemy.exc import NoSuchModuleError

    try:
        dialect = url.get_dialect()
    except NoSuchModuleError:
        raise UserError(
            f"--db-url: SQLAlchemy does not know {url.drivername}; mysql+pymysql, postgresql+psycopg and sqlite are "
            "installed, others need the package of their SQLAlchemy dialect"
        ) from None
    try:
        dialect.import_dbapi()
    except ImportError as error:
        module = (error.name or dialect.driver).partition(".")[0]
        package = PACKAGES.get(module, module)
        raise UserError(f"--db-url: {url.drivername} needs a package: pip install {package}") from None
    if dialect.is_async:
        raise UserError(f"--db-url: {url.drivername} is asynchronous: use mysql+pymysql or postgresql+psycopg")


def _check_file(url: URL) -> None:
    if url.host or url.username:
        raise UserError("--db-url: a SQLite file is written with three slashes, as sqlite:///clips.db")
    if not url.database or url.database.startswith((":", "file:")):
        raise UserError("--db-url names no SQLite file: write it as sqlite:///clips.db or sqlite:////data/clips.db")
    if not Path(url.database).is_file():
        raise UserError(f"--db-url: there is no file {Path(url.database).absolute()}")


def shown(url: URL) -> str:
    """Return the URL as people may see it: a password as ***, and without options, which may hold keys."""
    return unquote(url.set(query={}).render_as_string(hide_password=True))


def database_name(url: URL) -> str:
    """Return what the database is called; of a file, the file's name."""
    return Path(url.database or "").name or url.host or url.get_backend_name()


@contextlib.contextmanager
def read_only_session(url: URL) -> Iterator[Connection]:
    """Connect, and see to it that nothing can be written and that slow reading is no reason to be cut off.

    When left, the connection is cut: a polite end would first read every row that is still to come.

    Raises:
        UserError: no connection comes about.
    """
    from sqlalchemy.exc import SQLAlchemyError

    connection = None
    try:
        try:
            connection = _engine(url).connect()
            _make_read_only(connection)
        # What drivers raise for options that they do not know, or for a package that a way to log in needs.
        except (SQLAlchemyError, TypeError, ValueError, OSError, RuntimeError) as error:
            raise UserError(f"--db-url {shown(url)}: {told(error, url)}{_advice(url)}") from None
        yield connection
    finally:
        if connection is not None:
            connection.invalidate()
            connection.close()


def _engine(url: URL) -> Engine:
    from sqlalchemy import NullPool, create_engine

    driver = url.get_dialect().driver
    options = {key: value for key, value in CONNECT.get(driver, {}).items() if key not in url.query}
    if driver == "pymysql" and url.password:
        # Of text PyMySQL makes Latin-1, which has no Korean.
        options["password"] = str(url.password).encode()
    if url.get_backend_name() == "sqlite":
        file = Path(url.database or "").absolute().as_uri()
        url = url.set(database=file).update_query_dict({"uri": "true", "mode": "ro"})
    return create_engine(url, poolclass=NullPool, connect_args=options, hide_parameters=True)


def _make_read_only(connection: Connection) -> None:
    from sqlalchemy.exc import SQLAlchemyError

    backend = connection.engine.url.get_backend_name()
    if backend in MYSQL:
        connection.exec_driver_sql("SET SESSION TRANSACTION READ ONLY")
        # While clips are prepared nothing is read: the server must not take that for a lost client.
        connection.exec_driver_sql(f"SET SESSION net_write_timeout = {DAY_S}, SESSION net_read_timeout = {DAY_S}")
        with contextlib.suppress(SQLAlchemyError):
            is_mariadb = getattr(connection.dialect, "is_mariadb", False)
            name = "max_statement_time" if is_mariadb else "max_execution_time"
            connection.exec_driver_sql(f"SET SESSION {name} = 0")
        connection.rollback()
    elif backend == "postgresql":
        # For this transaction alone, and not for the session, which a connection pooler gives to others afterwards.
        connection.execution_options(postgresql_readonly=True)
        connection.exec_driver_sql(f"SELECT set_config(name, '0', true) FROM pg_settings WHERE name IN ({PG_TIMEOUTS})")
    elif backend == "sqlite":
        # Text that is not UTF-8 would otherwise end the reading, and the error would quote it. So its row is refused.
        raw: Any = connection.connection.driver_connection
        raw.text_factory = lambda value: value.decode("utf-8", "surrogateescape")
        connection.exec_driver_sql("PRAGMA schema_version")


def _advice(url: URL) -> str:
    if url.get_backend_name() == "sqlite":
        return ""
    return "; check --db-url and DB_PASSWORD" + ("" if url.password else ", which is not set")


def told(error: Exception, url: URL) -> str:
    """Return in one line what a database says, without the password and without values from its tables."""
    from sqlalchemy.exc import DataError

    original: Any = getattr(error, "orig", None) or error
    if isinstance(error, DataError):
        return f"a value does not fit what is done with it ({type(original).__name__})"
    # MySQL's drivers: a number and a text.
    numbered = len(original.args) > 1 and isinstance(original.args[0], int)
    lines = str(original.args[1] if numbered else original).split("\n")
    line = " ".join(" ".join(lines if lines[0].endswith(":") else lines[:1]).split())
    return line.replace(str(url.password), "***") if url.password else line
