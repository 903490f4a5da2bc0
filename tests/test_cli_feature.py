"""``gemlens feature`` as users type it, and the evidence in the report of an analysis."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from safetensors.torch import load_file, save_file

from cli_helpers import ID, add_dictionary, assert_refused, everything_in, make_world, run
from evidence_sample import random_case, write_evidence
from fake_hub import FakeHub, connected
from tiny import files_below


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    found = make_world(tmp_path_factory.mktemp("world"))
    write_evidence(found.release / ID, *random_case(), model_id=str(found.model))
    return found


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_one_feature_in_the_terminal(world, here, capsys):
    ran = run(capsys, "feature", 7, "--sae-release", world.release, "--sae-id", ID)
    assert (ran.code, ran.err) == (0, "")
    for word in ("Feature 7", "resid_post.2", "promotes", "write alike", "fire together"):
        assert word in ran.out
    assert everything_in(here) == []


def test_one_feature_as_a_page_and_as_json(world, here, capsys):
    kinds = ["--export", "html", "--export", "json"]
    ran = run(capsys, "feature", 7, "--sae-release", world.release, *kinds, "--out-dir", "new/out")
    assert ran.code == 0
    assert everything_in(here) == ["new", "new/out", "new/out/feature_7.html", "new/out/feature_7.json"]
    assert json.loads((here / "new/out/feature_7.json").read_text("utf-8"))["feature_id"] == 7
    assert "wrote new/out/feature_7.html" in ran.err


def test_several_features_are_a_folder(world, here, capsys):
    ran = run(capsys, "feature", 9, 3, 9, "--sae-release", world.release, "--export", "html", "--export", "json")
    assert ran.code == 0, ran
    folder = here / "outputs/features/resid_post_layer_2_width_40_l0_small"
    assert everything_in(folder) == ["features.jsonl", "index.html", "pages", "pages/00000.html"]
    rows = (folder / "features.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(row)["feature_id"] for row in rows] == [3, 9]
    assert "never fired" in ran.out


def test_all_features(world, here, capsys):
    ran = run(capsys, "feature", "--all", "--sae-release", world.release, "--examples", 2)
    assert ran.code == 0, ran
    assert len(ran.out.splitlines()) == 42
    assert len(list(here.rglob("index.html"))) == 1


def test_over_the_hub_a_range_a_feature_and_the_whole_file_for_many(world, here, capsys, hub_home, monkeypatch):
    repo = "google/gemma-scope-2-270m-it"
    with FakeHub({repo: files_below(world.release)}) as hub, connected(hub.url, home=hub_home):
        options = ["--sae-release", repo, "--sae-id", "layer_2_width_40_l0_small", "--model-id", world.model]
        ran = run(capsys, "feature", 7, *options)
        assert ran.code == 0, ran
        assert "Feature 7" in ran.out
        assert all(request.range for request in hub.requests("GET", "examples.safetensors"))
        monkeypatch.setattr("gemlens.app.feature._BY_RANGES", 5)
        ran = run(capsys, "feature", "--all", *options)
        assert ran.code == 0, ran
        assert "once: google/gemma-scope-2-270m-it/resid_post" in ran.err
        assert [request for request in hub.requests("GET", "examples.safetensors") if not request.range]


def test_a_server_without_ranges_is_told_of(world, here, capsys, hub_home):
    repo = "google/gemma-scope-2-270m-it"
    with FakeHub({repo: files_below(world.release)}) as hub, connected(hub.url, home=hub_home):
        hub[repo].ignores_ranges = True
        ran = run(capsys, "feature", 7, "--sae-release", repo, "--sae-id", ID, "--model-id", world.model)
    assert ran.code == 0, ran
    assert "warning: the server answers with all" in ran.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["no feature is named", "gemlens feature 1234"]),
        ([3, "--all"], ["--all takes no numbers"]),
        (["three"], ["three"]),
        ([40], ["there is no feature 40", "0 to 39"]),
        ([1, 2, 99], ["there is no feature 99"]),
        ([1, "--export", "pdf"], ["'pdf'", "html and json"]),
        ([1, "--examples", 0], ["--examples 0"]),
        (
            [1, "--sae-id", "resid_post/layer_5_width_40_l0_small"],
            ["no examples.safetensors", "gemlens collect features"],
        ),
        ([1, "--sae-id", "resid_post/layer_9"], ["did you mean resid_post/layer_2_width_40_l0_small"]),
        ([1, "--sae-id", "../x"], ["leads out of the release"]),
        ([1, "--model-id", "nowhere/at all"], ["--model-id"]),
    ],
)
def test_slips_are_told_in_one_line(world, here, capsys, arguments, words):
    assert_refused(run(capsys, "feature", *arguments, "--sae-release", world.release), *words)
    assert everything_in(here) == []


def test_damage_leaves_no_half_folder(world, here, capsys, tmp_path_factory):
    release = tmp_path_factory.mktemp("damaged")
    folder = add_dictionary(release, ID)
    write_evidence(folder, *random_case(), model_id=str(world.model))
    path = folder / "examples.safetensors"
    stored = load_file(path)
    stored["seq_ids"][30, 0] = 99
    save_file(stored, path)
    ran = run(capsys, "feature", 2, 30, "--sae-release", release, "--export", "json")
    assert_refused(ran, "feature 30 has a sequence out of range")
    assert everything_in(here) == []


def test_no_torch_is_needed(world):
    code = (
        "import sys; from gemlens.app.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as left: assert not left.code, left.code\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    arguments = ["feature", "7", "--sae-release", str(world.release)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False False"


def test_the_report_of_an_analysis_holds_the_evidence_of_what_it_names(world, here, capsys):
    ran = run(capsys, *world.arguments("--prompt", "the hen", "--export", "html", "--export", "json"))
    assert ran.code == 0, ran
    html = (here / "outputs/gemma_scope_2_report.html").read_text("utf-8")
    data = json.loads(html.split('id="data">')[1].split("</script>")[0])
    (dictionary,) = data["dictionaries"]
    named = {str(feature) for top in dictionary["top"] for feature, _ in top}
    named |= {str(each["id"]) for each in dictionary["strongest"]}
    assert set(dictionary["evidence"]) == named
    some = dictionary["evidence"][max(named - {"3"})]
    assert some.keys() == {"fires", "max", "promoted", "suppressed", "examples"}
    assert len(some["examples"]) >= 4
    assert 'id="glance"' in html


def test_without_evidence_the_report_is_as_it_was(world, here, capsys):
    other = "resid_post/layer_5_width_40_l0_small"
    ran = run(capsys, *world.arguments("--prompt", "the hen", "--export", "html", sae_id=other))
    assert ran.code == 0, ran
    html = (here / "outputs/gemma_scope_2_report.html").read_text("utf-8")
    assert 'id="glance"' not in html
    assert '"evidence":{}' in html
