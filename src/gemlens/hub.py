"""The Hugging Face hub: one file, a model folder, or a list of names; and what its refusals mean.

The `huggingface_hub` client does the work, from 0.36 (on requests) to 2.x (on httpx), so all of its settings hold:
`HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN`, a stored login, `HF_HUB_OFFLINE`, proxies. It is imported on first use.

What a failure looks like, and what we call it. A status is read together with `X-Error-Code`, never with the class
of the client's exception: that class depends on the client's version and on whether the address is https.

    401 or 403 GatedRepo           the licence is not accepted, or nobody is logged in      AccessError
    401, no token was sent         no such repository, or a private one: the hub won't say  NotFoundError
    401, a token was sent          the token is wrong, expired or revoked                   AccessError
    403                            the token may not read this                              AccessError
    404 Revision- / EntryNotFound  no such branch, tag or commit / no such file             NotFoundError
    404                            no such repository                                       NotFoundError
    429, 5xx                       too many requests / the hub is ill                       NetworkError
    LocalEntryNotFoundError        not cached, and the hub failed: the reason is its cause  by that cause
    OSError with a file name       the cache folder                                         OutputError

The hub is asked for a file's ETag on every `fetch` without a commit hash; if it cannot be reached, the cached file is
used. An interrupted download goes on where it stopped with client 0.36; client 2.x starts that file anew.
``gemlens.ranges`` reads parts of files, with the same client and these same words for what fails.
"""

from __future__ import annotations

import codecs
import errno
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import NamedTuple
from urllib.parse import urlsplit

from gemlens.errors import AccessError, GemlensError, InputError, NetworkError, NotFoundError, OutputError, nearest

__all__ = [
    "Asked", "client", "commit_of", "explained", "fetch", "is_repo_id", "list_files", "load_dotenv", "snapshot",
]  # fmt: skip

SITE = "https://huggingface.co"
_REPO_ID = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_OFFLINE_HELP = "models already in the cache and `--model-id starter` work offline"
_DISK_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
_TRANSPORTS = {"huggingface_hub", "httpx", "httpx2", "requests", "urllib3"}
_SYSTEM = {"builtins", "socket", "ssl"}
_BROKEN_OFF = {"ChunkedEncodingError", "RemoteProtocolError", "ReadError", "IncompleteRead"}


class Asked(NamedTuple):
    """What was asked of the hub; prints as it should stand in a message."""

    repo: str
    revision: str | None
    filename: str | None = None
    listing: bool = False

    def __str__(self) -> str:
        if self.filename:
            return f"{self.repo}/{self.filename}"
        return f"the file list of {self.repo}" if self.listing else self.repo


def is_repo_id(name: str) -> bool:
    """Whether ``name`` reads as ``org/name`` on the hub; a local path of that name wins."""
    # The hub's names have at most 96 characters; longer ones may be more than a file system can look up.
    return len(name) <= 96 and _REPO_ID.fullmatch(name) is not None and not Path(name).exists()


def fetch(repo: str, filename: str, *, revision: str | None = None) -> Path:
    """Return the path of one file of ``repo``, downloaded unless the cache has it."""
    with explained(Asked(repo, revision, filename)):
        path = PurePosixPath(filename)
        if path.is_absolute() or ".." in path.parts or not path.name:
            raise InputError(f"{filename!r} is not a file inside {repo}: give its path as the repository lists it")
        return Path(client().hf_hub_download(repo, filename, revision=revision))


def snapshot(repo: str, *, patterns: Sequence[str], revision: str | None = None) -> Path:
    """Return a folder with the files of ``repo`` that match ``patterns`` (``*.json``, ``resid_post/*``).

    NOTE: when the hub cannot be reached, the cached folder is returned as it is. Client 2.x refuses one with gaps if
    an earlier snapshot left it the list of files, client 0.36 never does: a reader must check for what it needs.
    """
    asked = Asked(repo, revision)
    with explained(asked):
        hub = client()
        folder = Path(hub.snapshot_download(repo, allow_patterns=list(patterns), revision=revision))
        present = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        if any(hub.utils.filter_repo_objects(present, allow_patterns=list(patterns))):
            return folder
        names = hub.HfApi().list_repo_files(repo, revision=revision)
    raise NotFoundError(f"{repo} has no file that matches {', '.join(patterns)}: {nearest(patterns[0], names)}")


def list_files(repo: str, *, revision: str | None = None) -> list[str]:
    """Return the path of every file of ``repo``, sorted; always asks the hub."""
    with explained(Asked(repo, revision, listing=True)):
        # A new HfApi, since the module-level functions keep the endpoint of the first import.
        return sorted(client().HfApi().list_repo_files(repo, revision=revision))


def commit_of(path: Path) -> str | None:
    """Return the commit hash in a cache path (``.../snapshots/<hash>/...``), None for any other folder."""
    parts = path.absolute().parts
    commits = [part for above, part in pairwise(parts) if above == "snapshots" and _COMMIT.fullmatch(part)]
    return commits[-1] if commits else None


def load_dotenv(folder: Path) -> bool:
    """Take ``HF_TOKEN`` from ``folder/.env`` if the environment has no token; return whether it did.

    Nothing else is read from that file, and one that cannot be read is left alone: it may belong to another program.
    Call this before anything imports huggingface_hub.
    """
    if os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN"):
        return False
    try:
        raw = (folder / ".env").read_bytes()
    except OSError:
        return False
    # A shell redirection of Windows PowerShell writes UTF-16 with a BOM.
    wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    token = ""
    for line in raw.decode("utf-16" if wide else "utf-8-sig", errors="replace").splitlines():
        if assignment := re.match(r"\s*(?:export\s+)?HF_TOKEN\s*=\s*(.*)", line):
            token = _unquoted(assignment[1])
    if token:
        os.environ["HF_TOKEN"] = token
    return bool(token)


def _unquoted(value: str) -> str:
    """The value of an assignment without its quotes, or without a trailing comment."""
    if quoted := re.match(r"(['\"])(.*?)\1", value):
        return quoted[2].strip()
    return re.sub(r"(^|\s)#.*", "", value).strip()


def client() -> ModuleType:
    """The `huggingface_hub` package."""
    # Client 2.x otherwise puts the torch version in every request, and asks the hub for a list of programs to look for.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import huggingface_hub

    return huggingface_hub


@contextmanager
def explained(asked: Asked) -> Iterator[None]:
    """Turn what the client raises into a GemlensError; mistakes of ours (TypeError, ...) and Ctrl-C pass."""
    try:
        yield
    except GemlensError:
        raise
    except Exception as error:
        if _token_is_unusable(error):
            # Not chained: the text or the attributes of this error hold the token.
            raise AccessError(
                "the token in HF_TOKEN or the stored login holds characters that no token has: copy it again from "
                f"{SITE}/settings/tokens; `--model-id starter` works without one"
            ) from None
        ours = type(error).__module__.partition(".")[0] not in _TRANSPORTS
        if ours and not isinstance(error, (OSError, json.JSONDecodeError)):
            raise
        raise _translate(error, asked) from error


def _token_is_unusable(error: Exception) -> bool:
    """Whether a header could not be written: httpx quotes it in the message, a codec keeps it as ``object``."""
    if isinstance(error, UnicodeEncodeError):
        return "Bearer " in error.object
    return getattr(error, "response", None) is None and "Bearer " in str(error)


def _translate(error: Exception, asked: Asked) -> GemlensError:
    """Name what was asked, what went wrong and the next step, on one line."""
    from huggingface_hub import constants, errors

    cause: BaseException = error
    while isinstance(cause, errors.LocalEntryNotFoundError) and cause.__cause__ is not None:
        cause = cause.__cause__
    endpoint, cache = _without_password(constants.ENDPOINT), constants.HF_HUB_CACHE
    if isinstance(cause, errors.HFValidationError):
        return InputError(f"{asked.repo!r} is not a name on the hub: write it as org/name")
    if isinstance(cause, errors.OfflineModeIsEnabled):
        return NetworkError(
            f"HF_HUB_OFFLINE is set and {asked} is not in the cache, or not all of it ({cache}): unset it and run "
            f"again with a network; {_OFFLINE_HELP}"
        )
    response = getattr(cause, "response", None)
    if response is not None:  # not `if response`: a refusal of requests is falsy
        token_sent = "authorization" in response.request.headers
        code = response.headers.get("X-Error-Code", "")
        said = _one_line(getattr(cause, "server_message", None) or "no reason given")
        return _refusal(asked, response.status_code, code, token_sent, said)
    reason = _reason(cause)
    if type(cause).__name__ in _BROKEN_OFF or "Consistency check failed" in str(cause):
        return NetworkError(
            f"the download of {asked} broke off ({reason}): run it again, it goes on from what the cache has ({cache})"
        )
    if isinstance(cause, OSError) and (cause.filename is not None or cause.errno in _DISK_ERRNOS):
        return OutputError(
            f"cannot write {asked} to the cache {cache} ({reason}): make room there, or set HF_HOME to another folder"
        )
    if isinstance(cause, errors.FileMetadataError) or "JSONDecodeError" in type(cause).__name__:
        return NetworkError(
            f"what answers at {endpoint} for {asked} is not a Hugging Face hub ({reason}): check HF_ENDPOINT, the "
            f"proxy or a login page of the network; {_OFFLINE_HELP}"
        )
    return NetworkError(
        f"cannot reach the hub at {endpoint} for {asked} ({reason}): check the network and HF_ENDPOINT; {_OFFLINE_HELP}"
    )


def _refusal(asked: Asked, status: int, code: str, token_sent: bool, said: str) -> GemlensError:
    """What an HTTP error of the hub means; the table is in the module's docstring."""
    page = f"{SITE}/{asked.repo}"
    if code == "GatedRepo" and token_sent:
        return AccessError(
            f"{asked.repo} is gated and closed to this token: accept its licence at {page} with the token's account, "
            "and let a fine-grained token read gated repositories; `--model-id starter` works right now without either"
        )
    if code == "GatedRepo":
        return AccessError(
            f"{asked.repo} is gated: accept its licence at {page}, then set HF_TOKEN (or run `hf auth login`); "
            "`--model-id starter` works right now without either"
        )
    if code == "EntryNotFound":
        return NotFoundError(f"{asked.repo} has no file {asked.filename}: {_near(asked)}")
    if code == "RevisionNotFound":
        return NotFoundError(
            f"{asked.repo} has no revision {asked.revision!r}: give a branch, a tag or a whole commit hash from "
            f"{page}/commits/main, or none for the newest"
        )
    if status == 401 and token_sent and code != "RepoNotFound":
        return AccessError(
            f"the hub refused the token for {asked}: it is mistyped, expired or revoked; make one at "
            f"{SITE}/settings/tokens and set HF_TOKEN (or run `hf auth login`); `--model-id starter` works without one"
        )
    if status in (401, 404, 410):
        return NotFoundError(
            f"{asked.repo} does not exist on the hub, or is private: check the spelling, and for a private one set "
            "HF_TOKEN to a token that may read it; `--model-id starter` works without one"
        )
    if status == 403:
        return AccessError(
            f"the hub forbids {asked} ({said}): give the token read access at {SITE}/settings/tokens; "
            "`--model-id starter` works without one"
        )
    if status == 429:
        return NetworkError(f"the hub asks to slow down for {asked}: wait some minutes, a token raises the limit")
    return NetworkError(f"the hub answered {status} for {asked} ({said}): try again later; {_OFFLINE_HELP}")


def _near(asked: Asked) -> str:
    """The names beside the first part of the path that does not exist, or where to look them up."""
    parts = (asked.filename or "").split("/")
    try:
        files = [name.split("/") for name in list_files(asked.repo, revision=asked.revision)]
    except GemlensError:
        files = []
    for depth, part in enumerate(parts):
        siblings = {file[depth] for file in files if file[:depth] == parts[:depth] and len(file) > depth}
        if siblings and part not in siblings:
            place = f"in {'/'.join(parts[:depth])}/, " if depth else ""
            return place + nearest(part, siblings)
    return f"look at {SITE}/{asked.repo}/tree/main"


def _reason(error: BaseException) -> str:
    """The system's own words ("Connection refused") from the bottom of the chain, else those of the client."""
    words, link = str(error.args[0] if error.args else error), error
    for _ in range(20):  # exceptions can form a ring
        # Not the caller's: with a file name, it is what somebody was handling when they turned to the hub.
        if isinstance(link, OSError) and type(link).__module__ in _SYSTEM and link.filename is None:
            words = link.strerror or str(link)
        link = link.__cause__ or link.__context__ or link
    return _one_line(words) or type(error).__name__


def _one_line(text: object) -> str:
    """The first 200 characters on one line, without a token."""
    line = " ".join(str(text).split())
    if token := os.environ.get("HF_TOKEN"):
        line = line.replace(token, "***")
    return line[:200] + "…" if len(line) > 200 else line


def _without_password(url: str) -> str:
    """The address without the ``user:password@`` that a private mirror may need."""
    return urlsplit(url)._replace(netloc=urlsplit(url).netloc.rpartition("@")[2]).geturl()
