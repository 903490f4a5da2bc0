"""Directions of a site: how to find one, and steering along it.

difference of means     mean over some texts' last tokens, less the mean over others' (Marks and Tegmark 2023,
                        arXiv:2310.06824; Turner et al. 2023, arXiv:2308.10248, add it to the residual stream)
a loaded vector         one tensor in a .safetensors or .npy file
a decoder row           dictionary.decoder.rows(torch.tensor([feature]))[0]
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from gemlens.errors import InputError, NotFoundError, WeightsError, nearest
from gemlens.lm.gemma import Model, module_at, ragged_activations
from gemlens.lm.text import encode_prompt, prompt_text
from gemlens.sites import Site, parse_site
from gemlens.study.edits import Edit, editing
from gemlens.study.fit_check import site_width
from gemlens.study.modes import Mode, Relative, brief, how, strengths_of, write
from gemlens.study.places import Active, Places, Positions

__all__ = ["difference_of_means", "load_direction", "steer_direction"]

# Texts read together.
_TOGETHER = 16


@contextmanager
def steer_direction(
    model: Model,
    site: Site | str,
    direction: Tensor,
    strength: float | Tensor,
    *,
    mode: Mode = "add",
    relative_to: Relative | None = None,
    positions: Positions = None,
    where: Active | None = None,
    bos: bool = False,
    prompt_tokens: int | None = None,
) -> Iterator[None]:
    """Add a direction to what passes a site: a decoder row, a difference of means, a vector of your own.

    Args:
        site: as ``resid_post.12``.
        direction: [d], taken as long as it is. See ``directions.difference_of_means`` and ``load_direction``.
        strength: how often to add it, or a tensor [texts, 1].
        mode: ``add``, or ``orthogonal``: take the direction out first.
        relative_to: None, or ``norm``: the strength is the length of what is added, in norms of what passes the site.
        positions, where, bos, prompt_tokens: as for ``ablate``.

    Raises:
        InputError: a direction that is not [d] finite numbers, or is zero; a mode that needs a feature; and as
            ``steer``.
        MismatchError: the model has no such layer.
    """
    site = parse_site(site) if isinstance(site, str) else site
    if how(mode, relative_to).needs_activation or relative_to == "max":
        raise InputError(
            f"mode {mode} relative to {relative_to}: a direction has no activation; take mode add or orthogonal, "
            "absolute or relative to the norm"
        )
    row = _row_of(model, site, direction)
    counted = strengths_of(strength, 1).to(model.device)
    edit = Edit(
        said=f"steer a direction at {site} ({mode} {brief(strength, relative_to)})",
        writes={site: write(row, counted, mode, relative_to)},
        places=Places.of(model, [], positions, where, bos),
    )
    with editing(model, edit, prompt=prompt_tokens):
        yield


def difference_of_means(
    model: Model, site: Site | str, texts: Sequence[str], others: Sequence[str], *, chat: bool | None = None
) -> Tensor:
    """float32 [d], the mean of what passes ``site`` at the last token of each of ``texts``, less that of ``others``.

    Raises:
        InputError: no text on one side, or one that is empty or too long.
        MismatchError: the model has no such layer.
    """
    site = parse_site(site) if isinstance(site, str) else site
    if not texts or not others:
        raise InputError("a difference of means needs texts on both sides; give at least one each")
    return _mean(model, site, texts, chat) - _mean(model, site, others, chat)


def _mean(model: Model, site: Site, texts: Sequence[str], chat: bool | None) -> Tensor:
    ids = [encode_prompt(model, prompt_text(model, text, chat=chat))[0] for text in texts]
    total = torch.zeros(site_width(model, site), dtype=torch.float64)
    for start in range(0, len(ids), _TOGETHER):
        part = ids[start : start + _TOGETHER]
        ends = torch.tensor([len(each) for each in part]).cumsum(0) - 1
        total += ragged_activations(model, part, [site])[site][ends.to(model.device)].double().sum(dim=0).cpu()
    return (total / len(ids)).float()


def load_direction(path: str | os.PathLike[str], name: str | None = None) -> Tensor:
    """float32 [d], a vector from a ``.safetensors`` or ``.npy`` file.

    Args:
        name: of the tensor, where a ``.safetensors`` file holds several.

    Raises:
        NotFoundError: no such file or tensor.
        InputError: another kind of file, several tensors and no name, or no vector.
        WeightsError: the file is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise NotFoundError(f"{path} does not exist; name a .safetensors or .npy file with one vector")
    readers = {".safetensors": _safetensors, ".npy": _npy}
    if path.suffix not in readers:
        raise InputError(f"{path}: neither .safetensors nor .npy; nothing else is read as a direction")
    found = readers[path.suffix](path, name)
    if found.ndim == 2 and 1 in found.shape:
        found = found.flatten()
    if found.ndim != 1 or not found.is_floating_point():
        raise InputError(f"{path} holds {list(found.shape)} of {found.dtype}, not a vector of real numbers")
    return found.float()


def _safetensors(path: Path, name: str | None) -> Tensor:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if name is None and len(names) != 1:
                raise InputError(f"{path} holds {len(names)} tensors; say which: {nearest('direction', names)}")
            if name is not None and name not in names:
                raise NotFoundError(f"{path} holds no tensor {name!r}; {nearest(name, names)}")
            return file.get_tensor(names[0] if name is None else name)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} cannot be read ({error}); write it again") from error


def _npy(path: Path, _name: str | None) -> Tensor:
    import numpy as np

    try:
        return torch.from_numpy(np.load(path, allow_pickle=False))
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise WeightsError(f"{path} cannot be read ({error}); write it again with numpy.save") from error


def _row_of(model: Model, site: Site, direction: Tensor) -> Tensor:
    """[1, d] on the model's device."""
    module_at(model, site)
    d = site_width(model, site)
    if not isinstance(direction, Tensor) or direction.shape != (d,):
        got = list(direction.shape) if isinstance(direction, Tensor) else type(direction).__name__
        raise InputError(f"a direction at {site} of {model.name} is a tensor [{d}], got {got}")
    row = direction.detach().to(model.device, torch.float32)[None]
    if not torch.isfinite(row).all() or not row.any():
        raise InputError("the direction is zero, or not all of it is finite; give one that points somewhere")
    return row
