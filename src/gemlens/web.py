"""HTTP by the standard library, for the few things that are asked of others than the Hugging Face hub.

Answers are whole or not there: a body that breaks off is asked for again. Waits grow between tries and are as long as
``Retry-After`` says; an answer that takes longer than it may, or is larger, is given up. A key is never sent on to
another host, and never shown.

    404                      NotFoundError
    401, 403                 AccessError
    429, 5xx, no connection  tried again, then NetworkError
    other 4xx                RefusedError, a NetworkError that keeps the status
"""

from __future__ import annotations

import email.utils
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from gemlens.errors import AccessError, GemlensError, InputError, NetworkError, NotFoundError

__all__ = ["RefusedError", "check_url", "get", "json_of", "post_json"]

Sleep = Callable[[float], None]

_LARGEST = 1 << 30
_LONGEST_WAIT = 300.0
_SECRET = ("authorization", "x-api-key")
_CHUNK = 1 << 16


class RefusedError(NetworkError):
    """The server understood and will not do it."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def get(
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    timeout: float = 60.0,
    largest: int = _LARGEST,
    tries: int = 5,
    sleep: Sleep | None = None,
) -> bytes:
    """The body at ``url``, whole.

    Args:
        timeout: seconds for the server to begin and between parts; all of it may take twenty times as long.
        largest: bytes; more is refused.

    Raises:
        NotFoundError, AccessError, NetworkError: see above.
    """
    check_url(url, "the address")
    return _tried(
        urllib.request.Request(url, headers=dict(headers or {})), timeout, 20 * timeout, largest, tries, sleep
    )


def post_json(
    url: str,
    content: object,
    *,
    headers: Mapping[str, str] | None = None,
    timeout: float = 60.0,
    largest: int = _LARGEST,
    tries: int = 5,
    sleep: Sleep | None = None,
) -> bytes:
    """Send JSON and return the body of the answer; ``timeout`` is for all of it. Raises as ``get`` does."""
    check_url(url, "the address")
    body = json.dumps(content).encode()
    about = {"Content-Type": "application/json", "Accept": "application/json", **(headers or {})}
    request = urllib.request.Request(url, data=body, headers=about, method="POST")
    return _tried(request, timeout, timeout, largest, tries, sleep)


def json_of(body: bytes, where: str) -> Any:
    """Parse an answer.

    Raises:
        NetworkError: it is something else, such as the login page of a network.
    """
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        start = " ".join(body[:60].decode("utf-8", "replace").split())
        raise NetworkError(
            f"{where} answered something that is not JSON ({start!r}…); check the address, the proxy, or a login page "
            "of the network"
        ) from error


def check_url(url: str, option: str) -> str:
    """``url`` without a slash at its end.

    Raises:
        InputError: not http or https, or without a host.
    """
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and url.isprintable()
    except ValueError:
        good = False
    if not good or " " in url:
        raise InputError(f"{option} {url[:100]!r} is no address; write it as http://localhost:8000/v1")
    return url.rstrip("/")


def _tried(
    request: urllib.request.Request, timeout: float, whole: float, largest: int, tries: int, sleep: Sleep | None
) -> bytes:
    where = _shown(request.full_url)
    for attempt in range(tries):
        wait = min(2.0**attempt, 30.0) / 2
        try:
            return _once(request, timeout, whole, largest)
        except urllib.error.HTTPError as error:
            with error:
                refusal = _refusal(error, where)
                wait = _asked_wait(error.headers.get("Retry-After")) or wait
            if refusal is not None:
                raise refusal from None
            said = f"{where} answered {error.code}"
        except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
            said = f"{where} cannot be reached, or broke off ({_reason(error)})"
        if wait > _LONGEST_WAIT:
            raise NetworkError(f"{said} and asks to wait {wait:,.0f} s; run the same command again then")
        if attempt < tries - 1:
            (sleep or time.sleep)(wait)
    raise NetworkError(f"{said}, {tries} times; check the network, and run the same command again")


def _once(request: urllib.request.Request, timeout: float, whole: float, largest: int) -> bytes:
    deadline = time.monotonic() + whole
    with _OPENER.open(request, timeout=timeout) as answer:
        parts, size = [], 0
        # read1: `read` waits until the chunk is full, so that a server that drips would never meet the deadline.
        while part := answer.read1(_CHUNK):
            parts.append(part)
            size += len(part)
            if size > largest:
                raise NetworkError(f"{_shown(request.full_url)} sends more than {largest / 1e6:,.0f} MB; given up")
            if time.monotonic() > deadline:
                raise TimeoutError(f"not done after {whole:.0f} s")
        announced = answer.headers.get("Content-Length")
        if announced is not None and announced.isdecimal() and size < int(announced):
            raise ConnectionError(f"{size:,} of {int(announced):,} bytes came")
    return b"".join(parts)


def _refusal(error: urllib.error.HTTPError, where: str) -> GemlensError | None:
    """What a status means; None: try again."""
    if error.code == 429 or error.code >= 500:
        return None
    try:
        said = " ".join(error.read(2000).decode("utf-8", "replace").split())[:200]
    except (OSError, http.client.HTTPException):
        said = ""
    said = f" ({said})" if said else ""
    if error.code == 404:
        return NotFoundError(f"{where} does not exist{said}; check the name")
    if error.code in (401, 403):
        return AccessError(f"{where} refuses{said}; check the key in the environment")
    return RefusedError(f"{where} answered {error.code}{said}; check the address and the name of the model", error.code)


def _asked_wait(text: str | None) -> float | None:
    """Seconds of a ``Retry-After``: a number, or a date."""
    if not text:
        return None
    try:
        return max(float(text), 0.0)
    except ValueError:
        pass
    try:
        return max(email.utils.parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return None


def _reason(error: BaseException) -> str:
    cause = getattr(error, "reason", None) or error
    return " ".join(str(getattr(cause, "strerror", None) or cause or type(cause).__name__).split())[:200]


def _shown(url: str) -> str:
    """The address without a password in it and without its query."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()[:200]


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if req.data is not None:  # urllib would turn it into a GET
            return None
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        if new is not None and urlsplit(newurl)[:2] != urlsplit(req.full_url)[:2]:
            for name in [name for name in new.headers if name.lower() in _SECRET]:
                del new.headers[name]
        return new


_OPENER = urllib.request.build_opener(_Redirects)
