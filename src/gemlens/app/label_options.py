"""Which dictionary, for the commands about labels: by name only, nothing is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gemlens.errors import InputError
from gemlens.scope.starter import STARTER_DICTIONARY, STARTER_RELEASE

if TYPE_CHECKING:
    from gemlens.scope.label_names import Named
    from gemlens.scope.labels import LabelStore

__all__ = ["LabelIdOption", "LabelReleaseOption", "chosen", "chosen_keys"]

LabelReleaseOption = Annotated[
    str | None,
    typer.Option(
        "--sae-release",
        help="Hub repository, SAELens' release or folder of dictionaries, or 'starter'.",
        metavar="RELEASE",
    ),
]
LabelIdOption = Annotated[
    str | None,
    typer.Option("--sae-id", help="Dictionary, as layer_20/width_16k/canonical.", metavar="ID"),
]


def chosen(release: str | None, sae_id: str | None) -> Named:
    """The one dictionary that is meant; the starter's own where only ``starter`` is named.

    Raises:
        InputError: none is named, or not enough.
        NotFoundError: no such name.
    """
    from gemlens.scope.label_names import named

    if release is None:
        raise InputError("--sae-release is missing: whose features? gemlens catalog lists names; or take starter")
    if sae_id is None and release == STARTER_RELEASE:
        sae_id = STARTER_DICTIONARY
    # Ids of Gemma Scope 2 that carry no category are, as for analyze, of the residual stream.
    return named(release, sae_id or "", category="resid_post")


def chosen_keys(store: LabelStore, release: str | None, sae_id: str | None) -> list[str] | None:
    """Exact paths to look at; None for all. With a release alone, all of its dictionaries that have labels."""
    from gemlens.scope.label_names import of_release

    if release is None and sae_id is None:
        return None
    if release is None or sae_id is not None:
        return [chosen(release, sae_id).key]
    return of_release(release, store.dictionaries())
