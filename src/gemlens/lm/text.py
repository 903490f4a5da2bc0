"""Text to tokens and back: chat templates, BOS, and what each token adds to the text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gemlens.errors import InputError
from gemlens.lm.gemma import Model
from gemlens.lm.vocabulary import spell

__all__ = ["encode_documents", "encode_prompt", "pieces", "prompt_text", "texts"]


def encode_prompt(model: Model, text: str, *, room: int = 0) -> Tensor:
    """[1, n] ids of ``text``, which carries its own BOS.

    Args:
        room: tokens to be generated after it.

    Raises:
        InputError: longer than the model's context, or with a token that the model has no embedding for.
    """
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) + room > model.context:
        new = f" and {room} new ones" if room else ""
        raise InputError(
            f"the prompt has {len(ids)} tokens{new}, the context of {model.name} holds {model.context}; shorten it"
        )
    known = model.config.vocab_size
    if beyond := [token for token in ids if token >= known]:
        raise InputError(
            f"the prompt holds {pieces(model, beyond)[0]!r}, for which {model.name} has no embedding; leave it out"
        )
    return torch.tensor([ids])


def encode_documents(model: Model, documents: list[str]) -> list[list[int]]:
    """Token ids of each, without BOS."""
    ids: list[list[int]] = model.tokenizer(documents, add_special_tokens=False)["input_ids"]
    return ids


def prompt_text(model: Model, prompt: str, *, system: str | None = None, chat: bool | None = None) -> str:
    """The string to feed the model, BOS written out.

    Args:
        chat: wrap it in the tokenizer's chat template; None does so where there is one.
        system: goes before the prompt, by the template, or separated by an empty line without one (which is what
            Gemma's templates do too).

    Raises:
        InputError: an empty prompt, one that is not Unicode, or one that the chat template refuses; ``chat=True``
            for a model without a template.
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
        text = _through_template(model, messages)
    else:
        text = f"{system}\n\n{prompt}" if system else prompt
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise InputError("the prompt holds half of a surrogate pair, which is no character; is its file UTF-8?")
    return text if text.startswith(bos) else bos + text


def _through_template(model: Model, messages: list[dict[str, str]]) -> str:
    from jinja2 import TemplateError

    try:
        return str(model.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except TemplateError as error:  # also what a template raises on purpose, e.g. for a system message
        raise InputError(
            f"the chat template of {model.name} refuses the prompt ({error}); leave out --system, or use --no-chat"
        ) from error


def pieces(model: Model, ids: Sequence[int]) -> list[str]:
    """The raw vocabulary entry of each token, e.g. ``▁Hello``, ``<0xF0>``; empty for an id the tokenizer lacks."""
    return [piece or "" for piece in model.tokenizer.convert_ids_to_tokens(list(ids))]


def texts(model: Model, ids: Sequence[int]) -> list[str]:
    """What each token adds to the decoded text; joined, they are the text. See ``vocabulary.spell``."""

    def decode(index: int) -> str:
        return str(model.tokenizer.decode([ids[index]], clean_up_tokenization_spaces=False))

    return spell(pieces(model, ids), decode)
