"""Attribution graphs to and from Neuronpedia.

Up: a signed address is asked for, the packed JSON is put there, and saved under the account of the key; then, where
nodes are pinned, the view of them. Down: a graph's address names model and slug; Neuronpedia says where the JSON lies.

``GEMLENS_NEURONPEDIA_API`` is another server that speaks this; ``NEURONPEDIA_API_KEY`` the key, from the environment
only, since what stands on a command line is seen by others.
"""

from __future__ import annotations

import gzip
import http.client
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, urlsplit

from gemlens import web
from gemlens.errors import AccessError, InputError, NetworkError

__all__ = ["Address", "download", "parse_address", "save_view", "upload"]

_API = "https://www.neuronpedia.org/api"
_LEAST, _MOST = 1024, 100 * 2**20
_SLUG = re.compile(r"[A-Za-z0-9_-]{2,}")
_NAME = re.compile(r"[\w.-]+", re.ASCII)


class Address(NamedTuple):
    """A graph on Neuronpedia, and the view that its address asks for."""

    model: str
    slug: str
    view: Mapping[str, Any]
    """Of ``pinnedIds``, ``supernodes``, ``clerps``, ``clickedId`` and ``pruningThreshold`` those that it gives."""


def parse_address(url: str) -> Address:
    """``https://www.neuronpedia.org/gemma-2-2b/graph?slug=my-graph&pinnedIds=a,b``

    Raises:
        InputError: it is not of that form.
    """
    parts = urlsplit(web.check_url(url, "the address"))
    model, _, page = parts.path.strip("/").partition("/")
    query = parse_qs(parts.query)
    slug = query.get("slug", [""])[0]
    if page != "graph" or not _NAME.fullmatch(model) or not _SLUG.fullmatch(slug):
        raise InputError(
            f"{url[:120]} is not the address of a graph; on Neuronpedia it reads "
            "https://www.neuronpedia.org/MODEL/graph?slug=NAME"
        )
    view: dict[str, Any] = {}
    if ids := query.get("pinnedIds"):
        view["pinnedIds"] = [each for each in ids[0].split(",") if each]
    for name in ("supernodes", "clerps"):
        if said := query.get(name):
            try:
                view[name] = json.loads(said[0])
            except (ValueError, RecursionError):
                raise InputError(
                    f"{name!r} in the address is not JSON; leave it out, or copy the address again"
                ) from None
    if "clickedId" in query:
        view["clickedId"] = query["clickedId"][0]
    if threshold := query.get("pruningThreshold"):
        try:
            view["pruningThreshold"] = float(threshold[0])
        except ValueError:
            raise InputError(
                f"pruningThreshold {threshold[0][:20]!r} in the address is no number; leave it out"
            ) from None
    return Address(model, slug, view)


def download(address: Address) -> bytes:
    """The JSON of a graph, unpacked.

    Raises:
        NotFoundError: no such graph.
        NetworkError, AccessError: it cannot be had.
    """
    where = f"{_base()}/graph/{quote(address.model)}/{quote(address.slug)}"
    said = web.json_of(web.get(where, headers=_key(needed=False)), where)
    place = said.get("url") if isinstance(said, dict) else None
    if not isinstance(place, str):
        raise NetworkError(f"{where} does not say where the graph lies; check the model and the slug")
    body = web.get(web.check_url(place, "the graph's place"))
    if body[:2] != b"\x1f\x8b":
        return body
    with gzip.GzipFile(fileobj=_stream(body)) as file:
        return file.read(1 << 30)


def upload(data: bytes, slug: str) -> str:
    """Save a graph file under the account of the key, and return its address.

    Args:
        data: the JSON, not packed.

    Raises:
        InputError: a slug that Neuronpedia does not take, or a file that is too small or too large.
        AccessError: no key, or one that is refused.
        NetworkError: something broke off; nothing was saved.
    """
    if not _SLUG.fullmatch(slug):
        raise InputError(f"slug {slug[:80]!r}: two or more letters, digits, - and _, without spaces")
    packed = gzip.compress(data, mtime=0)
    if not _LEAST <= len(packed) <= _MOST:
        raise InputError(
            f"the graph packs to {len(packed):,} bytes, Neuronpedia takes {_LEAST:,} to {_MOST:,}; "
            "prune it otherwise (--node-threshold, --edge-threshold of gemlens circuit open)"
        )
    key, base = _key(needed=True), _base()
    asked = {"filename": f"{slug}.json", "contentLength": len(packed), "contentType": "application/json"}
    signed = _answer(f"{base}/graph/signed-put", asked, key, ("url", "putRequestId"))
    _put(signed["url"], packed)
    return _answer(f"{base}/graph/save-to-db", {"putRequestId": signed["putRequestId"]}, key, ("url",))["url"]


def save_view(model: str, slug: str, view: Mapping[str, Any], *, name: str = "") -> None:
    """Save which nodes are pinned and grouped, as a subgraph of an uploaded graph; raises as ``upload`` does.

    Args:
        view: ``pinnedIds``, ``supernodes``, ``clerps`` and the thresholds, as far as there are.
    """
    known = {"pinnedIds": [], "supernodes": [], "clerps": []} | dict(view)
    content = {"modelId": model, "slug": slug, **({"displayName": name} if name else {}), **known}
    web.post_json(f"{_base()}/graph/subgraph/save", content, headers=_key(needed=True))


def _answer(where: str, content: Mapping[str, Any], key: dict[str, str], fields: tuple[str, ...]) -> dict[str, str]:
    said = web.json_of(web.post_json(where, content, headers=key), where)
    for name in fields:
        if not isinstance(said, dict) or not isinstance(said.get(name), str):
            raise NetworkError(f"{where} answered without {name!r}: it does not speak Neuronpedia's protocol")
    return said


def _put(url: str, body: bytes) -> None:
    """To the signed address, without the key: it is another host's."""
    about = {"Content-Type": "application/json", "Content-Encoding": "gzip", "Content-Length": str(len(body))}
    request = urllib.request.Request(web.check_url(url, "the signed address"), data=body, headers=about, method="PUT")
    host = urlsplit(url).hostname
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            answer.read()
    except urllib.error.HTTPError as error:
        with error:
            raise NetworkError(f"{host} refused the file ({error.code}); nothing was saved, upload it again") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise NetworkError(
            f"{host} cannot be reached, or broke off ({reason}); nothing was saved, upload it again"
        ) from error


def _base() -> str:
    return web.check_url(os.environ.get("GEMLENS_NEURONPEDIA_API") or _API, "GEMLENS_NEURONPEDIA_API")


def _key(*, needed: bool) -> dict[str, str]:
    key = os.environ.get("NEURONPEDIA_API_KEY", "").strip()
    if not key and needed:
        raise AccessError(
            "no API key: make one in the settings of your account on https://www.neuronpedia.org, and set "
            "NEURONPEDIA_API_KEY"
        )
    if not key.isascii() or not key.isprintable():
        raise AccessError("NEURONPEDIA_API_KEY holds characters that no key has; copy it again")
    return {"x-api-key": key} if key else {}


def _stream(body: bytes) -> Any:
    import io

    return io.BytesIO(body)
