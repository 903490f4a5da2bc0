"""The processes of a ``torchrun``, which share the features of a dictionary by torch.distributed.

Tensors on the CPU go through gloo, those on a GPU through nccl. A process that ends, or that is not heard of for
``TIMEOUT_S``, ends the others with an error.
"""

from __future__ import annotations

import atexit
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import Tensor

from gemlens.errors import InputError, NetworkError
from gemlens.train.ranks import Alone, Ranks, place_from_environment

__all__ = ["TIMEOUT_S", "Distributed", "ranks_from_environment", "take_device"]

TIMEOUT_S = 600.0
"""How long a process waits for the others. One may be saving a checkpoint, or reading a slow disk."""


class Distributed:
    """This process among those of torch.distributed's default group, which has to be there.

    Args:
        timeout_s: the group's own, for the message.

    Raises:
        NetworkError: from every method, another process ended or did not answer in time.
    """

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        import torch.distributed as dist

        self._dist = dist
        self._timeout_s = timeout_s
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def sum(self, part: Tensor) -> Tensor:
        part = part.contiguous()
        with self._answered():
            self._dist.all_reduce(part)
        return part

    def gather(self, part: Tensor) -> Tensor:
        # As bytes: gloo does not know every dtype.
        own = part.contiguous().view(torch.uint8)
        lengths = [int(length) for length in self._each(torch.tensor([len(own)], device=own.device))]
        if not max(lengths):
            return part
        # All have to send as much as the longest.
        padded = own.new_empty(max(lengths), *own.shape[1:])
        padded[: len(own)] = own
        parts = [given[:length] for given, length in zip(self._each(padded), lengths, strict=True)]
        return torch.cat(parts).view(part.dtype)

    def _each(self, part: Tensor) -> list[Tensor]:
        """The ``part`` of every process, all of one shape."""
        parts = [torch.empty_like(part) for _ in range(self.size)]
        with self._answered():
            self._dist.all_gather(parts, part)
        return parts

    @contextmanager
    def _answered(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise NetworkError(
                f"process {self.rank} of {self.size}: another one ended, or did not answer for {self._timeout_s:g} s "
                f"({_gist(error)}); see what it said last, and start all of them again"
            ) from error


def ranks_from_environment(timeout_s: float = TIMEOUT_S) -> Ranks:
    """The processes that ``torchrun`` started, this one among them; ``Alone`` without it. Call it once a process.

    Args:
        timeout_s: seconds after which a process that waits for another one gives up.

    Raises:
        InputError: the environment speaks of several processes, and not of how to find them.
        NetworkError: they do not find one another in time.
    """
    if place_from_environment().size < 2:
        return Alone()
    if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise InputError(f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, and {missing[0]} is not set; start with torchrun")
    _join(timeout_s)
    return Distributed(timeout_s)


def take_device() -> None:
    """Of the GPUs of this machine, if there are any, make one this process's own."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def _join(timeout_s: float) -> None:
    import torch.distributed as dist

    if not dist.is_available():
        raise InputError("this PyTorch was built without torch.distributed; start one process, without torchrun")
    # The default group is a default argument of its functions. Imported later, as optimizers do, they would keep the
    # group and gloo's threads alive after ``_leave``.
    import torch.distributed.nn.functional

    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
    take_device()
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    except RuntimeError as error:
        raise NetworkError(
            f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']} found no others within {timeout_s:g} s "
            f"({_gist(error)}); start as many as WORLD_SIZE says"
        ) from error
    # A thread of gloo's that outlives the interpreter aborts the process, when it lets go of its last tensors.
    atexit.register(_leave)


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def _gist(error: RuntimeError) -> str:
    """Its first sentence, without the line of torch's source."""
    return re.sub(r"^\[[^]]*\] |\. .*|\n.*", "", str(error), flags=re.DOTALL)
