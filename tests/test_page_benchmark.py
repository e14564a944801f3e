"""The benchmark of the page: what is lost is counted, whoever loses it."""

from __future__ import annotations

from benchmarks.measuring import DEMO_MODEL
from benchmarks.page import Load, as_table, served, uploads_in, visit


def test_clients_are_answered_and_nothing_is_left(tmp_path):
    with served(["--model", str(DEMO_MODEL)], tmp_path) as (address, pid):
        load = visit(address, pid, clients=32, seconds=3.0)
        assert load.lost == []
        assert len(load.waits) >= 32
        assert uploads_in(tmp_path) == []
    assert load.memory[-1][2] < 1.5 * load.memory[0][2] + 200e6


def test_a_page_that_is_gone_loses_everything(tmp_path):
    """Else no loss would ever be seen."""
    from gradio_client import Client

    with served(["--model", str(DEMO_MODEL)], tmp_path) as (address, _):
        client = Client(address, verbose=False)
    import time

    from benchmarks.page import DEMO_CORPUS, _ask

    load = Load()
    _ask(client, next((DEMO_CORPUS / "clips").glob("*test_0000.mp3")), time.monotonic() + 0.5, load)
    assert load.waits == []
    assert load.lost


def test_the_table():
    load = Load([0.5, 1.5, 2.5], ["an error"], [(0.0, 0, 600_000_000), (10.2, 3, 1_234_000_000)], 2)
    table = as_table(load, 32, 10.0)
    assert (
        "32 clients for 10 s: 3 answers, 1 lost, 2 uploads left; an answer after 1.5 s (median), 2.5 s (95 %)" in table
    )
    assert "| 10 | 3 | 1,234 MB |" in table
