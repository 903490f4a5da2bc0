"""From texts and what the model computed at their tokens to an ``Analysis`` each.

Dictionaries encode the tokens of all texts in one call: a call for every text would cost more than its arithmetic.
Left out are BOS, on which no dictionary was trained, and the tokens that open a chat, on which those of Gemma Scope 2
for an instruction-tuned model were not.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gemlens import __version__
from gemlens.errors import InputError
from gemlens.lm.gemma import Model
from gemlens.lm.text import encode_prompt, pieces, prompt_text, texts
from gemlens.records import ActiveFeatures, Analysis, DictionaryInfo, FeatureActivation, Provenance, TokenRecord
from gemlens.records.labels import Label
from gemlens.scope.features import Features
from gemlens.scope.sae import SAE
from gemlens.sites import Site
from gemlens.study.fit_check import check_fit
from gemlens.study.labelled import labelled

__all__ = [
    "Study",
    "Text",
    "analyses",
    "at_tokens",
    "chat_opening",
    "counted",
    "provenance_of",
    "text_of",
    "tokens_read",
]

_CHAT_OPENING = "<start_of_turn>user\n"
# A model or a release, as google/gemma-3-270m-it, gemma-scope-2-270m-it, gemma-scope-2-270m-it-res.
_CHAT_SCOPE_2 = re.compile(r"gemma-(3|scope-2)-.+-it(-.+)?")


class Text(NamedTuple):
    """What the model reads, and what it adds."""

    prompt: str
    system: str | None
    fed: str
    """The prompt after the chat template, BOS written out."""
    ids: Tensor
    """int64 [n], of the prompt and of what was generated."""
    n_prompt: int


def text_of(model: Model, prompt: str, *, system: str | None, chat: bool | None, room: int = 0) -> Text:
    """A prompt as the model reads it; raises as ``prompt_text`` and ``encode_prompt`` do."""
    fed = prompt_text(model, prompt, system=system, chat=chat)
    ids = encode_prompt(model, fed, room=room)[0]
    return Text(prompt, system, fed, ids, len(ids))


@dataclass(frozen=True)
class Study:
    """What is the same for all texts of a call."""

    model: Model
    dictionaries: Sequence[SAE]
    top_k: int
    max_new_tokens: int
    warnings: tuple[str, ...]
    provenance: Provenance
    excluded: Sequence[Sequence[int]] = ()
    """Of each dictionary, the features that were taken out of the model and are not listed."""

    @classmethod
    def of(
        cls,
        model: Model,
        dictionaries: SAE | Sequence[SAE],
        *,
        top_k: int,
        max_new_tokens: int = 0,
        seed: int = 0,
        temperature: float | None = None,
        top_p: float | None = None,
    ) -> Study:
        """Check what can be checked before a text is known; ``temperature`` and ``top_p`` are None if not sampled.

        Raises:
            InputError: no dictionary, or no feature to list.
            MismatchError: a dictionary that does not fit the model.
        """
        dictionaries = [dictionaries] if isinstance(dictionaries, SAE) else list(dictionaries)
        if not dictionaries:
            raise InputError("no dictionary was given; load one with load_sae")
        if top_k < 1:
            raise InputError(f"top_k {top_k}: at least 1 feature a token")
        warnings = tuple(warning for dictionary in dictionaries for warning in check_fit(model, dictionary))
        return cls(model, dictionaries, top_k, max_new_tokens, warnings, provenance_of(model, seed, temperature, top_p))

    @property
    def sites(self) -> list[Site]:
        return [dictionary.reads for dictionary in self.dictionaries]


def analyses(study: Study, texts: Sequence[Text], read_out: dict[Site, Tensor]) -> list[Analysis]:
    """An ``Analysis`` of each text.

    Args:
        read_out: for each site of the dictionaries [tokens of all texts, d], one text after the other.
    """
    infos = tuple(dictionary.info for dictionary in study.dictionaries)
    opening = chat_opening(study.model, infos)
    read_of = [counted(text.ids, study.model.bos, opening) for text in texts]
    read = torch.cat(read_of)
    lengths = [len(text.ids) for text in texts]
    here = read.to(study.model.device)
    found = [dictionary.encode(read_out[dictionary.reads][here]) for dictionary in study.dictionaries]
    if study.excluded:
        found = [each.without(left_out) for each, left_out in zip(found, study.excluded, strict=True)]
    features = [at_tokens(each, read).split(lengths) for each in found]
    fired = ({feature for part in parts for feature in part.ids.tolist()} for parts in features)
    labels, unlabelled = labelled(zip(study.dictionaries, fired, strict=True))
    return [
        Analysis(
            prompt=text.prompt,
            system=text.system,
            prompt_text=text.fed,
            model_id=study.model.name,
            top_k=study.top_k,
            max_new_tokens=study.max_new_tokens,
            dictionaries=infos,
            tokens=_token_records(study, text, mine.tolist(), parts),
            activations=tuple(_active(part) for part in parts),
            provenance=study.provenance,
            warnings=study.warnings + unlabelled,
            labels=tuple(map(_fire, labels, parts)),
        )
        for text, mine, *parts in zip(texts, read_of, *features, strict=True)
    ]


def _fire(labels: Mapping[int, Label], features: Features) -> dict[int, Label]:
    """Labels of the features that fire in one text."""
    return {feature: labels[feature] for feature in sorted(set(features.ids.tolist())) if feature in labels}


def tokens_read(model: Model, dictionaries: Sequence[DictionaryInfo], ids: Tensor) -> Tensor:
    """bool [n], the tokens of one text that dictionaries are applied to."""
    return counted(ids, model.bos, chat_opening(model, dictionaries))


def chat_opening(model: Model, dictionaries: Sequence[DictionaryInfo]) -> list[int]:
    """Ids of the tokens that open a chat, where they are left out: one answer for all dictionaries, so that every
    view can mark them."""
    if not (model.tokenizer.chat_template and any(map(_skips_chat_opening, dictionaries))):
        return []
    text = f"{model.tokenizer.bos_token}{_CHAT_OPENING}"
    return model.tokenizer(text, add_special_tokens=False)["input_ids"]


def _skips_chat_opening(info: DictionaryInfo) -> bool:
    """Whether it is one of Gemma Scope 2 for an ``-it`` model; the release says so where its config names no model."""
    return _CHAT_SCOPE_2.fullmatch(PurePath(info.model_name or info.release).name.lower()) is not None


def counted(ids: Tensor, bos: int, opening: list[int]) -> Tensor:
    """bool [n], the tokens that are encoded."""
    read = ids != bos
    if ids[: len(opening)].tolist() == opening:
        read[: len(opening)] = False
    return read


def at_tokens(features: Features, read: Tensor) -> Features:
    """Give the tokens that were left out an empty row; in float32 on the CPU."""
    counts = torch.zeros(len(read) + 1, dtype=torch.int64)
    counts[1:][read] = features.l0.cpu()
    return Features(counts.cumsum(0), features.ids.cpu(), features.values.float().cpu(), features.width)


def _token_records(study: Study, text: Text, read: list[bool], features: list[Features]) -> tuple[TokenRecord, ...]:
    model, ids = study.model, text.ids.tolist()
    l0 = features[0].l0.tolist()
    rows = zip(ids, pieces(model, ids), texts(model, ids), strict=True)
    return tuple(
        TokenRecord(
            position=position,
            token_id=token,
            token=piece,
            text=added,
            is_generated=position >= text.n_prompt,
            is_special=token in model.special_ids,
            l0=l0[position] if read[position] else None,
            features=tuple(
                FeatureActivation(feature, value, index)
                for index, part in enumerate(features)
                for feature, value in zip(*(column.tolist() for column in part.top(position, study.top_k)), strict=True)
            ),
        )
        for position, (token, piece, added) in enumerate(rows)
    )


def _active(features: Features) -> ActiveFeatures:
    return ActiveFeatures(
        indptr=features.indptr.numpy(), ids=features.ids.numpy(), values=features.values.numpy().astype(np.float32)
    )


def provenance_of(
    model: Model, seed: int = 0, temperature: float | None = None, top_p: float | None = None
) -> Provenance:
    """What makes a record, now."""
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
