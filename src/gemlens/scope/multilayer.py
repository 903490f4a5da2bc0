"""Dictionaries over several layers: cross-layer transcoders (CLTs) and crosscoders.

    acts_i  = relu(pre_i) * (pre_i > threshold_i)     pre_i = x_i @ w_enc_i + b_enc_i
    recon_j = sum_i acts_i @ w_dec_i[:, j] + b_dec_j (+ x_j @ skip_j)

Every layer has its own features, which read that layer alone and write several: of a CLT the layers j >= i, of a
crosscoder all. The features of layer i read the site ``reads[i]`` and write the sites ``writes[i:]`` or ``writes``.
Ameisen et al. 2025 (transformer-circuits.pub/2025/attribution-graphs); Lindsey et al. 2024 (crosscoders).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from gemlens.errors import MismatchError
from gemlens.records import DictionaryInfo
from gemlens.scope import sparse
from gemlens.scope.activation import JumpReLU
from gemlens.scope.features import Features
from gemlens.scope.rows import Rows
from gemlens.sites import Site

__all__ = ["Layer", "MultiLayer"]


class Layer(nn.Module):
    """The features of one layer.

    Args:
        encoder: one row a feature, [F, d_in].
        decoder: [F * outputs, d_out]; the rows of one feature, first output first, are side by side.
        b_enc: [F]
        threshold: [F]
        b_dec: [d_out], of the site that this layer writes.
        skip: [d_in, d_out], from this layer's input to the site that it writes, or None.
        first: index of the first layer that these features write.
    """

    def __init__(
        self,
        encoder: Rows,
        decoder: Rows,
        *,
        b_enc: Tensor,
        threshold: Tensor,
        b_dec: Tensor,
        skip: Tensor | None = None,
        first: int = 0,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.first = encoder, decoder, first
        for name, tensor in {"b_enc": b_enc, "threshold": threshold, "b_dec": b_dec, "skip": skip}.items():
            self.register_buffer(name, tensor)
        self.b_enc: Tensor
        self.threshold: Tensor
        self.b_dec: Tensor
        self.skip: Tensor | None

    @property
    def outputs(self) -> int:
        """Layers that the features write."""
        return self.decoder.width // self.encoder.width

    def writes_to(self, output: int) -> bool:
        return self.first <= output < self.first + self.outputs

    @property
    def nbytes(self) -> int:
        small = [self.b_enc, self.threshold, self.b_dec, self.skip]
        return self.encoder.nbytes + self.decoder.nbytes + sum(t.nbytes for t in small if t is not None)


class MultiLayer(nn.Module):
    """A CLT or crosscoder: weights and arithmetic only.

    Args:
        layers: in the order of the forward pass.
        reads: site that each layer reads.
        writes: site that each layer writes; the same as ``reads`` for a crosscoder.
        info: how users name it.
    """

    def __init__(
        self, layers: Sequence[Layer], *, reads: Sequence[Site], writes: Sequence[Site], info: DictionaryInfo
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.reads, self.writes, self.info = tuple(reads), tuple(writes), info

    def __len__(self) -> int:
        return len(self.layers)

    def layer(self, site: Site) -> Layer:
        """The features that read ``site``.

        Raises:
            MismatchError: none do.
        """
        if site not in self.reads:
            raise MismatchError(f"{self.info.id} does not read {site}; it reads {_listed(self.reads)}")
        return self._at(self.reads.index(site))

    def _at(self, index: int) -> Layer:
        layer = self.layers[index]
        assert isinstance(layer, Layer)
        return layer

    @property
    def width(self) -> int:
        """Features of all layers together."""
        return sum(self._at(index).encoder.width for index in range(len(self)))

    @property
    def is_transcoder(self) -> bool:
        return self.reads != self.writes

    @property
    def nbytes(self) -> int:
        """Bytes of all weights in memory."""
        return sum(self._at(index).nbytes for index in range(len(self)))

    @torch.no_grad()
    def encode(self, x: Mapping[Site, Tensor]) -> dict[Site, Features]:
        """The features of each layer whose site is given, of activations [n, d_in], in the dictionary's dtype.

        Raises:
            MismatchError: a site that is not read, or activations that are not [n, d_in].
        """
        return {site: self._encode(self.layer(site), site, given) for site, given in x.items()}

    def _encode(self, layer: Layer, site: Site, x: Tensor) -> Features:
        if x.ndim != 2 or x.shape[1] != layer.encoder.d:
            raise MismatchError(
                f"{self.info.id} reads {site} as [tokens, {layer.encoder.d}], got {list(x.shape)}; "
                "it was trained on another model or site"
            )
        return sparse.encode(x, layer.encoder, layer.b_enc, layer.threshold, JumpReLU())

    @torch.no_grad()
    def decode(self, features: Mapping[Site, Features], to: Site) -> Tensor:
        """[n, d_out], what all layers together write to one site, reading only the active rows; without the skip.

        Args:
            features: of every layer that writes to ``to``, by the site it reads; others may be there.

        Raises:
            MismatchError: a site that is not written, or the features of a layer are missing.
        """
        if to not in self.writes:
            raise MismatchError(f"{self.info.id} does not write {to}; it writes {_listed(self.writes)}")
        output = self.writes.index(to)
        sources = [index for index in range(len(self)) if self._at(index).writes_to(output)]
        if missing := [self.reads[index] for index in sources if self.reads[index] not in features]:
            raise MismatchError(f"{self.info.id} needs the features of {_listed(missing)} to write {to}")
        total = self._at(output).b_dec
        for index in sources:
            layer = self._at(index)
            fired = features[self.reads[index]]
            total = total + sparse.weighted_sum(fired, layer.decoder, stride=layer.outputs, offset=output - layer.first)
        return total

    @torch.no_grad()
    def output(self, features: Mapping[Site, Features], to: Site, x: Mapping[Site, Tensor]) -> Tensor:
        """[n, d_out], what is written to one site: ``decode``, and the skip from the layer's own activations in ``x``.

        Raises:
            MismatchError: as ``decode``.
        """
        recon = self.decode(features, to)
        index = self.writes.index(to)
        skip = self._at(index).skip
        return recon if skip is None else recon + x[self.reads[index]].to(skip) @ skip

    @torch.no_grad()
    def reconstruct(self, x: Mapping[Site, Tensor]) -> dict[Site, Tensor]:
        """[n, d_out] for each site that is written, from the activations of every site read; skips included."""
        features = self.encode(x)
        return {site: self.output(features, site, x) for site in self.writes}


def _listed(sites: Sequence[Site]) -> str:
    names = [str(site) for site in sites]
    return ", ".join(names) if len(names) < 8 else f"{names[0]} to {names[-1]}"
