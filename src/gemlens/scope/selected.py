"""A few features of a dictionary, taken out of it: their rows of encoder and decoder, and their maxima.

    acts = relu(pre) * (pre > threshold)     pre = x @ rows_enc.T + b_enc, of these features alone

Two features of 65,536 cost as much as two of two. Only TopK needs every pre-activation to know which of them fire.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gemlens.errors import InputError
from gemlens.records import DictionaryInfo
from gemlens.scope.multilayer import MultiLayer
from gemlens.scope.sae import SAE
from gemlens.sites import Site

__all__ = ["Selected", "layer_site", "select"]


@dataclass(frozen=True, eq=False)
class Selected:
    """Features that read one site and write one or several."""

    info: DictionaryInfo
    """Of the whole dictionary."""
    ids: tuple[int, ...]
    reads: Site
    rows: dict[Site, Tensor] = field(repr=False)
    """[k, d_out], what a feature of activation 1 adds at each site that it writes."""
    _encoder: SAE | tuple[Tensor, Tensor, Tensor] = field(repr=False)
    """Rows [k, d_in], biases and least pre-activations [k]; or the whole dictionary where one needs the others."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def writes(self) -> list[Site]:
        return sorted(self.rows)

    @property
    def path(self) -> str:
        return "/".join(filter(None, [self.info.category, self.info.id]))

    @property
    def device(self) -> torch.device:
        return self.rows[self.writes[0]].device

    def named(self, feature: int) -> str:
        """For messages."""
        return f"feature {feature} of {self.path} at {self.reads}"

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """[..., k], activations of these features, of [..., d_in], in the dictionary's dtype."""
        if isinstance(self._encoder, SAE):
            found = self._encoder.encode(x.flatten(0, -2)).select(self.ids)
            return found.unflatten(0, x.shape[:-1])
        rows, bias, least = self._encoder
        pre = x.to(rows) @ rows.T + bias
        return torch.where(pre > least, pre, 0)


def select(dictionary: SAE | MultiLayer, features: Sequence[int], *, layer: int | None = None) -> Selected:
    """Take ``features`` out of ``dictionary``; one that is named twice counts once.

    Args:
        layer: of a CLT or crosscoder, the layer that the features read.

    Raises:
        InputError: a feature that does not exist; ``layer`` missing, or not one of the dictionary's.
    """
    reads = layer_site(dictionary, layer)
    part = dictionary if isinstance(dictionary, SAE) else dictionary.layer(reads)
    ids = tuple(dict.fromkeys(features))
    for feature in ids:
        if not isinstance(feature, int) or isinstance(feature, bool) or not 0 <= feature < part.encoder.width:
            raise InputError(
                f"feature {feature} does not exist in {dictionary.info.id}: those that read {reads} are 0 to "
                f"{part.encoder.width - 1}"
            )
    at = torch.tensor(ids, dtype=torch.int64, device=part.b_enc.device)
    if isinstance(part, SAE):
        rows = {part.writes: part.decoder.rows(at)}
        least = part.activation.least(part.threshold[at])
    else:
        assert isinstance(dictionary, MultiLayer)
        written = dictionary.writes[part.first : part.first + part.outputs]
        rows = {site: part.decoder.rows(at * part.outputs + index) for index, site in enumerate(written)}
        least = part.threshold[at].clamp(min=0)
    if least is None:
        assert isinstance(part, SAE)
        return Selected(dictionary.info, ids, reads, rows, part)
    return Selected(dictionary.info, ids, reads, rows, (part.encoder.rows(at), part.b_enc[at], least))


def layer_site(dictionary: SAE | MultiLayer, layer: int | None) -> Site:
    """The site that is read by a dictionary over one layer, or by one layer of a dictionary over several."""
    if isinstance(dictionary, SAE):
        if layer is not None and layer != dictionary.reads.layer:
            raise InputError(f"layer {layer}: {dictionary.info.id} reads {dictionary.reads}; leave the layer out")
        return dictionary.reads
    layers = [site.layer for site in dictionary.reads]
    if layer not in layers:
        said = "no layer was given" if layer is None else f"layer {layer} is not one of them"
        raise InputError(
            f"{dictionary.info.id} has features of its own for each of the layers "
            f"{', '.join(map(str, layers))}, and {said}; say which they read, as layer={layers[0]}"
        )
    return dictionary.reads[layers.index(layer)]
