"""One process of several, for ``test_ranks.py``: trains each case over all of them, and writes down what it holds.

RANK=0 WORLD_SIZE=2 MASTER_ADDR=... MASTER_PORT=... python ranks_worker.py cases FOLDER
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from gemlens.errors import GemlensError
from gemlens.scope.multilayer import MultiLayer
from gemlens.scope.rows import Rows
from gemlens.scope.sae import SAE
from gemlens.sites import Site, parse_site
from gemlens.train import distributed
from gemlens.train import learner as learning
from gemlens.train.config import FitConfig
from gemlens.train.distributed import ranks_from_environment
from gemlens.train.learner import Learner, Step
from gemlens.train.ranks import Ranks, share
from planted import INFO, planted, small

STEPS, BATCH = 20, 64
SEED = 4
"""Of data in which no pre-activation comes within 1e-5 of where features fire. Where two at the edge are
equal to rounding, either may fire, and weights differ by what that one firing teaches."""
DEAD = {*range(2, 9), *range(58, 63)}  # at either end, so that both of two processes have some
START = -2.5  # their bias at first: now and then they are positive, which the auxiliary loss needs, and do not fire
CAP = 9  # fewer than are dead
TRANSCODER = {"kind": "transcoder", "reads": "mlp_in.1", "writes": "mlp_out.1", "skip": True}
CLT = {"kind": "clt", "reads": ["mlp_in.1", "mlp_in.2"], "writes": ["mlp_out.1", "mlp_out.2"], "skip": True}
CASES: dict[str, dict[str, object]] = {
    "batchtopk": {},
    "jumprelu": {"activation": "jumprelu"},
    "topk": {"activation": "topk"},
    "odd width": {"width": 65},
    "matryoshka": {"groups": [8, 40]},
    "transcoder": TRANSCODER,
    "clt": CLT,
    "matryoshka jumprelu clt": {**CLT, "groups": [40], "activation": "jumprelu", "width": 65},
}


def config_of(case: str) -> FitConfig:
    return small(**CASES[case], tokens=STEPS * BATCH, dead_after=300, batch=BATCH)


def data_of(config: FitConfig) -> dict[Site, Tensor]:
    names = dict.fromkeys([*config.reads, *config.writes])
    return {parse_site(name): seed * planted(config.tokens, seed=seed) for seed, name in enumerate(names, SEED)}


def batches_of(data: dict[Site, Tensor]) -> Iterator[dict[Site, Tensor]]:
    for at in range(0, STEPS * BATCH, BATCH):
        yield {site: x[at : at + BATCH] for site, x in data.items()}


def begin(case: str, ranks: Ranks) -> tuple[Learner, list[dict[Site, Tensor]]]:
    """A learner some of whose features are dead from the start, and what it is to learn from."""
    config = config_of(case)
    data = data_of(config)
    learner = Learner(config, data, INFO, dtype=torch.float32, ranks=ranks)
    held = share(config.width, ranks)
    for weights in learner._weights:
        weights.b_enc[[feature - held.start for feature in DEAD if held.start <= feature < held.stop]] = START
    learner._refresh()
    return learner, list(batches_of(data))


def weights_of(learner: Learner) -> dict[str, Tensor]:
    return {f"{name}.{i}": t for i, weights in enumerate(learner._weights) for name, t in weights.tensors().items()}


def steps_of(steps: list[Step]) -> Tensor:
    return torch.tensor(steps, dtype=torch.float64)


def folded(dictionary: SAE | MultiLayer) -> dict[str, Tensor]:
    found = {}
    for index, part in enumerate(dictionary.layers if isinstance(dictionary, MultiLayer) else [dictionary]):
        matrices: dict[str, Rows] = {"encoder": part.encoder, "decoder": part.decoder}
        for name, matrix in matrices.items():
            found[f"{name}.{index}"] = torch.cat([rows for _, rows in matrix.blocks()])
        for name in ("b_enc", "b_dec", "threshold", "skip"):
            if (tensor := getattr(part, name)) is not None:
                found[f"{name}.{index}"] = tensor
    return found


def train(case: str, ranks: Ranks) -> tuple[Learner, Tensor]:
    learner, batches = begin(case, ranks)
    return learner, steps_of([learner.step(batch) for batch in batches])


def cases(ranks: Ranks, folder: Path) -> None:
    for case in CASES:
        learner, steps = train(case, ranks)
        found = {"steps": steps, **{f"held.{name}": tensor for name, tensor in weights_of(learner).items()}}
        found |= {f"folded.{name}": tensor for name, tensor in folded(learner.finish()).items()}
        save_file({name: t.detach().contiguous() for name, t in found.items()}, folder / f"{case}.{ranks.rank}")


def resume(ranks: Ranks, folder: Path) -> None:
    """Half of the steps, the rest by a learner that knows only the state; and states that do not fit."""
    whole, batches = begin("jumprelu", ranks)
    for batch in batches[:10]:
        whole.step(batch)
    state = whole.state()
    second = Learner(whole.config, data_of(whole.config), INFO, dtype=torch.float32, ranks=ranks)
    second.restore(state)
    for batch in batches[10:]:
        assert whole.step(batch) == second.step(batch)
    ours, theirs = whole.state(), second.state()
    assert all(torch.equal(torch.as_tensor(ours[name]), torch.as_tensor(theirs[name])) for name in ours)
    said(lambda: second.restore({**state, "rank": 0}), folder / f"rank.{ranks.rank}")
    said(lambda: second.restore({**state, "step": 10 + ranks.rank}), folder / f"step.{ranks.rank}")
    other = {site: planted(2560, seed=ranks.rank) for site in whole.sites}
    said(lambda: Learner(whole.config, other, ranks=ranks), folder / f"sample.{ranks.rank}")
    changed = small(width=64 + ranks.rank)
    said(lambda: Learner(changed, other, ranks=ranks), folder / f"config.{ranks.rank}")
    nothing = ranks.gather(torch.zeros(0, 3))
    uneven = ranks.gather(torch.full((3 * ranks.rank, 2), True))
    assert nothing.shape == (0, 3) and uneven.shape == (3, 2) and uneven.dtype == torch.bool and uneven.all()


def said(call: Callable[[], object], path: Path) -> None:
    try:
        call()
    except GemlensError as error:
        path.write_text(f"{type(error).__name__}: {error}")


def killed(ranks: Ranks, folder: Path) -> None:
    """Process 1 ends in the middle of a run, without a word."""
    learner, batches = begin("batchtopk", ranks)
    learner.step(batches[0])
    if ranks.rank == 1:
        os._exit(1)
    said(lambda: learner.step(batches[1]), folder / "said")


def stuck(ranks: Ranks, folder: Path) -> None:
    """Process 1 goes on, but not with what the others wait for."""
    if ranks.rank == 0:
        said(lambda: ranks.sum(torch.zeros(3)), folder / "said")
        return
    while not (folder / "said").exists():
        time.sleep(0.1)


def threads() -> list[str]:
    """Names of this process's threads; nothing where there is no /proc."""
    return [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]


if __name__ == "__main__":
    torch.set_num_threads(1)
    learning._DEAD_TOGETHER = CAP
    what = {"cases": cases, "resume": resume, "killed": killed, "stuck": stuck}[sys.argv[1]]
    what(ranks_from_environment(timeout_s=2 if sys.argv[1] == "stuck" else 120), Path(sys.argv[2]))
    if sys.argv[1] in ("cases", "resume"):  # which no other process was lost in
        distributed._leave()
        if left := [name for name in threads() if "gloo_runloop" in name]:
            sys.exit(f"threads that can abort this process when it ends: {left}")
