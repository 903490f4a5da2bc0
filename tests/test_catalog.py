"""The catalogue against SAELens' listing (by digest, and in full where the file is at hand), and what it answers."""

import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from gemlens.errors import InputError, NotFoundError
from gemlens.scope import catalog
from gemlens.scope.catalog import Entry, entries, find, neuronpedia_id, resolve
from gemlens.scope.catalog_table import NEVER_PUBLISHED, WIDTHS
from tiny import published_config, write_dictionary

DIGEST = "50bc85d50b4be75ea1a65b9eb2a5ca259ced7a73f0d4c6e15afc4cb1733177bd"
LISTED = 11_643
SCOPE = "google/gemma-scope-2-270m-it"
PUBLISHED = [entry for entry in entries() if entry.release != "starter"]
ONE_LAYER = [entry for entry in PUBLISHED if entry.kind in ("sae", "transcoder")]


def lines_of_the_catalogue() -> list[str]:
    """A line an entry, with the fields that SAELens' listing has: no path where it is the id, no l0 where none is."""
    lines = []
    for entry in ONE_LAYER:
        optional = {
            "path": None if entry.path == entry.id else entry.path,
            "l0": entry.l0,
            "neuronpedia": entry.neuronpedia,
        }
        fields = {"release": entry.release, "model": entry.model, "repo_id": entry.repo, "format": entry.format}
        lines.append(line(fields | {"id": entry.id} | {k: v for k, v in optional.items() if v is not None}))
    return sorted(lines)


def line(fields: dict) -> str:
    return json.dumps(fields, sort_keys=True)


def digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


# The listing


def test_every_name_that_saelens_lists_is_here_and_no_other():
    lines = lines_of_the_catalogue()
    assert len(lines) == LISTED
    assert digest(lines) == DIGEST


def test_the_digest_is_that_of_the_listing_itself():
    if not (shared := os.environ.get("GEMLENS_SHARED")):
        pytest.skip("GEMLENS_SHARED names no folder with facts/catalog.json.gz, SAELens' own listing")
    with gzip.open(Path(shared) / "facts" / "catalog.json.gz") as file:
        releases = json.load(file)
    releases["gemma-scope-9b-it-res"]["model"] = "gemma-2-9b-it"  # it says gemma-2-9b
    theirs = sorted(
        line({"release": name, **{k: v for k, v in about.items() if k != "entries"}, **entry})
        for name, about in releases.items()
        for entry in about["entries"]
    )
    ours = lines_of_the_catalogue()
    assert sorted(set(theirs) - set(ours))[:5] == []
    assert sorted(set(ours) - set(theirs))[:5] == []
    assert ours == theirs
    assert digest(theirs) == DIGEST


def test_no_name_stands_for_two():
    assert max(Counter((entry.release, entry.id) for entry in entries()).values()) == 1
    # Canonical names double a path; nothing else does.
    full = [entry for entry in entries() if not entry.id.endswith("/canonical")]
    assert max(Counter((entry.repo, entry.path) for entry in full).values()) == 1


def test_what_an_entry_says_is_what_its_path_says():
    for entry in PUBLISHED:
        assert f"width_{entry.width_name}" in entry.path.replace("/", "_")
        if entry.kind == "clt":
            assert (entry.width, entry.layer) == (262_080, None)
        else:
            assert entry.width == WIDTHS[entry.width_name]
        if entry.kind in ("sae", "transcoder") and entry.site != "embed":
            assert entry.layer == int(re.search(r"layer_(\d+)[_/]", entry.path)[1])
        assert entry.format == ("safetensors" if "gemma-scope-2-" in entry.repo else "npz")


@pytest.mark.parametrize(
    ("release", "id", "expected"),
    [
        (
            "gemma-scope-2-270m-it-res",
            "layer_12_width_16k_l0_medium",
            ("resid_post", 12, 16384, 60, "sae", "google/gemma-3-270m-it"),
        ),
        (
            "gemma-scope-2-270m-pt-att-all",
            "layer_5_width_262k_l0_big",
            ("attn_out", 5, 262_144, 110, "sae", "google/gemma-3-270m"),
        ),
        (
            "gemma-scope-2-4b-it-transcoders",
            "transcoder/layer_9_width_65k_l0_small_affine",
            ("mlp_in", 9, 65_536, 17, "transcoder", "google/gemma-3-4b-it"),
        ),
        (
            "gemma-scope-2b-pt-transcoders",
            "layer_11/width_16k/average_l0_5",
            ("mlp_in_normalized", 11, 16384, 5, "transcoder", "gemma-2-2b"),
        ),
        (
            "gemma-scope-9b-it-res",
            "layer_20/width_131k/average_l0_81",
            ("resid_post", 20, 131_072, 81, "sae", "gemma-2-9b-it"),
        ),
        ("gemma-scope-9b-pt-res", "embedding/width_4k/average_l0_80", ("embed", 0, 4096, None, "sae", "gemma-2-9b")),
        (
            "gemma-scope-9b-pt-mlp-canonical",
            "layer_4/width_16k/canonical",
            ("mlp_out", 4, 16384, None, "sae", "gemma-2-9b"),
        ),
        (
            "gemma-scope-2-1b-it-crosscoder",
            "layer_7_13_17_22_width_262k_l0_medium",
            ("resid_post", None, 262_144, None, "crosscoder", "google/gemma-3-1b-it"),
        ),
        (
            "gemma-scope-2-270m-pt-clt",
            "width_262k_l0_big_affine",
            ("mlp_in", None, 262_080, None, "clt", "google/gemma-3-270m"),
        ),
    ],
)
def test_what_the_rules_say_of_one_entry(release, id, expected):
    entry = resolve(release, id)
    assert (entry.release, entry.id) == (release, id)
    assert (entry.site, entry.layer, entry.width, entry.l0, entry.kind, entry.model) == expected


def test_canonical_names_lead_to_the_l0_nearest_to_100():
    assert resolve("gemma-scope-2b-pt-res-canonical", "layer_20/width_16k/canonical").path.endswith("average_l0_71")
    assert resolve("gemma-scope-2b-pt-res-canonical", "layer_20/width_16k/canonical").mean_l0 == 71
    # Two ties, 64 against 136 and 66 against 134, go different ways.
    assert resolve("gemma-scope-9b-pt-att-canonical", "layer_27/width_16k/canonical").mean_l0 == 136
    assert resolve("gemma-scope-9b-pt-att-canonical", "layer_23/width_131k/canonical").mean_l0 == 66


def test_multi_layer_dictionaries_are_added_by_rule():
    clts = {entry.repo for entry in entries() if entry.kind == "clt"}
    assert clts == {f"google/gemma-scope-2-{size}-{stage}" for size in ("270m", "1b") for stage in ("pt", "it")}
    paths = {entry.path for entry in entries() if entry.repo == "google/gemma-scope-2-1b-pt"}
    assert {"clt/width_262k_l0_big_affine", "crosscoder/layer_7_13_17_22_width_262k_l0_medium"} <= paths
    assert len(PUBLISHED) == LISTED + 4 * 4 + 10 * 4


# The starter


@pytest.fixture
def starter(tmp_path, monkeypatch):
    """A package with dictionaries at three places; ``entries`` is asked anew."""
    write_dictionary(tmp_path / "resid_post/layer_15_width_4k_l0_medium", {}, published_config(15, 4096, l0=57))
    write_dictionary(tmp_path / "resid_post/layer_5_width_4k_l0_medium", {}, published_config(5, 4096, l0=57))
    points = {f"hf_hook_point_{end}": f"model.layers.3.{side}_feedforward_layernorm.output"
              for end, side in (("in", "pre"), ("out", "post"))}  # fmt: skip
    affine = published_config(3, 2048, l0=None, type="transcoder", affine_connection=True, **points)
    write_dictionary(tmp_path / "transcoder_all/layer_3_width_2k_l0_small_affine", {}, affine)
    monkeypatch.setattr("gemlens.scope.starter.starter_root", lambda: tmp_path)
    entries.cache_clear()
    yield tmp_path
    entries.cache_clear()


def test_the_starters_dictionaries_are_those_that_its_package_holds(starter):
    found = find(release="starter")
    assert [entry.path for entry in found] == [
        "resid_post/layer_5_width_4k_l0_medium",
        "resid_post/layer_15_width_4k_l0_medium",
        "transcoder_all/layer_3_width_2k_l0_small_affine",
    ]
    transcoder = find(model="gemma-3-270m-it", site="mlp_in", layer=3, width="2k")
    assert transcoder == found[2:]
    assert found[2].kind == "transcoder"
    assert (found[1].id, found[1].width, found[1].width_name, found[1].l0) == (found[1].path, 4096, "4k", 57)
    assert resolve("starter", found[0].path) == found[0]
    with pytest.raises(NotFoundError, match="did you mean transcoder_all/layer_3_width_2k_l0_small_affine"):
        resolve("starter", "transcoder/layer_3_width_2k_l0_small_affine")
    assert [entry for entry in entries() if entry.release != "starter"] == PUBLISHED


def test_without_the_package_nothing_of_it_is_listed(monkeypatch):
    monkeypatch.setitem(sys.modules, "gemlens_starter", None)
    entries.cache_clear()
    assert list(entries()) == PUBLISHED
    entries.cache_clear()


# Asking


def test_find_narrows_by_everything_given():
    found = find(model="gemma-3-270m-it", site="resid_post", layer=12, width="16k")
    assert {(entry.release, entry.id) for entry in found} == {
        *(("gemma-scope-2-270m-it-res", f"layer_12_width_16k_l0_{l0}") for l0 in ("small", "medium", "big")),
        *(("gemma-scope-2-270m-it-res-all", f"layer_12_width_16k_l0_{l0}") for l0 in ("small", "big")),
    }
    assert find(model="google/gemma-3-270m-it", site="resid_post", layer=12, width=16384) == found
    assert find(model="gemma-3-270m-it", site="resid_post", layer=12, width="16384") == found
    assert [entry.l0 for entry in find(release="gemma-scope-2-270m-it-res", layer=12, width="16K")] == [20, 60, 150]
    assert {entry.release for entry in find(release=SCOPE, l0=135, width="65k")} == {
        f"gemma-scope-2-270m-it-{last}" for last in ("res", "att", "mlp", "transcoders")
    }


def test_find_by_l0_knows_canonical_names_and_embeddings():
    found = find(model="gemma-2-2b", site="resid_post", layer=20, width="16k", l0=71)
    assert [entry.id for entry in found] == ["layer_20/width_16k/average_l0_71", "layer_20/width_16k/canonical"]
    assert len(find(model="gemma-2-2b", site="embed", l0=111)) == 1


def test_a_model_with_and_without_google_is_one_in_both_generations():
    assert find(model="google/gemma-2-9b-it") == find(model="gemma-2-9b-it")
    assert {entry.release for entry in find(model="gemma-2-9b-it")} == {
        "gemma-scope-9b-it-res",
        "gemma-scope-9b-it-res-canonical",
    }


def test_a_layer_leaves_out_what_reads_several():
    kinds = {entry.kind for entry in find(model="gemma-3-1b-it")}
    assert kinds == {"sae", "transcoder", "clt", "crosscoder"}
    assert {entry.kind for entry in find(model="gemma-3-1b-it", layer=13)} == {"sae", "transcoder"}


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"model": "gemma-3-270m-itt"}, ["model gemma-3-270m-itt", "did you mean gemma-3-270m-it"]),
        ({"model": "google/gemma-3-270m-pt"}, ["gemma-3-270m"]),
        ({"site": "resid_pots"}, ["site resid_pots", "did you mean resid_post"]),
        (
            {"model": "gemma-2-9b", "site": "mlp_in_normalised"},
            ["with model gemma-2-9b", "attn_out, embed, mlp_out, resid_post"],
        ),
        (
            {"model": "gemma-3-270m-it", "layer": 18},
            ["layer 18", "with model gemma-3-270m-it", "13, 14, 15, 16, 17 and 13 more"],
        ),
        (
            {"release": "gemma-scope-2-270m-it-res", "layer": 13},
            ["in gemma-scope-2-270m-it-res", "there is 5, 9, 12, 15"],
        ),
        (
            {"release": "gemma-scope-9b-it-res", "width": "65k"},
            ["width 65k", "there is 16k, 131k"],
        ),
        ({"release": "gemma-scope-9b-it-res", "width": 65536}, ["width 65536", "there is 16384, 131072"]),
        ({"release": "gemma-scope-9b-it-res", "width": "9" * 5000}, ["there is 16k, 131k"]),
        (
            {"release": "gemma-scope-27b-pt-res", "layer": 10, "l0": 100},
            ["L0 100", "layer 10", "there is 15, 24, 37, 64, 106 and 1 more"],
        ),
        ({"release": "gemma-scope-2-1b-it-clt", "layer": 3}, ["leave it out"]),
        ({"release": "gemma-scope-2-270m-it-rse"}, ["'gemma-scope-2-270m-it-rse'", "gemma-scope-2-270m-it-res"]),
    ],
)
def test_find_names_what_there_is_instead(asked, words):
    with pytest.raises(NotFoundError) as caught:
        find(**asked)
    for word in words:
        assert word in str(caught.value)


# Names


@pytest.mark.parametrize(
    ("release", "id", "path"),
    [
        ("gemma-scope-2-270m-it-res", "layer_12_width_16k_l0_small", "resid_post/layer_12_width_16k_l0_small"),
        (SCOPE, "resid_post/layer_12_width_16k_l0_small", "resid_post/layer_12_width_16k_l0_small"),
        (SCOPE, "resid_post/layer_12_width_16k_l0_small/", "resid_post/layer_12_width_16k_l0_small"),
        ("gemma-scope-2-270m-it", "resid_post_all/layer_12_width_16k_l0_big", None),
        (SCOPE, "transcoder_all/layer_3_width_262k_l0_big_affine", None),
        (SCOPE, "clt/width_262k_l0_big_affine", None),
        (SCOPE, "width_262k_l0_big_affine", "clt/width_262k_l0_big_affine"),
        ("google/gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71", None),
        ("google/gemma-scope-2b-pt-res", "layer_20/width_16k/canonical", "layer_20/width_16k/average_l0_71"),
        ("gemma-scope-2b-pt-res", "layer_20/width_16k/canonical", "layer_20/width_16k/average_l0_71"),
        (
            "gemma-scope-2b-pt-res-canonical",
            "layer_20/width_16k/average_l0_71",
            "layer_20/width_16k/average_l0_71",
        ),
    ],
)
def test_a_dictionary_is_named_by_release_or_repository_by_id_or_path(release, id, path):
    assert resolve(release, id).path == (path or id)


def test_a_full_name_comes_before_the_canonical_one_of_the_same_path():
    assert resolve("google/gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71").l0 == 71


def test_every_entry_is_resolved_by_both_of_its_names():
    for entry in entries()[::97]:
        assert resolve(entry.release, entry.id) == entry
        other = resolve(entry.repo, entry.path)
        assert (other.repo, other.path, other.width) == (entry.repo, entry.path, entry.width)


def test_an_id_that_names_several_lists_them_all():
    with pytest.raises(InputError) as caught:
        resolve(SCOPE, "layer_12_width_16k_l0_small")
    for folder in ("resid_post", "attn_out", "mlp_out"):
        assert f"{folder}/layer_12_width_16k_l0_small" in str(caught.value)
        assert f"{folder}_all/layer_12_width_16k_l0_small" in str(caught.value)
    assert "has 7 dictionaries called layer_12_width_16k_l0_small" in str(caught.value)


@pytest.mark.parametrize(
    ("release", "id", "words"),
    [
        (SCOPE, "resid_post/layer_12_width_16k_l0_smal", ["resid_post/layer_12_width_16k_l0_small", f"--live {SCOPE}"]),
        ("gemma-scope-2-270m-it-res", "layer_12_width_16k_l0_huge", ["did you mean layer_12_width_16k_l0_"]),
        ("gemma-scope-2-270m-it-ress", "x", ["did you mean gemma-scope-2-270m-it-res"]),
        ("google/gemma-scope-3b-pt-res", "x", ["'google/gemma-scope-3b-pt-res'", "gemma-scope-2b-pt-res"]),
    ],
)
def test_an_unknown_name_gets_the_nearest_real_ones(release, id, words):
    with pytest.raises(NotFoundError) as caught:
        resolve(release, id)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("gemma-scope-27b-pt-mlp", "gemma-scope-27b-pt-res"),
        ("google/gemma-scope-27b-pt-mlp", "gemma-scope-27b-pt-res"),
        ("gemma-scope-27b-pt-att-canonical", "gemma-scope-27b-pt-res"),
        ("gemma-scope-27b-mlp", "gemma-scope-27b-pt-res"),
        ("gemma-scope-9b-pt-transcoders", "gemma-scope-2b-pt-transcoders"),
    ],
)
def test_a_name_that_was_never_published_is_said_to_be_so(name, instead):
    for ask in (lambda: resolve(name, "layer_10/width_131k/canonical"), lambda: find(release=name)):
        with pytest.raises(NotFoundError, match="was never published") as caught:
            ask()
        assert instead in str(caught.value)
    published = {entry.release for entry in entries()}
    assert instead in published
    assert not published & {f"gemma-scope-{short.replace('-', '-pt-', 1)}" for short in NEVER_PUBLISHED}


# Neuronpedia


def rule_of_gemma_scope_2(repo: str, path: str) -> str | None:
    """The rule that stood here before there was a catalogue."""
    everywhere = range(1000)
    resid = r"resid_post/layer_(\d+)_width_(\w+?)_l0_medium"
    transcoder = r"transcoder_all/layer_(\d+)_width_(\w+?)_l0_small_affine"
    shown = [
        ({"270m-pt", "1b-pt", "4b-pt", "12b-pt", "27b-it"}, resid, {"16k", "65k", "262k", "1m"}, everywhere, "res"),
        ({"270m-it", "1b-it", "4b-it"}, resid, {"16k", "65k", "262k"}, everywhere, "res"),
        ({"4b-it", "27b-it"}, transcoder, {"262k"}, everywhere, "transcoder"),
        ({"4b-it"}, transcoder, {"16k"}, {0, 1, 2, 3, 4, 6, 7, 9, 10, 12}, "transcoder"),
    ]
    model = repo.removeprefix("google/gemma-scope-2-")
    for models, pattern, widths, layers, source in shown:
        match = re.fullmatch(pattern, path)
        if model in models and match and match[2] in widths and int(match[1]) in layers:
            return f"gemma-3-{model.removesuffix('-pt')}/{match[1]}-gemmascope-2-{source}-{match[2]}"
    return None


def test_neuronpedia_agrees_with_the_rule_that_was_here_before():
    ours = {(e.repo, e.path): neuronpedia_id(e.repo, e.path) for e in entries() if "gemma-scope-2-" in e.repo}
    assert ours == {names: rule_of_gemma_scope_2(*names) for names in ours}
    assert sum(value is not None for value in ours.values()) == 222


def test_neuronpedia_knows_gemma_2():
    residual = "google/gemma-scope-2b-pt-res"
    assert neuronpedia_id(residual, "layer_20/width_16k/average_l0_71") == "gemma-2-2b/20-gemmascope-res-16k"
    assert neuronpedia_id(residual, "layer_5/width_16k/average_l0_18") == "gemma-2-2b/5-gemmascope-res-16k__l0-18"
    assert neuronpedia_id(residual, "layer_20/width_16k/average_l0_38") is None
    transcoders = "google/gemma-scope-2b-pt-transcoders"
    assert neuronpedia_id(transcoders, "layer_0/width_16k/average_l0_76") == "gemma-2-2b/0-gemmascope-transcoder-16k"
    assert neuronpedia_id("starter", "layer_20/width_16k/average_l0_71") is None


def test_an_id_of_another_dictionary_is_listed_but_never_given_out():
    wrong = resolve("gemma-scope-9b-pt-res", "layer_2/width_16k/average_l0_8")
    assert wrong.neuronpedia == "gemma-2-9b/20-gemmascope-res-131k__l0-10"
    assert neuronpedia_id(wrong.repo, wrong.path) is None
    # The other has an id of its own, under its canonical name.
    other = resolve("gemma-scope-9b-pt-res", "layer_20/width_131k/average_l0_114")
    assert other.neuronpedia == "gemma-2-9b/20-gemmascope-res-131k__l0-12"
    assert neuronpedia_id(other.repo, other.path) == "gemma-2-9b/20-gemmascope-res-131k"


def test_every_id_given_out_is_given_once():
    given = {(e.repo, e.path): neuronpedia_id(e.repo, e.path) for e in entries()}
    assert max(Counter(filter(None, given.values())).values()) == 1


# Weight


def test_it_is_light_and_quick():
    code = "import sys; from gemlens.scope import catalog; catalog.entries(); print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for heavy in ("torch", "numpy", "yaml", "huggingface_hub"):
        assert f"'{heavy}'" not in loaded
    took = []
    for _ in range(5):
        entries.cache_clear()
        start = time.perf_counter()
        entries()
        took.append(time.perf_counter() - start)
    assert min(took) < 0.2


def test_a_person_can_read_it_in_a_diff():
    folder = Path(catalog.__file__).parent
    lines = [(folder / name).read_text("utf-8").splitlines() for name in ("catalog.py", "catalog_table.py")]
    assert sum(map(len, lines)) < 600
    assert max(len(line) for file in lines for line in file) <= 120


def test_entries_are_frozen():
    with pytest.raises(AttributeError):
        entries()[0].path = "elsewhere"
    assert isinstance(entries()[0], Entry)
