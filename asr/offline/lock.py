"""The lock: a run belongs to one process at a time."""

from __future__ import annotations

import errno
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from utils import UserError

LOCK = ".lock"
# Windows locks bytes so that nobody else reads them: the one that is locked lies behind the text.
BEHIND = 1 << 20


@contextmanager
def sole_use(folder: Path) -> Iterator[None]:
    """Keep a run's folder to this process inside the block.

    The system itself takes the lock from a process that dies, however it dies. Where the file system knows no locks, as
    some network disks, nothing is locked.

    Raises:
        UserError: another process has it.
    """
    with open(folder / LOCK, "ab+") as file:
        try:
            _lock(file)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                raise UserError(f"{folder} is in use by {_owner(file)}: wait for its end, or stop it") from None
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {platform.node()}".encode())
        file.flush()
        yield


def _owner(file: BinaryIO) -> str:
    file.seek(0)
    return file.read(200).decode(errors="replace") or "another process"


# POSIX locks belong to a process; those of flock() would live on in the loader's workers.
if os.name == "posix":
    import fcntl

    def _lock(file: BinaryIO) -> None:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
else:
    import msvcrt

    def _lock(file: BinaryIO) -> None:
        file.seek(BEHIND)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
