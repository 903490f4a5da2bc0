"""How a dictionary is trained: one record, saved as JSON beside the weights.

What nobody needs to turn is a named constant where it is used: warm-up and how the learning rate is shaped here, the
auxiliary loss in ``gradients``, the width of the threshold's kernel in ``activation``.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

from gemlens.errors import InputError
from gemlens.sites import Site, parse_site

__all__ = ["Activation", "FitConfig", "Kind"]

Kind = Literal["sae", "transcoder", "clt"]
Activation = Literal["jumprelu", "batchtopk", "topk"]

_WARMUP = 100
"""Steps over which the learning rate rises, at most a tenth of all: Adam's second moments are noise before."""


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How a dictionary is trained; saved beside it.

    Raises:
        InputError: values that contradict each other, or that are not of the kinds named.
        NotFoundError: no such site.
    """

    kind: Kind = "sae"
    reads: tuple[str, ...] = ("resid_post.12",)
    """Sites read: one, or of a CLT one a layer. A single string and a list are taken too."""
    writes: tuple[str, ...] = ()
    """Sites written, in the same order; those read, if none are given."""
    width: int = 4096
    """Features; of a CLT, those of each layer."""
    l0: float = 50
    """Mean number of active features a token; of a CLT, in each layer."""
    activation: Activation = "batchtopk"
    tokens: int = 1_500_000
    batch: int = 1024
    """Tokens a step."""
    lr: float = 4e-3
    decay: float = 0.3
    """Share of the steps over which the learning rate falls to zero."""
    groups: tuple[int, ...] = ()
    """Matryoshka: the first so many features reconstruct by themselves, as all together do; rising, below ``width``."""
    skip: bool = False
    """An affine path from what is read to what is written, beside the features; transcoders and CLTs."""
    dead_after: int = 100_000
    """Tokens without firing after which a feature counts as dead and gets the auxiliary loss."""
    norm_limit: float = 4.0
    """Tokens of more than this many times the median square norm weigh less."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("reads", "writes", "groups"):  # as JSON and a hurried hand give them
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str | int) else tuple(value))
        if not self.writes:
            object.__setattr__(self, "writes", self.reads)
        _check_names(self)
        _check_sites(self)
        _check_numbers(self)

    @property
    def sites_read(self) -> tuple[Site, ...]:
        return tuple(parse_site(text) for text in self.reads)

    @property
    def sites_written(self) -> tuple[Site, ...]:
        return tuple(parse_site(text) for text in self.writes)

    @property
    def steps(self) -> int:
        return self.tokens // self.batch

    def warmth(self, step: int) -> float:
        """Rises from 0 to 1 over the warm-up; ``step`` counts from 0."""
        return min(1.0, (step + 1) / max(1, min(_WARMUP, self.steps // 10)))

    def lr_at(self, step: int) -> float:
        """Trapezoid: up over the warm-up, level, down to zero over the last ``decay`` of the steps."""
        down = (self.steps - step) / max(1.0, self.decay * self.steps)
        return self.lr * max(0.0, min(self.warmth(step), down))


def _check_names(config: FitConfig) -> None:
    if config.kind not in get_args(Kind):
        raise InputError(f"kind {config.kind!r}: there are {', '.join(get_args(Kind))}")
    if config.activation not in get_args(Activation):
        raise InputError(f"activation {config.activation!r}: there are {', '.join(get_args(Activation))}")
    if config.skip and config.kind == "sae":
        raise InputError("skip: an SAE with a path around it would learn to copy; transcoders and CLTs have one")


def _check_sites(config: FitConfig) -> None:
    reads, writes = config.sites_read, config.sites_written
    listed = f"{', '.join(config.reads)} to {', '.join(config.writes)}"
    if len(reads) != len(writes) or not reads:
        raise InputError(f"{len(reads)} sites read and {len(writes)} written: as many of each are needed")
    if config.kind != "clt" and len(reads) > 1:
        raise InputError(f"reads {', '.join(config.reads)}: {config.kind} has one site; train one for each, or a clt")
    if config.kind == "sae" and reads != writes:
        raise InputError(f"an SAE from {listed}: it writes where it reads; ask for a transcoder")
    if config.kind != "sae" and (same := set(reads) & set(writes)):
        raise InputError(f"{config.kind} from {listed}: {sorted(same)[0]} is read and written; ask for an SAE there")
    rising = all(each.layer < following.layer for each, following in pairwise(reads))
    if config.kind == "clt" and not (rising and [s.layer for s in reads] == [s.layer for s in writes]):
        raise InputError(f"clt from {listed}: give the same layers for both, each once, in rising order")


def _check_numbers(config: FitConfig) -> None:
    if config.width < 1:
        raise InputError(f"width {config.width}: a dictionary needs at least one feature")
    if not 0 < config.l0 <= config.width:
        raise InputError(f"l0 {config.l0}: must lie above 0 and not exceed the width, {config.width}")
    if config.activation == "topk" and config.l0 != int(config.l0):
        raise InputError(f"l0 {config.l0}: topk keeps a whole number of features a token; batchtopk takes any mean")
    if config.batch < 1 or config.tokens < config.batch:
        raise InputError(f"tokens {config.tokens} in batches of {config.batch}: at least one whole batch is needed")
    if not (0 < config.lr < float("inf") and 0 <= config.decay <= 1):
        raise InputError(f"lr {config.lr}, decay {config.decay}: lr must lie above 0, decay between 0 and 1")
    if config.dead_after < 1 or not config.norm_limit > 0:
        raise InputError(f"dead_after {config.dead_after}, norm_limit {config.norm_limit}: both must lie above 0")
    sizes = (0, *config.groups, config.width)
    if any(size >= following for size, following in pairwise(sizes)):
        raise InputError(f"groups {list(config.groups)}: sizes must rise, above 0 and below the width, {config.width}")
