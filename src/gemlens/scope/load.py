"""Load a dictionary by release and id: from the hub, its cache, a folder, or the starter package.

    google/gemma-scope-2-270m-it        resid_post/layer_12_width_16k_l0_small    a hub repository and a path in it
    gemma-scope-2b-pt-res-canonical     layer_20/width_16k/canonical              SAELens' names (``scope.catalog``)
    path/to/folder                      resid_post/layer_12_…, or nothing         a folder with one or several
    starter                             resid_post/layer_12_width_4k_l0_medium    the package gemlens-starter

``scope.formats`` tells which layout a folder is in, and reads it.
"""

from __future__ import annotations

from pathlib import Path

import torch

from gemlens import hub
from gemlens.errors import GemlensError, InputError, NotFoundError, nearest
from gemlens.paths import local_folder
from gemlens.scope.folder import Folder, HubFolder, LocalFolder, is_cached
from gemlens.scope.formats import FORMATS, Format, dictionaries_below, likeliest_first
from gemlens.scope.formats.gemma_scope_2_layers import names_crosscoder
from gemlens.scope.formats.layout import Target
from gemlens.scope.multilayer import MultiLayer
from gemlens.scope.names import hub_place, split_id
from gemlens.scope.sae import SAE
from gemlens.scope.starter import STARTER_RELEASE, starter_root

__all__ = ["load_clt", "load_crosscoder", "load_sae", "load_transcoder", "locate", "split_id"]


def load_sae(
    release: str,
    sae_id: str = "",
    *,
    category: str | None = None,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> SAE:
    """Load an SAE or transcoder of any format.

    Args:
        release: hub repository, SAELens' release, folder, or ``starter``.
        sae_id: ``layer_12_width_16k_l0_small``, or with its category ``resid_post/layer_12_width_16k_l0_small``;
            nothing for a folder that holds one dictionary.
        category: for ids without one.
        dtype: of the arithmetic; files hold float32, bfloat16 or int8. int8 stays int8 in memory, and is turned into
            ``dtype`` block by block.

    Raises:
        NotFoundError: no such release or id; nearest names included.
        AccessError, NetworkError: the hub does not give it out, or cannot be reached.
        WeightsError: truncated, damaged, incomplete, of shapes that contradict each other or the config.
        InputError: a CLT or crosscoder.
        MissingPackageError: ``starter`` without its data package.
    """
    folder, layout = locate(release, sae_id, category, revision, over_layers=False)
    sae = layout.read(folder, Target(torch.device(device), dtype))
    assert isinstance(sae, SAE)
    return sae


def load_transcoder(
    release: str,
    transcoder_id: str = "",
    *,
    category: str | None = None,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> SAE:
    """Load a transcoder as ``load_sae`` does, and refuse an SAE.

    Raises:
        InputError: the dictionary writes where it reads; and all that ``load_sae`` raises.
    """
    sae = load_sae(release, transcoder_id, category=category, revision=revision, device=device, dtype=dtype)
    if not sae.is_transcoder:
        raise InputError(f"{transcoder_id or release} is an SAE, which reads and writes {sae.reads}; use load_sae")
    return sae


def load_clt(
    release: str,
    clt_id: str = "",
    *,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> MultiLayer:
    """Load a cross-layer transcoder, all its layers: ``clt/width_262k_l0_big_affine``, or circuit-tracer's folder.

    Raises:
        InputError: a crosscoder, SAE or transcoder; and all that ``load_sae`` raises.
    """
    return _over_layers(release, clt_id, revision, Target(torch.device(device), dtype), crosscoder=False)


def load_crosscoder(
    release: str,
    crosscoder_id: str = "",
    *,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> MultiLayer:
    """Load a crosscoder: ``crosscoder/layer_7_13_17_22_width_262k_l0_medium``.

    Raises:
        InputError: a CLT, SAE or transcoder; and all that ``load_sae`` raises.
    """
    return _over_layers(release, crosscoder_id, revision, Target(torch.device(device), dtype), crosscoder=True)


def _over_layers(release: str, name: str, revision: str | None, to: Target, *, crosscoder: bool) -> MultiLayer:
    folder, layout = locate(release, name, None, revision, over_layers=True)
    if names_crosscoder(folder.said) != crosscoder:
        raise InputError(
            f"{name or release} is a CLT; use load_clt (a crosscoder's folder names its layers: layer_7_13_17_22_…)"
            if crosscoder
            else f"{name or release} is a crosscoder; use load_crosscoder"
        )
    dictionary = layout.read(folder, to)
    assert isinstance(dictionary, MultiLayer)
    return dictionary


def locate(
    release: str, name: str, category: str | None, revision: str | None, *, over_layers: bool | None = None
) -> tuple[Folder, Format]:
    """The folder of a dictionary, and the format it is in; ``over_layers`` refuses the other kind."""
    name = name.strip("/")
    path = "/".join(filter(None, split_id(name, category if name else None)))
    root = starter_root() if release == STARTER_RELEASE else local_folder(release)
    if root:
        return _in_folder(release, root, [path, name], over_layers=over_layers)
    repo, path = hub_place(release, name, path)
    return _in_repo(repo, [path, name], revision, over_layers=over_layers)


# Both are given a path with the category and the bare name: a category that only stands in for none does not hide
# what the name finds.
def _in_folder(release: str, root: Path, paths: list[str], *, over_layers: bool | None) -> tuple[Folder, Format]:
    """A dictionary below ``root``, or ``root`` itself where it is one."""
    path = paths[0]
    for inside in filter(None, paths):
        if found := _formats_of(root, inside):
            return _the_one(release, root, path, inside, found, over_layers=over_layers)
    there = sorted(set(dictionaries_below(root)))
    if there == ["."] or (len(there) == 1 and not path):
        inside = "" if there == ["."] else there[0]
        return _the_one(release, root, path or inside, inside, _formats_of(root, inside), over_layers=over_layers)
    if not path and there:
        raise NotFoundError(f"{release} holds several dictionaries; name one: {_listed(there)}")
    # The same name in another category is meant, however much else lies in this one.
    same = [each for each in there if each.rpartition("/")[2] == path.rpartition("/")[2]]
    raise NotFoundError(f"{release} holds no dictionary {path!r}; {nearest(path, same or there)}")


def _formats_of(root: Path, path: str) -> list[Format]:
    """The formats that the folder ``path`` below ``root`` has the files of."""
    found = []
    for each in FORMATS:
        place = each.place(path)
        try:
            if place and (root / place[0] / place[1]).is_file():
                found.append(each)
        except (OSError, ValueError):  # a name longer than the file system allows is not there either
            continue
    return found


def _the_one(
    release: str, root: Path, path: str, inside: str, found: list[Format], *, over_layers: bool | None
) -> tuple[Folder, Format]:
    if len(found) > 1:
        names = ", ".join("/".join(filter(None, each.place(inside) or ())) for each in found)
        raise InputError(f"{path or root.name} holds several dictionaries; keep one of {names} there")
    layout = found[0]
    _check_kind(path or release, layout.over_layers, over_layers)
    place = layout.place(inside)
    assert place
    return LocalFolder(release, path, root / place[0]), layout


def _in_repo(repo: str, paths: list[str], revision: str | None, *, over_layers: bool | None) -> tuple[Folder, Format]:
    """A dictionary of a hub repository: what the cache has, else what the hub has, the likeliest format first."""
    if paths[0].startswith(("clt/", "crosscoder/")):
        _check_kind(paths[0], True, over_layers)
    tried = [
        (layout, path, place)
        for path in dict.fromkeys(paths)
        for layout in likeliest_first(path, over_layers=over_layers)
        if (place := layout.place(path))
    ]
    files = ["/".join(filter(None, place)) for _, _, place in tried]
    chosen = next((index for index, file in enumerate(files) if is_cached(repo, file, revision)), None)
    if chosen is None:
        chosen = _first_on_hub(repo, files, revision)
    layout, path, (inside, _) = tried[chosen]
    return HubFolder(repo, path, inside, revision), layout


def _first_on_hub(repo: str, files: list[str], revision: str | None) -> int:
    try:
        hub.fetch(repo, files[0], revision=revision)
        return 0
    except NotFoundError as error:  # asked for by the likeliest name, so its message names what is near
        try:
            there = set(hub.list_files(repo, revision=revision))
        except GemlensError:
            raise error from None
        for index, file in enumerate(files):
            if file in there:
                return index
        raise


def _check_kind(name: str, is_over_layers: bool, wanted: bool | None) -> None:
    if is_over_layers and wanted is False:
        use = "load_crosscoder" if names_crosscoder(name) else "load_clt"
        raise InputError(f"{name} is over several layers; use {use}")
    if wanted and not is_over_layers:
        raise InputError(f"{name} is over one layer; use load_sae or load_transcoder")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
