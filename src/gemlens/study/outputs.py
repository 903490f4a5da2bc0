"""A dictionary as its outputs, one for each site that it writes: an SAE or transcoder has one, a CLT one a layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from gemlens.records import DictionaryInfo
from gemlens.scope.features import Features
from gemlens.scope.multilayer import MultiLayer
from gemlens.scope.sae import SAE
from gemlens.sites import Site

__all__ = ["Dictionary", "Made", "Output", "make", "outputs"]

Dictionary = SAE | MultiLayer


@dataclass(frozen=True, eq=False)
class Output:
    """A site that a dictionary writes, and the features of the layer that it belongs to."""

    dictionary: Dictionary
    info: DictionaryInfo
    """Of a CLT: with the site and width of this layer alone."""
    reads: Site
    """By the features of this layer; those of earlier layers of a CLT, which write here too, have outputs of their
    own."""
    writes: Site

    def encode(self, x: Tensor) -> Features:
        """Features of this layer, of activations [n, d_in] at ``reads``."""
        if isinstance(self.dictionary, SAE):
            return self.dictionary.encode(x)
        return self.dictionary.encode({self.reads: x})[self.reads]


def outputs(dictionary: Dictionary) -> list[Output]:
    if isinstance(dictionary, SAE):
        return [Output(dictionary, dictionary.info, dictionary.reads, dictionary.writes)]
    found = []
    for reads, writes in zip(dictionary.reads, dictionary.writes, strict=True):
        width = dictionary.layer(reads).encoder.width
        info = replace(dictionary.info, site=str(reads), layer=reads.layer, width=width)
        found.append(Output(dictionary, info, reads, writes))
    return found


class Made(NamedTuple):
    """What a dictionary makes of activations, at one of its outputs."""

    features: Features
    """Of the layer that the output belongs to."""
    recon: Tensor
    """[n, d_out]"""


def make(dictionary: Dictionary, x: Mapping[Site, Tensor]) -> list[Made]:
    """For each output, from activations [n, d_in] at every site that is read; others may be there."""
    if isinstance(dictionary, SAE):
        read = x[dictionary.reads]
        features = dictionary.encode(read)
        return [Made(features, dictionary.output(features, read))]
    found = dictionary.encode({site: x[site] for site in dictionary.reads})
    return [
        Made(found[reads], dictionary.output(found, writes, x))
        for reads, writes in zip(dictionary.reads, dictionary.writes, strict=True)
    ]
