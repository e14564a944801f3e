"""Workers: a function over many items on all cores, in order, with bounded memory; a crash costs one item."""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

CHUNK = 8
# Enough for the workers to go on while a part is written to the disk.
CHUNKS_AHEAD = 16


def map_in_order(
    make: Callable[..., Callable[[Item], Result]],
    arguments: tuple[Any, ...],
    items: Iterable[Item],
    processes: int,
    crashed: Callable[[Item], Result],
) -> Iterator[Result]:
    """Yield what a function makes of each item, in the order of the items.

    The processes start afresh, because forking would copy locked threads. Only a few chunks are under way at a time,
    whatever the number of items.

    Args:
        make: called in each process, gives the function.
        arguments: of `make`.
        items: what is mapped.
        processes: how many; 1 works in this one (where a crash is the end of it), 0 takes every core there is for us.
        crashed: makes the result of an item that kills its process (a codec's crash, memory).
    """
    if processes == 1:
        yield from map(make(*arguments), items)
        return
    processes = processes or available_cores()
    chunks = _chunks(items)
    pool = _pool(make, arguments, processes)
    under_way: deque[tuple[list[Item], Future[list[Result]]]] = deque()
    try:
        while True:
            while len(under_way) < processes * CHUNKS_AHEAD and (chunk := next(chunks, None)):
                under_way.append((chunk, _submit(pool, chunk)))
            if not under_way:
                break
            chunk, future = under_way.popleft()
            try:
                yield from future.result()
            except BrokenProcessPool:
                # One of the chunks under way holds the item that did it: what is not done is tried again, one by one.
                pool.shutdown(wait=False, cancel_futures=True)
                yield from _one_by_one(make, arguments, [(chunk, future), *under_way], crashed)
                under_way.clear()
                pool = _pool(make, arguments, processes)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def available_cores() -> int:
    """Return on how many cores this process may run, which in a container may be fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _chunks(items: Iterable[Item]) -> Iterator[list[Item]]:
    source = iter(items)
    while chunk := list(itertools.islice(source, CHUNK)):
        yield chunk


def _one_by_one(
    make: Callable[..., Callable[[Item], Result]],
    arguments: tuple[Any, ...],
    suspects: list[tuple[list[Item], Future[list[Result]]]],
    crashed: Callable[[Item], Result],
) -> Iterator[Result]:
    pool = _pool(make, arguments, 1)
    try:
        for chunk, future in suspects:
            if _is_good(future):
                yield from future.result()
                continue
            for item in chunk:
                try:
                    yield from _submit(pool, [item]).result()
                except BrokenProcessPool:
                    pool.shutdown(wait=False)
                    pool = _pool(make, arguments, 1)
                    yield crashed(item)
    finally:
        pool.shutdown()


def _is_good(future: Future[Any]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _submit(pool: ProcessPoolExecutor, chunk: list[Item]) -> Future[list[Any]]:
    """Give a chunk to the pool; one that has broken meanwhile says so in the result, not here."""
    try:
        return pool.submit(_work, chunk)
    except BrokenProcessPool as error:
        failed: Future[list[Any]] = Future()
        failed.set_exception(error)
        return failed


_function: Callable[[Any], Any]


def _pool(make: Callable[..., Callable[[Item], Result]], arguments: tuple[Any, ...], count: int) -> ProcessPoolExecutor:
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(count, mp_context=spawn, initializer=_begin, initargs=(make, arguments))


def _begin(make: Callable[..., Callable[[Any], Any]], arguments: tuple[Any, ...]) -> None:
    global _function
    # Ctrl-C reaches the whole group of processes; the first of them decides what happens.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _function = make(*arguments)
    except Exception as error:
        # Raised here, it would only be known that the process ended, as if an item had ended it.
        _function = functools.partial(_fail, error)


def _fail(error: Exception, _item: Any) -> Any:
    raise error


def _end_with_parent() -> None:
    """Without this a killed parent leaves its workers waiting for ever."""
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)


def _work(items: list[Any]) -> list[Any]:
    return [_function(item) for item in items]
