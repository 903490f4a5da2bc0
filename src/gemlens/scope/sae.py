"""Dictionaries over one layer: sparse autoencoders and transcoders.

    pre   = x @ w_enc + b_enc
    acts  = relu(pre) * (pre > threshold)     or another activation
    recon = acts @ w_dec + b_dec (+ x @ affine_skip_connection)

Rajamanoharan et al. 2024 (arXiv:2407.14435); Gemma Scope, Lieberum et al. 2024 (arXiv:2408.05147). The encoder
does not subtract ``b_dec``. An SAE writes where it reads; a transcoder reads the MLP's input and writes its output.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gemlens.errors import MismatchError
from gemlens.records import DictionaryInfo
from gemlens.scope import sparse
from gemlens.scope.activation import Activation, JumpReLU
from gemlens.scope.features import Features
from gemlens.scope.rows import Rows
from gemlens.sites import Site

__all__ = ["SAE"]


class SAE(nn.Module):
    """An SAE or transcoder: weights and arithmetic only.

    Args:
        encoder: one row of ``w_enc.T`` a feature, [width, d_in].
        decoder: one row of ``w_dec`` a feature, [width, d_out].
        b_enc: [width]
        b_dec: [d_out]
        threshold: [width]
        skip: ``affine_skip_connection`` [d_in, d_out], or None.
        reads: site whose activations ``encode`` takes.
        writes: site that the reconstruction stands for; the same as ``reads`` for an SAE.
        activation: which features fire; JumpReLU with ``threshold`` unless given.
        info: how users name it.
    """

    def __init__(
        self,
        encoder: Rows,
        decoder: Rows,
        *,
        b_enc: Tensor,
        b_dec: Tensor,
        threshold: Tensor,
        skip: Tensor | None = None,
        reads: Site,
        writes: Site,
        info: DictionaryInfo,
        activation: Activation | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        for name, tensor in {"b_enc": b_enc, "b_dec": b_dec, "threshold": threshold, "skip": skip}.items():
            self.register_buffer(name, tensor)
        self.b_enc: Tensor
        self.b_dec: Tensor
        self.threshold: Tensor
        self.skip: Tensor | None
        self.reads, self.writes, self.info = reads, writes, info
        self.activation: Activation = activation or JumpReLU()

    @property
    def width(self) -> int:
        return self.encoder.width

    @property
    def d_in(self) -> int:
        return self.encoder.d

    @property
    def d_out(self) -> int:
        return self.decoder.d

    @property
    def is_transcoder(self) -> bool:
        return self.reads != self.writes

    @property
    def nbytes(self) -> int:
        """Bytes of all weights in memory."""
        small = [self.b_enc, self.b_dec, self.threshold, self.skip]
        return self.encoder.nbytes + self.decoder.nbytes + sum(t.nbytes for t in small if t is not None)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Features:
        """Sparse activations of [n, d_in], in the dictionary's dtype.

        Raises:
            MismatchError: ``x`` is not [n, d_in].
        """
        if x.ndim != 2 or x.shape[1] != self.d_in:
            raise MismatchError(
                f"{self.info.id} reads {self.reads} as [tokens, {self.d_in}], got {list(x.shape)}; "
                "it was trained on another model or site"
            )
        return sparse.encode(x, self.encoder, self.b_enc, self.threshold, self.activation)

    @torch.no_grad()
    def decode(self, features: Features) -> Tensor:
        """[n, d_out] = acts @ w_dec + b_dec, reading only the active rows; without the skip."""
        return sparse.weighted_sum(features, self.decoder) + self.b_dec

    @torch.no_grad()
    def output(self, features: Features, x: Tensor) -> Tensor:
        """[n, d_out], what is written where ``features`` fire on activations ``x`` [n, d_in]: decoded, and the skip."""
        recon = self.decode(features)
        return recon if self.skip is None else recon + x.to(self.skip) @ self.skip

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """[n, d_out], what the dictionary makes of [n, d_in] activations, the skip included."""
        return self.output(self.encode(x), x)
