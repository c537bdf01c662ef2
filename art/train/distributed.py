"""The processes of one training: which of them this is, what they tell each other, and how they end together."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from art.train.config import Config, ConfigError
from art.train.runtime import resolve_device

T = TypeVar("T")

#: Under this name a rank leaves what ended it, for those that notice no more than that it is gone.
_LAST_WORDS = "art/last_words"
_SECONDS_FOR_LAST_WORDS = 2.0


class OtherRankError(RuntimeError):
    """Another rank ended with an error; the message names the rank and has its message."""


class Turn(NamedTuple):
    """What all ranks know when each has taken an item.

    Attributes:
        signal: a signal that came to one of them; 0: none did.
        anything: whether one of them has an item.
    """

    signal: int
    anything: bool


@dataclass(frozen=True)
class Ranks:
    """The processes that train together, one a device, and the place of this one among them.

    Methods that say "all ranks" must be called by each of them, in the same order.

    Attributes:
        device: what this rank computes on.
        rank: from 0.
        world_size: how many there are.
        local_rank: from 0 on each machine.
        local_world_size: how many there are on this machine.
        control: over which numbers and objects of the CPU go; None of a process alone.
        background: the same for another thread; None of a process alone.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    control: dist.ProcessGroup | None = None
    background: dist.ProcessGroup | None = None

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.world_size > 1

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which alone writes logs, results and the model."""
        return self.rank == 0

    def total(self, numbers: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The sums over all ranks; on the device."""
        if not self.several:
            return numbers
        sums = numbers.clone()
        dist.all_reduce(sums)
        return sums

    def gather_objects(self, value: T) -> list[T]:
        """What each of all ranks has, in their order."""
        if not self.several:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def on_main(self, function: Callable[[], T]) -> T:
        """What ``function`` returns on rank 0, on all ranks.

        Raises:
            OtherRankError: on the others, where it raised something on rank 0 (which raises that).
        """
        results: list[Any] = [None]
        with self.together():
            if self.is_main:
                results[0] = function()
        if self.several:
            dist.broadcast_object_list(results, src=0, group=self.control)
        value: T = results[0]
        return value

    @contextmanager
    def together(self) -> Iterator[None]:
        """What its block raises on one of all ranks ends each of them. No rank may wait for others in the block.

        Raises:
            OtherRankError: another rank raised something. (One with an error of its own raises that.)
        """
        error = None
        try:
            yield
        except Exception as raised:
            error = raised
        self._exchange(error)

    def turn(self, items: Iterator[T], stop: Callable[[], int] = lambda: 0) -> tuple[T | None, Turn]:
        """All ranks take their next item, and know of each other. What one raises in that ends each of them.

        Args:
            items: of this rank.
            stop: gives the signal that has come, 0 for none: then no item is taken, and what was raised is no error.
        """
        item, error = None, None
        try:
            item = None if stop() else next(items, None)
        except Exception as raised:  # a process that decodes and got the same signal is gone, in the middle of a batch
            error = None if stop() else raised
        signal, anything = self._exchange(error, stop(), item is not None)
        return item, Turn(signal, bool(anything))

    def _exchange(self, error: Exception | None, *numbers: int) -> list[int]:
        """The largest of each number of all ranks; or on each of them an error, where one has one.

        Over rank 0, with 2 (n - 1) messages: Gloo's own ways to do this among all pass n (n - 1), one after another.
        """
        if not self.several:
            if error is not None:
                raise error
            return list(numbers)
        most = torch.tensor([error is not None, *numbers], dtype=torch.int64)
        rows = most.new_empty(self.world_size, len(most))
        dist.gather(most, list(rows) if self.is_main else None, dst=0, group=self.control)
        if self.is_main:
            most = rows.amax(0)
        dist.broadcast(most, src=0, group=self.control)
        if most[0]:
            told = self.gather_objects(None if error is None else _in_words(self.rank, error))
            if error is not None:
                raise error
            raise OtherRankError(next(words for words in told if words is not None))
        return [int(number) for number in most[1:].tolist()]

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Gives all ranks the values of rank 0, in place."""
        if self.several:
            for tensor in tensors:
                whole = tensor.detach()
                values = whole if whole.is_contiguous() else whole.contiguous()
                dist.broadcast(values, src=0)
                whole.copy_(values)

    def workers(self, wanted: int) -> int:
        """How many processes decode for this rank: ``wanted``, but no more than its share of the machine's cores."""
        if not self.several:
            return wanted
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(wanted, max(1, cores // self.local_world_size))


def is_main_process() -> bool:
    """Whether the launcher of this process made it rank 0, or there is no launcher."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def joined(config: Config) -> Iterator[Ranks]:
    """The ranks that torchrun (or whatever sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT) started, or this process
    alone; joined at the beginning of the block, left at its end.

    A process group that is there already is used and left as it is.

    Raises:
        ConfigError: ``config.device`` is one that several ranks cannot share.
        OtherRankError: in place of the error that a rank gets when another has ended with one.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1
    if dist.is_available() and dist.is_initialized():
        yield _of_group(config)
    elif world_size == 1:
        yield Ranks(resolve_device(config.device))
    else:
        store = _join(config)
        try:
            yield _of_group(config)
        except Exception as error:  # others may wait for this rank: they end when it does, and look here for the reason
            raise _with_last_words(store, error) from None
        dist.destroy_process_group()


def _join(config: Config) -> dist.Store:
    device = _device(config.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    timeout = timedelta(seconds=config.parallel.timeout)
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = _store(rank, world_size, timeout)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    # The group has names of its own in the store, as init_process_group gives it where it makes the store itself.
    prefixed = dist.PrefixStore("default_pg", store)
    dist.init_process_group(backend, store=prefixed, rank=rank, world_size=world_size, timeout=timeout)
    return store


def _store(rank: int, world_size: int, timeout: timedelta) -> dist.Store:
    """Where ranks find each other: what torchrun keeps, or else the one that rank 0 opens at MASTER_ADDR."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        store, _, _ = next(iter(dist.rendezvous("env://", rank=rank, world_size=world_size, timeout=timeout)))
        return store
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    kept = dist.TCPStore(host, port, is_master=False, timeout=timeout, wait_for_workers=False)
    return dist.PrefixStore(f"art/{_start(kept, rank, world_size, timeout)}", kept)


def _start(store: dist.Store, rank: int, world_size: int, timeout: timedelta) -> str:
    """A name that all ranks of this start have in common and no other start had: torchrun's store outlives restarts.

    torchrun's own name for it, the number of restarts, is another on the node that lost a rank than on those whose
    ranks are restarted with it, which then look for each other in different places. Here each rank leaves a name of its
    own and waits for an answer to that; rank 0 answers until all have said that they got it.
    """
    own = uuid.uuid4().hex
    store.set(f"art/hello/{rank}", own)
    if rank != 0:
        store.wait([f"art/answer/{own}"], timeout)
        name = store.get(f"art/answer/{own}").decode()
        store.set(f"art/here/{name}/{rank}", "")
        return name
    missing, answered = set(range(1, world_size)), set()
    deadline = time.monotonic() + timeout.total_seconds()
    while missing:
        if time.monotonic() > deadline:
            raise TimeoutError(f"ranks {sorted(missing)[:10]} of {world_size} did not come within {timeout}")
        for other in sorted(missing):
            if store.check([f"art/here/{own}/{other}"]):
                missing.remove(other)
            elif store.check([f"art/hello/{other}"]):
                theirs = store.get(f"art/hello/{other}").decode()  # perhaps of a rank that is gone: it is asked again
                if theirs not in answered:
                    store.set(f"art/answer/{theirs}", own)
                    answered.add(theirs)
        time.sleep(0.01)
    return own


def _of_group(config: Config) -> Ranks:
    rank, world_size = dist.get_rank(), dist.get_world_size()
    if world_size == 1:
        return Ranks(resolve_device(config.device))
    timeout = timedelta(seconds=config.parallel.timeout)
    control, background = (dist.new_group(backend="gloo", timeout=timeout) for _ in range(2))
    device = _device(config.device)
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return Ranks(device, rank, world_size, _local_rank(), local_world_size, control, background)


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def _device(name: str) -> torch.device:
    """The device of one of several ranks."""
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(
            f"device: got {name!r} for several ranks, expected auto, cuda or cpu: with cuda each rank takes the GPU of "
            "its LOCAL_RANK"
        )
    device = resolve_device(name)
    if device.type != "cuda":
        return device
    count = torch.cuda.device_count()
    if _local_rank() >= count:
        raise ConfigError(
            f"device: a rank has LOCAL_RANK {_local_rank()}, but torch sees {count} CUDA devices here; start at most "
            f"{count} ranks on this machine (torchrun --nproc-per-node {count})"
        )
    return torch.device("cuda", _local_rank())


def _with_last_words(store: dist.Store, error: Exception) -> Exception:
    """``error``, left in the store; or, if it is only that another rank is gone, what that one left there."""
    with contextlib.suppress(Exception):  # the machine that holds the store may be gone too
        deadline = time.monotonic() + (_SECONDS_FOR_LAST_WORDS if _of_connection(error) else 0)
        while not store.check([_LAST_WORDS]) and time.monotonic() < deadline:
            time.sleep(0.1)
        if not store.check([_LAST_WORDS]):
            store.set(_LAST_WORDS, _in_words(_rank_or_zero(), error))
        elif _of_connection(error):
            return OtherRankError(store.get(_LAST_WORDS).decode())
    return error


def _rank_or_zero() -> int:
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))


def _of_connection(error: Exception) -> bool:
    """Whether an error says that another process cannot be reached. Gloo has no type of its own for that."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


def _in_words(rank: int, error: Exception) -> str:
    return f"rank {rank} ended with {type(error).__name__}: {error}"
