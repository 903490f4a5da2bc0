"""Train a sparse autoencoder on a stream of activations.

1. From the first ``sample`` tokens: the mean, and the scale that gives the centred activations unit mean square.
   Both stay fixed and are folded into the weights at the end, so that the result reads raw activations.
2. Each step: BatchTopK activations, reconstruction plus auxiliary loss, Adam, decoder rows back to unit norm.
   Products run in bfloat16, weights and sums stay float32.
3. On the last batches, with the weights fixed: the threshold at which ``l0`` features a token fire. BatchTopK's
   features become JumpReLU's with that one threshold, and tokens no longer depend on their batch.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from gemlens.errors import InputError, WeightsError
from gemlens.records import DictionaryInfo
from gemlens.scope.rows import DenseRows
from gemlens.scope.sae import SAE
from gemlens.sites import Site, parse_site
from gemlens.train.objective import (
    auxiliary_loss,
    batch_top_k,
    decode,
    encode,
    reconstruction_loss,
    token_weights,
)

__all__ = ["FitConfig", "Progress", "fit"]


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How a dictionary is trained; saved beside it.

    Raises:
        InputError: values that contradict each other.
    """

    site: str = "resid_post.12"
    width: int = 4096
    l0: float = 50
    """Mean number of active features a token."""
    tokens: int = 1_500_000
    batch: int = 1024
    """Tokens a step."""
    lr: float = 4e-3
    warmup: int = 100
    """Steps of linear warm-up."""
    decay: float = 0.3
    """Share of the steps over which the learning rate falls to zero."""
    dead_after: int = 100_000
    """Tokens without firing after which a feature counts as dead and gets the auxiliary loss."""
    dead_k: int = 256
    """Dead features that take part in the auxiliary loss, a token."""
    dead_weight: float = 1 / 32
    norm_limit: float = 4.0
    """Tokens of more than this many times the median square norm weigh less."""
    sample: int = 65_536
    """Tokens for mean, scale and threshold."""
    seed: int = 0

    def __post_init__(self) -> None:
        parse_site(self.site)
        if self.width < 1:
            raise InputError(f"width {self.width}: a dictionary needs at least one feature")
        if not 0 < self.l0 <= self.width:
            raise InputError(f"l0 {self.l0}: must lie above 0 and not exceed the width, {self.width}")
        if self.tokens < self.batch:
            raise InputError(f"tokens {self.tokens}: at least one batch of {self.batch} is needed")

    @property
    def place(self) -> Site:
        return parse_site(self.site)

    @property
    def steps(self) -> int:
        return self.tokens // self.batch

    def lr_at(self, step: int) -> float:
        """Trapezoid: up over ``warmup`` steps, level, down to zero over the last ``decay`` of them."""
        up = (step + 1) / self.warmup
        down = (self.steps - step) / max(1.0, self.decay * self.steps)
        return self.lr * min(1.0, up, down)


class Progress(NamedTuple):
    """Where a run stands after a step."""

    step: int
    steps: int
    loss: float
    fvu: float
    """Of this batch."""
    dead: int
    tokens_per_second: float


def fit(
    batches: Iterable[Tensor],
    config: FitConfig,
    *,
    info: DictionaryInfo | None = None,
    report: Callable[[Progress], None] = lambda _: None,
) -> SAE:
    """Train a dictionary on [batch, d] activations, BOS left out and tokens shuffled.

    Args:
        batches: at least ``config.tokens / config.batch`` of them, each [config.batch, d].
        info: how the result is named; after its site and width by default.
        report: called after every step.

    Raises:
        InputError: the batches end before the tokens that the config asks for, or were empty.
        WeightsError: the loss is no longer finite.
    """
    stream = iter(batches)
    first = list(_take(stream, -(-config.sample // config.batch)))
    if not first:
        raise InputError("there are no activations to train on; the corpus is empty")
    mean, scale = _moments(torch.cat(first))
    torch.manual_seed(config.seed)
    weights = _initial_weights(first[0].shape[1], config.width)
    optimizer = torch.optim.Adam(weights, lr=config.lr, fused=True)
    silent = torch.zeros(config.width)
    recent: deque[Tensor] = deque(maxlen=len(first))
    started = time.monotonic()
    step = 0
    for raw in _take(chain(first, stream), config.steps):
        x = (raw.float() - mean) * scale
        recent.append(x)
        for group in optimizer.param_groups:
            group["lr"] = config.lr_at(step)
        loss, fvu = _step(x, weights, optimizer, silent, config)
        step += 1
        if not math.isfinite(loss):
            raise WeightsError(f"the loss is {loss} at step {step}; lower the learning rate ({config.lr})")
        speed = step * config.batch / (time.monotonic() - started)
        report(Progress(step, config.steps, loss, fvu, int((silent > config.dead_after).sum()), speed))
    if step < config.steps:
        raise InputError(
            f"the corpus gave {step * config.batch:,} tokens, {config.tokens:,} were asked for; "
            "give more text or ask for fewer"
        )
    threshold = _threshold(torch.cat(list(recent)), weights, config)
    return _fold(weights, threshold, mean, scale, config.place, info or _named_after(config))


def _named_after(config: FitConfig) -> DictionaryInfo:
    site = config.place
    name = f"layer_{site.layer}_width_{config.width}_l0_{config.l0:g}"
    return DictionaryInfo("untitled", site.name, name, str(site), site.layer, config.width, None)


def _step(
    x: Tensor, weights: list[Tensor], optimizer: torch.optim.Optimizer, silent: Tensor, config: FitConfig
) -> tuple[float, float]:
    """One update in place; returns loss and fraction of variance unexplained."""
    w_enc, b_enc, w_dec, b_dec = weights
    importance = token_weights(x, config.norm_limit)
    pre = encode(x, w_enc, b_enc, torch.bfloat16)
    activations, _ = batch_top_k(pre, config.l0)
    error = x - decode(activations, w_dec, b_dec, torch.bfloat16)
    loss = reconstruction_loss(error, importance)
    dead = silent > config.dead_after
    if dead.any():
        loss = loss + config.dead_weight * auxiliary_loss(pre[:, dead], w_dec[dead], error, importance, config.dead_k)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    with torch.no_grad():
        # Unit norm is a constraint: the part of the gradient along a row would only be undone again.
        along = (w_dec.grad * w_dec).sum(dim=1, keepdim=True)  # type: ignore[operator]
        w_dec.grad -= along * w_dec  # type: ignore[operator]
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        w_dec.copy_(F.normalize(w_dec, dim=1))
        silent += len(x)
        silent[(activations > 0).any(dim=0)] = 0
        fvu = error.pow(2).sum() / (x - x.mean(dim=0)).pow(2).sum()
    return loss.item(), fvu.item()


def _moments(x: Tensor) -> tuple[Tensor, float]:
    """Mean [d], and the factor that gives the centred tokens unit mean square; the median keeps outliers out of it."""
    x = x.float()
    mean = x.mean(dim=0)
    return mean, float((x - mean).pow(2).mean(dim=1).median().rsqrt())


def _initial_weights(d: int, width: int) -> list[Tensor]:
    """``w_enc, b_enc, w_dec, b_dec``: random unit decoder rows, the encoder their transpose."""
    w_dec = F.normalize(torch.randn(width, d), dim=1)
    weights = [w_dec.T.clone().contiguous(), torch.zeros(width), w_dec, torch.zeros(d)]
    return [weight.requires_grad_() for weight in weights]


@torch.no_grad()
def _threshold(x: Tensor, weights: list[Tensor], config: FitConfig) -> float:
    """The pre-activation that ``l0`` features a token exceed on [n, d] activations, in float32."""
    w_enc, b_enc, *_ = weights
    keep = int(config.l0 * len(x))
    largest = torch.empty(0)
    for part in x.split(config.batch):
        pre = (part @ w_enc + b_enc).flatten()
        # Only the largest ``keep`` of all can matter; holding more would take gigabytes.
        largest = torch.cat([largest, pre[pre > 0]])
        if len(largest) > 2 * keep:
            largest = largest.topk(keep, sorted=False).values
    return float(largest.topk(min(keep, len(largest)), sorted=False).values.min())


@torch.no_grad()
def _fold(weights: list[Tensor], threshold: float, mean: Tensor, scale: float, site: Site, info: DictionaryInfo) -> SAE:
    """Move centring and scaling into the weights.

    With z = (x - mean) * scale: the features of z are scaled by 1 / scale so that decoder rows keep unit norm,
    pre(x) = x @ w_enc + (b_enc / scale - mean @ w_enc), recon(x) = acts @ w_dec + (b_dec / scale + mean).
    """
    w_enc, b_enc, w_dec, b_dec = (weight.detach() for weight in weights)
    return SAE(
        DenseRows(w_enc.T.contiguous()),
        DenseRows(w_dec),
        b_enc=b_enc / scale - mean @ w_enc,
        b_dec=b_dec / scale + mean,
        threshold=torch.full((len(b_enc),), threshold / scale),
        reads=site,
        writes=site,
        info=info,
    )


def _take(stream: Iterator[Tensor], count: int) -> Iterator[Tensor]:
    """The first ``count`` items; unlike islice it does not pull one more than it yields."""
    for _ in range(count):
        try:
            yield next(stream)
        except StopIteration:
            return
