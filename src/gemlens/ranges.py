"""Parts of a file on the hub by HTTP ranges, without the rest of it: a few rows out of a gigabyte.

1. One HEAD says how long the file is, its commit, and where its bytes lie (the hub sends large files elsewhere).
2. Each stretch of bytes is one GET with ``Range``, eight at a time; stretches that nearly touch are one.
3. An answer is believed if it says the same length as the HEAD and holds the very bytes asked for.

A server that answers with the whole file (a proxy may) is not read on: the file is then fetched into the cache as any
other, with a warning. As in ``gemlens.hub``, the `huggingface_hub` client does the work, from 0.36 (on requests) to 2.x
(on httpx).
"""

from __future__ import annotations

import re
import time
import warnings
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from gemlens import hub
from gemlens.errors import NetworkError
from gemlens.parts import LocalParts, Parts, Span

__all__ = ["HubParts", "cached_file", "find_parts"]

_TOGETHER = 1 << 12
"""Bytes between two stretches that cost less than another request."""
_AT_ONCE = 8
_PAUSES = (0.3, 1.0)
"""Seconds before the second and third try."""
_PATIENCE = 30.0
"""Seconds without a byte."""
_ADDRESS_LASTS = 600.0
"""Seconds after which the hub is asked again where the bytes lie: signed addresses expire."""
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class _Source(NamedTuple):
    """What the hub says of a file."""

    size: int
    revision: str
    place: str
    headers: dict[str, str]
    asked_at: float


class _WholeFile(Exception):
    """The server sends everything, whatever is asked for."""


class HubParts(Parts):
    """A file of a hub repository; made by ``find_parts``."""

    def __init__(self, asked: hub.Asked, source: _Source) -> None:
        self.name, self.size, self.revision = str(asked), source.size, source.revision
        self._asked, self._source = asked, source
        self._whole: LocalParts | None = None

    def read(self, spans: Sequence[Span]) -> list[bytes]:
        if self._whole is None:
            try:
                return self._read(spans)
            except _WholeFile:
                warnings.warn(
                    f"the server answers with all {self.size / 1e6:.0f} MB of {self.name} where a part was asked for; "
                    "fetching the file into the cache",
                    stacklevel=2,
                )
            assert self._asked.filename
            self._whole = LocalParts(hub.fetch(self._asked.repo, self._asked.filename, revision=self.revision))
        return self._whole.read(spans)

    def _read(self, spans: Sequence[Span]) -> list[bytes]:
        if beyond := [offset + size for offset, size in spans if offset + size > self.size]:
            raise NetworkError(f"{self.name} has {self.size} bytes and its header speaks of {max(beyond)}: try later")
        if time.monotonic() - self._source.asked_at > _ADDRESS_LASTS:
            self._source = _locate(self._asked._replace(revision=self.revision)) or self._source
        stretches = _stretches(spans)
        if len(stretches) > 1:
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                found = list(pool.map(self._get, stretches))
        else:
            found = [self._get(stretch) for stretch in stretches]
        starts = [start for start, _ in stretches]
        out = []
        for offset, size in spans:
            at = bisect_right(starts, offset) - 1
            out.append(found[at][offset - starts[at] :][:size] if size else b"")
        return out

    def _get(self, stretch: Span) -> bytes:
        """One stretch, asked for again where the network or the server failed."""
        for pause in _PAUSES:
            try:
                return self._once(stretch)
            except NetworkError:
                time.sleep(pause)
        return self._once(stretch)

    def _once(self, stretch: Span) -> bytes:
        offset, size = stretch
        last = offset + size - 1
        headers = self._source.headers | {"Range": f"bytes={offset}-{last}"}
        with hub.explained(self._asked), _answer(self._source.place, headers) as response:
            if response.status_code == 200 and size < self.size:
                raise _WholeFile
            said = response.headers.get("Content-Range", "").strip()
            body = _body(response, size)
        window = _RANGE.fullmatch(said)
        right = tuple(map(int, window.groups())) == (offset, last, self.size) if window else size == self.size
        if not right or len(body) != size:
            sent = str(len(body)) if len(body) <= size else "more"
            raise NetworkError(
                f"the server of {self.name} was asked for bytes {offset} to {last} of {self.size}, and answered with "
                f"{sent} bytes as {said[:80]!r}: try again later, or without a proxy"
            )
        return body


def cached_file(repo: str, filename: str, revision: str | None) -> Path | None:
    """A file of a repository, if the cache has it; the hub is not asked."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(repo, filename, revision=revision)
    except ValueError:  # no name that a repository can have: the hub's client will say so
        return None
    return Path(found) if isinstance(found, str) else None


def find_parts(repo: str, filename: str, *, revision: str | None = None) -> HubParts | None:
    """A file of ``repo`` to be read in parts, or None if the repository has none of that name.

    Raises:
        AccessError, NetworkError, NotFoundError: as for ``hub.fetch``.
    """
    asked = hub.Asked(repo, revision, filename)
    source = _locate(asked)
    return HubParts(asked, source) if source else None


def _locate(asked: hub.Asked) -> _Source | None:
    with hub.explained(asked):
        package = hub.client()
        from huggingface_hub.utils import EntryNotFoundError, build_hf_headers

        url = package.hf_hub_url(asked.repo, asked.filename, revision=asked.revision)
        try:
            found = package.get_hf_file_metadata(url)
        except EntryNotFoundError:
            return None
    if found.size is None or not found.commit_hash:
        raise NetworkError(f"what answers for {asked} does not say how long it is: check HF_ENDPOINT and the proxy")
    headers = build_hf_headers()
    if urlsplit(found.location).netloc != urlsplit(url).netloc:
        headers.pop("authorization", None)  # the address is signed, and the token is for nobody else
    # Compressed, an answer would have another length than was asked for.
    headers["Accept-Encoding"] = "identity"
    return _Source(found.size, found.commit_hash, found.location, headers, time.monotonic())


def _stretches(spans: Sequence[Span]) -> list[Span]:
    """Spans in order, those that nearly touch as one."""
    out: list[Span] = []
    for offset, size in sorted(span for span in spans if span[1]):
        if out and offset <= sum(out[-1]) + _TOGETHER:
            out[-1] = (out[-1][0], max(sum(out[-1]), offset + size) - out[-1][0])
        else:
            out.append((offset, size))
    return out


@contextmanager
def _answer(url: str, headers: dict[str, str]) -> Iterator[Any]:
    """A response whose body has not been read."""
    from huggingface_hub.utils import get_session

    session: Any = get_session()
    if callable(getattr(session, "stream", None)):  # of requests, it is a setting
        with session.stream("GET", url, headers=headers, timeout=_PATIENCE) as response:
            yield _checked(response)
        return
    response = session.get(url, headers=headers, timeout=_PATIENCE, stream=True)  # client 0.36
    try:
        yield _checked(response)
    finally:
        response.close()


def _checked(response: Any) -> Any:
    """Refusals as the client's own exceptions, which want to look at the body."""
    from huggingface_hub.utils import hf_raise_for_status

    if response.status_code >= 400:
        if hasattr(response, "read"):
            response.read()
        hf_raise_for_status(response)
    return response


def _body(response: Any, size: int) -> bytes:
    """At most one byte more than ``size``: enough to see that there is too much."""
    chunks = response.iter_content(1 << 16) if hasattr(response, "iter_content") else response.iter_raw(1 << 16)
    body = bytearray()
    for chunk in chunks:
        body += chunk
        if len(body) > size:
            break
    return bytes(body[: size + 1])
