"""Sets of transcoders: one for every MLP, or a CLT, found in a release by what their names have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gemlens.errors import InputError, NotFoundError, nearest
from gemlens.records import series_name
from gemlens.scope.listing import Listed, listing

if TYPE_CHECKING:
    import torch

    from gemlens.scope.multilayer import MultiLayer
    from gemlens.scope.sae import SAE

__all__ = ["TranscoderSet", "find_set", "load_set", "sets_in"]

_READ_BY_TRANSCODERS = ("mlp_in", "mlp_in_normalized")


@dataclass(frozen=True, slots=True)
class TranscoderSet:
    """Transcoders of several layers that are alike, or one CLT."""

    release: str
    name: str
    """``transcoder_all/layer_*_width_16k_l0_small_affine``; of a CLT its path."""
    members: tuple[Listed, ...]
    """By layer; of a CLT itself alone."""

    @property
    def is_clt(self) -> bool:
        return self.members[0].is_clt


def sets_in(release: str, *, found: Sequence[Listed] | None = None) -> list[TranscoderSet]:
    """All sets of a release, those of most layers first, then by width and sparsity.

    Raises:
        NotFoundError, AccessError, NetworkError: as ``listing`` does.
    """
    there = listing(release, clts=True) if found is None else found
    groups: dict[str, list[Listed]] = {}
    for each in there:
        if each.is_clt:
            groups[each.path] = [each]
        elif each.site in _READ_BY_TRANSCODERS and each.layer is not None:
            # Gemma Scope 1's ids name the L0 that came out, another for each layer: they are alike by width.
            known = each.l0 is not None and each.l0.isdecimal() and "average_l0" in each.path
            name = series_name(each.path.rpartition("/average_l0")[0] if known else each.path)
            groups.setdefault(name, []).append(each)
    sets = [TranscoderSet(release, name, tuple(_one_a_layer(members))) for name, members in groups.items()]
    return sorted(sets, key=lambda each: (each.is_clt, -len(each.members), each.members[0].order))


def find_set(release: str, name: str | None = None) -> TranscoderSet:
    """The set of that name, or of which the name is a part; the first of ``sets_in`` where none is given.

    Raises:
        NotFoundError: the release holds no transcoders, or none of that name.
        InputError: several have the name as a part.
    """
    sets = sets_in(release)
    if not sets:
        raise NotFoundError(
            f"{release} holds no transcoders of MLPs; gemlens catalog --site mlp_in lists what there is"
        )
    if name is None:
        return sets[0]
    names = [each.name for each in sets]
    if name in names:
        return sets[names.index(name)]
    close = [each for each in sets if name in each.name]
    if not close:
        raise NotFoundError(f"{release} holds no set of transcoders called {name!r}; {nearest(name, names)}")
    if len(close) > 1:
        raise InputError(
            f"{name!r} is part of the names of {len(close)} sets of {release}, such as {close[0].name} and "
            f"{close[1].name}; give one of them whole"
        )
    return close[0]


def load_set(
    chosen: TranscoderSet, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> list[SAE] | MultiLayer:
    """Load all transcoders of a set, or the CLT; in float32 unless told otherwise. Raises what loading one raises."""
    import torch

    from gemlens.scope.load import load_clt, load_transcoder

    kind = torch.float32 if dtype is None else dtype
    if chosen.is_clt:
        return load_clt(chosen.release, chosen.members[0].path, device=device, dtype=kind)
    return [load_transcoder(chosen.release, each.path, device=device, dtype=kind) for each in chosen.members]


def _one_a_layer(members: Sequence[Listed]) -> list[Listed]:
    """Where a layer has several, the sparsest."""
    first: dict[int, Listed] = {}
    for each in sorted(members, key=lambda each: each.order):
        if each.layer is not None:
            first.setdefault(each.layer, each)
    return [first[layer] for layer in sorted(first)] or list(members)
