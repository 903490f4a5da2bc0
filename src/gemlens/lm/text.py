"""Text to tokens and back: chat templates, BOS, and what each token adds to the text."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from gemlens.errors import InputError
from gemlens.lm.gemma import Model

__all__ = ["encode_prompt", "pieces", "prompt_text", "texts"]

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def encode_prompt(model: Model, text: str, *, room: int = 0) -> Tensor:
    """[1, n] ids of ``text``, which carries its own BOS.

    Args:
        room: tokens to be generated after it.

    Raises:
        InputError: longer than the model's context.
    """
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) + room > model.context:
        new = f" and {room} new ones" if room else ""
        raise InputError(
            f"the prompt has {len(ids)} tokens{new}, the context of {model.name} holds {model.context}; shorten it"
        )
    return torch.tensor([ids])


def prompt_text(model: Model, prompt: str, *, system: str | None = None, chat: bool | None = None) -> str:
    """The string to feed the model, BOS written out.

    Args:
        chat: wrap it in the tokenizer's chat template; None does so where there is one.
        system: goes before the prompt, by the template, or separated by an empty line without one (which is what
            Gemma's templates do too).

    Raises:
        InputError: ``chat=True`` for a model without a template, or an empty prompt.
    """
    if not prompt.strip():
        raise InputError("the prompt is empty; give some text with --prompt, or - to read standard input")
    template = model.tokenizer.chat_template
    if chat and not template:
        raise InputError(f"{model.name} has no chat template; leave out --chat, or use an -it model")
    bos = str(model.tokenizer.bos_token)
    if template and chat is not False:
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": prompt})
        text = model.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    else:
        text = f"{system}\n\n{prompt}" if system else prompt
    text = str(text)
    return text if text.startswith(bos) else bos + text


def pieces(model: Model, ids: Sequence[int]) -> list[str]:
    """The raw vocabulary entry of each token, e.g. ``▁Hello``, ``<0xF0>``."""
    return [str(piece) for piece in model.tokenizer.convert_ids_to_tokens(list(ids))]


def texts(model: Model, ids: Sequence[int]) -> list[str]:
    """What each token adds to the decoded text; joined, they are the text.

    A character that the vocabulary lacks is spelled by several byte tokens: the last of them adds the character,
    the others add nothing. Bytes that are no character decode to U+FFFD.
    """
    added: list[str] = []
    run: list[int] = []
    raw = pieces(model, ids)
    for index, token in enumerate(ids):
        if not _BYTE.fullmatch(raw[index]):
            added.append(model.tokenizer.decode([token], clean_up_tokenization_spaces=False))
            continue
        run.append(token)
        ends = index + 1 == len(ids) or not _BYTE.fullmatch(raw[index + 1])
        text = model.tokenizer.decode(run, clean_up_tokenization_spaces=False)
        whole = not text.endswith("\ufffd")
        added.append(text if ends or whole else "")
        if ends or whole:
            run = []
    return added
