"""Logit lenses: what a direction of the residual stream adds to the logits, and what a state of it would predict.

    feature_logits    (rows * (1 + w_norm)) @ W_U^T, centred over the vocabulary
    logits_of         the model's own norm, head and soft-cap, of some tokens only

A direction is no state: dividing it by its own root mean square, or capping what it adds, would say nothing about the
sum it becomes part of. What stays of the final norm is its weight, without which most of the top ten tokens are others.
nostalgebraist 2020 (the logit lens); Belrose et al. 2023 (arXiv:2303.08112).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gemlens.errors import InputError
from gemlens.lm.gemma import Model, module_at
from gemlens.sites import Site

__all__ = ["feature_logits", "logits_of", "residual_rows"]

# Rows of the head turned into float32 together: 2,304 x 16,384 are 150 MB.
_TOGETHER = 16384


@torch.no_grad()
def feature_logits(model: Model, rows: Tensor) -> Tensor:
    """What directions add to the logits of the next token, above what they add to all tokens alike.

    Args:
        rows: [n, d_model], such as decoder rows; see ``residual_rows`` for those that are not of the residual stream.

    Returns:
        float32 [n, vocab], each row of mean 0: up to one factor, 1 / rms of the final residual, the change of the
        logits before the soft-cap.
    """
    norm: Any = model.backbone.norm
    weight = norm.weight.float()
    scaled = rows.to(weight) * (1 + weight)
    scores = torch.cat([scaled @ block.T for block in _head(model)], dim=1)
    return scores.sub_(scores.mean(dim=1, keepdim=True))


def _head(model: Model) -> Iterator[Tensor]:
    head: Any = model.module.lm_head
    for block in head.weight.split(_TOGETHER):
        yield block.float()


def logits_of(model: Model, residual: Tensor, tokens: Tensor | None = None) -> Tensor:
    """Logits [..., tokens] of a few tokens (int64 [tokens]), or of all, from the last block's output [..., d_model].

    As ``gemma.logits``, but only the rows of the head that are asked for are read: 262,144 of them are more than all
    the blocks of a small Gemma. Gradients flow.
    """
    norm: Any = model.backbone.norm
    head: Any = model.module.lm_head
    state = norm(residual)
    scores = head(state) if tokens is None else F.linear(state, head.weight[tokens])
    cap = model.config.final_logit_softcapping
    return scores if cap is None else cap * torch.tanh(scores / cap)


@torch.no_grad()
def residual_rows(model: Model, site: Site, rows: Tensor) -> Tensor:
    """[n, d_model], what rows [n, d] written at ``site`` are in the residual stream.

    Rows at ``attn_out`` go through the output projection and the weight of the norm behind it, not its division.

    Raises:
        InputError: nothing that is written at ``site`` is added to the residual stream as it is.
        MismatchError: the model has no such layer.
    """
    module_at(model, site)
    if site.name in ("mlp_in", "mlp_in_normalized"):
        raise InputError(f"{site} is what an MLP is fed, not a part of the residual stream: it has no logit lens")
    if site.name != "attn_out":
        return rows
    block: Any = model.blocks[site.layer]
    weight = block.post_attention_layernorm.weight.float()
    return (rows.to(weight) @ block.self_attn.o_proj.weight.float().T) * (1 + weight)
