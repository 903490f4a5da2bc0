"""How the peers are driven."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from equality import Side, encoder_of
from gemlens.scope.sae import SAE

__all__ = ["sae_lens_of", "theirs_of"]


def sae_lens_of(sae: SAE) -> Any:
    """SAELens' own JumpReLU SAE, its parameters filled by hand: nothing of ours takes part but the numbers."""
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig

    encoder = encoder_of(sae)
    theirs = JumpReLUSAE(
        JumpReLUSAEConfig(d_in=sae.d_in, d_sae=sae.width, apply_b_dec_to_input=False, dtype="float32", device="meta")
    )
    tensors = {"W_enc": encoder.w_enc.contiguous(), "b_enc": sae.b_enc, "b_dec": sae.b_dec, "threshold": sae.threshold}
    tensors["W_dec"] = torch.cat([block for _, block in sae.decoder.blocks()])
    theirs.load_state_dict(tensors, assign=True)
    return theirs


@torch.no_grad()
def theirs_of(sae: Any, x: Tensor) -> Side:
    acts = sae.encode(x)
    return Side(acts, sae.decode(acts))


def bridge_of(model: Any) -> Any:
    """TransformerLens' bridge around the starter's own folder."""
    from transformer_lens.model_bridge import TransformerBridge

    from gemlens.lm.starter import starter_folder

    return TransformerBridge.boot_transformers(str(starter_folder()), device=str(model.device), dtype=model.dtype)
