"""A model with features taken out, or with reconstructions in place of what dictionaries read, for an analysis of it.

What an analysis lists of a site is what passes it before its own edit: of features that are taken out, all the others;
with a splice, those that the reconstruction is made of. Everything above is of the edited model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from torch import Tensor

from gemlens.errors import InputError
from gemlens.lm.gemma import Model, writing
from gemlens.scope.sae import SAE
from gemlens.sites import Site
from gemlens.study.intervene import ablate
from gemlens.study.splice import splice

__all__ = ["Excluded", "by_dictionary", "edited", "said"]

Excluded = Sequence[int] | Mapping[int, Sequence[int]]
"""Features of the only dictionary, or by the index of the dictionary."""


def by_dictionary(dictionaries: Sequence[SAE], excluded: Excluded) -> list[tuple[int, ...]]:
    """What is taken out of each.

    Raises:
        InputError: an index that no dictionary has, or none where there are several.
    """
    if not isinstance(excluded, Mapping):
        if excluded and len(dictionaries) > 1:
            raise InputError(
                f"exclude_features {list(excluded)} could be of any of {len(dictionaries)} dictionaries; give a "
                "mapping from the index of each to its features"
            )
        excluded = {0: excluded}
    if wrong := [index for index in excluded if index not in range(len(dictionaries))]:
        raise InputError(f"exclude_features of dictionary {wrong[0]}: there are {len(dictionaries)}, counted from 0")
    return [tuple(dict.fromkeys(excluded.get(index, ()))) for index in range(len(dictionaries))]


def said(dictionaries: Sequence[SAE], excluded: Sequence[Sequence[int]], spliced: bool) -> list[str]:
    """For the warnings of a record: what was done to the model."""
    found = []
    for dictionary, features in zip(dictionaries, excluded, strict=True):
        name = "/".join(filter(None, [dictionary.info.category, dictionary.info.id]))
        if spliced:
            found.append(f"edited: {dictionary.writes} is the reconstruction of {name}, without its error")
        if features:
            many = "features" if len(features) > 1 else "feature"
            found.append(f"edited: {many} {', '.join(map(str, features))} of {name} taken out of {dictionary.writes}")
    return found


@contextmanager
def edited(
    model: Model, dictionaries: Sequence[SAE], excluded: Sequence[Sequence[int]], *, spliced: bool
) -> Iterator[dict[Site, list[Tensor]]]:
    """Collect what passes each site that is read before the site's own edit, a tensor a forward call.

    Raises:
        InputError: a feature that does not exist, or two splices at one site.
    """
    written = [dictionary.writes for dictionary in dictionaries]
    if spliced and (twice := [site for site in written if written.count(site) > 1]):
        names = " and ".join(d.info.id for d in dictionaries if d.writes == twice[0])
        raise InputError(f"{names} would both be spliced in at {twice[0]}; splice one of them at a time")
    found: dict[Site, list[Tensor]] = {dictionary.reads: [] for dictionary in dictionaries}

    def note(site: Site, x: Tensor) -> Tensor:
        found[site].append(x)
        return x

    with ExitStack() as stack:
        for site in found:  # as outer writes, which see what passes before any edit, where a read would not
            stack.enter_context(writing(model, site, lambda x, site=site: note(site, x)))  # type: ignore[misc]
        for dictionary, features in zip(dictionaries, excluded, strict=True):
            if spliced:
                stack.enter_context(splice(model, dictionary, without=features))
            elif features:
                stack.enter_context(ablate(model, dictionary, features))
        yield found
