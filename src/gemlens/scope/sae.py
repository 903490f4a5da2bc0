"""JumpReLU dictionaries over one layer: sparse autoencoders and transcoders.

    pre   = x @ w_enc + b_enc
    acts  = relu(pre) * (pre > threshold)
    recon = acts @ w_dec + b_dec (+ x @ affine_skip_connection)

Rajamanoharan et al. 2024 (arXiv:2407.14435); Gemma Scope, Lieberum et al. 2024 (arXiv:2408.05147). The encoder
does not subtract ``b_dec``. An SAE writes where it reads; a transcoder reads the MLP's input and writes its output.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gemlens.errors import MismatchError
from gemlens.records import DictionaryInfo
from gemlens.scope.features import Features
from gemlens.scope.rows import Rows
from gemlens.sites import Site

__all__ = ["SAE"]

_TOGETHER = 1024


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
        # In parts, so that the pre-activations of a long text do not have to fit in memory.
        return Features.concatenate([self._encode(part.to(self.b_enc)) for part in x.split(_TOGETHER)])

    def _encode(self, x: Tensor) -> Features:
        # relu(pre) * (pre > threshold) is positive exactly where pre exceeds both.
        floor = self.threshold.clamp(min=0)
        found = []
        for start, block in self.encoder.blocks():
            stop = start + len(block)
            pre = torch.addmm(self.b_enc[start:stop], x, block.T)
            token, feature = (pre > floor[start:stop]).nonzero(as_tuple=True)
            found.append((token, feature + start, pre[token, feature]))
        tokens, ids, values = (torch.cat(parts) for parts in zip(*found, strict=True))
        if len(found) > 1:
            order = tokens.argsort(stable=True)
            tokens, ids, values = tokens[order], ids[order], values[order]
        indptr = torch.zeros(len(x) + 1, dtype=torch.int64, device=x.device)
        indptr[1:] = torch.bincount(tokens, minlength=len(x)).cumsum(0)
        return Features(indptr, ids, values, self.width)

    @torch.no_grad()
    def decode(self, features: Features) -> Tensor:
        """[n, d_out] = acts @ w_dec + b_dec, reading only the active rows; without the skip."""
        active, entries = features.ids.unique(return_inverse=True)
        rows = self.decoder.rows(active)
        if not len(active):
            return self.b_dec.expand(len(features), -1).clone()
        summed = F.embedding_bag(
            entries,
            rows,
            features.indptr,
            mode="sum",
            per_sample_weights=features.values.to(rows.dtype),
            include_last_offset=True,
        )
        return summed + self.b_dec

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """[n, d_out], what the dictionary makes of [n, d_in] activations, the skip included."""
        recon = self.decode(self.encode(x))
        return recon if self.skip is None else recon + x.to(self.skip) @ self.skip
