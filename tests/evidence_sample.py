"""Evidence made by brute force, small enough to be checked by hand: no streaming, no thresholds, one sort a feature.

tensors = examples_of(activations, tokens, k=16)          activations [n_seq, L, F], dense
tensors = statistics_of(activations, tokens, decoder)
write_evidence(folder, activations, tokens)               examples.safetensors and statistics.safetensors
write_google(folder, tensors)                             as Google does: float32 and int64, no metadata
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from gemlens.scope.examples import write_examples
from gemlens.scope.statistics import write_statistics
from tiny import VOCAB, random_tensors

BOS, PADDING = 2, 0
BINS = 24
ABOUT: dict[str, Any] = {"version": "test", "model_id": "tiny", "tokens": 0, "texts": ["a.txt"], "quantiles": False}


def counted(tokens: Tensor) -> Tensor:
    """[n_seq, L], whether a token is in statistics: neither BOS nor padding."""
    return (tokens != BOS) & (tokens != PADDING)


def random_case(n_seq: int = 12, length: int = 40, width: int = 40, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Activations [n_seq, L, F], a fifth of them positive, and tokens; feature 3 never fires, some rows are padded."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(300, VOCAB - 2, (n_seq, length), generator=generator)
    tokens[:, 0] = BOS
    tokens[1, length - 7 :] = PADDING
    activations = torch.randn(n_seq, length, width, generator=generator).sub(0.8).relu() * 20
    activations[..., 3] = 0
    return activations * counted(tokens)[..., None], tokens


def examples_of(activations: Tensor, tokens: Tensor, *, k: int, logits: int = 10, seed: int = 0) -> dict[str, Tensor]:
    _, length, width = activations.shape
    flat = activations.reshape(-1, width).T
    order = flat.argsort(dim=1, descending=True, stable=True)[:, :k]
    values = flat.gather(1, order)
    held = values > 0
    generator = torch.Generator().manual_seed(seed)
    return {
        "activations": values,
        "positions": torch.where(held, order % length, 0),
        "seq_ids": torch.where(held, order // length, -1),
        "tokens": tokens,
        "feature_frequencies": (flat > 0).sum(1).double() / counted(tokens).sum(),
        "top_tokens": torch.randint(300, VOCAB - 2, (width, logits), generator=generator),
        "bottom_tokens": torch.randint(300, VOCAB - 2, (width, logits), generator=generator),
        "top_logits": torch.rand(width, logits, generator=generator).sort(descending=True).values,
        "bottom_logits": -torch.rand(width, logits, generator=generator).sort(descending=True).values,
    }


def statistics_of(activations: Tensor, tokens: Tensor, decoder: Tensor, *, near: int = 6) -> dict[str, Tensor]:
    width = activations.shape[2]
    flat = activations.reshape(-1, width)
    bins = torch.where(flat > 0, flat.log2().mul(2).floor(), torch.nan)
    top = bins.nan_to_num(-1000).amax(0).clamp(min=-100).long()
    column = (top - bins).clamp(max=BINS - 1)
    histogram = torch.stack([(column == j).sum(0) for j in range(BINS)], dim=1)
    fires = (flat > 0).float()
    both = fires.T @ fires
    either = fires.sum(0)[:, None] + fires.sum(0)[None] - both
    jaccard = (both / either.clamp(min=1)).fill_diagonal_(-1)
    unit = F.normalize(decoder, dim=1)
    cosines = (unit @ unit.T).fill_diagonal_(-2)
    shares, coactive = jaccard.topk(near, dim=1)
    nearest, neighbours = cosines.topk(near, dim=1)
    size, basis = unit.abs().topk(near, dim=1)
    thirds = torch.zeros(width, 3, dtype=torch.long)
    for row, acts in zip(tokens, activations, strict=True):
        places = counted(row).nonzero()[:, 0]
        for rank, place in enumerate(places.tolist()):
            thirds[:, rank * 3 // len(places)] += acts[place] > 0
    return {
        "histogram_top": top,
        "histogram": histogram,
        "position_profile": thirds,
        "coactive": torch.where(shares > 0, coactive, -1),
        "coactive_share": shares,
        "neighbours": neighbours,
        "neighbour_cosine": nearest,
        "basis": basis,
        "basis_weight": unit.gather(1, basis),
        "neurons": basis,
        "neuron_cosine": size,
    }


def write_evidence(
    folder: Path, activations: Tensor, tokens: Tensor, *, k: int = 16, tokens_file: str | None = None, **about: Any
) -> dict[str, Tensor]:
    """Evidence as gemlens writes it, in few bytes; with ``tokens_file`` the sequences go there."""
    folder.mkdir(parents=True, exist_ok=True)
    found = examples_of(activations, tokens, k=k)
    small = {"activations": torch.float16, "positions": torch.int16, "seq_ids": torch.int32, "tokens": torch.int32}
    stored = {name: tensor.to(small.get(name, tensor.dtype)) for name, tensor in found.items()}
    if tokens_file:
        shared = stored.pop("tokens")
        save_file({"tokens": shared.contiguous()}, folder / tokens_file)
    said = ABOUT | {"tokens": int(counted(tokens).sum())} | about
    write_examples(folder / "examples.safetensors", stored, about=said, tokens_file=tokens_file)
    decoder = random_tensors(16, activations.shape[2])["w_dec"]
    write_statistics(folder / "statistics.safetensors", statistics_of(activations, tokens, decoder), about=said)
    return found


def write_google(folder: Path, tensors: dict[str, Tensor], *, pad_header: int = 0) -> Path:
    """As Gemma Scope 2 has it: its dtypes, every slot filled, no metadata; ``pad_header`` makes the header odd."""
    folder.mkdir(parents=True, exist_ok=True)
    dtypes = {"activations": torch.float32, "seq_ids": torch.int64, "feature_frequencies": torch.float64}
    dtypes |= {"logit_effects": torch.float32, "top_logits": torch.float32, "bottom_logits": torch.float32}
    stored = {name: tensor.to(dtypes.get(name, torch.int32)).contiguous() for name, tensor in tensors.items()}
    path = folder / "examples.safetensors"
    save_file(stored, path)
    if pad_header:
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.dumps(json.loads(data[8 : 8 + length])).encode() + b" " * pad_header
        path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    return path
