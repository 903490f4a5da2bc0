"""A local server that speaks the Hugging Face hub's protocol, as far as downloading goes.

    with FakeHub({"org/name": {"config.json": b"{}"}}) as hub, connected(hub.url, home=tmp_path):
        hub["org/name"].gated = True
        ...  # the real huggingface_hub client now talks to `hub`
        assert hub.bytes_of("config.json") == 0

It serves what the clients from 0.36 to 2.x ask for: `/api/models/{repo}` with and without `/revision/{rev}`,
`/api/models/{repo}/tree/{rev}`, and `/{repo}/resolve/{rev}/{file}` by HEAD and GET with ranges. Refusals carry the
status, `X-Error-Code` and `X-Error-Message` of the hub; note that it sends no code with a 401, except for gated files,
and that names and lists of gated repositories are public. Not here: redirects to a CDN, Xet, pages of the tree.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any
from unittest import mock
from urllib.parse import unquote, urlsplit

GOOD_TOKEN = "hf_goodtokengoodtoken"


@dataclass
class Repo:
    """One repository and how it misbehaves; change the fields while the server runs."""

    files: dict[str, bytes]
    commit: str
    gated: bool = False
    """Files need a token from ``members``."""
    members: set[str] = field(default_factory=set)
    private: bool = False
    """As if missing, unless one of the hub's tokens is sent."""
    forbidden: str = ""
    """Answer 403 with this message."""
    broken: int = 0
    """Answer everything with this status; 200 is a page that is not the hub's."""
    cut: int | None = None
    """Close the connection after this many bytes of a body."""
    ignores_ranges: bool = False
    """Answer every GET with the whole file, as some proxies do."""
    lie: str = ""
    """About ranges: ``total``, another length of the whole; ``window``, other bytes than asked; ``short``, fewer bytes
    than it says; ``long``, more; ``length``, a HEAD that says more than there is."""
    delay: float = 0.0
    """Seconds before every answer."""


@dataclass(frozen=True)
class Request:
    """One line of the log."""

    method: str
    path: str
    status: int
    sent: int
    """Bytes of the body that were written."""
    range: str | None
    token: str | None


class FakeHub:
    """Serves ``repos`` on 127.0.0.1 inside a ``with``; ``log`` holds every request in order."""

    def __init__(self, repos: Mapping[str, Mapping[str, bytes]], tokens: tuple[str, ...] = (GOOD_TOKEN,)) -> None:
        self.repos = {name: Repo(dict(files), _sha1(repr((name, files)).encode())) for name, files in repos.items()}
        self.tokens = set(tokens)
        self.log: list[Request] = []
        self.closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.hub = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __getitem__(self, name: str) -> Repo:
        return self.repos[name]

    def __enter__(self) -> FakeHub:
        # The default of half a second between polls is what closing would have to wait for.
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def requests(self, method: str, ending: str = "") -> list[Request]:
        """The logged requests with this method whose path ends so."""
        return [request for request in self.log if request.method == method and request.path.endswith(ending)]

    def bytes_of(self, ending: str) -> int:
        """How many bytes of bodies went out for files whose path ends so."""
        return sum(
            request.sent for request in self.log if "/resolve/" in request.path and request.path.endswith(ending)
        )


def _sha1(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


class _Refused(Exception):
    """An answer that is not the thing asked for."""

    def __init__(self, status: int, message: str, code: str = "", commit: str = "") -> None:
        self.status, self.message = status, message
        found = {"X-Error-Code": code, "X-Error-Message": " ".join(message.split()), "X-Repo-Commit": commit}
        self.headers = {name: value for name, value in found.items() if value}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Keep the terminal clean: `FakeHub.log` has it all."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.hub: FakeHub = self.server.hub  # type: ignore[attr-defined]
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        path = urlsplit(self.path).path
        try:
            status, headers, body, cut = self._route(path)
        except _Refused as refused:
            status, headers, cut = refused.status, refused.headers, None
            body = refused.message.encode() if status == 200 else json.dumps({"error": refused.message}).encode()
        self._send(unquote(path), status, headers, body, cut)

    def _route(self, path: str) -> tuple[int, dict[str, str], bytes, int | None]:
        """Status, headers, body, and where the body is cut off."""
        api = path.startswith("/api/models/")
        # Split first: a branch such as refs/pr/1 comes quoted, as one part.
        parts = [unquote(part) for part in path.removeprefix("/api/models" if api else "").split("/")[1:]]
        name, filename = "/".join(parts[:2]), "/".join(parts[4:])
        verb, revision, *_ = *parts[2:4], "", ""
        repo = self._admitted(name)
        if revision not in ("", "main", repo.commit):
            raise _Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        if api and verb == "tree":
            listed = {path: {"size": len(body), "oid": _sha1(body)} for path, body in repo.files.items()}
            tree = [{"type": "file", "path": path, **entry} for path, entry in listed.items()]
            return 200, {}, json.dumps(tree).encode(), None
        if api and verb in ("", "revision"):
            siblings = [{"rfilename": path} for path in repo.files]
            info = {"id": name, "sha": repo.commit, "siblings": siblings, "private": repo.private, "tags": []}
            return 200, {}, json.dumps(info | {"gated": "manual" if repo.gated else False}).encode(), None
        if api or verb != "resolve":
            raise _Refused(404, "Sorry, we can't find the page you are looking for.")
        return self._file(name, repo, filename)

    def _admitted(self, name: str) -> Repo:
        """The repository, or the hub's refusal: first who asks, then whether it exists."""
        repo = self.hub.repos.get(name)
        if repo is not None:
            self.hub.closing.wait(repo.delay)
            if repo.broken == 200:
                raise _Refused(200, "<html>Please log in to this network.</html>")
            if repo.broken:
                raise _Refused(repo.broken, "Internal Error - We're working hard to fix this as soon as possible!")
        if self.token is not None and self.token not in self.hub.tokens | (repo.members if repo else set()):
            raise _Refused(401, "Invalid credentials in Authorization header")
        if repo is None or (repo.private and self.token is None):
            if self.token is None:
                raise _Refused(401, "Invalid username or password.")
            raise _Refused(404, "Repository not found", "RepoNotFound")
        if repo.forbidden:
            raise _Refused(403, repo.forbidden)
        return repo

    def _file(self, name: str, repo: Repo, filename: str) -> tuple[int, dict[str, str], bytes, int | None]:
        if repo.gated and self.token not in repo.members:
            if self.token is None:
                advice = "You must have access to it and be authenticated to access it. Please log in."
                raise _Refused(401, f"Access to model {name} is restricted. {advice}", "GatedRepo")
            advice = f"Visit https://huggingface.co/{name} to ask for access."
            listed = f"Access to model {name} is restricted and you are not in the authorized list. {advice}"
            raise _Refused(403, listed, "GatedRepo")
        if filename not in repo.files:
            raise _Refused(404, "Entry not found", "EntryNotFound", repo.commit)
        content = repo.files[filename]
        etag, whole = f'"{_sha1(content)}"', str(len(content))
        headers = {"X-Repo-Commit": repo.commit, "ETag": etag, "X-Linked-Size": whole, "Accept-Ranges": "bytes"}
        if repo.lie == "length":
            headers["X-Linked-Size"] = str(len(content) + 4096)
        if repo.ignores_ranges or not (wanted := self.headers.get("Range")):
            return 200, headers, content, repo.cut
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last or len(content)), len(content) - 1)
        if start > end:
            raise _Refused(416, "Requested range not satisfiable")
        body = content[start : end + 1]
        if repo.lie == "total":
            whole = str(len(content) + 1)
        if repo.lie == "window":
            start, end, body = start + 1, end + 1, content[start + 1 : end + 2]
        body = {"short": body[:-1], "long": body + b"x"}.get(repo.lie, body)
        return 206, headers | {"Content-Range": f"bytes {start}-{end}/{whole}"}, body, repo.cut

    def _send(self, path: str, status: int, headers: dict[str, str], body: bytes, cut: int | None) -> None:
        written = b"" if self.command == "HEAD" else body[:cut]
        self.close_connection = self.close_connection or cut is not None
        request = Request(self.command, path, status, len(written), self.headers.get("Range"), self.token)
        self.hub.log.append(request)  # before the answer, so that a test that has read it finds its request here
        try:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(written)
        except ConnectionError:
            self.close_connection = True  # the client gave up waiting


@contextmanager
def connected(url: str, *, home: Path, offline: bool = False, timeout: float = 10.0) -> Iterator[None]:
    """Point the imported huggingface_hub client at ``url`` with ``home`` as HF_HOME; its retries do not wait.

    The client reads its environment once, on import, hence the patches. Tokens are read at each call: set HF_TOKEN.
    """
    import huggingface_hub.file_download as file_download
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    template = "HUGGINGFACE_CO_URL_TEMPLATE"
    values: dict[str, Any] = {
        "ENDPOINT": url,
        template: url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_HUB_OFFLINE": offline,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_ETAG_TIMEOUT": timeout,
        "HF_HUB_DOWNLOAD_TIMEOUT": timeout,
    }
    impatient = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    # A session of 0.36 is offline or not for as long as it lives.
    forget_sessions = _http.close_session if hasattr(_http, "close_session") else vars(_http)["reset_sessions"]
    with ExitStack() as stack:
        for name, value in values.items():
            stack.enter_context(mock.patch.object(constants, name, value))
        for module in (_http, file_download):
            stack.enter_context(mock.patch.object(module, "time", impatient))
        # Copies of constants that file_download holds: the template in 0.36, the patience of a second try in 2.x.
        for name, value in {template: values[template], "_ETAG_RETRY_TIMEOUT": timeout}.items():
            if hasattr(file_download, name):
                stack.enter_context(mock.patch.object(file_download, name, value))
        stack.callback(forget_sessions)
        forget_sessions()
        yield
