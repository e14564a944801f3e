"""The reference use: a corpus out of MariaDB, with the paths of another machine, is the corpus out of its table."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import DEMO_MODEL, MEASURING_DATA, script

CORPUS = MEASURING_DATA / "korean-speech"
SERVER = "mysql+pymysql://root@127.0.0.1"
NAME = f"whisper_reference_{os.getpid()}"
CLIPS = 984


@pytest.fixture
def filled() -> Iterator[str]:
    """A database with the corpus, as the machine that recorded it would have filled it; gives its URL."""
    import sqlalchemy as sa

    if not CORPUS.is_dir():
        pytest.skip(f"there is no {CORPUS}")
    server = sa.create_engine(f"{SERVER}/mysql", isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    try:
        with server.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {NAME} CHARACTER SET utf8mb4")
    except sa.exc.OperationalError as error:
        pytest.skip(f"no MariaDB for tests: {error.orig}")
    try:
        with open(CORPUS / "transcripts.tsv", encoding="utf-8", newline="") as file:
            records = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        rows = [(f"/cul_m01/{record['path']}", record["sentence"], record["speaker"]) for record in records]
        columns = "id INT AUTO_INCREMENT PRIMARY KEY, raw_data TEXT, transcript TEXT, speaker VARCHAR(40)"
        with server.connect() as connection:
            connection.exec_driver_sql(f"CREATE TABLE {NAME}.training_datas ({columns})")
            insert = f"INSERT INTO {NAME}.training_datas (raw_data, transcript, speaker) VALUES (%s, %s, %s)"
            connection.exec_driver_sql(insert, rows)
        yield f"{SERVER}/{NAME}"
    finally:
        with server.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {NAME}")


def prepared(bundle: Path, *flags: object) -> dict[str, list[dict[str, Any]]]:
    """Set up a bundle; return its rows by split and what was dropped, all without where it came from.

    All 984 clips stay: the demo's model has Whisper's window of 30 s, and a few repeats and one loud clip are let in.
    """
    from datasets import load_from_disk

    script("run_online_setup.py", "--model-name-or-path", DEMO_MODEL, "--keep-repeats", "--max-clipped", 1, *flags,
           "--bundle-dir", bundle, check=True)  # fmt: skip
    with open(bundle / "reports" / "dropped.csv", encoding="utf-8-sig", newline="") as file:
        tables = {"dropped": list(csv.DictReader(file)), **load_from_disk(bundle / "data")}
    return {
        name: [
            {column: value for column, value in row.items() if column not in ("source", "source_id")} for row in rows
        ]
        for name, rows in tables.items()
    }


def test_a_database_gives_what_the_table_gives(filled: str, tmp_path: Path) -> None:
    """Every column of every clip, in the same order and the same split."""
    of_table = prepared(tmp_path / "of-table", "--table", CORPUS / "transcripts.tsv")
    query = "SELECT raw_data, transcript, speaker FROM training_datas ORDER BY id"
    of_sql = prepared(tmp_path / "of-sql", "--source", "sql", "--db-url", filled, "--db-query", query,
                      "--path-map", f"/cul_m01={CORPUS}")  # fmt: skip
    lengths = {name: len(rows) for name, rows in of_table.items()}
    assert lengths["dropped"] == 0
    assert sum(lengths.values()) == CLIPS
    assert {name: len(rows) for name, rows in of_sql.items()} == lengths
    for name, rows in of_table.items():
        assert [row["text"] for row, other in zip(rows, of_sql[name], strict=True) if row != other] == [], name
