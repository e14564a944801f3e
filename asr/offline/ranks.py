"""Ranks: the processes of one job, one for each GPU. The first one speaks and writes, and all of them end together.

`torchrun` and `accelerate launch` start the same command once for each GPU and tell each process its number. What the
processes say to each other before and beside the training goes through the launcher's store.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

from asr.offline.ending import Ending, end_at_once, hush
from utils import Interrupted, UserError

Found = TypeVar("Found")

# After which a process that hears nothing of the others gives up: the first one may write large checkpoints meanwhile.
TIMEOUT = timedelta(hours=2)
NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


@dataclass(frozen=True)
class Ranks:
    """This process among those of its job; by itself, it is the only one.

    Attributes:
        rank: its number among all.
        local_rank: its number on this machine, and that of its GPU.
        world: number of processes.
        local_world: number of processes on this machine.
        ending: of the job; None where there is only one process.
    """

    rank: int = 0
    local_rank: int = 0
    world: int = 1
    local_world: int = 1
    ending: Ending | None = None
    turns: Iterator[int] = field(default_factory=itertools.count)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that speaks and writes."""
        return self.rank == 0

    @property
    def neighbours(self) -> list[int]:
        """The other ranks on this machine; launchers number them one after the other."""
        start = self.rank - self.local_rank
        return [rank for rank in range(start, start + self.local_world) if rank != self.rank]

    def first(self, act: Callable[[], Found], each_machine: bool = False) -> Found:
        """Let the first process of all, or of each machine, act, and give the others what it found.

        Where it fails, the others leave with its exit code and say nothing.

        Args:
            act: returns what JSON holds.
            each_machine: the first process of each machine acts.
        """
        if self.ending is None:
            return act()
        actor = self.rank - self.local_rank if each_machine else 0
        key = f"found/{next(self.turns)}/{actor}"
        if self.rank == actor:
            found = act()
            self.ending.store.set(key, json.dumps(found))
            return found
        self.ending.wait_for([key])
        return json.loads(self.ending.store.get(key))

    def any(self, flag: bool) -> bool:
        """Return whether any process says so; all of them must ask."""
        if self.world == 1:
            return flag
        import torch

        flags = torch.tensor(int(flag), device="cuda" if torch.cuda.is_available() else "cpu")
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        return bool(flags)

    def share(self, number: int) -> range:
        """Return which of so many things, longest first, this process does: as long ones as the others do."""
        return range(self.rank, number, self.world)

    def gather(self, mine: list[Found]) -> list[Found]:
        """Return the shares of all processes, laid in one another as `share` took them apart; all must call it."""
        if self.world == 1:
            return mine
        import torch

        shares: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(shares, mine)
        return [shares[i % self.world][i // self.world] for i in range(sum(map(len, shares)))]


ALONE = Ranks()


def launched() -> Ranks:
    """Return what the launcher says of this process; without one, or with one process, it is by itself."""
    rank, local_rank, world, local_world = (int(os.environ.get(name, 0)) for name in NAMES)
    if "LOCAL_RANK" not in os.environ or world < 2:
        return ALONE
    return Ranks(rank, local_rank, world, local_world or world)


def forget_others() -> None:
    """Make this process one by itself: accelerate would wait for others, which may never come."""
    for name in NAMES:
        os.environ.pop(name, None)


@contextmanager
def one_voice() -> Iterator[None]:
    """Let one process of each machine speak inside the block; where it fails, end without waiting for the others."""
    ranks = launched()
    if ranks.world == 1:
        yield
        return
    # The libraries' own report of a broken connection, one from each process.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    if ranks.local_rank != 0:
        hush()
    try:
        yield
    except SystemExit as end:
        end_at_once(end.code if isinstance(end.code, int) else int(end.code is not None))


@contextmanager
def together() -> Iterator[Ranks]:
    """Meet the other processes of the job, and end with them: in peace, or by the first error of any.

    Only the first process speaks inside the block. An error is told once, by whichever process met it.
    """
    ranks = launched()
    if ranks.world == 1:
        forget_others()
        yield ranks
        return
    import torch.distributed

    if not ranks.is_main:
        hush()
    store, *_ = next(torch.distributed.rendezvous("env://", timeout=TIMEOUT))
    ending = Ending(store)
    ranks = replace(ranks, ending=ending)
    try:
        _watch_neighbours(ranks, ending)
        _form_group(ranks, store)
        yield ranks
        _leave(ranks, ending)
    except Interrupted as interrupted:
        # All of them agreed upon it. The launcher ends the rest as soon as it sees one end: not before it was told.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _leave(ranks, ending)
        raise interrupted if ranks.is_main else SystemExit(interrupted.exit_code) from None
    except BaseException as error:
        ending.by(error)


def _watch_neighbours(ranks: Ranks, ending: Ending) -> None:
    ending.store.set(f"process/{ranks.rank}", str(os.getpid()))
    ending.wait_for([f"process/{rank}" for rank in ranks.neighbours])
    ending.watch({rank: int(ending.store.get(f"process/{rank}")) for rank in ranks.neighbours})


def _form_group(ranks: Ranks, store: Any) -> None:
    """Form torch's process group, over NCCL on GPUs and gloo on CPUs.

    Raises:
        UserError: more processes than GPUs.
    """
    import torch

    cuda = torch.cuda.is_available()
    visible = torch.cuda.device_count()
    if cuda and visible < ranks.local_world:
        raise UserError(
            f"{ranks.local_world} processes were started here for {visible} visible GPUs: "
            f"torchrun --nproc-per-node {visible} starts as many"
        )
    if cuda:
        torch.cuda.set_device(ranks.local_rank)
    torch.distributed.init_process_group(
        "nccl" if cuda else "gloo", store=store, rank=ranks.rank, world_size=ranks.world, timeout=TIMEOUT
    )


def _leave(ranks: Ranks, ending: Ending) -> None:
    """End in peace what was done together: no process ends before all of them are here."""
    import torch

    ending.begin()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if ranks.is_main:
        ending.wait_for([f"left/{rank}" for rank in range(1, ranks.world)])
        ending.store.set("left/0", "")
    else:
        ending.store.set(f"left/{ranks.rank}", "")
        # Where the first process keeps the store, it may be gone with it.
        with suppress(RuntimeError):
            ending.wait_for(["left/0"])
