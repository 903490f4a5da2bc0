"""What steering does with a feature or direction, and what its strength is counted in.

x' = x + change @ rows      a row for each feature or direction

mode         change                        of strength 1
add          s                             as if the feature were more active by 1
set          s - activation                activation 1
scale        (s - 1) * activation          nothing
orthogonal   s - (x along the rows)        x without the rows' directions, then 1 of each

counted in   s
absolute     the strength
max          the strength x the largest activation that the feature is known to have
norm         the strength x |x| / |row|: what is added is so much of what passes the site
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from gemlens.errors import InputError, nearest
from gemlens.study.edits import Now, Write

__all__ = ["MODES", "UNITS", "Mode", "Relative", "brief", "how", "strengths_of", "write"]

Mode = Literal["add", "set", "scale", "orthogonal"]
Relative = Literal["max", "norm"]
UNITS: tuple[Relative, ...] = ("max", "norm")


class _How(NamedTuple):
    needs_activation: bool
    change: Callable[[Tensor, Any, Tensor, Tensor], Tensor]
    """Of strengths [.., .., k] in activations, activations [batch, q, k] or None, x [batch, q, d] and rows [k, d]:
    [batch, q, k] or what broadcasts to it."""


def _along(x: Tensor, rows: Tensor) -> Tensor:
    """[batch, q, k], by how much of each row x differs from what is orthogonal to all of them."""
    return x @ torch.linalg.pinv(rows)


MODES: dict[str, _How] = {
    "add": _How(False, lambda s, _old, _x, _rows: s),
    "set": _How(True, lambda s, old, _x, _rows: s - old),
    "scale": _How(True, lambda s, old, _x, _rows: (s - 1) * old),
    "orthogonal": _How(False, lambda s, _old, x, rows: s - _along(x, rows)),
}


def strengths_of(strength: float | Sequence[float] | Tensor, features: int) -> Tensor:
    """float32 [batch or 1, 1, features or 1].

    Args:
        strength: one for all, one for each feature, or a tensor [batch, 1 or features] with others for each text.

    Raises:
        InputError: one that is not finite, or another number of them.
    """
    if isinstance(strength, Tensor):
        if strength.ndim != 2 or strength.shape[1] not in (1, features):
            raise InputError(
                f"strengths {list(strength.shape)}: a tensor is [texts, 1] or [texts, {features} features]"
            )
        found = strength.float()[:, None, :]
    else:
        each = list(strength) if isinstance(strength, Sequence) else [strength]
        if len(each) not in (1, features):
            raise InputError(f"{len(each)} strengths for {features} features; give one, or one for each")
        found = torch.tensor(each, dtype=torch.float32)[None, None, :]
    if not torch.isfinite(found).all():
        raise InputError(f"strength {strength}: take finite numbers")
    return found


def write(rows: Tensor, strength: Tensor, mode: str, relative_to: str | None) -> Write:
    """How ``rows`` [k, d], of features or of a direction, are written where an edit touches a token.

    Args:
        strength: [batch or 1, 1, k or 1], already multiplied by the maxima where it is relative to those.

    Raises:
        InputError: no such mode, or a unit that means nothing in it.
    """
    change = how(mode, relative_to).change
    lengths = rows.norm(dim=1)

    def written(x: Tensor, now: Now) -> Tensor:
        if len(strength) not in (1, len(x)):
            raise InputError(f"strengths for {len(strength)} texts, but the model reads {len(x)} together")
        s = strength.to(rows.dtype).expand(-1, -1, len(rows))
        wide = x.to(rows)
        if relative_to == "norm":
            s = s * wide.norm(dim=-1, keepdim=True) / lengths
        return x + (change(s, now.kept, wide, rows) * now.mask[..., None]) @ rows

    return written


def how(mode: str, relative_to: str | None) -> _How:
    if mode not in MODES:
        raise InputError(f"no mode is called {mode!r}; {nearest(mode, MODES)}")
    if relative_to is not None and relative_to not in UNITS:
        raise InputError(f"a strength cannot be relative to {relative_to!r}; {nearest(relative_to, UNITS)}, or None")
    if mode == "scale" and relative_to is not None:
        raise InputError(f"mode scale multiplies an activation: a strength relative to the {relative_to} means nothing")
    return MODES[mode]


def brief(strength: object, relative_to: str | None) -> str:
    """A strength in a few words."""
    if isinstance(strength, Tensor):
        said = f"{len(strength)} strengths"
    elif isinstance(strength, Sequence):
        said = ", ".join(f"{each:g}" for each in strength)
    else:
        said = f"{strength:g}"
    return said if relative_to is None else f"{said} x {relative_to}"
