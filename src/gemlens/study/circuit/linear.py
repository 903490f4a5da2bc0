"""The local replacement model, frozen at one prompt: what is left of a Gemma is a linear map, and known.

    mid_l   = resid_l + sum_heads pattern * (resid_l * in_scale @ value) @ out * post_scale
    resid_l+1 = mid_l + features + decoder bias + (mid_l * mlp_scale) @ skip + error + edits

Attention patterns and the scales of all norms (one over the root mean square, a number a position) are those of a
clean pass. Norm weights are folded into the matrices beside them and scales into the patterns, so that the map of a
block's attention, and its transpose, are three products. Ameisen et al. 2025, "Circuit Tracing"
(transformer-circuits.pub/2025/attribution-graphs).

This is the one place where gemlens writes out what a Gemma computes; tests hold it against the modules.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gemlens.errors import MismatchError
from gemlens.lm.gemma import Model, check_finite, reading
from gemlens.lm.hooks import read
from gemlens.sites import Site

__all__ = ["Attention", "CleanRun", "Forward", "attention_of", "clean_run", "norm_scale", "norm_weight"]


class _Folded:
    """The output projection of one block at a time, its norm's weight folded in: all of them would be copies as large
    as the model's own."""

    def __init__(self) -> None:
        self._of: Tensor | None = None
        self._folded: Tensor | None = None

    def __call__(self, weight: Tensor, scale: Tensor) -> Tensor:
        """Valid until the next call for another block."""
        if self._of is not weight:
            self._folded, self._of = torch.mul(weight, scale[:, None], out=self._folded), weight
        assert self._folded is not None
        return self._folded


@dataclass(frozen=True, eq=False)
class Attention:
    """The attention of one block as a linear map of the residual stream, [n, d_model] to what it adds there."""

    mix: Tensor
    """[kv heads, n keys, n queries, heads a kv head], the pattern times the scales of both norms."""
    out_weight: Tensor
    """[d_model, heads * head_dim], the model's own."""
    out_scale: Tensor
    """[d_model], the post norm's weight."""
    folded: _Folded
    """Shared by all blocks."""
    value: Tensor
    """[kv heads * head_dim, d_model], value projection and the input norm's weight."""
    reach: int
    """No query sees a key further back than so many positions: the window, or the prompt."""

    @property
    def out(self) -> Tensor:
        """[d_model, heads * head_dim], output projection and the post norm's weight; until another block's is asked
        for."""
        return self.folded(self.out_weight, self.out_scale)

    @property
    def kv_heads(self) -> int:
        return self.mix.shape[0]

    @property
    def head_dim(self) -> int:
        return self.value.shape[0] // self.kv_heads

    def forward(self, x: Tensor) -> Tensor:
        """[..., m, d_model] at the first m positions of the prompt -> what is added to it there, without biases."""
        m = x.shape[-2]
        groups = self.kv_heads
        values = (x @ self.value.T).unflatten(-1, (groups, self.head_dim))
        heads = torch.einsum("gkqr,...kgh->...qgrh", self.mix[:, :m, :m], values)
        return heads.flatten(-3) @ self.out.T

    def backward(self, cotangents: Tensor) -> Tensor:
        """The transpose of ``forward``, of [..., n, d_model] at all positions."""
        groups, _, _, each = self.mix.shape
        heads = (cotangents @ self.out).unflatten(-1, (groups, each, self.head_dim))
        values = torch.einsum("gkqr,...qgrh->...kgh", self.mix, heads)
        return values.flatten(-2) @ self.value


class Forward(NamedTuple):
    """What a clean pass left behind for one block."""

    attention: Attention
    mlp_scale: Tensor
    """[n], of the norm before the MLP."""
    mlp_weight: Tensor
    """[d_model], that norm's own weight, 1 added."""
    middle: Tensor
    """[n, d_model], the residual stream between attention and MLP."""
    mlp_out: Tensor
    """[n, d_model]"""
    added: Tensor
    """[n, d_model], what the output has beyond the two: what an edit of the residual stream adds, and rounding."""


@dataclass(frozen=True, eq=False)
class CleanRun:
    """One prompt through a model, and the map that it is there."""

    embedding: Tensor
    """[n, d_model], block 0's input."""
    layers: tuple[Forward, ...]
    final: Tensor
    """[n, d_model], the last block's output."""
    final_scale: Tensor
    """[n], of the norm before the head."""
    found: dict[Site, Tensor]
    """[n, d] at the sites that were asked for, in the model's dtype."""

    @property
    def n(self) -> int:
        return len(self.embedding)


@torch.no_grad()
def clean_run(model: Model, ids: Tensor, sites: Sequence[Site]) -> CleanRun:
    """Run [n] token ids once, and keep what is frozen; in float32, or float64 where the model is.

    Raises:
        MismatchError: the model lacks a layer of ``sites``, or its attention has biases, as no Gemma's has.
        WeightsError: activations that are not finite.
    """
    blocks: list[Any] = list(model.blocks)
    kind = torch.float64 if model.dtype == torch.float64 else torch.float32
    if getattr(model.config, "attention_bias", False):
        raise MismatchError(f"the attention of {model.name} has biases; circuits know Gemmas, which have none")
    wanted = [
        Site(0, "embed"),
        *(Site(layer, name) for layer in range(len(blocks)) for name in ("resid_mid", "mlp_out", "resid_post")),
    ]
    with ExitStack() as stack:
        stack.enter_context(_eager(model))
        patterns = stack.enter_context(_patterns(blocks))
        entries = [stack.enter_context(read(block.input_layernorm, "input")) for block in blocks]
        attended = [stack.enter_context(read(block.post_attention_layernorm, "input")) for block in blocks]
        found = stack.enter_context(reading(model, {*wanted, *sites}))
        model.backbone(input_ids=ids[None].to(model.device), use_cache=False)
    one = {site: tensors[0][0] for site, tensors in found.items()}
    check_finite(model, one)
    layers, folded = [], _Folded()
    for index, block in enumerate(blocks):
        middle = one[Site(index, "resid_mid")].to(kind)
        attention = attention_of(
            block,
            patterns[index],
            folded,
            in_scale=norm_scale(block.input_layernorm, entries[index][0][0].to(kind)),
            post_scale=norm_scale(block.post_attention_layernorm, attended[index][0][0].to(kind)),
        )
        norm = block.pre_feedforward_layernorm
        mlp_out = one[Site(index, "mlp_out")].to(kind)
        final = one[Site(index, "resid_post")].to(kind)
        scale, weight, added = norm_scale(norm, middle), norm_weight(norm, kind), final - middle - mlp_out
        layers.append(Forward(attention, scale, weight, middle, mlp_out, added))
    return CleanRun(
        embedding=one[wanted[0]].to(kind),
        layers=tuple(layers),
        final=final,
        final_scale=norm_scale(model.backbone.norm, final),
        found={site: one[site] for site in sites},
    )


def norm_scale(norm: Any, x: Tensor) -> Tensor:
    """[n], what an RMS norm multiplies each of [n, d] by, its weight aside."""
    return torch.rsqrt(x.pow(2).mean(-1) + norm.eps)


def norm_weight(norm: Any, kind: torch.dtype) -> Tensor:
    """[d], what it multiplies each dimension by."""
    return 1 + norm.weight.to(kind)


def attention_of(block: Any, pattern: Tensor, folded: _Folded, *, in_scale: Tensor, post_scale: Tensor) -> Attention:
    """The attention of one block under ``pattern``, [heads, queries, keys]; scales [n] of the norms about it."""
    kind, heads = in_scale.dtype, len(pattern)
    out = block.self_attn.o_proj.weight.detach()
    value = block.self_attn.v_proj.weight.to(kind) * norm_weight(block.input_layernorm, kind)
    groups = len(value) * heads // out.shape[1]
    query, key = pattern.any(dim=0).nonzero(as_tuple=True)
    scaled = pattern.to(kind) * post_scale[:, None] * in_scale
    mix = scaled.unflatten(0, (groups, heads // groups)).permute(0, 3, 2, 1).contiguous()
    return Attention(
        mix,
        out,
        norm_weight(block.post_attention_layernorm, kind),
        folded,
        value.contiguous(),
        reach=int((query - key).max()) if len(query) else 0,
    )


@contextmanager
def _eager(model: Model) -> Iterator[None]:
    """Attention that gives out its pattern; only the plain kind does."""
    config = model.config
    before = config._attn_implementation
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = before


@contextmanager
def _patterns(blocks: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """[heads, queries, keys] of each block."""
    found: list[Tensor] = []
    with ExitStack() as stack:
        for block in blocks:
            attention: Any = block.self_attn
            handle = attention.register_forward_hook(lambda _module, _inputs, output: found.append(output[1][0]))
            stack.callback(handle.remove)
        yield found
