"""One prompt, run once as it is, and again from where something is added to what passes some sites.

Every way to attribute asks the same: what is the target, or its gradient, where ``delta`` is added at the sites that
dictionaries write? A pass is taken up again at the shallowest of them and ends where the target is read, so that what
lies below is computed once; many deltas go through as one batch; and gradients flow back no further than to the deltas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gemlens.errors import WeightsError
from gemlens.lm.gemma import Model, check_finite, reading, writing
from gemlens.lm.hooks import StopForward
from gemlens.lm.resume import CleanPass, clean_pass, replay
from gemlens.sites import Site
from gemlens.study.targets import Target

__all__ = ["Deltas", "Passes", "passes"]

Deltas = Mapping[Site, Tensor]
"""[batch, n, d] for each of some sites, added to what passes there; all of one batch."""

# Tokens of a batch: as for reading many prompts, passes gain nothing beyond some 1,000 on two CPU cores.
_TOKENS = 1024
# Logits of all tokens that a batch holds, in rows of the vocabulary's size: a row is 1 MB of float32.
_HEADS = 128
# Deltas that a batch holds, in numbers: 256 MB of float32. A CLT has some for each of its layers.
_NUMBERS = 1 << 26


@dataclass(frozen=True, eq=False)
class Passes:
    """A clean pass over one prompt, and what it takes to run parts of it again."""

    model: Model
    target: Target
    clean: CleanPass = field(repr=False)
    values: dict[Site, Tensor] = field(repr=False)
    """[n, d] of the clean pass, at every site that was asked for."""
    entries: dict[int, Tensor] = field(repr=False)
    """[1, n, d_model], what a block is fed, of each block in which something may be added."""

    @property
    def n(self) -> int:
        """Tokens of the prompt."""
        return self.clean.entry.shape[1]

    @torch.no_grad()
    def clean_target(self) -> float:
        last = self.target.site not in self.values
        state = self.clean.residual if last else self.values[self.target.site][None]
        return float(self.target.measure(state[:, self.target.positions]))

    def batch(self, sites: Iterable[Site]) -> int:
        """How many deltas at these sites go through together."""
        numbers = sum(self.values[site].numel() for site in sites)
        room = [_TOKENS // self.n, _NUMBERS // numbers]
        if self.target.heads:
            room.append(_HEADS // self.target.heads)
        return max(1, min(room))

    @torch.no_grad()
    def measured(self, deltas: Deltas) -> Tensor:
        """float32 [batch], the target with something added."""
        return self._run(deltas)

    def gradients(self, deltas: Deltas) -> dict[Site, Tensor]:
        """[batch, n, d] in float32 for each site of ``deltas``: of the target with them added.

        Raises:
            WeightsError: one is not finite.
        """
        leaves = {site: delta.detach().clone().requires_grad_() for site, delta in deltas.items()}
        with _without_parameters(self.model), torch.enable_grad():
            found = torch.autograd.grad(self._run(leaves).sum(), list(leaves.values()), allow_unused=True)
        # Unused: written deeper than the target is read.
        result = {
            site: torch.zeros_like(leaf, dtype=torch.float32) if each is None else each.float()
            for (site, leaf), each in zip(leaves.items(), found, strict=True)
        }
        check_finite(self.model, result)
        return result

    def _run(self, deltas: Deltas) -> Tensor:
        end, rest = self.target.site, dict(sorted(deltas.items()))
        first, delta = next(iter(rest.items()))
        if first.name == "resid_post":  # the block that puts it out need not run again
            layer, hidden = first.layer + 1, self.values[first] + rest.pop(first)
        else:
            layer, hidden = first.layer, self.entries[first.layer].expand(len(delta), -1, -1)
        if end.layer < layer:
            return self.target.measure(hidden[:, self.target.positions])
        with ExitStack() as stack:
            for site, each in rest.items():
                stack.enter_context(writing(self.model, site, _adding(each)))
            # Registered last, so that it sees what is added at the very site.
            found = stack.enter_context(reading(self.model, [end], stop=True))
            stack.enter_context(suppress(StopForward))
            replay(self.model, self.clean, hidden, skip=layer - self.clean.layer)
        return self.target.measure(found[end][0][:, self.target.positions])


def passes(model: Model, ids: Tensor, target: Target, *, reads: Iterable[Site], writes: Iterable[Site]) -> Passes:
    """Run [n] ids once.

    Args:
        reads: sites whose activations are wanted.
        writes: sites at which something may be added; their activations are kept as well.

    Raises:
        MismatchError: the model lacks a layer.
        WeightsError: the model computes values that are not finite.
    """
    writes = sorted(set(writes))
    first = writes[0].layer
    end = target.site
    wanted = {*reads, *writes} | (set() if end == Site(model.n_layers - 1, "resid_post") else {end})
    inside = {site.layer for site in writes if site.name != "resid_post"}
    entries = {layer: Site(layer - 1, "resid_post") for layer in inside if layer > first}
    with reading(model, wanted | set(entries.values())) as found:
        clean = clean_pass(model, ids[None], first)
    values = {site: found[site][0][0] for site in wanted}
    check_finite(model, values)
    kept = {layer: found[site][0] for layer, site in entries.items()} | {first: clean.entry}
    run = Passes(model, target, clean, values, kept)
    if not torch.isfinite(torch.tensor(run.clean_target())):
        raise WeightsError(f"{model.name} computes a {target.name} that is not finite; try --dtype bfloat16 or float32")
    return run


def _adding(delta: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda value: value + delta.to(value)


@contextmanager
def _without_parameters(model: Model) -> Iterator[None]:
    """Nothing flows to the weights for the time of a ``with``: autograd would keep what it takes to get there."""
    trained = [parameter for parameter in model.module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
