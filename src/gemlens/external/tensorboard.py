"""Scalars for TensorBoard, where it is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from gemlens.errors import MissingPackageError

__all__ = ["scalars"]


@contextmanager
def scalars(folder: Path) -> Iterator[Callable[[Mapping[str, float], int], None]]:
    """Yield a function that writes values by tag at a step, as event files in ``folder``.

    Raises:
        MissingPackageError: tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingPackageError("--tensorboard needs the package tensorboard: pip install tensorboard") from error
    writer = SummaryWriter(str(folder))

    def add(values: Mapping[str, float], step: int) -> None:
        for tag, value in values.items():
            writer.add_scalar(tag, value, step)

    try:
        yield add
    finally:
        writer.close()
