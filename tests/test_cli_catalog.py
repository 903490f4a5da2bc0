"""``gemlens catalog``: the table, the JSON, and what the hub holds beyond it."""

import json

import pytest

from cli_helpers import assert_refused, run, spawn
from fake_hub import FakeHub, connected
from gemlens.scope.catalog import entries

ASKED = ["--model", "gemma-3-270m-it", "--site", "resid_post", "--layer", "12", "--width", "16k"]
FIELDS = ["release", "id", "path", "model", "site", "layer", "width", "l0", "neuronpedia"]
SCOPE = "google/gemma-scope-2-27b-pt"
NEWS = "attn_out/layer_16_width_16k_l0_small"
KNOWN = ["resid_post/layer_16_width_16k_l0_small", "resid_post/layer_16_width_16k_l0_medium"]
KNOWN_CROSSCODER = "crosscoder/layer_16_31_40_53_width_262k_l0_medium"
NEW_CROSSCODER = "crosscoder/layer_16_31_40_53_width_524k_l0_medium"
FILES = {
    "README.md": b"#",
    "resid_post/README.md": b"#",
    "params.safetensors": b"at the root: no dictionary of a release",
    **{f"{path}/{name}": b"x" for path in [*KNOWN, NEWS] for name in ("params.safetensors", "config.json")},
    **{f"{path}/params_layer_{i}.safetensors": b"x" for path in [KNOWN_CROSSCODER, NEW_CROSSCODER] for i in range(4)},
}


@pytest.fixture
def hub(hub_home):
    with FakeHub({SCOPE: FILES}) as server, connected(server.url, home=hub_home):
        yield server


def listing(capsys, *arguments):
    ran = run(capsys, "catalog", "--json", *arguments)
    assert ran.code == 0, ran.err
    return json.loads(ran.out)


def table(out):
    """The cells of each row below the header."""
    return [row.split() for row in out.splitlines()[2:]]


# The table


def test_the_table_shows_what_was_asked_for(capsys):
    ran = run(capsys, "catalog", *ASKED)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines()[0].split() == ["release", "id", "layer", "width", "L0", "neuronpedia"]
    rows = table(ran.out)
    assert ["gemma-scope-2-270m-it-res", "layer_12_width_16k_l0_medium", "12", "16k", "60", "yes"] in rows
    assert ["gemma-scope-2-270m-it-res-all", "layer_12_width_16k_l0_big", "12", "16k", "120", "no"] in rows
    assert len(rows) == 5


def test_names_are_whole_however_narrow_the_page(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    rows = table(run(capsys, "catalog", "--release", "gemma-scope-2-1b-it-crosscoder").out)
    assert rows[0][:4] == [
        "gemma-scope-2-1b-it-crosscoder",
        "layer_7_13_17_22_width_65k_l0_medium",
        "several",
        "65k",
    ]


def test_canonical_names_show_the_l0_of_their_folder(capsys):
    ran = run(capsys, "catalog", "--release", "gemma-scope-2b-pt-res-canonical", "--layer", 20, "--l0", 71)
    assert table(ran.out) == [
        ["gemma-scope-2b-pt-res-canonical", "layer_20/width_16k/canonical", "20", "16k", "71", "yes"]
    ]


def test_a_page_of_another_dictionary_does_not_count(capsys):
    ran = run(capsys, "catalog", "--release", "gemma-scope-9b-pt-res", "--layer", 2, "--l0", 8)
    assert [(row[3], row[5]) for row in table(ran.out)] == [("16k", "no"), ("131k", "no")]


def test_without_a_filter_the_releases_are_shown(capsys):
    ran = run(capsys, "catalog")
    assert ran.code == 0
    rows = table(ran.out)
    assert {row[0] for row in rows} == {entry.release for entry in entries()}
    assert len(rows) == len({(row[0], row[3]) for row in rows})  # the starter has SAEs and transcoders
    assert ["gemma-scope-2-270m-it-res", "gemma-3-270m-it", "resid_post", "sae", "52"] in rows
    assert "--json lists everything" in ran.err


# JSON


def test_json_has_the_promised_fields(capsys):
    records = listing(capsys, *ASKED)
    assert len(records) == 5
    assert all(list(record) == FIELDS for record in records)
    assert {
        "release": "gemma-scope-2-270m-it-res",
        "id": "layer_12_width_16k_l0_medium",
        "path": "resid_post/layer_12_width_16k_l0_medium",
        "model": "google/gemma-3-270m-it",
        "site": "resid_post",
        "layer": 12,
        "width": 16384,
        "l0": 60,
        "neuronpedia": "gemma-3-270m-it/12-gemmascope-2-res-16k",
    } in records


def test_json_without_a_filter_is_all_of_it(capsys):
    records = listing(capsys)
    assert [(record["release"], record["id"], record["path"]) for record in records] == [
        (entry.release, entry.id, entry.path) for entry in entries()
    ]


def test_a_model_may_have_its_owner(capsys):
    assert listing(capsys, "--model", "google/gemma-2-9b-it") == listing(capsys, "--model", "gemma-2-9b-it") != []


# What does not exist


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "gemma-3-270-it"], ["gemma-3-270-it", "did you mean gemma-3-270m-it"]),
        (["--model", "gemma-3-270m-it", "--layer", "40"], ["layer 40", "17"]),
        (["--release", "gemma-scope-27b-pt-mlp"], ["was never published", "gemma-scope-27b-pt-res"]),
        (["--layer", "twelve"], ["twelve"]),
    ],
)
@pytest.mark.parametrize("json_too", [False, True])
def test_an_unknown_value_gets_the_nearest(capsys, arguments, words, json_too):
    assert_refused(run(capsys, "catalog", *arguments, *(["--json"] if json_too else [])), *words)


# The hub


def test_live_finds_what_the_catalogue_lacks_and_what_the_repository_lacks(capsys, hub):
    ran = run(capsys, "catalog", "--live", SCOPE)
    assert ran.code == 0, ran.err
    rows = {row.split()[0]: " ".join(row.split()[1:]) for row in ran.out.splitlines()[2:]}
    assert {path for path, found in rows.items() if found == "on the hub only"} == {NEWS, NEW_CROSSCODER}
    gone = {path for path, found in rows.items() if found == "in the catalogue only"}
    assert gone == {entry.path for entry in entries() if entry.repo == SCOPE} - {*KNOWN, KNOWN_CROSSCODER}
    assert rows.keys() == {NEWS, NEW_CROSSCODER} | gone
    assert f"{SCOPE} holds 5 dictionaries; the catalogue has 3 of them, lacks 2, and names {len(gone)}" in ran.err


def test_live_as_json_and_without_the_owner(capsys, hub):
    records = listing(capsys, "--live", SCOPE.removeprefix("google/"))
    assert {"path": NEWS, "hub": True, "catalogue": False} in records
    assert {"path": KNOWN[0], "hub": True, "catalogue": True} in records
    assert {"path": "resid_post_all/layer_0_width_16k_l0_big", "hub": False, "catalogue": True} in records
    assert sum(record["hub"] for record in records) == 5


def test_live_reads_gemma_scope_1(capsys, hub_home):
    repo, path = "google/gemma-scope-27b-pt-res", "layer_10/width_131k/average_l0_106"
    files = {f"{path}/params.npz": b"x", "layer_10/width_131k/average_l0_107/params.npz": b"x"}
    with FakeHub({repo: files}) as server, connected(server.url, home=hub_home):
        records = listing(capsys, "--live", repo)
    assert {"path": path, "hub": True, "catalogue": True} in records
    assert {"path": path.replace("106", "107"), "hub": True, "catalogue": False} in records
    assert len(records) == 19


def test_live_offline_and_on_nothing_says_why(capsys, hub, hub_home):
    assert_refused(run(capsys, "catalog", "--live", "google/gemma-scope-9"), "google/gemma-scope-9 does not exist")
    with connected(hub.url, home=hub_home, offline=True):
        assert_refused(run(capsys, "catalog", "--live", SCOPE), SCOPE, "HF_HUB_OFFLINE")


def test_live_takes_no_filter(capsys, hub):
    ran = run(capsys, "catalog", "--live", SCOPE, "--layer", 3, "--model", "gemma-3-27b-pt")
    assert_refused(ran, "--live lists a whole repository; leave out --model, --layer")
    assert hub.log == []


# Weight


def test_it_loads_neither_torch_nor_the_hub():
    code = (
        "import sys\nfrom gemlens.app.cli import main\ntry:\n    main()\nfinally:\n"
        "    print(sorted({'torch', 'transformers', 'huggingface_hub', 'numpy'} & set(sys.modules)), file=sys.stderr)"
    )
    ran = spawn("catalog", *ASKED, code=code)
    assert ran.code == 0
    assert ran.err.strip() == "[]"
    assert len(table(ran.out)) == 5


def test_a_reader_that_leaves_early_ends_the_printing_only():
    command = "from gemlens.app.cli import main; main(['catalog', '--json'])"
    code = f"""
import subprocess, sys
job = subprocess.Popen([sys.executable, "-c", {command!r}], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
job.stdout.readline()
job.stdout.close()
error = job.stderr.read()
print(job.wait(), error)
"""
    ran = spawn(code=code)
    assert ran.out.strip() == "0 b''", ran
