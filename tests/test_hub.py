"""The real huggingface_hub client against the fake hub: what comes back, and what each failure tells the reader."""

import errno
import os
import socket
import subprocess
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fake_hub import GOOD_TOKEN, FakeHub, connected
from gemlens import hub as gemlens_hub
from gemlens.errors import AccessError, InputError, NetworkError, NotFoundError, OutputError
from gemlens.hub import commit_of, fetch, is_repo_id, list_files, load_dotenv, snapshot

MODEL, SCOPE = "org/tiny-gemma", "org/tiny-scope"
WEIGHTS = bytes(range(256)) * 400
SMALL, LARGE = (f"resid_post/layer_12_width_16k_l0_{l0}/params.safetensors" for l0 in ("small", "big"))
REPOS = {
    MODEL: {"config.json": b"{}", "tokenizer.json": b"[]", "model.safetensors": WEIGHTS, "README.md": b"#"},
    SCOPE: {SMALL: WEIGHTS, LARGE: WEIGHTS[:100], "mlp_out/layer_12_width_16k_l0_big/params.safetensors": b"m"},
}
WRONG_TOKEN = "hf_wrongtokenwrongtoken"


@pytest.fixture
def no_token(monkeypatch):
    # Through monkeypatch, so that what load_dotenv sets is undone as well.
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.setenv(name, "")


@pytest.fixture
def hub(tmp_path, no_token):
    with FakeHub(REPOS) as server, connected(server.url, home=tmp_path / "home", timeout=5):
        yield server


def refusal(kind, call, *args, **kwargs):
    """The message of the error of exactly this kind that the call raises, one line long and without a token."""
    with pytest.raises(kind) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert caught.type is kind
    assert len(message.splitlines()) == 1
    assert GOOD_TOKEN not in message
    assert WRONG_TOKEN not in "".join(traceback.format_exception(caught.value))
    return message


def verbs(repo=MODEL):
    return [
        lambda **kw: fetch(repo, "config.json", **kw),
        lambda **kw: snapshot(repo, patterns=["*.json"], **kw),
        lambda **kw: list_files(repo, **kw),
    ]


VERBS = pytest.mark.parametrize("verb", [0, 1, 2], ids=["fetch", "snapshot", "list_files"])
DOWNLOADS = pytest.mark.parametrize("verb", [0, 1], ids=["fetch", "snapshot"])


# What works


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("google/gemma-3-270m", True),
        ("org/some_name.v2", True),
        ("starter", False),
        ("./models/gemma", False),
        ("models/gemma/deep", False),
        ("/models/gemma", False),
        ("org/", False),
        ("org/na me", False),
        ("org/name\n", False),
    ],
)
def test_a_repo_id_reads_org_slash_name(name, expected):
    assert is_repo_id(name) is expected


def test_a_local_folder_is_not_a_repo_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_repo_id("models/gemma")
    (tmp_path / "models" / "gemma").mkdir(parents=True)
    assert not is_repo_id("models/gemma")


def test_a_second_fetch_asks_but_reads_no_body(hub):
    first = fetch(SCOPE, SMALL)
    assert first.read_bytes() == WEIGHTS
    assert commit_of(first) == hub[SCOPE].commit
    asked = len(hub.requests("HEAD", SMALL))
    assert fetch(SCOPE, SMALL) == first
    assert hub.bytes_of(SMALL) == len(WEIGHTS)
    assert len(hub.requests("HEAD", SMALL)) == asked + 1


def test_a_fetch_by_commit_is_silent_once_cached(hub):
    path = fetch(MODEL, "config.json", revision=hub[MODEL].commit)
    log = list(hub.log)
    assert fetch(MODEL, "config.json", revision=hub[MODEL].commit) == path
    assert hub.log == log


def test_a_snapshot_holds_the_matching_files_only(hub):
    folder = snapshot(MODEL, patterns=["*.json", "*.safetensors"])
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert commit_of(folder) == hub[MODEL].commit
    sent = sum(request.sent for request in hub.log if "/resolve/" in request.path)
    assert snapshot(MODEL, patterns=["*.json", "*.safetensors"]) == folder
    assert sum(request.sent for request in hub.log if "/resolve/" in request.path) == sent


def test_files_are_listed_sorted(hub):
    assert list_files(SCOPE) == sorted(REPOS[SCOPE])
    assert list_files(SCOPE, revision=hub[SCOPE].commit) == sorted(REPOS[SCOPE])


def test_the_commit_comes_from_cache_paths_only(tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert commit_of(Path(f"hub/models--a--b/snapshots/{commit}/x/y.safetensors")) == commit
    assert commit_of(Path(f"hub/models--a--b/snapshots/{commit}")) == commit
    assert commit_of(Path(f"hub/{commit}/x")) is None
    assert commit_of(Path("hub/snapshots/main/x")) is None
    assert commit_of(tmp_path) is None


# What does not exist


@VERBS
@pytest.mark.parametrize("token", ["", GOOD_TOKEN])
def test_a_missing_repo(hub, verb, token, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", token)
    message = refusal(NotFoundError, verbs("org/no-such")[verb])
    assert "org/no-such does not exist on the hub, or is private: check the spelling" in message
    assert "HF_TOKEN" in message
    assert "--model-id starter" in message


@VERBS
def test_a_private_repo_opens_with_a_token(hub, verb, monkeypatch):
    hub[MODEL].private = True
    assert "or is private" in refusal(NotFoundError, verbs()[verb])
    monkeypatch.setenv("HF_TOKEN", GOOD_TOKEN)
    assert verbs()[verb]()


@VERBS
def test_a_missing_revision(hub, verb):
    message = refusal(NotFoundError, verbs()[verb], revision="v9")
    assert f"{MODEL} has no revision 'v9'" in message
    assert f"https://huggingface.co/{MODEL}/commits/main" in message


def test_a_missing_folder_names_its_nearest_siblings(hub):
    message = refusal(NotFoundError, fetch, SCOPE, "resid_post/layer_12_width_16k_l0_smal/params.safetensors")
    assert f"{SCOPE} has no file resid_post/layer_12_width_16k_l0_smal/params.safetensors" in message
    assert "in resid_post/, did you mean layer_12_width_16k_l0_small, layer_12_width_16k_l0_big?" in message


def test_a_missing_file_names_its_nearest_siblings(hub):
    assert "did you mean config.json, tokenizer.json?" in refusal(NotFoundError, fetch, MODEL, "confg.json")
    assert "there is mlp_out, resid_post" in refusal(NotFoundError, fetch, SCOPE, "zzz/params.safetensors")
    message = refusal(NotFoundError, fetch, SCOPE, SMALL.replace("params", "param"))
    assert "in resid_post/layer_12_width_16k_l0_small/, did you mean params.safetensors?" in message


def test_a_missing_file_without_a_list_says_where_to_look(hub, monkeypatch):
    def fails(repo, *, revision=None):
        raise NetworkError("no list")

    monkeypatch.setattr(gemlens_hub, "list_files", fails)
    message = refusal(NotFoundError, fetch, MODEL, "confg.json")
    assert f"look at https://huggingface.co/{MODEL}/tree/main" in message


def test_a_snapshot_of_nothing_names_what_there_is(hub):
    message = refusal(NotFoundError, snapshot, MODEL, patterns=["confg.jso"])
    assert f"{MODEL} has no file that matches confg.jso: did you mean config.json, tokenizer.json?" in message


@pytest.mark.parametrize("filename", ["../other/config.json", "/etc/hosts", "", "a/../../b"])
def test_a_path_out_of_the_repo_is_refused_unasked(hub, filename):
    assert "is not a file inside" in refusal(InputError, fetch, MODEL, filename)
    assert hub.log == []


def test_a_name_that_cannot_exist(hub):
    message = refusal(InputError, fetch, "org/na me/x", "config.json")
    assert "'org/na me/x' is not a name on the hub: write it as org/name" in message


# What is closed


@DOWNLOADS
def test_a_gated_repo_without_a_token(hub, verb):
    hub[MODEL].gated = True
    message = refusal(AccessError, verbs()[verb])
    assert f"{MODEL} is gated: accept its licence at https://huggingface.co/{MODEL}, then set HF_TOKEN" in message
    assert "hf auth login" in message
    assert "--model-id starter" in message


@DOWNLOADS
def test_a_gated_repo_with_a_token_that_is_not_admitted(hub, verb, monkeypatch):
    hub[MODEL].gated = True
    monkeypatch.setenv("HF_TOKEN", GOOD_TOKEN)
    message = refusal(AccessError, verbs()[verb])
    assert "closed to this token" in message
    assert f"accept its licence at https://huggingface.co/{MODEL} with the token's account" in message
    assert "--model-id starter" in message


@DOWNLOADS
def test_a_gated_repo_opens_to_its_members(hub, verb, monkeypatch):
    hub[MODEL].gated, hub[MODEL].members = True, {GOOD_TOKEN}
    monkeypatch.setenv("HF_TOKEN", GOOD_TOKEN)
    assert verbs()[verb]().exists()


@VERBS
def test_a_wrong_token(hub, verb, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", WRONG_TOKEN)
    message = refusal(AccessError, verbs()[verb])
    assert "the hub refused the token" in message
    assert "https://huggingface.co/settings/tokens and set HF_TOKEN" in message
    assert hub.log[-1].token == WRONG_TOKEN


@VERBS
def test_a_token_that_cannot_be_sent(hub, verb, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", f"“{WRONG_TOKEN}”")
    message = refusal(AccessError, verbs()[verb])
    assert "copy it again from https://huggingface.co/settings/tokens" in message
    assert hub.log == []


@VERBS
def test_a_token_with_a_control_character(hub, verb, monkeypatch):
    # httpx quotes it in its error; requests sends it, and the hub refuses.
    monkeypatch.setenv("HF_TOKEN", f"{WRONG_TOKEN}\x0b{WRONG_TOKEN}")
    assert "https://huggingface.co/settings/tokens" in refusal(AccessError, verbs()[verb])


@VERBS
def test_a_token_without_the_right_to_read(hub, verb, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", GOOD_TOKEN)
    hub[MODEL].forbidden = f"Please enable access\nto public gated repositories for {GOOD_TOKEN}"
    message = refusal(AccessError, verbs()[verb])
    assert f"the hub forbids {'the file list of ' if verb == 2 else ''}{MODEL}" in message
    assert "(Please enable access to public gated repositories for ***" in message
    assert "give the token read access at https://huggingface.co/settings/tokens" in message


# What does not answer


@VERBS
@pytest.mark.parametrize("status", [500, 503])
def test_a_hub_that_is_ill(hub, verb, status):
    hub[MODEL].broken = status
    message = refusal(NetworkError, verbs()[verb])
    assert f"the hub answered {status} for" in message
    assert "--model-id starter` work offline" in message


@VERBS
def test_a_hub_that_is_too_busy(hub, verb):
    hub[MODEL].broken = 429
    assert "the hub asks to slow down" in refusal(NetworkError, verbs()[verb])


@VERBS
def test_something_else_that_answers(hub, verb):
    hub[MODEL].broken = 200
    message = refusal(NetworkError, verbs()[verb])
    assert f"what answers at {hub.url}" in message
    assert "is not a Hugging Face hub" in message
    assert "HF_ENDPOINT" in message


@VERBS
def test_nobody_listens(no_token, tmp_path, verb):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with connected(url.replace("//", "//user:secret@"), home=tmp_path):
            message = refusal(NetworkError, verbs()[verb])
    assert f"cannot reach the hub at {url} for" in message
    assert "(Connection refused)" in message
    assert "--model-id starter` work offline" in message


def test_the_reason_is_not_what_the_caller_was_handling(no_token, tmp_path):
    def falls_back():
        try:
            (tmp_path / "config.json").read_bytes()
        except FileNotFoundError:
            fetch(MODEL, "config.json")

    with connected("http://127.0.0.1:9", home=tmp_path):
        assert "(Connection refused)" in refusal(NetworkError, falls_back)


def test_an_unknown_host(no_token, tmp_path):
    with connected("http://hub.invalid", home=tmp_path):
        assert "cannot reach the hub at http://hub.invalid" in refusal(NetworkError, verbs()[0])


def test_a_hub_that_is_too_slow(no_token, tmp_path):
    with FakeHub(REPOS) as server, connected(server.url, home=tmp_path, timeout=0.1):
        readme = fetch(MODEL, "README.md")
        server[MODEL].delay = 30
        assert "(timed out)" in refusal(NetworkError, fetch, MODEL, "config.json")
        assert fetch(MODEL, "README.md") == readme


@pytest.mark.parametrize("trouble", ["broken", "offline", "refused"])
def test_the_cache_serves_when_the_hub_does_not(hub, trouble, tmp_path):
    path, folder = fetch(MODEL, "README.md"), snapshot(MODEL, patterns=["*.json"])
    url = "http://127.0.0.1:9" if trouble == "refused" else hub.url
    hub[MODEL].broken = 500 if trouble == "broken" else 0
    log = list(hub.log)
    with connected(url, home=tmp_path / "home", offline=trouble == "offline"):
        assert fetch(MODEL, "README.md") == path
        assert snapshot(MODEL, patterns=["*.json"]) == folder
    assert (len(hub.log) > len(log)) is (trouble == "broken")


@VERBS
def test_offline_without_a_cache(hub, verb, tmp_path):
    with connected(hub.url, home=tmp_path / "empty", offline=True):
        message = refusal(NetworkError, verbs()[verb])
    assert message.startswith("HF_HUB_OFFLINE is set and")
    assert f"{MODEL}{'/config.json' if verb == 0 else ''} is not in the cache" in message
    assert str(tmp_path / "empty" / "hub") in message
    assert "--model-id starter` work offline" in message
    assert hub.log == []


def test_offline_a_snapshot_without_one_match_is_not_in_the_cache(hub, tmp_path):
    fetch(MODEL, "README.md")
    with connected(hub.url, home=tmp_path / "home", offline=True):
        message = refusal(NetworkError, snapshot, MODEL, patterns=["*.safetensors"])
    assert message.startswith(f"HF_HUB_OFFLINE is set and {MODEL} is not in the cache, or not all of it")


# What breaks off


def test_a_cut_body_is_resumed(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)  # what it keeps is whole chunks
    hub[SCOPE].cut = 60_000
    try:
        path = fetch(SCOPE, SMALL)  # client 2.x goes on by itself
    except NetworkError as error:
        assert f"the download of {SCOPE}/{SMALL} broke off" in str(error)
        path = fetch(SCOPE, SMALL)  # client 0.36 is run again
    assert path.read_bytes() == WEIGHTS
    assert hub.bytes_of(SMALL) == len(WEIGHTS)
    assert [request.range for request in hub.requests("GET", SMALL)] == [None, "bytes=60000-"]


@DOWNLOADS
def test_a_body_that_never_comes(hub, verb):
    hub[MODEL].cut = 0
    hub[MODEL].files["config.json"] = WEIGHTS
    message = refusal(NetworkError, (lambda: fetch(MODEL, "config.json")) if verb == 0 else verbs()[1])
    assert f"{MODEL}{'/config.json' if verb == 0 else ''} broke off" in message
    assert "run it again" in message
    hub[MODEL].cut = None
    assert fetch(MODEL, "config.json").read_bytes() == WEIGHTS


def test_a_full_disk(hub, monkeypatch, tmp_path):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    message = refusal(OutputError, fetch, MODEL, "config.json")
    assert f"to the cache {tmp_path / 'home' / 'hub'} (No space left on device)" in message
    assert "set HF_HOME" in message


@DOWNLOADS
def test_a_cache_that_cannot_be_written(hub, verb, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with connected(hub.url, home=tmp_path / "file"):
        message = refusal(OutputError, verbs()[verb])
    assert str(tmp_path / "file" / "hub") in message
    assert "set HF_HOME" in message


def test_our_own_mistakes_and_ctrl_c_pass(hub, monkeypatch):
    with pytest.raises(TypeError):
        snapshot(MODEL, patterns=None)

    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("huggingface_hub.file_download.http_get", stopped)
    with pytest.raises(KeyboardInterrupt):
        fetch(MODEL, "config.json")


# The token


@pytest.mark.parametrize(
    "text",
    [
        f"HF_TOKEN={GOOD_TOKEN}",
        f"export HF_TOKEN = '{GOOD_TOKEN}'  # mine",
        f'# HF_TOKEN=no\r\nOTHER=1\r\nHF_TOKEN="{GOOD_TOKEN}"\r\n',
        f"\ufeffHF_TOKEN={GOOD_TOKEN} # mine",
        f"HF_TOKEN=old\nHF_TOKEN={GOOD_TOKEN}\nMY_HF_TOKEN=no\nHF_TOKEN_PATH=no",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_dotenv_gives_the_token_and_nothing_else(tmp_path, no_token, text, encoding, capsys):
    (tmp_path / ".env").write_bytes(text.removeprefix("\ufeff" if encoding == "utf-16" else "").encode(encoding))
    before = dict(os.environ)
    assert load_dotenv(tmp_path)
    assert dict(os.environ) == before | {"HF_TOKEN": GOOD_TOKEN}
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("text", ["", "HF_TOKEN=", "HF_TOKEN=''", "HF_TOKEN= # none yet", "NOT_HF_TOKEN=x", "HF_TOKEN"])
def test_dotenv_without_a_token(tmp_path, no_token, text):
    (tmp_path / ".env").write_text(text)
    assert not load_dotenv(tmp_path)
    assert not os.environ["HF_TOKEN"]


def test_dotenv_that_is_not_there_or_not_text(tmp_path, no_token):
    assert not load_dotenv(tmp_path)
    (tmp_path / ".env").write_bytes(b"\xff\x00\xfe HF_TOKEN")
    assert not load_dotenv(tmp_path)
    (tmp_path / "folder" / ".env").mkdir(parents=True)
    assert not load_dotenv(tmp_path / "folder")


@pytest.mark.parametrize("name", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"])
def test_the_environment_wins_over_dotenv(tmp_path, no_token, name, monkeypatch):
    monkeypatch.setenv(name, WRONG_TOKEN)
    (tmp_path / ".env").write_text(f"HF_TOKEN={GOOD_TOKEN}")
    before = dict(os.environ)
    assert not load_dotenv(tmp_path)
    assert dict(os.environ) == before


def test_a_stored_login_is_used(hub, tmp_path):
    hub[MODEL].private = True
    (tmp_path / "home").mkdir(exist_ok=True)
    (tmp_path / "home" / "token").write_text(GOOD_TOKEN)
    assert fetch(MODEL, "config.json").read_bytes() == b"{}"


# The real environment, in processes of their own

PROGRAM = """
import sys
from pathlib import Path
import gemlens.hub
assert not {"huggingface_hub", "torch", "requests", "httpx", "httpx2"} & set(sys.modules)
gemlens.hub.load_dotenv(Path.cwd())
print(gemlens.hub.fetch(sys.argv[1], "config.json"))
"""


def test_the_environment_is_honoured(tmp_path):
    (tmp_path / ".env").write_text(f"HF_TOKEN={GOOD_TOKEN}")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING_FACE"))}
    command = [sys.executable, "-c", PROGRAM, MODEL]
    with FakeHub(REPOS) as server:
        server[MODEL].gated, server[MODEL].members = True, {GOOD_TOKEN}
        environment |= {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home")}
        environment["PYTHONPATH"] = str(Path(gemlens_hub.__file__).parents[1])
        online = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert Path(online.stdout.strip()).read_bytes() == b"{}"
        assert Path(online.stdout.strip()).is_relative_to(tmp_path / "home")
        assert {request.token for request in server.log} == {GOOD_TOKEN}
        assert all(MODEL in request.path for request in server.log), "the client sent something we did not ask for"
    environment["HF_HUB_OFFLINE"] = "1"
    offline = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert offline.stdout == online.stdout
    command[-1] = SCOPE
    missing = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "NetworkError: HF_HUB_OFFLINE is set" in missing.stderr
    assert GOOD_TOKEN not in online.stderr + missing.stderr


def test_two_that_want_the_same_file_share_one_download(hub):
    """As two processes do: the second waits for the first's lock, and finds the file in the cache."""
    hub[MODEL].delay = 0.3
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: fetch(MODEL, "model.safetensors"), range(2))
    assert first == second
    assert first.read_bytes() == WEIGHTS
    assert len(hub.requests("GET", "model.safetensors")) == 1
