"""What Neuronpedia holds of one source (``gemma-2-2b/20-gemmascope-res-16k``): its bulk export and its HTTP API.

The export is a public bucket of gzipped JSON Lines. What its files are called says nothing of what is in them: rows
are ordered by index as text (0, 1, 10, 100, …), files of some sources by other batches; so indices are taken from the
rows. A listing has 1,000 keys at most and goes on with a token. A feature has any number of explanations.

``GEMLENS_NEURONPEDIA_BULK`` and ``GEMLENS_NEURONPEDIA_API`` name other addresses; ``NEURONPEDIA_API_KEY`` is sent to
the API only.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode
from xml.etree import ElementTree

from gemlens import web
from gemlens.errors import InputError, NetworkError, NotFoundError
from gemlens.records.labels import FeatureFacts

__all__ = ["Batch", "Explanation", "Row", "Source", "ask", "batches", "parse_source", "rows_of"]

_BULK = "https://neuronpedia-datasets.s3.us-east-1.amazonaws.com"
_API = "https://www.neuronpedia.org/api"
_SOURCE = re.compile(r"([A-Za-z0-9][\w.-]*)/([A-Za-z0-9][\w.-]*)", re.ASCII)
_INDEX = re.compile(r"[0-9]{1,9}")
_LONGEST_ROW = 64 << 20
_LISTING = 16 << 20
_S3 = "{http://s3.amazonaws.com/doc/2006-03-01/}"


@dataclass(frozen=True, slots=True)
class Source:
    model: str
    layer: str
    """Neuronpedia's name of the source, such as ``20-gemmascope-res-16k``."""

    def __str__(self) -> str:
        return f"{self.model}/{self.layer}"


@dataclass(frozen=True, slots=True)
class Batch:
    """One file of the export."""

    key: str
    etag: str
    """Changes with its content."""


@dataclass(frozen=True, slots=True)
class Explanation:
    text: str
    method: str | None
    model: str | None


@dataclass(frozen=True, slots=True)
class Row:
    """What one row of the export, or one answer of the API, says of one feature."""

    feature: int
    explanations: tuple[Explanation, ...]
    facts: FeatureFacts | None


def parse_source(text: str) -> Source:
    """``model/source``.

    Raises:
        InputError: it is not.
    """
    said = _SOURCE.fullmatch(text.strip())
    if not said:
        raise InputError(f"--neuronpedia-id {text[:100]!r}: write MODEL/SOURCE, as gemma-2-2b/20-gemmascope-res-16k")
    return Source(said[1], said[2])


def batches(source: Source, kind: str) -> list[Batch]:
    """Files of the export, all of them; empty where it has none.

    Args:
        kind: ``explanations`` or ``features``.

    Raises:
        NetworkError: the bucket cannot be reached, or what answers is none.
    """
    prefix = f"v1/{source.model}/{source.layer}/{kind}/"
    found: list[Batch] = []
    token: str | None = None
    while True:
        query = {"list-type": "2", "prefix": prefix} | ({"continuation-token": token} if token else {})
        page = _listing(web.get(f"{_bulk()}/?{urlencode(query)}", largest=_LISTING))
        for entry in page.iter(f"{_S3}Contents"):
            key = entry.findtext(f"{_S3}Key", "")
            if key.startswith(prefix) and key.endswith(".jsonl.gz") and "/" not in key[len(prefix) :]:
                found.append(Batch(key, entry.findtext(f"{_S3}ETag", "").strip('"')))
        after = page.findtext(f"{_S3}NextContinuationToken")
        if page.findtext(f"{_S3}IsTruncated") != "true":
            return found
        if not after or after == token:
            raise NetworkError(f"{_bulk()} lists {prefix} without an end; try again later")
        token = after


def rows_of(batch: Batch, source: Source, *, width: int | None = None) -> tuple[list[Row], list[str]]:
    """Download a file of the export; rows, and what was wrong with those left out.

    Raises:
        NetworkError: it cannot be had, or is damaged.
    """
    body = web.get(f"{_bulk()}/{quote(batch.key)}")
    rows: list[Row] = []
    wrong: list[str] = []
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(body)) as lines:
            while line := lines.readline(_LONGEST_ROW):
                if not line.strip():
                    continue
                try:
                    rows.append(_bulk_row(json.loads(line), source, width))
                except (ValueError, RecursionError) as error:
                    wrong.append(str(error) if isinstance(error, InputError) else "a line is not JSON")
    except (OSError, EOFError, zlib.error) as error:
        start = body[:40].decode("ascii", "replace")
        raise NetworkError(f"{batch.key} of Neuronpedia's export is damaged ({error}; it begins {start!r})") from error
    return rows, wrong


def ask(source: Source, features: Sequence[int]) -> dict[int, Row | None]:
    """What the API says of some features, at most 50; None for those it does not have.

    Raises:
        NetworkError, AccessError: it cannot be reached, or does not answer.
    """
    if len(features) > 1:
        wanted = [{"modelId": source.model, "layer": source.layer, "index": str(each)} for each in features]
        try:
            answer = web.post_json(f"{_api()}/features", wanted, headers=_key())
        except (NotFoundError, web.RefusedError):
            pass  # an older or newer API: one by one, as it has always had
        else:
            return _several(web.json_of(answer, f"{_api()}/features"), source, features)
    return {feature: _one(source, feature) for feature in features}


def _several(said: Any, source: Source, features: Sequence[int]) -> dict[int, Row | None]:
    """Answers come in an order of their own, and may leave some out."""
    if not isinstance(said, list):
        raise NetworkError(f"{_api()}/features answered no list; try again later")
    found: dict[int, Row | None] = dict.fromkeys(features)
    for each in said:
        try:
            row = _feature(each, source, None)
        except InputError:
            continue
        if row.feature in found:
            found[row.feature] = row
    return found


def _one(source: Source, feature: int) -> Row | None:
    url = f"{_api()}/feature/{quote(source.model)}/{quote(source.layer)}/{feature}"
    try:
        said = web.json_of(web.get(url, headers=_key()), url)
    except NotFoundError:
        return None
    if said is None:
        return None
    try:
        row = _feature(said, source, None)
    except InputError as error:
        raise NetworkError(f"{url} answered something else ({error}); try again later") from error
    if row.feature != feature:
        raise NetworkError(f"{url} answered with feature {row.feature}; try again later")
    return row


def _bulk_row(said: Any, source: Source, width: int | None) -> Row:
    """A row of ``explanations`` (one of them) or of ``features`` (facts)."""
    if isinstance(said, dict) and "description" in said:
        feature = _index(said, source, width)
        text = _text(said.get("description"))
        return Row(feature, tuple(filter(None, [_explanation(said)])) if text else (), None)
    return _feature(said, source, width)


def _feature(said: Any, source: Source, width: int | None) -> Row:
    feature = _index(said, source, width)
    listed = said.get("explanations")
    listed = listed if isinstance(listed, list) else []
    explanations = tuple(filter(None, (_explanation(each) for each in listed if isinstance(each, dict))))
    largest = said.get("maxActApprox")
    facts = FeatureFacts(
        _strings(said.get("pos_str")),
        _strings(said.get("neg_str")),
        float(largest) if isinstance(largest, int | float) else None,
    )
    return Row(feature, explanations, facts)


def _index(said: Any, source: Source, width: int | None) -> int:
    if not isinstance(said, dict):
        raise InputError("a row is no object")
    index = str(said.get("index", "")).strip()
    if not _INDEX.fullmatch(index):
        raise InputError(f"index {index[:20]!r} is no feature")
    place = (said.get("modelId", source.model), said.get("layer", source.layer))
    if place != (source.model, source.layer):
        raise InputError(f"a row is of {'/'.join(map(str, place))[:80]}, not of {source}")
    if width is not None and int(index) >= width:
        raise InputError(f"index {index} lies beyond the {width:,} features")
    return int(index)


def _explanation(said: dict[str, Any]) -> Explanation | None:
    text = _text(said.get("description"))
    return Explanation(text, _text(said.get("typeName")), _text(said.get("explanationModelName"))) if text else None


def _text(value: Any) -> str | None:
    return value.strip() or None if isinstance(value, str) else None


def _strings(value: Any) -> tuple[str, ...]:
    return tuple(each for each in value if isinstance(each, str)) if isinstance(value, list) else ()


def _listing(body: bytes) -> ElementTree.Element:
    # Entities are what makes XML from strangers dangerous, and no listing has any.
    if b"<!DOCTYPE" not in body and b"<!ENTITY" not in body:
        try:
            page = ElementTree.fromstring(body)
            if page.tag == f"{_S3}ListBucketResult":
                return page
        except ElementTree.ParseError:
            pass
    start = " ".join(body[:40].decode("utf-8", "replace").split())
    raise NetworkError(
        f"what answers at {_bulk()} is not Neuronpedia's export ({start!r}…): check "
        "GEMLENS_NEURONPEDIA_BULK, the proxy, or a login page of the network"
    )


def _bulk() -> str:
    return web.check_url(os.environ.get("GEMLENS_NEURONPEDIA_BULK") or _BULK, "GEMLENS_NEURONPEDIA_BULK")


def _api() -> str:
    return web.check_url(os.environ.get("GEMLENS_NEURONPEDIA_API") or _API, "GEMLENS_NEURONPEDIA_API")


def _key() -> dict[str, str]:
    key = os.environ.get("NEURONPEDIA_API_KEY", "").strip()
    return {"x-api-key": key} if key and key.isascii() and key.isprintable() else {}
