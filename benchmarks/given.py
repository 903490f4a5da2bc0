"""What the rows work on: random dictionaries, the starter, and text that ships with the repository."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gemlens.lm.gemma import Model, activations
from gemlens.lm.load import load_model
from gemlens.lm.text import encode_prompt, prompt_text
from gemlens.records import DictionaryInfo
from gemlens.scope.load import load_sae
from gemlens.scope.rows import DenseRows
from gemlens.scope.sae import SAE
from gemlens.scope.starter import STARTER_DICTIONARY
from gemlens.sites import parse_site

__all__ = ["SITE", "prompts", "random_dictionary", "residuals", "starter", "starter_dictionary", "token_ids"]

ROOT = Path(__file__).parents[1]
TEXTS = ("LICENSE", "README.md", "docs/design.md", "docs/formats.md", "docs/fidelity.md")
SITE = parse_site("resid_post.12")
ACTIVE = 82


def random_dictionary(d: int, width: int, seed: int) -> SAE:
    """JumpReLU, rows of norm near 1; on inputs of variance 1 about 82 features fire a token."""
    generator = torch.Generator().manual_seed(seed)
    # A pre-activation is a standard normal; the threshold leaves the tail that is wanted.
    rare = torch.special.ndtri(torch.tensor(1 - ACTIVE / width, dtype=torch.float64)).item()
    rows = torch.randn(width, d, generator=generator).div_(d**0.5)
    return SAE(
        DenseRows(rows),
        # As training starts; and drawing as many numbers again takes seconds of every process.
        DenseRows(rows.clone()),
        b_enc=torch.randn(width, generator=generator) * 0.05,
        b_dec=torch.randn(d, generator=generator),
        threshold=rare + 0.2 * (torch.rand(width, generator=generator) - 0.5),
        reads=SITE,
        writes=SITE,
        info=DictionaryInfo("random", "resid_post", f"{d} x {width}", str(SITE), SITE.layer, width, None),
    )


def starter() -> Model:
    return load_model("starter", device="cpu", dtype="float32")


def starter_dictionary() -> SAE:
    return load_sae("starter", STARTER_DICTIONARY)


def residuals(count: int, tokens: int, seed: int) -> list[Tensor]:
    """[tokens, 640] each: the starter's residual stream after block 12, BOS left out."""
    model = starter()
    return [
        activations(model, token_ids(model, prompt), [SITE])[SITE][0, 1:].clone()
        for prompt in prompts(model, count, tokens + 1, seed)
    ]


def prompts(model: Model, count: int, tokens: int, seed: int) -> list[str]:
    """Passages of English and Markdown, each of exactly ``tokens`` tokens, BOS counted; they may overlap."""
    text, starts = _text(model.tokenizer)
    choose = random.Random(seed)
    found: list[str] = []
    while len(found) < count:
        first = choose.randrange(len(starts) - tokens)
        passage = text[starts[first] : starts[first + tokens - 1]]
        # Cut out of its text, a passage may fall into other tokens.
        if token_ids(model, passage).shape[1] == tokens:
            found.append(passage)
    return found


def token_ids(model: Model, prompt: str) -> Tensor:
    """[1, n]"""
    return encode_prompt(model, prompt_text(model, prompt))


@cache
def _text(tokenizer: Any) -> tuple[str, list[int]]:
    """The text, and where in it each token starts."""
    text = "\n".join((ROOT / name).read_text("utf-8") for name in TEXTS)
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return text, [start for start, _ in offsets]
