"""What names say: from those that users give to a repository on the hub and a path in it, and what config and path of a
Gemma Scope 2 dictionary say of it without its tensors. Light: no torch.
"""

from __future__ import annotations

import re
from typing import Any

from gemlens import hub
from gemlens.errors import NotFoundError, nearest
from gemlens.scope import catalog
from gemlens.scope.folder import Folder
from gemlens.sites import Site, parse_hook_point

__all__ = ["hub_place", "model_name", "sites", "split_id"]

# The folder that dictionaries of a kind lie in -> where they read and write.
_CATEGORIES = {
    "resid_post": ("resid_post", "resid_post"),
    "attn_out": ("attn_out", "attn_out"),
    "mlp_out": ("mlp_out", "mlp_out"),
    "transcoder": ("mlp_in", "mlp_out"),
}
_CATEGORY = re.compile(rf"(?:^|/)({'|'.join(_CATEGORIES)})(?:_all)?/(?:[^/]*_)?layer_([0-9]{{1,6}})(?![0-9])")


def split_id(sae_id: str, category: str | None) -> tuple[str, str]:
    """``("resid_post/layer_12_…", any)`` or ``("layer_12_…", "resid_post")`` -> category, id.

    A category inside the id wins; without either the category is empty (a folder that holds the files itself).
    """
    inside, _, name = sae_id.strip("/").rpartition("/")
    return inside or (category or ""), name


def hub_place(release: str, name: str, path: str) -> tuple[str, str]:
    """Hub repository and path of what may be SAELens' names, or a repository's short ones."""
    if hub.is_repo_id(release):
        try:
            entry = catalog.resolve(release, path)
        except NotFoundError:  # the catalogue does not know all repositories, nor all that is in those it knows
            return release, path
        return entry.repo, entry.path
    releases = {entry.release for entry in catalog.entries()}
    if release not in releases:
        raise NotFoundError(
            f"{release[:200]!r} is neither a folder nor a hub repository (owner/name), and no release of the "
            f"catalogue: {nearest(release[:200], releases)}; starter needs no network"
        )
    entry = catalog.resolve(release, name)
    return entry.repo, entry.path


def model_name(config: dict[str, Any]) -> str | None:
    """Some configs say gemma-v3 for gemma-3."""
    name = config.get("model_name")
    return name.replace("gemma-v3-", "gemma-3-") if isinstance(name, str) else None


def sites(config: dict[str, Any], folder: Folder) -> tuple[Site, Site]:
    """From the config's hook points; from the path where the config is missing or names none."""
    if config.get("hf_hook_point_in") is not None:
        reads = parse_hook_point(str(config["hf_hook_point_in"]))
        return reads, parse_hook_point(str(config.get("hf_hook_point_out", config["hf_hook_point_in"])))
    # A path of several parts is believed over the folders that the release lies in.
    said = _CATEGORY.findall(folder.path if "/" in folder.path else folder.said)
    if not said:
        raise NotFoundError(
            f"{folder.path or folder.release} has no config.json that says what it reads, and its path does not; "
            f"expected CATEGORY/layer_L_…, with a category of {', '.join(_CATEGORIES)}"
        )
    category, layer = said[-1]
    read, written = _CATEGORIES[category]
    return Site(int(layer), read), Site(int(layer), written)
