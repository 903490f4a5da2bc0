"""Any server that speaks OpenAI's chat completions: OpenAI itself, vLLM, llama.cpp, Ollama, LM Studio, …

    ask = chat("http://localhost:11434/v1", "gemma3")
    ask([{"role": "user", "content": "Hello"}]).text

The key is ``OPENAI_API_KEY`` in the environment; local servers need none.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from gemlens import web
from gemlens.errors import AccessError, NetworkError
from gemlens.records.labels import Reply

__all__ = ["chat"]

_LARGEST = 4 << 20
_TRIES = 3


def chat(
    url: str, model: str, *, timeout: float = 120.0, max_tokens: int = 500
) -> Callable[[list[dict[str, str]]], Reply]:
    """A function from messages to the model's answer, at temperature 0.

    Args:
        url: up to and with ``/v1``.
        timeout: seconds for one answer.

    Raises:
        InputError, AccessError: no address; a key that no header can hold. The function raises NetworkError where it
            cannot be reached, takes too long or answers something else, AccessError where it refuses the key, and
            NotFoundError where there is no such endpoint or model.
    """
    where = web.check_url(url, "--endpoint") + "/chat/completions"
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not (key.isascii() and key.replace(" ", "").isprintable()):
        raise AccessError("OPENAI_API_KEY holds characters that no key has: copy it again")
    headers = {"Authorization": f"Bearer {key}"} if key else {}

    def ask(messages: list[dict[str, str]]) -> Reply:
        content = {"model": model, "messages": messages, "temperature": 0, "max_tokens": max_tokens}
        body = web.post_json(where, content, headers=headers, timeout=timeout, largest=_LARGEST, tries=_TRIES)
        return _reply(web.json_of(body, where), where)

    return ask


def _reply(said: Any, where: str) -> Reply:
    try:
        choice = said["choices"][0]
        message = choice["message"]
        text, refusal = message.get("content"), message.get("refusal")
        if isinstance(text, list):  # parts, as some servers have it
            text = "".join(part.get("text", "") for part in text)
    except (LookupError, TypeError, AttributeError) as error:
        raise NetworkError(f"{where} answered without a message; does it speak OpenAI's chat completions?") from error
    refused = bool(refusal) or choice.get("finish_reason") == "content_filter"
    return Reply(text if isinstance(text, str) else "", refused)
