"""Log-probabilities of tokens, without ever holding a row of 262,144 logits for each position.

The head is the model's own matrix, taken two thousand entries of the vocabulary at a time: what a block of it puts
out stays in the cache until its exponentials are added. The same numbers as a softmax of ``lm.gemma.logits``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gemlens.lm.gemma import Model, logits

__all__ = ["token_log_probabilities"]

# 2,048 entries x 512 positions of float32 are 4 MB.
_ENTRIES, _POSITIONS = 2048, 512


@torch.no_grad()
def token_log_probabilities(model: Model, residual: Tensor, places: Tensor, targets: Tensor) -> Tensor:
    """Natural logarithms of the probabilities of some next tokens.

    Args:
        residual: [n, d_model], the last block's output; with that of an earlier block, the logit lens
            (nostalgebraist 2020): the same norm and head.
        places: int64 [m], rows of ``residual``; a row may have several targets.
        targets: int64 [m], the token ids that are asked for.

    Returns:
        float32 [m] on the CPU.
    """
    places, targets = places.to(residual.device), targets.to(residual.device)
    norms, wanted = [], residual.new_empty(len(places), dtype=torch.float32)
    for start in range(0, len(residual), _POSITIONS):
        part = residual[start : start + _POSITIONS]
        mine = ((places >= start) & (places < start + len(part))).nonzero()[:, 0]
        norm, found = _part(model, part, places[mine] - start, targets[mine])
        norms.append(norm)
        wanted[mine] = found
    return (wanted - torch.cat(norms)[places]).cpu() if norms else wanted.cpu()


def _part(model: Model, residual: Tensor, places: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """[n] logarithms of the sums of exponentials, [m] logits asked for."""
    head, cap = model.module.lm_head, model.config.final_logit_softcapping
    weight: Tensor = head.weight
    hidden = model.backbone.norm(residual).to(weight.dtype)  # type: ignore[operator]
    # One place for all blocks: between small tensors that stay, freed ones of 4 MB would each leave a hole.
    out = hidden.new_empty(len(hidden), min(_ENTRIES, len(weight)))
    wide = out if out.dtype == torch.float32 else torch.empty_like(out, dtype=torch.float32)
    sums = torch.empty(math.ceil(len(weight) / _ENTRIES), len(hidden), device=residual.device)
    wanted = torch.empty(len(places), dtype=torch.float32, device=residual.device)
    for block, first in enumerate(range(0, len(weight), _ENTRIES)):
        entries = weight[first : first + _ENTRIES]
        torch.mm(hidden, entries.T, out=out[:, : len(entries)])
        scores = wide[:, : len(entries)]
        if wide is not out:
            scores.copy_(out[:, : len(entries)])
        if cap is not None:
            scores.div_(cap).tanh_().mul_(cap)
        here = ((targets >= first) & (targets < first + len(entries))).nonzero()[:, 0]
        wanted[here] = scores[places[here], targets[here] - first]
        # Logits lie far inside float32's exponents, so no maximum has to be found first; below is for others.
        torch.sum(scores.exp_(), dim=1, out=sums[block])
    total = sums.sum(dim=0)
    if bool(torch.isfinite(total).all()) and float(total.min()) > 1e-30:
        return total.log(), wanted
    return _with_maxima(model, residual), wanted


def _with_maxima(model: Model, residual: Tensor) -> Tensor:
    """[n] logarithms of the sums of exponentials, of logits of any size."""
    return torch.cat([logits(model, part).float().logsumexp(dim=-1) for part in residual.split(64)])
