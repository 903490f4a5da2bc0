"""One process of several, for ``test_run_ranks.py``: runs that share features or dictionaries, killed and taken up.

RANK=0 WORLD_SIZE=2 MASTER_ADDR=... MASTER_PORT=... python runs_worker.py WHAT FOLDER
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from gemlens.records import Training
from gemlens.sites import Site
from gemlens.train import run as run_module
from gemlens.train import run_folder
from gemlens.train.config import FitConfig
from gemlens.train.distributed import ranks_from_environment
from gemlens.train.learner import Learner
from gemlens.train.ranks import Place, Ranks, dealt
from planted import D, planted, small
from ranks_worker import said

STEPS, BATCH = 20, 64
SAMPLE = 4
"""Batches."""
CONFIGS = [
    small(reads=f"resid_post.{layer}", activation=kind, tokens=STEPS * BATCH, batch=BATCH)
    for layer, kind in enumerate(("batchtopk", "jumprelu", "topk"))
]
PATHS = [f"resid_post/layer_{layer}_width_64_l0_small" for layer in range(3)]


class Killed(Exception):
    """As sudden as kill -9, as far as what is on disk goes."""


class Batches:
    """A ``BatchStream`` from memory."""

    def __init__(self, configs: Sequence[FitConfig]) -> None:
        sites = [site for config in configs for site in config.sites_read]
        self._data = {site: (1 + site.layer) * planted(STEPS * BATCH, seed=site.layer) for site in sites}
        self._given = 0

    def __iter__(self) -> Iterator[dict[Site, Tensor]]:
        for at in range(self._given * BATCH, STEPS * BATCH, BATCH):
            self._given += 1
            yield {site: x[at : at + BATCH] for site, x in self._data.items()}

    def state(self) -> dict[str, Tensor | int]:
        return {"given": self._given}

    def restore(self, state: Mapping[str, Tensor | int]) -> None:
        self._given = int(state["given"])


def go(folder: Path, ranks: Ranks | Place | None = None, **settings: object) -> list[Training]:
    """A run with products in float32 and a short sample, a checkpoint after every step."""
    run_module.Learner = partial(Learner, dtype=torch.float32)  # type: ignore[assignment,misc]
    # Float32 of three sites; whoever reads fewer of them takes as many tokens.
    run_module.SAMPLE_BYTES = SAMPLE * BATCH * len(CONFIGS) * D * 4
    own = (
        CONFIGS if not isinstance(ranks, Place) else list(dealt(dict(zip(PATHS, CONFIGS, strict=True)), ranks).values())
    )
    given = {"checkpoint_every": 0, "save_dtype": torch.float32} | settings
    return run_module.train(Batches(own), CONFIGS, folder, ranks=ranks, **given)  # type: ignore[arg-type]


def stop_at(step: int) -> Callable[..., None]:
    def report(steps: Mapping[str, object]) -> None:
        if next(iter(steps.values())).step == step:  # type: ignore[attr-defined]
            raise Killed

    return report


def shared(ranks: Ranks, folder: Path) -> None:
    """Slices of the features: unbroken; killed; killed while checkpoints change places; stopped by a signal."""
    written = go(folder / "unbroken", ranks, checkpoint_every=1e9)
    assert len(written) == (0 if ranks.rank else 3)

    killed(lambda: go(folder / "killed", ranks, report=stop_at(12)))
    assert going_on(folder / "killed", ranks) == 11

    # The second process dies before its new checkpoint takes the old one's place, the first one after.
    with_old = partial(go, folder / "between", ranks)
    if ranks.rank:
        replace, saves = Path.replace, count(SAMPLE)  # the first is of the sample's last step

        def dies(path: Path, target: Path) -> Path:
            if path.name == run_folder._NEXT and next(saves) == 13:
                raise Killed
            return replace(path, target)

        Path.replace = dies  # type: ignore[method-assign,assignment]
        killed(with_old)
        Path.replace = replace  # type: ignore[method-assign]
        assert (folder / "between/checkpoint.2of2" / run_folder._NEXT).exists()
    else:
        killed(lambda: with_old(say=lambda line: die() if line == f"checkpoint at {13 * BATCH:,} tokens" else None))
    assert going_on(folder / "between", ranks) == 13

    def report(steps: Mapping[str, object]) -> None:
        if ranks.rank and next(iter(steps.values())).step == 9:  # type: ignore[attr-defined]
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        go(folder / "asked", ranks, checkpoint_every=1e9, report=report)
    except SystemExit as left:
        assert left.code == 128 + signal.SIGTERM
    assert going_on(folder / "asked", ranks) == 9

    said(lambda: go(folder / "alone", ranks), folder / f"number.{ranks.rank}")
    if ranks.rank:
        (folder / "asked/checkpoint.2of2/checkpoint.safetensors").unlink()
    said(lambda: go(folder / "asked", ranks), folder / f"missing.{ranks.rank}")


def apart(ranks: Place, folder: Path) -> None:
    """Dictionaries dealt out: the second process is killed and goes on, and the first knows nothing of it."""
    if ranks.rank:
        killed(lambda: go(folder / "dealt", ranks, report=stop_at(9)))
        assert going_on(folder / "dealt", ranks) == 8
    else:
        assert len(go(folder / "dealt", ranks)) == 2
    said(lambda: go(folder / "dealt", Place(ranks.rank, 3)), folder / f"number.{ranks.rank}")


def going_on(folder: Path, ranks: Ranks | Place) -> int:
    """Take a run up to its end; the step from which it went on."""
    lines: list[str] = []
    go(folder, ranks, say=lines.append)
    return int(lines[0].removeprefix("going on at ").split()[0].replace(",", "")) // BATCH


def killed(call: Callable[[], object]) -> None:
    try:
        call()
    except Killed:
        return
    raise AssertionError("it was to be killed")


def die() -> NoReturn:
    raise Killed


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "shared":
        shared(ranks_from_environment(timeout_s=120), Path(sys.argv[2]))
    else:
        apart(Place(int(os.environ["RANK"]), 2), Path(sys.argv[2]))
