"""A local server that speaks Neuronpedia's protocols, as far as labels go: the bucket of its export, and its API.

    with FakeNeuronpedia() as server:
        server.publish("explanations", [explanation(3, "months of the year")])
        server.environment            # what points gemlens at it

The bucket lists ``page`` keys at a time and goes on with a token, in the order of text, as S3 does.
"""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

MODEL, LAYER = "gemma-2-2b", "20-gemmascope-res-16k"
SOURCE = f"{MODEL}/{LAYER}"


def explanation(index: int | str, text: str, **more: Any) -> dict[str, Any]:
    """A row of the export's ``explanations``."""
    row = {
        "id": f"id-{index}-{len(text)}", "modelId": MODEL, "layer": LAYER, "index": str(index), "authorId": "someone",
        "description": text, "embedding": [0.1] * 4, "typeName": "oai_token-act-pair",
        "explanationModelName": "gpt-4o-mini", "umap_x": 0.0, "umap_y": 0.0, "umap_cluster": 0,
        "umap_log_feature_sparsity": -1.0,
    }  # fmt: skip
    return row | more


def feature(index: int | str, **more: Any) -> dict[str, Any]:
    """A row of the export's ``features``."""
    row = {
        "modelId": MODEL, "layer": LAYER, "index": str(index), "maxActApprox": 10.5, "frac_nonzero": 0.01,
        "pos_str": [" May", " June"], "pos_values": [1.0, 0.9], "neg_str": ["x"], "neg_values": [-1.0],
        "sourceSetName": "gemmascope-res-16k", "vector": [], "hasVector": False,
    }  # fmt: skip
    return row | more


def lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    return gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode(), 1)


class FakeNeuronpedia:
    """Serves on 127.0.0.1 inside a ``with``; change the fields while it runs."""

    def __init__(self, *, page: int = 1000) -> None:
        self.page = page
        self.files: dict[str, bytes] = {}
        self.features: dict[tuple[str, str, str], dict[str, Any]] = {}
        """What the API knows, by model, source and index as text."""
        self.log: list[str] = []
        self.headers: list[Mapping[str, str]] = []
        self.refusals: list[tuple[int, dict[str, str], bytes]] = []
        """Given, one each, before anything else: status, headers, body."""
        self.batches = True
        """Whether the API has POST /features."""
        self.on_request: Callable[[int], None] = lambda _count: None
        """Called with the number of requests so far, before an answer."""
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.fake = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.environment = {
            "GEMLENS_NEURONPEDIA_BULK": self.url + "/bucket",
            "GEMLENS_NEURONPEDIA_API": self.url + "/api",
            "NEURONPEDIA_API_KEY": "secret-key",
            "no_proxy": "127.0.0.1",
        }

    def __enter__(self) -> FakeNeuronpedia:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def publish(self, kind: str, rows: Sequence[Mapping[str, Any]], *, size: int = 1024, source: str = SOURCE) -> None:
        """Write rows as the export does: ordered by index as text, ``size`` a file."""
        ordered = sorted(rows, key=lambda row: str(row["index"]))
        for number, start in enumerate(range(0, len(ordered), size)):
            self.files[f"v1/{source}/{kind}/batch-{number}.jsonl.gz"] = lines(ordered[start : start + size])

    def answer(self, index: int, **more: Any) -> None:
        """Let the API know a feature."""
        self.features[MODEL, LAYER, str(index)] = feature(index, **more)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients here are killed on purpose."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Keep the terminal clean."""

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _answer(self, body: bytes) -> None:
        self.fake: FakeNeuronpedia = self.server.fake  # type: ignore[attr-defined]
        self.fake.log.append(f"{self.command} {unquote(self.path)}")
        self.fake.headers.append(dict(self.headers))
        self.fake.on_request(len(self.fake.log))
        if self.fake.refusals:
            self._send(*self.fake.refusals.pop(0))
            return
        path = urlsplit(self.path)
        if path.path.startswith("/bucket"):
            self._bucket(unquote(path.path.removeprefix("/bucket/")), parse_qs(path.query))
        else:
            self._api(path.path.removeprefix("/api/"), body)

    def _bucket(self, key: str, query: dict[str, list[str]]) -> None:
        files = self.fake.files
        if key:
            self._send(200 if key in files else 404, {}, files.get(key, b"<Error><Code>NoSuchKey</Code></Error>"))
            return
        keys = sorted(each for each in files if each.startswith(query["prefix"][0]))
        start = int(query.get("continuation-token", ["0"])[0])
        shown, more = keys[start : start + self.fake.page], start + self.fake.page < len(keys)
        entries = "".join(
            f"<Contents><Key>{escape(each)}</Key><ETag>&quot;{hash(files[each])}&quot;</ETag>"
            f"<Size>{len(files[each])}</Size></Contents>"
            for each in shown
        )
        after = f"<NextContinuationToken>{start + self.fake.page}</NextContinuationToken>" if more else ""
        text = (
            '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{after}{entries}</ListBucketResult>"
        )
        self._send(200, {"Content-Type": "application/xml"}, text.encode())

    def _api(self, path: str, body: bytes) -> None:
        known = self.fake.features
        if path == "features" and self.command == "POST" and self.fake.batches:
            asked = [(each["modelId"], each["layer"], each["index"]) for each in json.loads(body)]
            found = sorted(
                (each for each in asked if each in known), key=lambda each: each[2]
            )  # in an order of its own
            self._send(200, {}, json.dumps([known[each] for each in found]).encode())
        elif path.startswith("feature/") and (place := tuple(path.split("/")[1:])) in known:
            self._send(200, {}, json.dumps(known[place]).encode())  # type: ignore[index]
        else:
            self._send(404, {}, b'{"error": "Not Found"}')

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        try:
            self.send_response(status)
            length = headers.pop("Content-Length", str(len(body)))
            for name, value in {**headers, "Content-Length": length}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = int(length) != len(body)
        except ConnectionError:
            self.close_connection = True
