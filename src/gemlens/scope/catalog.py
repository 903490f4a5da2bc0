"""What is known of published dictionaries without asking anybody."""

from __future__ import annotations

import re
from collections.abc import Container
from typing import NamedTuple

__all__ = ["neuronpedia_id"]


class _Shown(NamedTuple):
    """Dictionaries of Gemma Scope 2 that Neuronpedia has pages for."""

    models: set[str]
    path: str
    """Pattern of the path, with layer and width."""
    widths: set[str]
    layers: Container[int]
    source: str


_ALL = range(1000)
_RESID = r"resid_post/layer_(\d+)_width_(\w+?)_l0_medium"
_TRANSCODER = r"transcoder_all/layer_(\d+)_width_(\w+?)_l0_small_affine"
_SHOWN = [
    _Shown({"270m-pt", "1b-pt", "4b-pt", "12b-pt", "27b-it"}, _RESID, {"16k", "65k", "262k", "1m"}, _ALL, "res"),
    _Shown({"270m-it", "1b-it", "4b-it"}, _RESID, {"16k", "65k", "262k"}, _ALL, "res"),
    _Shown({"4b-it", "27b-it"}, _TRANSCODER, {"262k"}, _ALL, "transcoder"),
    _Shown({"4b-it"}, _TRANSCODER, {"16k"}, {0, 1, 2, 3, 4, 6, 7, 9, 10, 12}, "transcoder"),
]


def neuronpedia_id(repo: str, path: str) -> str | None:
    """Neuronpedia's ``model/source`` for exactly this dictionary, or None.

    ``("google/gemma-scope-2-270m-pt", "resid_post/layer_12_width_16k_l0_medium")`` is
    ``gemma-3-270m/12-gemmascope-2-res-16k``. The same name under ``resid_post_all`` is another dictionary.
    """
    model = repo.removeprefix("google/gemma-scope-2-")
    for shown in _SHOWN:
        match = re.fullmatch(shown.path, path)
        if model in shown.models and match and match[2] in shown.widths and int(match[1]) in shown.layers:
            return f"gemma-3-{model.removesuffix('-pt')}/{match[1]}-gemmascope-2-{shown.source}-{match[2]}"
    return None
