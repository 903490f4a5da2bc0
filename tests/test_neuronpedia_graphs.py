"""Graphs to and from Neuronpedia, against a local server that speaks its protocol."""

from __future__ import annotations

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cli_helpers import assert_refused, run
from gemlens.errors import InputError
from gemlens.external.neuronpedia_graphs import parse_address
from gemlens.files import write
from gemlens.report.graph_file import circuit_to_json, read_circuit, with_view
from gemlens.study.circuit.prune import prune
from graph_sample import random_graph

KEY = "sk-np-test"


class Neuronpedia(BaseHTTPRequestHandler):
    """Signed addresses, objects, graphs and subgraphs; ``server.said`` is all that it was asked."""

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def _answer(self, said: object, status: int = 200) -> None:
        body = said if isinstance(said, bytes) else json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _asked(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.said.append((self.command, self.path, dict(self.headers), body))
        return body

    def do_POST(self) -> None:
        body = self._asked()
        if self.headers.get("x-api-key") != KEY:
            return self._answer({"message": "invalid key"}, 401)
        asked = json.loads(body)
        if self.path == "/api/graph/signed-put":
            self.server.lengths["7"] = asked["contentLength"]
            return self._answer(
                {"url": f"{self.server.url}/bucket/{asked['filename']}?signature=x", "putRequestId": "7"}
            )
        if self.path == "/api/graph/save-to-db" and "object" in vars(self.server):
            return self._answer({"url": f"{self.server.url}/gemma-3-270m/graph?slug=mine"})
        if self.path == "/api/graph/subgraph/save":
            return self._answer({"subgraphId": "s"})
        return self._answer({"message": "nothing was put"}, 400)

    def do_PUT(self) -> None:
        body = self._asked()
        if len(body) != self.server.lengths["7"] or "x-api-key" in self.headers:
            return self._answer(b"", 403)
        self.server.object = body
        return self._answer(b"")

    def do_GET(self) -> None:
        self._asked()
        if self.path == "/api/graph/gemma-3-270m/mine":
            return self._answer({"url": f"{self.server.url}/bucket/mine.json", "slug": "mine"})
        if self.path == "/bucket/mine.json":
            return self._answer(self.server.object)
        return self._answer({"message": "Graph not found"}, 404)


@pytest.fixture
def server(monkeypatch, tmp_path):
    made = ThreadingHTTPServer(("127.0.0.1", 0), Neuronpedia)
    made.url, made.said, made.lengths = f"http://127.0.0.1:{made.server_port}", [], {}
    threading.Thread(target=made.serve_forever, daemon=True).start()
    monkeypatch.setenv("GEMLENS_NEURONPEDIA_API", f"{made.url}/api")
    monkeypatch.setenv("NEURONPEDIA_API_KEY", KEY)
    monkeypatch.chdir(tmp_path)
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def file(tmp_path):
    circuit = prune(random_graph(), node_threshold=1)
    pins = [node.id for node in circuit.nodes[:3]]
    circuit = with_view(circuit, {"pinnedIds": pins, "supernodes": [["a group", *pins[:2]]], "pruningThreshold": 0.7})
    write(circuit_to_json(circuit), tmp_path / "mine.json")
    return tmp_path / "mine.json"


def test_a_graph_goes_up_with_its_view_and_comes_back(server, file, capsys):
    ran = run(capsys, "circuit", "upload", file, "--slug", "mine")
    assert ran.code == 0, ran.err
    assert ran.out.strip() == f"{server.url}/gemma-3-270m/graph?slug=mine"
    assert [(verb, path.partition("?")[0]) for verb, path, _, _ in server.said] == [
        ("POST", "/api/graph/signed-put"), ("PUT", "/bucket/mine.json"), ("POST", "/api/graph/save-to-db"),
        ("POST", "/api/graph/subgraph/save"),
    ]  # fmt: skip
    asked = [json.loads(body) for verb, _, _, body in server.said if verb == "POST"]
    assert asked[0] == {"filename": "mine.json", "contentLength": len(server.object), "contentType": "application/json"}
    assert asked[1] == {"putRequestId": "7"}
    here = read_circuit(file)
    assert asked[2] == {
        "modelId": "gemma-3-270m", "slug": "mine", "pinnedIds": list(here.view.pinned), "clerps": [],
        "supernodes": [list(group) for group in here.view.supernodes], "pruningThreshold": 0.7,
    }  # fmt: skip
    put = next(headers for verb, _, headers, _ in server.said if verb == "PUT")
    assert put["Content-Encoding"] == "gzip"
    there = json.loads(gzip.decompress(server.object))
    mine = json.loads(file.read_text("utf-8"))
    mine["metadata"]["slug"] = "mine"
    assert there == mine

    pin = here.nodes[4].id
    address = f"https://www.neuronpedia.org/gemma-3-270m/graph?slug=mine&pinnedIds={pin}"
    ran = run(capsys, "circuit", "open", address, "--out", "back.json")
    assert ran.code == 0, ran.err
    back = read_circuit(Path("back.json"))
    assert back.view.pinned == (pin,)
    assert back.nodes == here.nodes


def test_a_key_is_needed_and_comes_from_the_environment_only(server, file, capsys, monkeypatch):
    monkeypatch.setenv("NEURONPEDIA_API_KEY", "wrong")
    ran = run(capsys, "circuit", "upload", file)
    assert_refused(ran, "refuses", "invalid key")
    assert "wrong" not in ran.err
    monkeypatch.setenv("NEURONPEDIA_API_KEY", "")
    assert_refused(run(capsys, "circuit", "upload", file), "no API key", "NEURONPEDIA_API_KEY")
    assert "--key" not in run(capsys, "circuit", "upload", "--help").out


def test_what_cannot_be_uploaded_or_opened(server, file, capsys, tmp_path):
    assert_refused(run(capsys, "circuit", "upload", file, "--slug", "a b"), "slug 'a b'")
    assert_refused(run(capsys, "circuit", "upload", tmp_path / "none.json"), "no file")
    small = prune(random_graph(features=3), node_threshold=0)
    write('{"metadata": {"prompt_tokens": ["a"], "slug": "ab"}, "nodes": [], "links": []}', "small.json")
    assert small.nodes
    assert_refused(run(capsys, "circuit", "upload", "small.json"), "bytes", "1,024")
    site = "https://www.neuronpedia.org"
    assert_refused(run(capsys, "circuit", "open", f"{site}/gemma-3-270m/graph?slug=other"), "does not exist")
    assert_refused(run(capsys, "circuit", "open", f"{site}/gemma-3-270m/12"), "not the address of a graph")
    assert_refused(run(capsys, "circuit", "open", "ftp://x/y"), "no address")
    assert not Path("outputs").exists()


def test_the_view_in_an_address():
    base = "https://www.neuronpedia.org/gemma-2-2b/graph?slug=a-b_c"
    more = "&pinnedIds=1_2_3,E_4_0&supernodes=%5B%5B%22x%22%2C%221_2_3%22%5D%5D&clerps=%5B%5D&pruningThreshold=0.6"
    found = parse_address(base + more + "&clickedId=1_2_3&sourceSet=ignored")
    assert (found.model, found.slug) == ("gemma-2-2b", "a-b_c")
    assert found.view == {
        "pinnedIds": ["1_2_3", "E_4_0"], "supernodes": [["x", "1_2_3"]], "clerps": [], "pruningThreshold": 0.6,
        "clickedId": "1_2_3",
    }  # fmt: skip
    for wrong, said in [("&supernodes=x", "'supernodes'"), ("&pruningThreshold=x", "pruningThreshold")]:
        with pytest.raises(InputError, match=said):
            parse_address(base + wrong)
    for wrong in ("https://www.neuronpedia.org/gemma-2-2b/graph", "https://x.org/a/graph?slug=%2e%2e%2f"):
        with pytest.raises(InputError, match="not the address of a graph"):
            parse_address(wrong)
