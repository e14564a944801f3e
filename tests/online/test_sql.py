"""The SQL source: rows come streamed out of SQLite, MariaDB and PostgreSQL, and nothing is ever written there."""

from __future__ import annotations

import gc
import itertools
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.online.sources import Row, database, sql, statement
from asr.online.sources.statement import one_select
from config import Data, Database, Source, TableColumns
from tests.conftest import ROOT
from utils import UserError

NAME = f"whisper_test_{os.getpid()}"
MARIADB = "mysql+pymysql://root@127.0.0.1"
POSTGRESQL = "postgresql+psycopg://postgres@127.0.0.1"
PASSWORD = "p@ss:w/rd#%20?"
SERVERS = ("mariadb", "postgresql")
# The whole of a table is never read where this many rows would be: that alone takes half a minute.
ENDLESS = 5_000_000


@dataclass(frozen=True)
class Server:
    """A database of the tests' own.

    Attributes:
        kind: sqlite, mariadb or postgresql.
        url: as a user gives it.
        admin: an engine that may write.
        blob: the type of binary columns.
        numbered: SQL for a table with a column seq, with as many rows as wanted, made while it is read.
    """

    kind: str
    url: str
    admin: sa.Engine
    blob: str
    numbered: str

    def execute(self, *statements: str) -> None:
        # So that a % in a statement is no parameter.
        with self.admin.connect().execution_options(no_parameters=True) as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)
            connection.commit()

    def scalar(self, statement: str) -> Any:
        with self.admin.connect() as connection:
            return connection.exec_driver_sql(statement).scalar()

    def quoted(self, name: str) -> str:
        return self.admin.dialect.identifier_preparer.quote(name).replace("%%", "%")

    def rows_of(self, count: int) -> str:
        return self.numbered.replace("COUNT", str(count))


def own_server(url: str, remove: str) -> Iterator[sa.Engine]:
    """Make a database on a server, and drop it afterwards; skip where no such server answers."""
    server = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    try:
        with server.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {NAME}")
    except sa.exc.OperationalError as error:
        pytest.skip(f"no server for tests: {error.orig}")
    engine = sa.create_engine(f"{url.partition('?')[0].rpartition('/')[0]}/{NAME}", poolclass=sa.NullPool)
    try:
        yield engine
    finally:
        with server.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {NAME} {remove}")


@pytest.fixture(scope="module")
def mariadb() -> Iterator[Server]:
    for engine in own_server(f"{MARIADB}/mysql", ""):
        yield Server("mariadb", f"{MARIADB}/{NAME}", engine, "LONGBLOB", "seq_1_to_COUNT")


@pytest.fixture(scope="module")
def postgresql() -> Iterator[Server]:
    for engine in own_server(f"{POSTGRESQL}/postgres", "WITH (FORCE)"):
        rows = "(SELECT generate_series(1, COUNT) AS seq) AS numbers"
        yield Server("postgresql", f"{POSTGRESQL}/{NAME}", engine, "BYTEA", rows)


@pytest.fixture(scope="module")
def sqlite(tmp_path_factory: pytest.TempPathFactory) -> Server:
    file = tmp_path_factory.mktemp("sqlite") / "음성 clips.db"
    counting = "SELECT 1 AS seq UNION ALL SELECT seq + 1 FROM numbers WHERE seq < COUNT"
    rows = f"(WITH RECURSIVE numbers(seq) AS ({counting}) SELECT seq FROM numbers)"
    return Server(
        "sqlite", f"sqlite:///{file}", sa.create_engine(f"sqlite:///{file}", poolclass=sa.NullPool), "BLOB", rows
    )


@pytest.fixture(params=["sqlite", *SERVERS])
def server(request: pytest.FixtureRequest) -> Server:
    return request.getfixturevalue(request.param)


@pytest.fixture
def clips(server: Server) -> Iterator[Server]:
    """A table as in the reference use, its rows put in backwards."""
    columns = (
        "transcript VARCHAR(200), id INTEGER PRIMARY KEY, raw_data VARCHAR(200), speaker_id NUMERIC(10), note TEXT"
    )
    server.execute(
        f"CREATE TABLE training_datas ({columns})",
        "INSERT INTO training_datas VALUES (NULL, 3, '/cul_m01/c.wav', 7, 'x'),"
        " ('100% 맞아요: 네', 2, NULL, NULL, 'x'),"
        " ('안녕하세요', 1, '/cul_m01/2021/PRGTM_202106270002_50001.wav', 7, 'x')",
    )
    yield server
    server.execute("DROP TABLE training_datas")


def described(
    url: str | None,
    query: str | None = None,
    table: str | None = None,
    limit: int = 0,
    group_column: str | None = None,
    **columns: Any,
) -> Data:
    database = Database(db_url=url, db_query=query, db_table=table)
    return Data(Source(limit=limit, group_column=group_column), TableColumns(**columns), database=database)


def rows_of(data: Data, announce: Callable[[int], None] = lambda count: None) -> list[Row]:
    sql.check(data)
    return list(sql.read(data, announce))


def refusal(data: Data) -> str:
    """Return with what line a database is refused, by the check and so before anything long begins."""
    with pytest.raises(UserError) as raised:
        sql.check(data)
    assert "\n" not in str(raised.value)
    assert raised.value.__suppress_context__ or raised.value.__context__ is None, "--debug would show more"
    return str(raised.value)


# Rows


EXPECTED = [
    ("id=1", Path("/mnt/cul/2021/PRGTM_202106270002_50001.wav"), "안녕하세요", "7", ""),
    ("id=2", b"", "100% 맞아요: 네", "", "no audio named"),
    ("id=3", Path("/mnt/cul/c.wav"), "", "7", ""),
]


def told(rows: list[Row]) -> list[tuple[Any, ...]]:
    return [(row.source_id.rpartition(":")[2], row.audio, row.text, row.speaker, row.refused) for row in rows]


@pytest.mark.parametrize(
    "selection",
    [
        {"query": "SELECT id, raw_data, transcript, speaker_id FROM training_datas ORDER BY id LIMIT 10000;  -- all"},
        {"table": "training_datas"},
    ],
)
def test_the_reference_use(clips: Server, selection: dict[str, str]) -> None:
    """Paths of another machine, Korean, numbers and NULL; a table comes in the order of its key."""
    counts: list[int] = []
    data = described(clips.url, **selection, path_map=("/cul_m01=/mnt/cul",))
    rows = rows_of(data, counts.append)
    assert told(rows) == EXPECTED
    assert counts == [3]
    name = "음성 clips.db" if clips.kind == "sqlite" else NAME
    assert rows[0].source == "sql"
    assert rows[0].source_id == f"sql/{name}:id=1"


def test_rows_without_an_id_are_numbered(clips: Server) -> None:
    rows = rows_of(described(clips.url, "SELECT raw_data, transcript FROM training_datas"))
    assert [row.source_id.rpartition(":")[2] for row in rows] == ["1", "2", "3"]


def test_a_schema_and_names_that_need_quoting(server: Server) -> None:
    """Korean, reserved, with a %, a dot, a colon, a quotation mark."""
    names = ["order", "전사 text", "100%", "a.b", ":c", 'say "x"']
    schema = {"sqlite": "main", "mariadb": NAME, "postgresql": "녹음"}[server.kind]
    place = f"{server.quoted(schema)}.{server.quoted('select')}"
    columns = ", ".join(f"{server.quoted(name)} VARCHAR(50)" for name in names)
    if server.kind == "postgresql":
        server.execute(f"CREATE SCHEMA {schema}")
    server.execute(
        f"CREATE TABLE {place} ({columns})", f"INSERT INTO {place} VALUES ('a.wav', '가', '나', '다', '라', '마')"
    )
    for text, expected in zip(names[1:], "가나다라마", strict=True):
        for selection in ({"table": f"{schema}.select"}, {"query": f"SELECT * FROM {place}"}):
            data = described(server.url, **selection, audio_column="order", text_column=text)
            assert [row.text for row in rows_of(data)] == [expected]
    server.execute(f"DROP TABLE {place}")


def test_a_view(clips: Server) -> None:
    clips.execute("CREATE VIEW good AS SELECT raw_data, transcript FROM training_datas WHERE id = 1")
    try:
        assert [row.text for row in rows_of(described(clips.url, table="good"))] == ["안녕하세요"]
    finally:
        clips.execute("DROP VIEW good")


def test_blobs(server: Server) -> None:
    sound = bytes(range(256)) * 20
    hexadecimal = f"'\\x{sound.hex()}'" if server.kind == "postgresql" else f"x'{sound.hex()}'"
    server.execute(
        f"CREATE TABLE sounds (audio {server.blob}, text VARCHAR(20))",
        f"INSERT INTO sounds VALUES ({hexadecimal}, '소리'), (NULL, '없음')",
    )
    try:
        for selection in ({"query": "SELECT audio, text FROM sounds"}, {"table": "sounds"}):
            rows = rows_of(described(server.url, **selection))
            assert [(row.audio, row.refused) for row in rows] == [(sound, ""), (b"", "no audio named")]
    finally:
        server.execute("DROP TABLE sounds")


def test_relative_paths_and_all_roles(clips: Server, tmp_path: Path) -> None:
    query = "SELECT 'a/b.wav' AS wav, '말' AS label, 5 AS spk, 'dev' AS split, '방송' AS programme"
    (row,) = rows_of(described(clips.url, query, audio_root=tmp_path, group_column="programme"))
    assert (row.audio, row.text, row.speaker, row.split, row.group) == (
        tmp_path / "a/b.wav", "말", "5", "validation", "방송",
    )  # fmt: skip
    (row,) = rows_of(described(clips.url, query))
    assert row.audio == Path.cwd() / "a/b.wav"


def test_percent_and_colon_are_no_parameters(clips: Server) -> None:
    query = "SELECT raw_data, '%s 100%% :id' AS text FROM training_datas WHERE transcript LIKE '100%: _'"
    assert [row.text for row in rows_of(described(clips.url, query))] == ["%s 100%% :id"]


def test_sqlite_text_that_is_no_utf8_is_refused_in_its_row(sqlite: Server) -> None:
    query = "SELECT 'a.wav' AS path, CAST(x'b0a1' AS TEXT) AS text UNION ALL SELECT 'b.wav', '나'"
    assert [(row.text, row.refused) for row in rows_of(described(sqlite.url, query))] == [
        ("", "malformed row"), ("나", ""),
    ]  # fmt: skip


def test_two_columns_of_one_name(clips: Server) -> None:
    query = "SELECT a.raw_data, a.transcript, b.transcript FROM training_datas a JOIN training_datas b ON a.id = b.id"
    assert "two columns are called 'transcript'" in refusal(described(clips.url, query))
    twice = query.replace("b.transcript", "a.id, b.id")
    assert rows_of(described(clips.url, twice))[0].source_id.endswith(":1")


# How many


def test_the_announced_number(clips: Server) -> None:
    """Counted as the query says, and no more than --limit."""
    for query, limit, expected in [
        ("SELECT raw_data, transcript FROM training_datas WHERE id > 1", 0, [2]),
        ("SELECT raw_data, transcript FROM training_datas ORDER BY transcript LIMIT 1", 0, [1]),
        ("SELECT DISTINCT speaker_id AS path, 'x' AS text FROM training_datas", 0, [2]),
        ("SELECT MIN(raw_data) AS path, MIN(transcript) AS text FROM training_datas", 0, [1]),
        (
            "SELECT raw_data, transcript FROM training_datas UNION SELECT raw_data, transcript FROM training_datas",
            0,
            [3],
        ),
        ("SELECT raw_data, transcript FROM training_datas", 2, [2]),
        ("SELECT raw_data, transcript FROM training_datas", 9, [3]),
    ]:
        counts: list[int] = []
        rows = rows_of(described(clips.url, query, limit=limit), counts.append)
        assert counts == expected, query
        assert len(rows) == expected[0], query


def test_what_cannot_be_counted_is_read_all_the_same(clips: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    monkeypatch.setattr(statement, "_counts", lambda *arguments: ("SELECT COUNT(*) FROM nosuch",))
    data = described(clips.url, "SELECT raw_data, transcript FROM training_datas")
    assert len(rows_of(data, counts.append)) == 3
    assert counts == []


def test_counting_leaves_recordings_where_they_are() -> None:
    """MariaDB would store what it counts below a LIMIT."""
    counted = one_select("SELECT sound, text FROM t WHERE id > 5 ORDER BY text LIMIT 9", "mysql").counts[0]
    assert " ".join(counted.split()) == "SELECT COUNT(*) FROM ( SELECT 1 FROM t WHERE id > 5 LIMIT 9 ) counted_rows"
    for count in one_select("SELECT sound, UPPER(text) AS text FROM t", "mysql", limit=7).counts:
        assert "LIMIT 7" in count


@pytest.fixture
def complaints(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Gathers what Python would print on standard error when objects go that cannot be closed."""
    found: list[Any] = []
    gc.collect()
    monkeypatch.setattr(sys, "unraisablehook", found.append)
    yield found
    gc.collect()
    assert found == []


@pytest.mark.usefixtures("complaints")
@pytest.mark.parametrize("selection", ["query", "table"])
def test_limit_leaves_the_rest_unread(server: Server, selection: str) -> None:
    """To the check as well as to the reading; and PyMySQL, which would read on, does not complain either."""
    query = f"SELECT seq AS path, 'x' AS text FROM {server.rows_of(ENDLESS)}"
    begin, counts = time.monotonic(), list[int]()
    if selection == "table":
        server.execute(f"CREATE VIEW endless AS {query}")
    chosen = {"query": query} if selection == "query" else {"table": "endless"}
    rows = rows_of(described(server.url, **chosen, limit=3), counts.append)
    if selection == "table":
        server.execute("DROP VIEW endless")
    assert counts == [3]
    assert [str(row.source_id.rpartition(":")[2]) for row in rows] == ["1", "2", "3"]
    assert time.monotonic() - begin < 10


@pytest.mark.usefixtures("complaints")
def test_reading_may_be_left_at_any_time(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql, "_count", lambda *arguments: None)
    begin = time.monotonic()
    rows = sql.read(described(server.url, f"SELECT seq AS path, 'x' AS text FROM {server.rows_of(ENDLESS)}"), print)
    assert len(list(itertools.islice(rows, 100))) == 100
    del rows
    assert time.monotonic() - begin < 10


MEASURE = """
import sys
from asr.online.sources import sql
from config import Data, Database
data = Data(database=Database(db_url=sys.argv[1], db_query=sys.argv[2]))
def peak_kb():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
sql.check(data)
before = peak_kb()
print(sum(len(row.audio) for row in sql.read(data, lambda count: None)), peak_kb() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measures memory as Linux tells it")
def test_memory_stays_bounded(server: Server) -> None:
    """50 MB of recordings pass through a few MB."""
    sound = {
        "sqlite": "zeroblob(20000)",
        "mariadb": "CAST(REPEAT('x', 20000) AS BINARY)",
        "postgresql": "convert_to(repeat('x', 20000), 'UTF8')",
    }[server.kind]
    query = f"SELECT {sound} AS audio, '말' AS text FROM {server.rows_of(2_500)}"
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, server.url, query], capture_output=True, text=True, cwd=ROOT, check=True
    )
    read, grown_kb = map(int, done.stdout.split())
    assert read == 2_500 * 20_000
    assert grown_kb < 20_000


# Nothing is written


def test_the_session_cannot_write(clips: Server) -> None:
    url = database.database_url(clips.url)
    for change in (
        "INSERT INTO training_datas (id) VALUES (4)", "UPDATE training_datas SET transcript = 'x'",
        "DELETE FROM training_datas", "CREATE TABLE other (id INTEGER)", "DROP TABLE training_datas",
    ):  # fmt: skip
        with (
            database.read_only_session(url) as connection,
            pytest.raises(sa.exc.SQLAlchemyError, match=r"(?i)read.?only"),
        ):
            connection.exec_driver_sql(change)
    assert clips.scalar("SELECT COUNT(*) FROM training_datas WHERE transcript = 'x' OR id > 3") == 0
    assert clips.scalar("SELECT COUNT(*) FROM training_datas") == 3


FUNCTIONS = {
    "mariadb": "CREATE FUNCTION sneaky() RETURNS INT MODIFIES SQL DATA BEGIN DELETE FROM training_datas; RETURN 1; END",
    "postgresql": "CREATE FUNCTION sneaky() RETURNS INT LANGUAGE plpgsql VOLATILE AS "
    "'BEGIN DELETE FROM training_datas; RETURN 1; END'",
}


@pytest.mark.parametrize("kind", SERVERS)
def test_a_function_cannot_write_behind_a_select(kind: str, request: pytest.FixtureRequest) -> None:
    """No look at the statement could tell; it is the session that stands in the way."""
    server: Server = request.getfixturevalue(kind)
    server.execute("CREATE TABLE training_datas (id INTEGER)", "INSERT INTO training_datas VALUES (1)", FUNCTIONS[kind])
    try:
        message = refusal(described(server.url, "SELECT 'a.wav' AS path, sneaky() AS text"))
        assert "read" in message.lower()
        assert server.scalar("SELECT COUNT(*) FROM training_datas") == 1
        assert server.scalar("SELECT sneaky()") == 1, "the function does nothing: the test is void"
    finally:
        server.execute("DROP FUNCTION sneaky", "DROP TABLE training_datas")


def test_a_refused_table_is_let_go(clips: Server) -> None:
    """SQLite would keep its file locked as long as anything of the reading is held, here by the error."""
    with pytest.raises(UserError) as raised:
        sql.check(described(clips.url, "SELECT id, transcript FROM training_datas"))
    clips.execute("DELETE FROM training_datas WHERE id = 1")
    assert "--audio-column" in str(raised.value)


def test_a_sequence_is_not_advanced(postgresql: Server) -> None:
    postgresql.execute("CREATE SEQUENCE numbers")
    assert "read-only" in refusal(described(postgresql.url, "SELECT 'a.wav' AS path, nextval('numbers') AS text"))
    assert postgresql.scalar("SELECT last_value FROM numbers WHERE NOT is_called") == 1


def test_mariadb_waits_for_slow_reading(mariadb: Server) -> None:
    """Its default of 60 s is soon over while clips are prepared."""
    query = "SELECT 'a' AS path, CONCAT_WS(' ', @@net_write_timeout, @@net_read_timeout, @@max_statement_time) AS text"
    assert rows_of(described(mariadb.url, query))[0].text == "86400 86400 0.000000"


def test_postgresql_waits_for_slow_reading(postgresql: Server) -> None:
    names = ("statement_timeout", "idle_in_transaction_session_timeout")
    postgresql.execute(*(f"ALTER DATABASE {NAME} SET {name} = '9s'" for name in names))
    query = "SELECT 'a' AS path, " + " || ' ' || ".join(f"current_setting('{name}')" for name in names) + " AS text"
    try:
        assert postgresql.scalar(f"SELECT text FROM ({query}) q") == "9s 9s"
        assert rows_of(described(postgresql.url, query))[0].text == "0 0"
    finally:
        postgresql.execute(*(f"ALTER DATABASE {NAME} RESET {name}" for name in names))


def test_a_sqlite_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    assert "there is no file" in refusal(described(f"sqlite:///{tmp_path}/clips.db", table="t"))
    assert list(tmp_path.iterdir()) == []


# Which statements


ACCEPTED = [
    "SELECT raw_data, transcript FROM training_datas LIMIT 10000",
    "select a.path, b.text from a left join b using (id) where b.text is not null order by a.id;",
    "-- all\nSELECT path, text FROM t; -- and nothing else\n;",
    "/* INSERT */ SELECT path, 'DELETE; DROP TABLE t' AS text FROM t",
    "WITH good AS (SELECT * FROM t WHERE score > 0.9) SELECT path, text FROM good",
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3) SELECT i AS path, 'x' AS text FROM n",
    "(SELECT path, text FROM a) UNION ALL (SELECT path, text FROM b) ORDER BY path",
    "SELECT path, text FROM a EXCEPT SELECT path, text FROM b",
    "SELECT path, COUNT(*) AS text FROM t GROUP BY path HAVING COUNT(*) > 1",
    "SELECT path, text, ROW_NUMBER() OVER (PARTITION BY speaker ORDER BY id) AS n FROM t",
    "SELECT CASE WHEN a = 1 THEN path ELSE CONCAT('/x/', path) END AS path, text FROM t WHERE text LIKE '%가%'",
    "SELECT 녹음 AS path, 전사 AS text FROM 훈련",
    "SELECT path, (SELECT text FROM b WHERE b.id = a.id) AS text FROM a WHERE EXISTS (SELECT 1 FROM c)",
    "SELECT path, text FROM (VALUES ('a', 'b')) AS given(path, text)",
    "SELECT `update` AS path, REPLACE(text, 'a', 'b') AS text FROM `delete`",
    "SELECT \"update\" AS path, REPLACE(text, 'a', 'b') AS text FROM \"delete\"",
    "SELECT path, text FROM t PARTITION (p0) FORCE INDEX (PRIMARY) WHERE text REGEXP '^[가-힣]'",
    "SELECT DISTINCT ON (speaker) path, text::text, meta->>'id' FROM t TABLESAMPLE SYSTEM (5) WHERE text ~ '^[가-힣]'",
]
ONLY = {14: "mysql", 15: "postgresql", 16: "mysql", 17: "postgresql"}


@pytest.mark.parametrize(("number", "query"), list(enumerate(ACCEPTED)))
def test_a_select_is_accepted_and_sent_as_it_is(number: int, query: str) -> None:
    for backend in (
        [ONLY[number]] if number in ONLY else ["mysql", "mariadb", "postgresql", "sqlite", "oracle", "nuodb"]
    ):
        if backend == "oracle" and "AS given" in query:
            continue
        text = one_select(query, backend).text
        assert text in query or text.split() == query.split(), backend


REFUSED = {
    "": "empty",
    " ; ": "empty",
    "-- nothing": "empty",
    "SELECT 1; SELECT 2": "more than one",
    "SELECT 1; DROP TABLE t": "more than one",
    "BEGIN; SELECT 1": "more than one",
    "INSERT INTO t VALUES (1)": "no SELECT",
    "REPLACE INTO t VALUES (1)": "",
    "UPDATE t SET a = 1": "no SELECT",
    "DELETE FROM t": "no SELECT",
    "WITH a AS (SELECT 1) DELETE FROM t": "no SELECT",
    "WITH a AS (SELECT 1) UPDATE t SET a = 1": "no SELECT",
    "WITH a AS (SELECT 1) INSERT INTO t SELECT * FROM a": "no SELECT",
    "MERGE INTO t USING s ON t.a = s.a WHEN MATCHED THEN DELETE": "no SELECT",
    "CREATE TABLE n AS SELECT * FROM t": "no SELECT",
    "CREATE VIEW n AS SELECT 1": "no SELECT",
    "DROP TABLE t": "no SELECT",
    "ALTER TABLE t ADD a INT": "no SELECT",
    "TRUNCATE TABLE t": "no SELECT",
    "GRANT ALL ON t TO u": "no SELECT",
    "CALL f()": "no SELECT",
    "EXECUTE p": "no SELECT",
    "SET GLOBAL max_connections = 1": "no SELECT",
    "VALUES (1), (2)": "",
    "COPY t TO '/x'": "",
    "DO $$ BEGIN END $$": "",
    "SHOW TABLES": "",
    "DESCRIBE t": "no SELECT",
    "EXPLAIN ANALYZE DELETE FROM t": "no SELECT",
    "LOAD DATA INFILE 'x' INTO TABLE t": "",
    "LOCK TABLE t": "",
    "KILL 1": "",
    "VACUUM": "",
    "PRAGMA writable_schema = 1": "",
    "ATTACH 'x.db' AS x": "",
    "HANDLER t OPEN": "",
    "WITH a AS (INSERT INTO t VALUES (1) RETURNING *) SELECT * FROM a": "INSERT",
    "WITH a AS (UPDATE t SET b = 1 RETURNING *) SELECT * FROM a": "UPDATE",
    "WITH a AS (DELETE FROM t RETURNING *) SELECT * FROM a": "DELETE",
    "SELECT * FROM (WITH a AS (DELETE FROM t RETURNING *) SELECT * FROM a) b": "",
    "SELECT * INTO n FROM t": "INTO",
    "SELECT * FROM t INTO OUTFILE '/x'": "INTO",
    "SELECT a INTO OUTFILE '/x' FROM t": "INTO",
    "SELECT a INTO DUMPFILE '/x' FROM t": "INTO",
    "SELECT a INTO @x FROM t": "INTO",
    "SELECT a FROM t UNION SELECT b FROM u INTO OUTFILE '/x'": "INTO",
    "SELECT * FROM t FOR UPDATE": "locks",
    "SELECT * FROM t FOR SHARE": "locks",
    "SELECT * FROM (SELECT * FROM t FOR UPDATE) u": "locks",
    "SELECT 'abc": "not closed",
    "SELECT 1 /* abc": "not closed",
    "SELECT (1": "line 1",
    "SELEC path, text FROM t": "",
    "SELECT path,\n text FRM t WHERE x y z": "line 2",
}


@pytest.mark.parametrize("query", REFUSED)
def test_anything_else_is_refused(query: str, capfd: pytest.CaptureFixture[str]) -> None:
    for backend in ("mysql", "mariadb", "postgresql", "sqlite", "oracle", "nuodb"):
        if "@x" in query and backend not in ("mysql", "mariadb"):
            continue
        with pytest.raises(UserError) as raised:
            one_select(query, backend)
        message = str(raised.value)
        assert message.startswith("--db-query")
        assert REFUSED[query] in message, backend
        assert "\n" not in message
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("comment", ["/*! INTO OUTFILE '/x' */", "/*!50000 FOR UPDATE */", "/*M!100100 LIMIT 1 */"])
def test_comments_that_mysql_runs_are_refused(comment: str) -> None:
    for query in (f"SELECT 1 {comment}", f"SELECT {comment} 1", f"SELECT 1; {comment}"):
        for backend in ("mysql", "mariadb"):
            with pytest.raises(UserError, match="comment that the database runs"):
                one_select(query, backend)
    assert one_select("SELECT '/*! x */' AS path", "mysql").text == "SELECT '/*! x */' AS path"


def test_no_comment_reaches_the_database() -> None:
    """Databases disagree on where one ends: what is taken for a comment here might be run there."""
    assert one_select("SELECT 1 /* /* */ -- */ INTO OUTFILE 'x'", "mysql").text == "SELECT 1"
    assert one_select("SELECT a# b\n, c /* /* d */ , e */ FROM t", "postgresql").text.split() == [
        "SELECT", "a#", "b", ",", "c", "FROM", "t",
    ]  # fmt: skip
    assert one_select("SELECT/**/1/**/AS/**/a", "sqlite").text == "SELECT 1 AS a"
    assert "MAX_EXECUTION_TIME" in one_select("SELECT /*+ MAX_EXECUTION_TIME(1000) */ 1", "mysql").text


PIECES = [
    "path",
    "'가''나'",
    '"a b"',
    "1.5e3",
    "(",
    ")",
    ",",
    "+",
    "-",
    "--",
    "/*",
    "*/",
    "#",
    "\n",
    " ",
    ";",
    "'",
    "*",
]
PIECES += ["FROM t", "INTO", "UNION SELECT", "AS", "$$", "\\", "`", "%", "INSERT", ":", "E'", "x'ff'"]


@settings(deadline=None, max_examples=300, derandomize=True)
@given(st.lists(st.sampled_from(PIECES), max_size=12), st.sampled_from(["mysql", "postgresql", "sqlite", "mssql"]))
def test_any_text_is_a_select_or_refused(pieces: list[str], backend: str) -> None:
    """In one line, never with a traceback; and what is accepted is found good again."""
    try:
        accepted = one_select("SELECT " + " ".join(pieces), backend)
    except UserError as error:
        refused = str(error)
    else:
        refused = ""
        assert one_select(accepted.text, backend) == accepted
    assert "\n" not in refused


# The URL and the password


@pytest.mark.parametrize(
    "url",
    [
        "mysql+pymysql://root:SECRET@127.0.0.1/db",
        "mysql+pymysql://root:a/SECRET@127.0.0.1/db",
        "mysql+pymysql://root:a@SECRET@127.0.0.1/db",
        "mysql+pymysql://root:12/@SECRET@127.0.0.1/db",
        "mysql+pymysql://127.0.0.1/db?user=root&password=SECRET",
        "mysql+pymysql://127.0.0.1/db?passwd=SECRET",
        "mysql+pymysql://127.0.0.1/db?ssl_key_password=SECRET",
        "postgresql://me@127.0.0.1/db?PASSWORD=SECRET",
        "postgresql://me@127.0.0.1/db?sslpassword=SECRET",
        "mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3DSECRET",
        "sqlite+pysqlcipher://:SECRET@/clips.db",
        "mysql+pymysql//root:SECRET@127.0.0.1/db",
        "root:SECRET@127.0.0.1/db",
        "mysql+pymysql://root:SECRET",
    ],
)
def test_a_password_in_the_url_is_refused_and_not_shown(url: str, caplog: pytest.LogCaptureFixture) -> None:
    message = refusal(described(url, "SELECT path, text FROM t"))
    assert "SECRET" not in message + caplog.text
    assert message.startswith("--db-url")


@pytest.fixture
def account(mariadb: Server) -> Iterator[str]:
    """A user who may only read, with a password; gives the URL."""
    mariadb.execute(f"CREATE USER {NAME}@'%' IDENTIFIED BY '{PASSWORD}'", f"GRANT SELECT ON {NAME}.* TO {NAME}@'%'")
    yield mariadb.url.replace("root@", f"{NAME}@")
    mariadb.execute(f"DROP USER {NAME}@'%'")


QUERY = "SELECT '/a.wav' AS path, '말' AS text"


def test_the_password_comes_from_the_environment(
    account: str, mariadb: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for password in (PASSWORD, "비밀번호"):
        mariadb.execute(f"ALTER USER {NAME}@'%' IDENTIFIED BY '{password}'")
        monkeypatch.setenv("DB_PASSWORD", password)
        with caplog.at_level(logging.DEBUG):
            assert len(rows_of(described(account, QUERY))) == 1
        assert password not in caplog.text


def test_the_password_comes_from_the_drivers_own_file(
    account: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("DB_PASSWORD", raising=False)
    file = tmp_path / "client.cnf"
    file.write_text(f"[client]\npassword = '{PASSWORD}'\n", encoding="utf-8")
    with caplog.at_level(logging.INFO, "whisper"):
        assert len(rows_of(described(f"{account}?read_default_file={file}", QUERY))) == 1
    assert str(file) not in caplog.text, "options of the URL may hold keys"


@pytest.mark.parametrize("given", ["", "falsch-SECRET"])
def test_a_wrong_password(account: str, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", given)
    message = refusal(described(account, QUERY))
    assert message.startswith("--db-url mysql+pymysql://")
    assert f": Access denied for user '{NAME}'" in message
    assert "SECRET" not in message
    assert ("DB_PASSWORD, which is not set" in message) == (not given)


def test_what_is_logged(clips: Server, caplog: pytest.LogCaptureFixture) -> None:
    """Where from, and no value of the table."""
    query = "SELECT raw_data, transcript FROM training_datas WHERE id < 3"
    with caplog.at_level(logging.DEBUG):
        rows_of(described(clips.url, query))
    assert [line for line in caplog.messages if line.startswith("reading a query's rows from ")] == [
        f"reading a query's rows from {clips.url}"
    ]
    assert "ORDER BY" in caplog.text
    assert "안녕" not in caplog.text
    assert "PRGTM" not in caplog.text


def test_a_url_that_names_no_driver(clips: Server) -> None:
    scheme, _, rest = clips.url.partition("://")
    assert len(rows_of(described(f"{scheme.partition('+')[0]}://{rest}", table="training_datas"))) == 3


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("clips", "no database URL"),
        ("mysql+pymysql://root@127.0.0.1:x/db", "no database URL"),
        ("nosuch://u@h/d", "does not know nosuch"),
        ("mysql+nosuch://u@h/d", "does not know mysql+nosuch"),
        ("mysql+mysqldb://u@h/d", "pip install mysqlclient"),
        ("mssql+pymssql://u@h/d", "pip install pymssql"),
        ("oracle+oracledb://u@h/d", "pip install oracledb"),
        ("sqlite://", "names no SQLite file"),
        ("sqlite:///:memory:", "names no SQLite file"),
        ("sqlite://clips.db", "three slashes"),
        ("mysql+pymysql://root@127.0.0.1/db?nosuch=1", "nosuch"),
        ("mysql+pymysql://root@127.0.0.1:1/db", "Connection refused"),
        ("postgresql+psycopg://root@127.0.0.1:1/db", "Connection refused"),
        ("mysql+pymysql://root@no-such-host.invalid/db", "no-such-host.invalid"),
        ("postgresql+psycopg://root@no-such-host.invalid/db", "no-such-host.invalid"),
        ("postgresql+psycopg://root@/db?host=127.0.0.1,127.0.0.1&port=1,2", "Connection refused"),
    ],
)
def test_a_url_that_leads_nowhere(url: str, expected: str) -> None:
    message = refusal(described(url, QUERY))
    assert message.startswith("--db-url")
    assert expected in message


@pytest.mark.parametrize(
    ("database", "expected"),
    [
        (Database(db_url="sqlite:///a.db"), "either --db-query"),
        (Database(db_url="sqlite:///a.db", db_query="SELECT 1", db_table="t"), "either --db-query"),
        (Database(db_query="SELECT 1"), "--db-query needs --db-url"),
        (Database(db_table="t"), "--db-table t needs --db-url"),
    ],
)
def test_flags_that_do_not_fit_together(database: Database, expected: str) -> None:
    assert expected in refusal(Data(database=database))


# What a database refuses


def test_names_that_are_not_there(clips: Server) -> None:
    assert "nosuch" in refusal(described(clips.url, "SELECT path, text FROM nosuch"))
    assert "nosuch" in refusal(described(clips.url, "SELECT nosuch, transcript FROM training_datas"))
    for table in ("nosuch", "nosuch.training_datas"):
        assert f"--db-table {table}: " in refusal(described(clips.url, table=table))
    assert "only training_datas" in refusal(described(clips.url, table="nosuch"))
    assert "--audio-column" in refusal(described(clips.url, "SELECT id, transcript FROM training_datas"))
    assert "'nosuch'" in refusal(described(clips.url, table="training_datas", text_column="nosuch"))
    if clips.kind != "sqlite":
        assert "nosuch" in refusal(described(clips.url.replace(NAME, "nosuch"), table="t"))


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "clips.db").write_bytes(b"no database" * 100)
    message = refusal(described(f"sqlite:///{tmp_path}/clips.db", table="t"))
    assert message == f"--db-url sqlite:///{tmp_path}/clips.db: file is not a database"


def test_values_do_not_stand_in_messages(postgresql: Server) -> None:
    query = "SELECT 'a' AS path, CAST(given AS INTEGER) AS text FROM (SELECT '서울' AS given OFFSET 0) q"
    message = refusal(described(postgresql.url, query))
    assert message == "--db-query: a value does not fit what is done with it (InvalidTextRepresentation)"


@pytest.mark.usefixtures("complaints")
@pytest.mark.parametrize("kind", SERVERS)
def test_a_connection_that_breaks(kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told in one line, with how far it came."""
    server: Server = request.getfixturevalue(kind)
    monkeypatch.setattr(sql, "_count", lambda *arguments: None)
    me = {"mariadb": "CONNECTION_ID()", "postgresql": "pg_backend_pid()"}[kind]
    kill = {"mariadb": "KILL {}", "postgresql": "SELECT pg_terminate_backend({})"}[kind]
    filler = "REPEAT('x', 5000)"
    query = f"SELECT 'a.wav' AS path, {me} AS text, {filler} AS filler FROM {server.rows_of(ENDLESS)}"
    rows = sql.read(described(server.url, query), lambda count: None)
    server.execute(kill.format(next(rows).text))
    done = itertools.count(1)
    with pytest.raises(UserError) as raised:
        list(zip(rows, done, strict=False))
    assert str(raised.value).startswith(f"--db-query: reading broke off after {next(done)} rows: ")
    assert "run it again" in str(raised.value)
    assert "\n" not in str(raised.value)
