"""Which features fire on each token of a prompt and of the model's answer.

1. Prompt to tokens, through the chat template where there is one.
2. One forward pass to the deepest site that a dictionary reads; with generation, the passes that ``generate`` makes
   anyway, so that features of generated tokens come from the very residuals the model used.
3. Every dictionary encodes every token but BOS, on which none was trained; nor were those of Gemma Scope 2 for an
   instruction-tuned model on the tokens that open every chat.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Sequence
from pathlib import PurePath

import numpy as np
import torch
from torch import Tensor

from gemlens import __version__
from gemlens.errors import InputError
from gemlens.lm.gemma import Model, activations, generate
from gemlens.lm.text import encode_prompt, pieces, prompt_text, texts
from gemlens.records import ActiveFeatures, Analysis, DictionaryInfo, FeatureActivation, Provenance, TokenRecord
from gemlens.scope.features import Features
from gemlens.scope.sae import SAE
from gemlens.study.fit_check import check_fit

__all__ = ["analyze"]

_CHAT_OPENING = "<start_of_turn>user\n"
# A model or a release, as google/gemma-3-270m-it, gemma-scope-2-270m-it, gemma-scope-2-270m-it-res.
_CHAT_SCOPE_2 = re.compile(r"gemma-(3|scope-2)-.+-it(-.+)?")


def analyze(
    model: Model,
    dictionaries: SAE | Sequence[SAE],
    prompt: str,
    *,
    system: str | None = None,
    chat: bool | None = None,
    top_k: int = 5,
    max_new_tokens: int = 0,
    temperature: float = 0.7,
    top_p: float = 0.95,
    greedy: bool = False,
    seed: int = 0,
) -> Analysis:
    """Find the features that fire on each token of ``prompt`` and of what the model adds to it.

    Args:
        dictionaries: one or several; they are read in a single forward pass.
        system: text before the prompt.
        chat: wrap in the chat template; None does so where the tokenizer has one.
        top_k: features to list a token and dictionary; all of them stay in ``Analysis.activations``.
        max_new_tokens: tokens to generate; 0 reads the prompt only.
        temperature, top_p, greedy, seed: how to sample; temperature 0 is greedy.

    Example:
        >>> model, sae = load_model("starter"), load_sae("starter", "resid_post/layer_12_width_4k_l0_medium")
        >>> analyze(model, sae, "The capital of France is").tokens[-1].features

    Raises:
        InputError: an empty prompt, one longer than the context, or an option out of range.
        MismatchError: a dictionary that does not fit the model.
        WeightsError: the model computes values that are not finite.
    """
    dictionaries = [dictionaries] if isinstance(dictionaries, SAE) else list(dictionaries)
    _check_options(dictionaries, top_k, max_new_tokens, temperature, top_p, seed)
    warnings = [warning for dictionary in dictionaries for warning in check_fit(model, dictionary)]
    text = prompt_text(model, prompt, system=system, chat=chat)
    prompt_ids = encode_prompt(model, text, room=max_new_tokens)
    sites = [dictionary.reads for dictionary in dictionaries]
    if max_new_tokens:
        ids, read_out = generate(
            model,
            prompt_ids,
            sites,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            greedy=greedy,
            seed=seed,
        )
    else:
        ids, read_out = prompt_ids, activations(model, prompt_ids, sites)
    tokens = ids[0].cpu()
    read = _counted(model, tokens, [dictionary.info for dictionary in dictionaries])
    features = [_at_tokens(dictionary.encode(read_out[dictionary.reads][0][read]), read) for dictionary in dictionaries]
    sampled = bool(max_new_tokens) and not greedy and temperature > 0
    return Analysis(
        prompt=prompt,
        system=system,
        prompt_text=text,
        model_id=model.name,
        top_k=top_k,
        max_new_tokens=max_new_tokens,
        dictionaries=tuple(dictionary.info for dictionary in dictionaries),
        tokens=_token_records(model, tokens.tolist(), prompt_ids.shape[1], read, features, top_k),
        activations=tuple(_active(part) for part in features),
        provenance=_provenance(model, seed, temperature if sampled else None, top_p if sampled else None),
        warnings=tuple(warnings),
    )


def _check_options(
    dictionaries: Sequence[SAE], top_k: int, max_new_tokens: int, temperature: float, top_p: float, seed: int
) -> None:
    if not dictionaries:
        raise InputError("no dictionary was given; load one with load_sae")
    if top_k < 1:
        raise InputError(f"top_k {top_k}: at least 1 feature a token")
    if max_new_tokens < 0:
        raise InputError(f"max_new_tokens {max_new_tokens}: 0 reads the prompt only, more generates")
    if not 0 <= temperature < math.inf:
        raise InputError(f"temperature {temperature}: 0 is greedy, higher is wilder")
    if not 0 < top_p <= 1:
        raise InputError(f"top_p {top_p}: must lie above 0 and not exceed 1")
    if not -(2**63) <= seed < 2**64:
        raise InputError(f"seed {seed}: must fit in 64 bits")


def _counted(model: Model, tokens: Tensor, dictionaries: Sequence[DictionaryInfo]) -> Tensor:
    """bool [n], the tokens that are encoded: one answer for all dictionaries, so that every view can mark the rest."""
    read = tokens != model.bos
    if model.tokenizer.chat_template and any(map(_skips_chat_opening, dictionaries)):
        text = f"{model.tokenizer.bos_token}{_CHAT_OPENING}"
        opening = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        if tokens[: len(opening)].tolist() == opening:
            read[: len(opening)] = False
    return read


def _skips_chat_opening(info: DictionaryInfo) -> bool:
    """Whether it is one of Gemma Scope 2 for an ``-it`` model; the release says so where its config names no model."""
    return _CHAT_SCOPE_2.fullmatch(PurePath(info.model_name or info.release).name.lower()) is not None


def _at_tokens(features: Features, read: Tensor) -> Features:
    """Give the tokens that were left out an empty row."""
    counts = torch.zeros(len(read) + 1, dtype=torch.int64)
    counts[1:][read] = features.l0.cpu()
    return Features(counts.cumsum(0), features.ids.cpu(), features.values.float().cpu(), features.width)


def _token_records(
    model: Model, ids: list[int], n_prompt: int, read: Tensor, features: list[Features], top_k: int
) -> tuple[TokenRecord, ...]:
    # Ids whose text is hidden by skip_special_tokens: BOS, turn marks and the like.
    special = set(model.tokenizer.all_special_ids) | {
        index for index, token in model.tokenizer.added_tokens_decoder.items() if token.special
    }
    rows = zip(ids, pieces(model, ids), texts(model, ids), strict=True)
    return tuple(
        TokenRecord(
            position=position,
            token_id=token,
            token=piece,
            text=text,
            is_generated=position >= n_prompt,
            is_special=token in special,
            l0=int(features[0].l0[position]) if read[position] else None,
            features=tuple(
                FeatureActivation(feature, value, index)
                for index, part in enumerate(features)
                for feature, value in zip(*(column.tolist() for column in part.top(position, top_k)), strict=True)
            ),
        )
        for position, (token, piece, text) in enumerate(rows)
    )


def _active(features: Features) -> ActiveFeatures:
    return ActiveFeatures(
        indptr=features.indptr.numpy(), ids=features.ids.numpy(), values=features.values.numpy().astype(np.float32)
    )


def _provenance(model: Model, seed: int, temperature: float | None, top_p: float | None) -> Provenance:
    import transformers

    return Provenance(
        gemlens_version=__version__,
        torch_version=torch.__version__,
        transformers_version=transformers.__version__,
        model_revision=model.revision,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        seed=seed,
        temperature=temperature,
        top_p=top_p,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
