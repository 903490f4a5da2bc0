"""Activations whose features are known, and how many of them a dictionary found."""

import torch
from torch import Tensor
from torch.nn import functional as F

from gemlens.records import DictionaryInfo
from gemlens.scope.sae import SAE
from gemlens.train.config import FitConfig

INFO = DictionaryInfo("here", "resid_post", "planted", "resid_post.1", 1, 64, None)
FEATURES, D, ACTIVE = 48, 32, 3


def strengths(tokens: int, *, seed: int = 0, features: int = FEATURES, active: int = ACTIVE) -> Tensor:
    """[tokens, features], ``active`` of them positive for each token."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(tokens, features, generator=generator).topk(active, dim=1).indices
    return torch.zeros(tokens, features).scatter(1, chosen, 1 + torch.rand(tokens, active, generator=generator))


def directions(seed: int = 99, features: int = FEATURES) -> Tensor:
    return F.normalize(torch.randn(features, D, generator=torch.Generator().manual_seed(seed)), dim=1)


def planted(tokens: int, *, seed: int = 0) -> Tensor:
    """Sparse combinations of known directions, off centre and far from unit scale, as residuals are."""
    offset = 5 * torch.randn(D, generator=torch.Generator().manual_seed(7))
    return 300 * (strengths(tokens, seed=seed) @ directions() + offset)


def small(**changes: object) -> FitConfig:
    settings = {
        "reads": "resid_post.1", "width": 64, "l0": ACTIVE, "tokens": 600 * 256, "batch": 256, "dead_after": 10_000,
    }  # fmt: skip
    return FitConfig(**{**settings, **changes})


def recovered(known: Tensor, rows: Tensor) -> float:
    """Share of known directions that some row matches at cosine 0.9."""
    cosines = F.normalize(known, dim=1) @ F.normalize(rows, dim=1).T
    return float((cosines.max(dim=1).values >= 0.9).float().mean())


def decoder(sae: SAE) -> Tensor:
    return sae.decoder.rows(torch.arange(sae.decoder.width))
