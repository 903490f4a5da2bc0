"""One dictionary in training.

1. From the first tokens: the mean of every site, and the scale that gives its centred activations unit mean square.
   Both stay fixed and are folded into the weights at the end, so that the result reads raw activations.
2. Each step: loss and gradients (``gradients``), Adam, decoder rows back to unit norm. Products run in bfloat16 where
   that is quick, the weights that Adam moves stay float32.
3. At the end: features become JumpReLU's. BatchTopK and TopK do with one threshold, above which l0 features a token
   lay in the last batches; tokens then no longer depend on their batch.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from gemlens.errors import InputError, MismatchError, WeightsError
from gemlens.precision import quick_dtype
from gemlens.records import DictionaryInfo
from gemlens.scope.multilayer import MultiLayer
from gemlens.scope.sae import SAE
from gemlens.sites import Site
from gemlens.train.config import FitConfig
from gemlens.train.folding import Scaling, fold
from gemlens.train.gradients import train_pass
from gemlens.train.ranks import Alone, Ranks
from gemlens.train.weights import Weights, initial_weights

__all__ = ["Learner", "Step"]

_DEAD_TOGETHER = 512
"""Dead features a layer that get the auxiliary loss in one step, those silent for longest: bounds what it costs."""
_GRADIENT_NORM = 1.0
_LEVEL_RATE = 0.05
"""The threshold is a running mean over some 20 batches."""
_ALIKE = 1e-3
"""How far the means of samples may be apart, in units of the scaled inputs, to count as of the same sample."""
_HINT = 0.8
"""Of the level of the batch before: where the search for the next one's begins."""


class Step(NamedTuple):
    """Where training stands after a step."""

    step: int
    """Steps done."""
    loss: float
    fvu: float
    """Fraction of variance unexplained, of this batch."""
    l0: float
    """Mean number of features that fired, of this batch; of a CLT the mean over layers."""
    dead: int
    """Features that have not fired for ``config.dead_after`` tokens, of all layers."""


class Learner:
    """One dictionary in training.

    Args:
        config: what is trained, and how.
        sample: the first tokens of every site, [n, d]: for mean and scale.
        info: how the result is named; after its site and width by default.
        dtype: of products; by default bfloat16, and float32 on a CPU without instructions for it.
        device: where it learns, and to which batches are brought; that of the sample by default.
        ranks: the processes that share the features. Each makes a learner, of the same config and sample, and calls
            the same methods with the same batches.

    Raises:
        InputError: a site is missing from the sample, or the sample is empty; a width below the number of processes,
            or another process has another config or sample.
        WeightsError: the sample is not finite.
    """

    def __init__(
        self,
        config: FitConfig,
        sample: Mapping[Site, Tensor],
        info: DictionaryInfo | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.config, self.info = config, info or _named_after(config)
        self._device = device
        self._ranks: Ranks = ranks or Alone()
        self._reads, self._writes = config.sites_read, config.sites_written
        self._scaling = {site: Scaling.of(self._given(sample, site), site) for site in self.sites}
        self._device = self._scaling[self.sites[0]].mean.device
        self._dtype = dtype or quick_dtype(self._device)
        self._check_alike()
        self._step = 0
        self._weights = self._initial_weights(sample)
        self._grads = [weights.zeros() for weights in self._weights]
        # Of all features, on every process: which of them count as dead is then settled without asking.
        self._silent = [torch.zeros(config.width, device=self._device) for _ in self._weights]
        self._threshold = [0.0 for _ in self._weights]
        # Of the batch before. No part of the state: it speeds up a search, whose result is the same with any.
        self._levels = [0.0 for _ in self._weights]
        self._adam = self._optimizer()
        self._refresh()

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every site that a batch has to hold, in the order of a forward pass."""
        return tuple(sorted({*self._reads, *self._writes}))

    def step(self, batch: Mapping[Site, Tensor]) -> Step:
        """Learn from a batch, [n, d] of every site.

        Raises:
            InputError: a site is missing.
            WeightsError: the loss or its gradient is not finite; the weights are as before.
        """
        x, y = self._scaled(batch)
        found = train_pass(
            self._fast, self._grads, x, y, self.config,
            dead=[self._dead(silent) for silent in self._silent],
            hints=[_HINT * level for level in self._levels],
            warmth=self.config.warmth(self._step),
            ranks=self._ranks,
        )  # fmt: skip
        norm = self._gradient_norm()
        if not math.isfinite(found.loss + norm):
            raise WeightsError(
                f"the loss is {found.loss} and its gradient's norm {norm} at step {self._step + 1}; "
                f"look for activations that are not finite, or lower the learning rate ({self.config.lr})"
            )
        self._update(norm)
        self._step += 1
        for index, fired in enumerate(found.fired):
            self._silent[index] = torch.where(self._ranks.gather(fired), 0, self._silent[index] + len(y))
            rate = _LEVEL_RATE if self._step > 1 else 1.0
            self._threshold[index] += rate * (found.levels[index] - self._threshold[index])
        self._levels = found.levels
        dead = int((torch.stack(self._silent) > self.config.dead_after).sum())
        return Step(self._step, found.loss, found.fvu, found.l0, dead)

    def state(self) -> dict[str, Tensor | float | int]:
        """Everything that going on needs, by name; copies. Of several processes, each has the state of its slice."""
        state: dict[str, Tensor | float | int] = {"step": self._step, "rank": self._ranks.rank}
        for site, scaling in self._scaling.items():
            state |= {f"mean.{site}": scaling.mean.clone(), f"scale.{site}": scaling.scale}
        for index, silent in enumerate(self._silent):
            state |= {f"silent.{index}": silent.clone(), f"threshold.{index}": self._threshold[index]}
        return state | {name: tensor.clone() for name, tensor in self._tensors().items()}

    def restore(self, state: Mapping[str, Tensor | float | int]) -> None:
        """Take up a ``state`` of the same config: going on is then the same to the bit, on CPU.

        Raises:
            MismatchError: the state of another dictionary, or of another slice; processes at different steps.
        """
        own = self.state()
        shapes, given = ({name: getattr(value, "shape", ()) for name, value in each.items()} for each in (own, state))
        if differing := sorted(name for name in {*own, *state} if shapes.get(name) != given.get(name)):
            raise MismatchError(f"this state is not of {self.info.id}: {', '.join(differing[:3])} differs; start anew")
        self._check_slice(state)
        self._step = int(state["step"])
        self._scaling = {
            site: Scaling(self._taken_up(state[f"mean.{site}"]), float(state[f"scale.{site}"])) for site in self.sites
        }
        self._silent = [self._taken_up(state[f"silent.{index}"]) for index in range(len(self._silent))]
        self._threshold = [float(state[f"threshold.{index}"]) for index in range(len(self._threshold))]
        for name, tensor in self._tensors().items():
            tensor.copy_(torch.as_tensor(state[name]))
        self._refresh()

    def finish(self) -> SAE | MultiLayer:
        """The dictionary, float32: JumpReLU, mean and scale folded in. Whole on every process, and each has to call."""
        whole = [weights.gathered(self._ranks) for weights in self._weights]
        thresholds = [
            torch.full_like(weights.b_enc, threshold) if weights.log_threshold is None else weights.log_threshold.exp()
            for weights, threshold in zip(whole, self._threshold, strict=True)
        ]
        return fold(
            whole, thresholds,
            inputs=[self._scaling[site] for site in self._reads],
            outputs=[self._scaling[site] for site in self._writes],
            reads=self._reads, writes=self._writes, info=self.info, multilayer=self.config.kind == "clt",
        )  # fmt: skip

    def _check_alike(self) -> None:
        """Processes that train different things would wait for one another, or mix them up."""
        told = self._ranks.gather(torch.tensor([zlib.crc32(repr(self.config).encode())]))
        if (told != told[0]).any():
            raise InputError("the processes were given different configs; they share the features of one dictionary")
        for site, (mean, scale) in self._scaling.items():
            # Apart by more than rounding, which may differ among machines.
            if float((self._ranks.gather(mean[None]) - mean).abs().max()) * scale > _ALIKE:
                raise InputError(
                    f"the processes do not read the same activations of {site}; give each the same batches, they share "
                    "the features and not the tokens"
                )

    def _check_slice(self, state: Mapping[str, Tensor | float | int]) -> None:
        found = self._ranks.gather(torch.tensor([[int(state["rank"]), int(state["step"])]])).tolist()
        ranks, steps = zip(*found, strict=True)
        if list(ranks) != list(range(self._ranks.size)):
            raise MismatchError(
                f"processes 0 to {len(ranks) - 1} were given states of {list(ranks)}; give each its own"
            )
        if len(set(steps)) > 1:
            raise MismatchError(f"the processes' states are of steps {list(steps)}; give states of one step")

    def _initial_weights(self, sample: Mapping[Site, Tensor]) -> list[Weights]:
        generator = torch.Generator().manual_seed(self.config.seed)
        reads, y = self._scaled(sample)
        d_out = y.shape[1] // len(reads)
        # An SAE writes what it reads; layer i of a CLT writes its own site and all later ones.
        written = reads if self.config.kind == "sae" else [y[:, index * d_out :] for index in range(len(reads))]
        return [
            initial_weights(self.config, x, part, d_out, generator, self._ranks)
            for x, part in zip(reads, written, strict=True)
        ]

    def _optimizer(self) -> torch.optim.Adam:
        """Adam on the weights, its gradients and moments made at once, so that they can be saved and restored."""
        for weights, grads in zip(self._weights, self._grads, strict=True):
            for name, tensor in weights.tensors().items():
                tensor.grad = grads.tensors()[name]
        adam = torch.optim.Adam([t for weights in self._weights for t in weights.tensors().values()], fused=True)
        for group in adam.param_groups:
            for tensor in group["params"]:
                zeros = [torch.zeros_like(tensor) for _ in range(2)]
                step = torch.zeros((), device=tensor.device)
                adam.state[tensor] = {"step": step, "exp_avg": zeros[0], "exp_avg_sq": zeros[1]}
        return adam

    def _tensors(self) -> dict[str, Tensor]:
        """Weights and what Adam keeps of them, by name."""
        named = {}
        for index, weights in enumerate(self._weights):
            for name, tensor in weights.tensors().items():
                named[f"{name}.{index}"] = tensor
                named |= {f"adam.{kept}.{name}.{index}": value for kept, value in self._adam.state[tensor].items()}
        return named

    def _scaled(self, batch: Mapping[Site, Tensor]) -> tuple[list[Tensor], Tensor]:
        scaled = {site: self._scaling[site].apply(self._given(batch, site)) for site in self.sites}
        written = [scaled[site] for site in self._writes]
        return [scaled[site] for site in self._reads], torch.cat(written, dim=1) if len(written) > 1 else written[0]

    def _given(self, batch: Mapping[Site, Tensor], site: Site) -> Tensor:
        if site not in batch or not len(batch[site]):
            held = ", ".join(str(each) for each in batch) or "nothing"
            raise InputError(f"there are no activations of {site} to train on; the batch holds {held}")
        return batch[site].to(self._device) if self._device else batch[site]

    def _taken_up(self, value: Tensor | float | int) -> Tensor:
        """Of a state: a copy, here."""
        return torch.as_tensor(value).to(self._device, copy=True)

    def _dead(self, silent: Tensor) -> Tensor:
        dead = (silent > self.config.dead_after).nonzero().flatten()
        if len(dead) > _DEAD_TOGETHER:
            dead = dead[silent[dead].topk(_DEAD_TOGETHER).indices]
        return dead

    def _gradient_norm(self) -> float:
        for weights, grads in zip(self._weights, self._grads, strict=True):
            # Unit norm is a constraint: the part of the gradient along a row would only be undone again.
            along = torch.linalg.vecdot(grads.w_dec, weights.w_dec)
            grads.w_dec.addcmul_(along[:, None], weights.w_dec, value=-1)
        of_features = torch.nn.utils.get_total_norm([t for grads in self._grads for t in grads.of_features()])
        shared = [t for grads in self._grads for t in (grads.b_dec, grads.skip) if t is not None]
        return float((self._ranks.sum(of_features**2) + torch.nn.utils.get_total_norm(shared) ** 2).sqrt())

    @torch.no_grad()
    def _update(self, norm: float) -> None:
        if norm > _GRADIENT_NORM:
            for grads in self._grads:
                for tensor in grads.tensors().values():
                    tensor.mul_(_GRADIENT_NORM / norm)
        for group in self._adam.param_groups:
            group["lr"] = self.config.lr_at(self._step)
        self._adam.step()
        for weights in self._weights:
            weights.normalize()
        self._refresh()

    def _refresh(self) -> None:
        self._fast = [weights.to(self._dtype) for weights in self._weights]


def _named_after(config: FitConfig) -> DictionaryInfo:
    reads = config.sites_read
    layers = "_".join(str(site.layer) for site in reads)
    name = f"layer_{layers}_width_{config.width}_l0_{config.l0:g}"
    category = reads[0].name if config.kind == "sae" else config.kind
    width = config.width * len(reads)
    return DictionaryInfo("untitled", category, name, str(reads[0]), reads[0].layer, width, None)
