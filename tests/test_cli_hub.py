"""The whole command against a hub: all defaults, caches and siblings, and what refusals tell the user."""

import shutil
import socket
from pathlib import Path

import pytest

from cli_helpers import REPORT, ROOM, add_dictionary, assert_refused, everything_in, report, run
from fake_hub import GOOD_TOKEN, FakeHub, connected
from gemlens.scope.catalog import resolve
from layouts import D, random_weights, write_gemma_scope_1
from tiny import files_below, tiny_model_folder

MODEL, BASE, SCOPE = "google/gemma-3-270m-it", "google/gemma-3-270m", "google/gemma-scope-2-270m-it"
FOLDER = "resid_post/layer_12_width_16k_l0_small"
BIG, PARAMS = "model.safetensors", f"{FOLDER}/params.safetensors"
QUICK = ["--max-new-tokens", "0", "--prompt", "the cat"]
WRONG_TOKEN = "hf_wrongtokenwrongtoken"


@pytest.fixture(scope="module")
def repos(tmp_path_factory):
    """Tiny stand-ins under the names that the command asks for by default; 13 layers, so that there is a layer 12."""
    root = tmp_path_factory.mktemp("hub")
    config = {"layers": 13, "layer_types": None} | ROOM
    chat = files_below(tiny_model_folder(root / "it", chat=True, **config))
    base = files_below(tiny_model_folder(root / "pt", **config))
    add_dictionary(root / "scope", FOLDER, layer=12)
    add_dictionary(root / "scope", "resid_post/layer_9_width_16k_l0_small", layer=9)
    return {MODEL: chat, BASE: base, SCOPE: files_below(root / "scope")}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch, no_token):
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def hub(repos, tmp_path):
    with FakeHub(repos) as server, connected(server.url, home=tmp_path / "home", timeout=5):
        yield server


def refused(capsys, elsewhere, *arguments, words):
    """The command says all of ``words`` in one line, no token among them, and leaves nothing behind."""
    ran = run(capsys, "analyze", *arguments, "--export", "html", "--export", "json")
    assert_refused(ran, *words)
    assert GOOD_TOKEN not in ran.err
    assert WRONG_TOKEN not in ran.err
    assert [name for name in everything_in(elsewhere) if name != ".env"] == []


# What works


def test_without_any_option_the_promised_pair_is_fetched_and_read(hub, capsys):
    ran = run(capsys, "analyze", "--export", "json")
    assert ran.code == 0, ran.err
    assert ran.err == f"wrote outputs/{REPORT}.json\n"
    record = report()
    assert [record[key] for key in ("model_id", "sae_release", "sae_category", "sae_id", "layer")] == [
        MODEL,
        SCOPE,
        *FOLDER.split("/"),
        12,
    ]
    assert record["prompt"] == "Explain what a sparse autoencoder is in plain language."
    assert record["warnings"] == []
    assert record["provenance"]["model_revision"] == hub[MODEL].commit
    assert record["dictionaries"][0]["revision"] == hub[SCOPE].commit
    assert 0 < sum(token["is_generated"] for token in record["tokens"]) <= 64
    assert record["provenance"]["temperature"] == 0.7


def test_a_second_run_downloads_nothing_and_a_third_needs_no_network(hub, capsys, tmp_path):
    arguments = ["analyze", *QUICK, "--export", "json"]
    assert run(capsys, *arguments).code == 0
    first = report()
    sent = {name: hub.bytes_of(name) for name in (BIG, PARAMS, "config.json", "tokenizer.json")}
    assert all(sent.values())
    assert run(capsys, *arguments).code == 0
    assert {name: hub.bytes_of(name) for name in sent} == sent
    asked = len(hub.log)
    with connected(hub.url, home=tmp_path / "home", offline=True):
        ran = run(capsys, *arguments)
    assert ran.code == 0, ran.err
    assert len(hub.log) == asked
    assert report()["tokens"] == first["tokens"]


def test_what_is_cached_is_read_when_the_hub_is_gone(hub, capsys, tmp_path):
    assert run(capsys, "analyze", *QUICK).code == 0
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with connected(f"http://127.0.0.1:{unused.getsockname()[1]}", home=tmp_path / "home", timeout=1):
            ran = run(capsys, "analyze", *QUICK)
    assert ran.code == 0, ran.err


def test_the_base_sibling_runs_with_a_warning_in_every_view(hub, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    kinds = ["--export", "html", "--export", "json"]
    ran = run(capsys, "analyze", *QUICK, "--model-id", BASE, *kinds)
    assert ran.code == 0, ran.err
    warning = f"{FOLDER} was trained on {MODEL}, not on {BASE}: features may mislead"
    assert ran.out.splitlines()[0] == f"warning: {warning}"
    assert report()["warnings"] == [warning]
    assert warning in Path("outputs", f"{REPORT}.html").read_text("utf-8")
    assert report()["prompt_text"] == "<bos>the cat"


def test_a_gated_model_opens_to_a_token_in_dotenv(hub, capsys):
    hub[MODEL].gated, hub[MODEL].members = True, {GOOD_TOKEN}
    Path(".env").write_text(f"HF_TOKEN={GOOD_TOKEN}\n")
    ran = run(capsys, "analyze", *QUICK)
    assert ran.code == 0, ran.err
    assert GOOD_TOKEN not in ran.out + ran.err


# What is refused


def test_a_gated_model_is_refused_before_anything_else_is_fetched(hub, capsys, elsewhere):
    hub[MODEL].gated = True
    words = [f"{MODEL} is gated", f"https://huggingface.co/{MODEL}", "HF_TOKEN", "--model-id starter"]
    refused(capsys, elsewhere, words=words)
    assert hub.requests("GET", PARAMS) == []


def test_a_gated_model_names_its_licence_page_to_an_account_that_has_not_accepted(hub, capsys, elsewhere):
    hub[MODEL].gated = True
    Path(".env").write_text(f"HF_TOKEN={GOOD_TOKEN}\n")
    words = [f"{MODEL} is gated and closed to this token", f"https://huggingface.co/{MODEL}", "--model-id starter"]
    refused(capsys, elsewhere, words=words)


def test_a_wrong_token_is_named_as_the_reason(hub, capsys, elsewhere, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", WRONG_TOKEN)
    refused(capsys, elsewhere, words=["token", "huggingface.co/settings/tokens", "--model-id starter"])


@pytest.mark.parametrize("option", ["--model-id", "--sae-release"])
def test_a_missing_repository_is_named(hub, capsys, elsewhere, option):
    refused(
        capsys, elsewhere, option, "google/gemma-3-270n-it", words=["google/gemma-3-270n-it does not exist", "starter"]
    )


def test_an_unknown_id_names_the_nearest(hub, capsys, elsewhere):
    arguments = ["--sae-id", "layer_12_width_16k_l0_smal"]
    refused(
        capsys, elsewhere, *arguments, words=[SCOPE, "layer_12_width_16k_l0_smal", "did you mean", FOLDER.split("/")[1]]
    )
    assert hub.requests("GET", BIG) == []


def test_an_unknown_category_names_those_there_are(hub, capsys, elsewhere):
    refused(capsys, elsewhere, "--sae-category", "resid_pst", words=["resid_pst", "did you mean resid_post?"])


def test_a_release_given_as_the_model_is_refused(hub, capsys, elsewhere):
    refused(capsys, elsewhere, "--model-id", SCOPE, words=[SCOPE, "config.json"])


def test_no_network_is_told_with_what_works_without(repos, capsys, elsewhere, tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with connected(f"http://127.0.0.1:{unused.getsockname()[1]}", home=tmp_path / "home", timeout=1):
            refused(capsys, elsewhere, words=["cannot reach the hub", "--model-id starter"])


def test_offline_without_a_cache_is_told_with_what_works(hub, capsys, elsewhere, tmp_path):
    with connected(hub.url, home=tmp_path / "empty", offline=True):
        refused(capsys, elsewhere, words=["HF_HUB_OFFLINE", MODEL, "--model-id starter"])
    assert hub.log == []


@pytest.mark.parametrize("status", [500, 503, 429, 200])
def test_an_ill_hub_is_told_as_such(hub, capsys, elsewhere, status):
    hub[MODEL].broken = status
    refused(capsys, elsewhere, words=[MODEL])


def test_a_download_that_breaks_off_leaves_no_report(hub, capsys, elsewhere):
    hub[SCOPE].cut = 1000
    refused(capsys, elsewhere, words=["broke off", "run it again"])
    hub[SCOPE].cut = None
    assert run(capsys, "analyze", *QUICK).code == 0


def test_a_file_that_arrived_damaged_is_refused(hub, capsys, elsewhere):
    hub[SCOPE].files[PARAMS] = hub[SCOPE].files[PARAMS][:-50]
    refused(capsys, elsewhere, words=["params.safetensors is truncated or damaged", "download"])


def test_a_model_without_weights_is_refused(hub, capsys, elsewhere):
    del hub[MODEL].files[BIG]
    refused(capsys, elsewhere, words=[MODEL, "safetensors"])


def test_a_cache_that_cannot_be_written_is_told(repos, capsys, elsewhere, tmp_path):
    (tmp_path / "home").write_text("a file, where a folder is expected")
    with FakeHub(repos) as server, connected(server.url, home=tmp_path / "home", timeout=5):
        refused(capsys, elsewhere, words=["cannot write", "HF_HOME"])
    shutil.rmtree(tmp_path / "home", ignore_errors=True)


def test_saelens_names_find_the_same_dictionary(hub, capsys):
    named = ["--sae-release", "gemma-scope-2-270m-it-res", "--sae-id", FOLDER.rpartition("/")[2]]
    ran = run(capsys, "analyze", *QUICK, *named, "--export", "json")
    assert ran.code == 0, ran.err
    assert hub.requests("GET", PARAMS)
    assert report()["dictionaries"][0]["revision"] == hub[SCOPE].commit


@pytest.mark.parametrize(
    ("release", "sae_id", "site", "source"),
    [
        ("gemma-scope-2b-pt-res-canonical", "layer_5/width_16k/canonical", "resid_post.5", "5-gemmascope-res-16k"),
        (
            "gemma-scope-2b-pt-transcoders",
            "layer_3/width_16k/average_l0_54",
            "mlp_in_normalized.3",
            "3-gemmascope-transcoder-16k",
        ),
    ],
)
def test_gemma_scope_1_on_a_gemma_2_by_saelens_names(tmp_path, capsys, elsewhere, release, sae_id, site, source):
    entry = resolve(release, sae_id)
    model = files_below(tiny_model_folder(tmp_path / "model", kind="gemma2", hidden=D, **ROOM))
    write_gemma_scope_1(tmp_path / "scope" / entry.path, random_weights())
    repos = {"google/gemma-2-2b": model, entry.repo: files_below(tmp_path / "scope")}
    named = ["--model-id", "google/gemma-2-2b", "--sae-release", release, "--sae-id", sae_id]
    with FakeHub(repos) as server, connected(server.url, home=tmp_path / "home", timeout=5):
        ran = run(capsys, "analyze", *QUICK, *named, "--export", "json")
    assert ran.code == 0, ran.err
    record = report()
    assert record["warnings"] == []
    about = record["dictionaries"][0]
    assert (about["site"], about["neuronpedia"]) == (site, f"gemma-2-2b/{source}")
    assert any(token["features"] for token in record["tokens"])


@pytest.mark.parametrize(
    ("release", "words"),
    [("gemma-scope-2b-pt-ress", ["gemma-scope-2b-pt-res"]), ("gemma-scope-27b-pt-mlp", ["never published"])],
)
def test_releases_that_do_not_exist_are_told_from_names_alone(capsys, elsewhere, release, words):
    refused(capsys, elsewhere, *QUICK, "--sae-release", release, words=words)
