"""What passes the sites that a dictionary writes, taken apart: features, bias, skip, error.

    activation = sum over features of acts * w_dec  +  b_dec  (+ x @ skip)  +  error

of each token; the error is what the dictionary leaves over. At tokens that are left out, all of them are 0. An SAE or
transcoder writes one site. The features of one layer of a CLT or crosscoder write several: what such a feature does is
what it does at all of them together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from gemlens.records import DictionaryInfo
from gemlens.scope.features import Features
from gemlens.scope.multilayer import MultiLayer
from gemlens.scope.rows import Rows
from gemlens.scope.sae import SAE
from gemlens.sites import Site
from gemlens.study.analysis import at_tokens
from gemlens.study.outputs import Dictionary, outputs

__all__ = ["Decomposed", "Source", "Written", "decompose", "read_and_written"]

# Decoder rows that are held at a time, in numbers: 64 MB.
_NUMBERS = 1 << 24


class _Place(NamedTuple):
    """Where in a matrix the rows of features lie: row ``id * stride + offset``."""

    rows: Rows
    stride: int
    offset: int


@dataclass(frozen=True, eq=False)
class Source:
    """Features that read one site, at every token of a prompt."""

    info: DictionaryInfo
    """Of a CLT or crosscoder: with the site and width of this layer alone."""
    features: Features
    """At n tokens; none where it is not applied."""
    places: dict[Site, _Place] = field(repr=False)
    """By the site that they write."""

    @property
    def writes(self) -> list[Site]:
        return sorted(self.places)

    def rows(self, site: Site, ids: Tensor) -> Tensor:
        """[len(ids), d], what features of activation 1 add at ``site``."""
        rows, stride, offset = self.places[site]
        return rows.rows(ids.to(_device(rows)) * stride + offset)

    def along(self, gradients: Mapping[Site, Tensor]) -> Tensor:
        """float64 [nnz], each activation times its decoder row times the gradient [n, d] at its token, over all sites.

        Only rows that fired are read, some at a time: [tokens, width] of anything would be gigabytes.
        """
        features = self.features
        total = torch.zeros(len(features.ids), dtype=torch.float64)
        tokens = features.tokens
        for site in self.writes:
            if site not in gradients:
                continue
            gradient = gradients[site]
            for part in torch.arange(len(tokens)).split(max(1, _NUMBERS // gradient.shape[1])):
                active, entry = features.ids[part].unique(return_inverse=True)
                rows = self.rows(site, active).to(gradient)
                dots = torch.einsum("pd,pd->p", rows[entry.to(rows.device)], gradient[tokens[part].to(rows.device)])
                total[part] += dots.double().cpu()
        return total * features.values.double()


@dataclass(frozen=True, eq=False)
class Written:
    """What passes one site that a dictionary writes, [n, d] each."""

    site: Site
    value: Tensor = field(repr=False)
    """All of it, at the tokens that are read."""
    bias: Tensor = field(repr=False)
    skip: Tensor | None = field(repr=False)
    """``x @ skip``, of transcoders and CLTs that have one."""
    error: Tensor = field(repr=False)

    @property
    def constant(self) -> Tensor:
        """What the dictionary writes where no feature fires."""
        return self.bias if self.skip is None else self.bias + self.skip


@dataclass(frozen=True, eq=False)
class Decomposed:
    """One dictionary on one prompt."""

    dictionary: Dictionary
    sources: list[Source]
    """One for each site that it reads."""
    written: list[Written]
    """One for each site that it writes; as many as sources."""


def read_and_written(dictionary: Dictionary) -> tuple[list[Site], list[Site]]:
    parts = outputs(dictionary)
    return [part.reads for part in parts], [part.writes for part in parts]


@torch.no_grad()
def decompose(dictionary: Dictionary, values: Mapping[Site, Tensor], counted: Tensor) -> Decomposed:
    """Take a clean pass apart.

    Args:
        values: [n, d] at every site that the dictionary reads or writes.
        counted: bool [n], the tokens that it is applied to.
    """
    reads, writes = read_and_written(dictionary)
    x = {site: values[site][counted.to(values[site].device)] for site in reads}
    if isinstance(dictionary, SAE):
        found = {dictionary.reads: dictionary.encode(x[dictionary.reads])}
    else:
        found = dictionary.encode(x)
    sources = [
        Source(part.info, at_tokens(found[part.reads], counted), dict(_places(dictionary, part.reads)))
        for part in outputs(dictionary)
    ]
    written = []
    for site, read in zip(writes, reads, strict=True):
        value = values[site][counted.to(values[site].device)].float()
        bias, skip, recon = _constants(dictionary, site, read, x, found)
        at = [None if part is None else _spread(part.to(value), counted) for part in (value, bias, skip, value - recon)]
        assert at[0] is not None and at[1] is not None and at[3] is not None
        written.append(Written(site, at[0], at[1], at[2], at[3]))
    return Decomposed(dictionary, sources, written)


def _constants(
    dictionary: Dictionary, site: Site, read: Site, x: Mapping[Site, Tensor], found: dict[Site, Features]
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Bias, skip and reconstruction, float32 [tokens read, d]."""
    if isinstance(dictionary, SAE):
        recon = dictionary.output(found[read], x[read]).float()
    else:
        recon = dictionary.output(found, site, x).float()
    part = dictionary if isinstance(dictionary, SAE) else dictionary.layer(read)
    skip = None if part.skip is None else (x[read].to(part.skip) @ part.skip).float()
    return part.b_dec.float().expand_as(recon), skip, recon


def _places(dictionary: Dictionary, reads: Site) -> Iterator[tuple[Site, _Place]]:
    if isinstance(dictionary, SAE):
        yield dictionary.writes, _Place(dictionary.decoder, 1, 0)
        return
    assert isinstance(dictionary, MultiLayer)
    layer = dictionary.layer(reads)
    for offset, site in enumerate(dictionary.writes[layer.first : layer.first + layer.outputs]):
        yield site, _Place(layer.decoder, layer.outputs, offset)


def _spread(part: Tensor, counted: Tensor) -> Tensor:
    """[n, d], 0 at the tokens that were left out."""
    whole = part.new_zeros(len(counted), part.shape[1])
    whole[counted.to(part.device)] = part
    return whole


def _device(rows: Rows) -> torch.device:
    return next(rows.buffers()).device
