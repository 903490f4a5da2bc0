"""Which features fire on each token of a prompt and of the model's answer.

1. Prompt to tokens, through the chat template where there is one.
2. One forward pass to the deepest site that a dictionary reads; with generation, the passes that ``generate`` makes
   anyway, so that features of generated tokens come from the very residuals the model used.
3. Every dictionary encodes every token but those that none was trained on.

Many prompts are read in batches of like length: a pass over a short prompt takes most of its time to fetch the
weights, which a batch fetches once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from gemlens.batched import of_like_length
from gemlens.errors import InputError
from gemlens.lm.gemma import Model, activations, generate, ragged_activations
from gemlens.records import Analysis
from gemlens.scope.sae import SAE
from gemlens.study.analysis import Study, Text, analyses, text_of
from gemlens.study.edited import Excluded, by_dictionary, edited, said

__all__ = ["analyze", "analyze_many"]

# Tokens of a pass, padding counted; a longer prompt goes alone, as it would anyway. On two CPU cores passes gain
# nothing beyond 1,000 tokens. Attention scores, [batch, heads, n, n], are no more than those of one prompt of 2,048.
_BATCH = 2048
# Tokens of padding in a batch that cost about as much as another pass.
_PADDING = 128
# Tokens of the prompts that are sorted together, and so held together as records: about 2 KB a token.
_WINDOW = 16 * _BATCH


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
    exclude_features: Excluded = (),
    splice: bool = False,
) -> Analysis:
    """Find the features that fire on each token of ``prompt`` and of what the model adds to it.

    Args:
        dictionaries: one or several; they are read in a single forward pass.
        system: text before the prompt.
        chat: wrap in the chat template; None does so where the tokenizer has one.
        top_k: features to list a token and dictionary; all of them stay in ``Analysis.activations``.
        max_new_tokens: tokens to generate; 0 reads the prompt only.
        temperature, top_p, greedy, seed: how to sample; temperature 0 is greedy.
        exclude_features: taken out of the model, as ``ablate`` does, for this text, and not listed; of the only
            dictionary, or a mapping from the index of a dictionary to its features.
        splice: put each dictionary's reconstruction in place of what it stands for, as ``splice`` does.

    Example:
        >>> model, sae = load_model("starter"), load_sae("starter", "resid_post/layer_12_width_4k_l0_medium")
        >>> analyze(model, sae, "The capital of France is").tokens[-1].features

    Raises:
        InputError: an empty prompt, one longer than the context, or an option out of range.
        MismatchError: a dictionary that does not fit the model.
        WeightsError: the model computes values that are not finite.
    """
    _check_sampling(max_new_tokens, temperature, top_p, seed)
    sampled = bool(max_new_tokens) and not greedy and temperature > 0
    study = Study.of(
        model,
        dictionaries,
        top_k=top_k,
        max_new_tokens=max_new_tokens,
        seed=seed,
        temperature=temperature if sampled else None,
        top_p=top_p if sampled else None,
    )
    text = text_of(model, prompt, system=system, chat=chat, room=max_new_tokens)
    options: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "greedy": greedy, "seed": seed}
    excluded = by_dictionary(study.dictionaries, exclude_features)
    if splice or any(excluded):
        return _edited(study, text, excluded, splice, options)
    if not max_new_tokens:
        return _read(study, [text])[0]
    ids, read_out = generate(model, text.ids[None], study.sites, max_new_tokens=max_new_tokens, **options)
    whole = text._replace(ids=ids[0].cpu())
    return analyses(study, [whole], {site: found[0] for site, found in read_out.items()})[0]


def _edited(
    study: Study, text: Text, excluded: Sequence[Sequence[int]], spliced: bool, options: dict[str, Any]
) -> Analysis:
    """Of one text, read and continued by the edited model."""
    warnings = (*study.warnings, *said(study.dictionaries, excluded, spliced))
    study = replace(study, excluded=excluded, warnings=warnings)
    with edited(study.model, study.dictionaries, excluded, spliced=spliced) as found:
        if study.max_new_tokens:
            new = study.max_new_tokens
            ids, _ = generate(study.model, text.ids[None], study.sites, max_new_tokens=new, **options)
            text = text._replace(ids=ids[0].cpu())
        else:
            activations(study.model, text.ids[None], study.sites)
    return analyses(study, [text], {site: torch.cat(each, dim=1)[0] for site, each in found.items()})[0]


def analyze_many(
    model: Model,
    dictionaries: SAE | Sequence[SAE],
    prompts: Iterable[str | tuple[str, str | None]],
    *,
    system: str | None = None,
    chat: bool | None = None,
    top_k: int = 5,
    report: Callable[[int], None] = lambda _read: None,
) -> Iterator[Analysis]:
    """Analyze many prompts without generation, several times as fast as one at a time; what is found is the same.

    Analyses come in the order of the prompts, each as soon as the model has read it and those before it. Prompts are
    taken as they are needed, some 32,000 tokens of them at a time, and nothing is held beyond that.

    Args:
        dictionaries, chat, top_k: as for ``analyze``.
        prompts: texts, or pairs of a text and its own system text (None for none).
        system: text before the prompts that are no pairs.
        report: called after each pass of the model with the number of prompts it has read, ahead of their analyses.

    Example:
        >>> for analysis in analyze_many(model, sae, ["The capital of France is", "Water boils at"]):
        ...     print(analysis.tokens[-1].features[0])

    Raises:
        InputError: no dictionary, or ``top_k`` out of range; in the iteration, what ``analyze`` says of a prompt,
            with its place among the prompts.
        MismatchError: a dictionary that does not fit the model.
        WeightsError: in the iteration, the model computes values that are not finite.
    """
    study = Study.of(model, dictionaries, top_k=top_k)

    def texts() -> Iterator[Text]:
        for index, prompt in enumerate(prompts):
            text, own = (prompt, system) if isinstance(prompt, str) else prompt
            try:
                yield text_of(model, text, system=own, chat=chat)
            except InputError as error:
                raise InputError(f"prompts[{index}]: {error}") from error

    return _in_order(study, texts(), report)


def _in_order(study: Study, texts: Iterable[Text], report: Callable[[int], None]) -> Iterator[Analysis]:
    for window in _windows(texts):
        batches = of_like_length([len(text.ids) for text in window], most=_BATCH, padding=_PADDING)
        batch_of = {index: batch for batch in batches for index in batch}
        ready: dict[int, Analysis] = {}
        for index in range(len(window)):
            if index not in ready:
                batch = batch_of[index]
                ready |= zip(batch, _read(study, [window[i] for i in batch]), strict=True)
                report(len(batch))
            yield ready.pop(index)


def _read(study: Study, texts: Sequence[Text]) -> list[Analysis]:
    """In one pass."""
    return analyses(study, texts, ragged_activations(study.model, [text.ids for text in texts], study.sites))


def _windows(texts: Iterable[Text]) -> Iterator[list[Text]]:
    window: list[Text] = []
    tokens = 0
    for text in texts:
        window.append(text)
        tokens += len(text.ids)
        if tokens >= _WINDOW:
            yield window
            window, tokens = [], 0
    if window:
        yield window


def _check_sampling(max_new_tokens: int, temperature: float, top_p: float, seed: int) -> None:
    if max_new_tokens < 0:
        raise InputError(f"max_new_tokens {max_new_tokens}: 0 reads the prompt only, more generates")
    if not 0 <= temperature < math.inf:
        raise InputError(f"temperature {temperature}: 0 is greedy, higher is wilder")
    if not 0 < top_p <= 1:
        raise InputError(f"top_p {top_p}: must lie above 0 and not exceed 1")
    if not -(2**63) <= seed < 2**64:
        raise InputError(f"seed {seed}: must fit in 64 bits")
