"""The quality card of a release: what is measured, how it is told, and the page."""

from __future__ import annotations

import dataclasses
import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console

from cli_helpers import ROOM, assert_refused, everything_in, run
from fake_hub import FakeHub, connected
from gemlens.errors import InputError, WeightsError
from gemlens.report.quality import render, series, to_json
from gemlens.report.quality_page import to_html
from gemlens.scope.listing import Listed, listing
from gemlens.scope.load import load_clt, load_sae
from gemlens.scope.save import save_multilayer, save_sae
from gemlens.study.fidelity import fidelity
from gemlens.study.quality import complete_sets, quality_card
from gemlens.study.set_fidelity import set_fidelity
from layouts import CROSSCODER, random_layers, write_layers
from quality_sample import CLT, SAES, TRANSCODERS, card, figures
from test_report import Tags
from tiny import LAYERS, files_below, random_clt, random_sae, random_transcoders, tiny_gemma, tiny_model_folder

TEXT = "the cat and the dog sat in the sun, and nobody in the street said anything to them about the rain. " * 8
SET = "transcoder_all/layer_*_width_40_l0_small_affine"
SAE = "resid_post/layer_3_width_40_l0_small"
A_CLT = f"clt/width_{30 * LAYERS}_l0_small"


def write_release(root: Path) -> Path:
    model = tiny_gemma()
    for each in random_transcoders(model):
        save_sae(each, root / str(each.info.path), l0=10)
    save_sae(random_sae(model, "resid_post.3"), root / SAE, l0=10)
    save_multilayer(random_clt(model), root / A_CLT, l0=10)
    return root


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return write_release(tmp_path_factory.mktemp("scope"))


@pytest.fixture(scope="module")
def measured(release):
    model = tiny_gemma()
    return quality_card(model, str(release), listing(str(release), clts=True), lambda: [TEXT], names=["a.txt"])


# What is measured


def test_clts_are_listed_on_request_and_crosscoders_never(release, tmp_path, hub_home):
    paths = {each.path for each in listing(str(release), clts=True)}
    assert paths - {each.path for each in listing(str(release))} == {A_CLT}
    clt = next(each for each in listing(str(release), clts=True) if each.is_clt)
    assert (clt.site, clt.layer, clt.category) == (None, None, "clt")
    write_layers(tmp_path / CROSSCODER, random_layers())
    write_layers(tmp_path / "clt/mine", random_layers())
    assert [each.path for each in listing(str(tmp_path), clts=True)] == ["clt/mine"]
    with FakeHub({"owner/scope": files_below(release)}) as hub, connected(hub.url, home=hub_home):
        assert {each.path for each in listing("owner/scope", clts=True)} == paths


def test_a_card_holds_what_each_measures_alone(release, measured):
    model = tiny_gemma()
    by_path = {each.dictionary.path: each for each in measured.dictionaries if each.dictionary.category != "clt"}
    assert len(by_path) == LAYERS + 1
    for path in (SAE, SET.replace("*", "0"), SET.replace("*", "6")):
        alone = fidelity(model, load_sae(str(release), path), [TEXT])
        assert dataclasses.replace(by_path[path], verdict=alone.verdict) == alone
    assert [each.writes for each in measured.dictionaries] == [
        *(f"mlp_out.{layer}" for layer in range(LAYERS)),
        "resid_post.3",
        *(f"mlp_out.{layer}" for layer in range(LAYERS)),
    ]
    transcoders = [load_sae(str(release), SET.replace("*", str(layer))) for layer in range(LAYERS)]
    clt = load_clt(str(release), A_CLT)
    assert list(measured.sets) == [set_fidelity(model, clt, [TEXT]), set_fidelity(model, transcoders, [TEXT])]
    assert [each.name for each in measured.sets] == [A_CLT, SET]
    assert measured.failed == ()
    assert measured.provenance.dtype == "float32"


def listed(path):
    return Listed(path, None, None, None, None)


def test_a_set_has_one_transcoder_for_each_mlp():
    def of(path, layer, writes="mlp_out"):
        site = f"mlp_in.{layer}" if writes == "mlp_out" else f"{writes}.{layer}"
        return listed(path), figures(path, site, f"{writes}.{layer}", 0.5, cost=0.1)

    whole = [of(TRANSCODERS.replace("*", str(layer)), layer) for layer in range(3)]
    partial = [of(f"transcoder/layer_{layer}_width_4k", layer) for layer in (0, 2)]
    saes = [of(f"mlp_out/layer_{layer}_width_4k", layer, "mlp_out") for layer in range(3)]
    saes = [
        (each, dataclasses.replace(f, dictionary=dataclasses.replace(f.dictionary, site=f.writes))) for each, f in saes
    ]
    clt = [of("clt/mine", layer) for layer in range(3)]
    found = complete_sets([*saes, *clt, *partial, *whole], 3)
    assert found == {"clt/mine": [listed("clt/mine")], TRANSCODERS: [each for each, _ in whole]}
    assert complete_sets(whole, 4) == {}


def test_a_damaged_dictionary_costs_itself_and_its_set(tmp_path):
    write_release(tmp_path)
    bad = tmp_path / SET.replace("*", "4") / "params.safetensors"
    bad.write_bytes(bad.read_bytes()[:-9])
    result = quality_card(tiny_gemma(), str(tmp_path), listing(str(tmp_path), clts=True), lambda: [TEXT])
    assert [path for path, _ in result.failed] == [SET.replace("*", "4")]
    assert len(result.dictionaries) == 2 * LAYERS
    assert [each.name for each in result.sets] == [A_CLT]
    only_bad = [each for each in listing(str(tmp_path)) if each.path == SET.replace("*", "4")]
    with pytest.raises(WeightsError):
        quality_card(tiny_gemma(), str(tmp_path), only_bad, lambda: [TEXT])
    with pytest.raises(InputError, match="rows of 128"):
        quality_card(tiny_gemma(), str(tmp_path), listing(str(tmp_path)), lambda: ["short"])


# How it is told


def test_json_holds_the_record():
    record = json.loads(to_json(card()))
    assert record["schema_version"] == 1
    first, made = record["dictionaries"][-1], card().dictionaries[-1]
    assert (first["fvu"], first["ce_recovered"], first["ce_recovered_mean"]) == (
        made.fvu, made.ce_recovered, made.ce_recovered_mean,
    )  # fmt: skip
    assert first["density"] == {**dataclasses.asdict(made.density), "counts": list(made.density.counts)}
    assert record["sets"][0]["kl"] == card().sets[0].kl
    assert record["sets"][0]["layers"] == list(range(18))
    assert record["provenance"]["torch_version"] == "2.13.0"
    failed = card(failed=(("a/b", "no good"),))
    assert json.loads(to_json(failed))["failed"] == [{"path": "a/b", "reason": "no good"}]


def text_of(record, width=100):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    render(record, console)
    return console.export_text()


def test_the_table_has_a_line_a_dictionary_and_a_median_of_each_series():
    text = text_of(card())
    lines = text.splitlines()
    assert sum(bool(re.match(r"(mlp_in|resid_post)\.\d+ ", line)) for line in lines) == 25
    assert [line.split()[0] for line in lines if line.startswith(("clt/", "resid_post/", "transcoder_all/"))] == [
        CLT, SAES, TRANSCODERS, f"{TRANSCODERS}:",
    ]  # fmt: skip
    assert "mlp_in.17" in text
    medians = [line.split() for line in lines if line.startswith("median")]
    assert medians[1] == ["median", "16.1", "0.112", "0.889", "0.223", "77.7%", "94.4%"]
    assert "KL to the clean model 1.421 ± 0.021 nats a token" in text
    assert "the same likeliest token at 43.8% of 8,192" in text
    assert f"{CLT}: WRONG SITE OR SCALE" in text
    assert "dead" not in text
    dead = [dataclasses.replace(each, dead=0.125, dead_tokens=10**6) for each in card().dictionaries]
    narrow = text_of(card(dictionaries=tuple(dead)), width=80)
    assert narrow.count("12.5%") == 25 + 3
    assert all(len(line) <= 80 for line in narrow.splitlines() if line.count("%") == 3)


def test_series_are_dictionaries_of_one_name_but_for_the_layer():
    assert [(each.name, each.kind, len(each.members)) for each in series(card())] == [
        (CLT, "CLT", 3), (SAES, "SAE", 4), (TRANSCODERS, "transcoder", 18),
    ]  # fmt: skip
    assert [each.about for each in series(card())] == [
        "CLT from mlp_in to mlp_out", "SAEs of resid_post", "transcoders from mlp_in to mlp_out",
    ]  # fmt: skip


# The page


def panels(page):
    """For each plot its points, as tooltip -> (x, y)."""
    found = []
    for svg in re.findall(r'<svg class="plot".*?</svg>', page, flags=re.S):
        points = re.findall(r'<circle class="point" cx="([\d.]+)" cy="([\d.]+)" r="3.5"><title>(.*?)</title>', svg)
        found.append({tip: (float(x), float(y)) for x, y, tip in points})
    return found


def test_every_dictionary_is_drawn_where_its_figures_say():
    page = to_html(card())
    fvu, nats, of_mean, of_zero = panels(page)
    assert [len(each) for each in (fvu, nats, of_zero)] == [25, 25, 25]
    assert len(of_mean) == 24  # the CLT's worst lies below what is drawn: a triangle
    assert page.count('class="point beyond"') == 1
    saes = {tip: at for tip, at in fvu.items() if tip.startswith("resid_post")}
    assert list(saes)[2] == "resid_post/layer_12_width_4k_l0_medium, resid_post.12: FVU 0.123"
    assert all(a[0] < b[0] and a[1] > b[1] for a, b in pairwise(saes.values()))  # deeper, and a larger FVU
    assert all(12 <= y <= 234 for each in panels(page) for _, y in each.values())


def test_the_histograms_hold_every_feature():
    page = to_html(card())
    drawn = re.findall(r'<svg class="density".*?</svg>', page, flags=re.S)
    assert len(drawn) == 25
    last = card().dictionaries[-1].density
    bars = re.findall(r'<rect class="bar" x="\d+" y="[\d.]+" width="4" height="([\d.]+)"', drawn[-1])
    assert len(bars) == sum(count > 0 for count in last.counts)
    assert drawn[-1].count('class="never"') == 1
    assert max(map(float, bars)) <= 58.0
    assert f"{last.never:,} of 2,048 features never fire" in drawn[-1]


def test_the_page_asks_for_nothing_and_hostile_names_stay_text():
    evil = "</title><script>alert(1)</script>\x00\ud800"
    path = f"{evil}/layer_3_width_2k"
    one = figures(path, "mlp_in.3", "mlp_out.3", 0.5, cost=0.1, warnings=(evil,), verdict=(f"HARMFUL: {evil}",))
    hostile = card(release=evil, model_id=evil, texts=(evil,), dictionaries=(one,), failed=((evil, evil),))
    for record in (card(), hostile):
        page = to_html(record)
        page.encode("utf-8")
        tags = Tags(page)
        assert sum(tag == "script" for tag, _ in tags.tags) == 1
        assert not {"img", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in tags.tags}
        assert [a["href"][:5] for tag, a in tags.tags if tag == "link"] == ["data:"]
        assert not [a for _, a in tags.tags if "src" in a or "style" in a or any(name.startswith("on") for name in a)]
        assert "nan" not in page.lower().replace("unexplained", "")


def test_few_dictionaries_still_make_a_page():
    one = card().dictionaries[3]
    perfect = dataclasses.replace(
        one,
        fvu=0.0,
        variance_explained=1.0,
        spliced=dataclasses.replace(one.spliced, above_clean=0.0, standard_error=0.0),
    )
    silent = dataclasses.replace(one, density=dataclasses.replace(one.density, counts=(0,) * 24, never=4096))
    for members in ((one,), (perfect,), (silent,)):
        page = to_html(card(dictionaries=members, sets=()))
        assert len(panels(page)) == 4
        assert "nan" not in page.lower().replace("unexplained", "")
        text_of(card(dictionaries=members, sets=()))


# The command


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    return tiny_model_folder(tmp_path_factory.mktemp("model") / "gemma-3-270m", **ROOM)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch, no_token):
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    Path("text.txt").write_text(TEXT)
    return folder


def arguments(model, release, *more):
    return ["fidelity", "--all", "--model-id", model, "--sae-release", release, "--texts", "text.txt", *more]


def test_the_command_prints_the_table_and_writes_the_page(capsys, tiny_folder, release, elsewhere):
    ran = run(capsys, *arguments(tiny_folder, release))
    assert ran.code == 0, ran.err
    assert everything_in(elsewhere) == ["outputs", "outputs/quality_card.html", "outputs/quality_card.json", "text.txt"]
    record = json.loads(Path("outputs/quality_card.json").read_text())
    assert len(record["dictionaries"]) == 2 * LAYERS + 1
    assert record["texts"] == ["text.txt"]
    assert [each["name"] for each in record["sets"]] == [A_CLT, SET]
    assert len(panels(Path("outputs/quality_card.html").read_text())) == 4
    for each in record["sets"]:
        assert f"{each['name']}: all {LAYERS} MLPs replaced at once" in ran.out
        assert f"KL to the clean model {each['kl']:.3f}" in ran.out
    assert "wrote outputs/quality_card.html" in ran.err


def test_what_is_written_can_be_chosen_and_dead_features_counted(capsys, tiny_folder, release, elsewhere):
    more = ["--sae-category", "resid_post", "--mix", "text.txt", "--export", "json", "--export", "b/c.html"]
    ran = run(capsys, *arguments(tiny_folder, release, *more, "--out-dir", "a"))
    assert ran.code == 0, ran.err
    assert everything_in(elsewhere) == ["a", "a/quality_card.json", "b", "b/c.html", "text.txt"]
    record = json.loads(Path("a/quality_card.json").read_text())
    assert [each["dictionary"]["path"] for each in record["dictionaries"]] == [SAE]
    assert record["dictionaries"][0]["dead"] is not None
    assert "dead" in ran.out
    assert record["sets"] == []


def test_a_clt_that_was_just_trained_loads_and_splices(capsys, tiny_folder, elsewhere):
    Path("long.txt").write_text(TEXT * 20)
    small = ["--width", 24, "--l0", 4, "--tokens", "4k", "--batch", 64, "--row-length", 32, "--buffer", 512]
    train = [
        "train",
        "clt",
        "--model-id",
        tiny_folder,
        "--texts",
        "long.txt",
        "--layers",
        f"0-{LAYERS - 1}",
        "--out",
        "mine",
    ]
    trained = run(capsys, *train, *small)
    assert trained.code == 0, trained.err
    ran = run(capsys, *arguments(tiny_folder, "mine", "--export", "json"))
    assert ran.code == 0, ran.err
    record = json.loads(Path("outputs/quality_card.json").read_text())
    (together,) = record["sets"]
    assert together["name"] == f"clt/width_{24 * LAYERS}_l0_small"
    assert together["layers"] == list(range(LAYERS))
    assert together["logit_error"] <= 1e-4
    assert together["kl"] > 0
    assert [each["writes"] for each in record["dictionaries"]] == [f"mlp_out.{layer}" for layer in range(LAYERS)]


def test_what_could_not_be_measured_is_told_after_the_rest(capsys, tiny_folder, tmp_path, elsewhere):
    broken = write_release(tmp_path / "scope")
    (broken / SAE / "params.safetensors").write_bytes(b"")
    ran = run(capsys, *arguments(tiny_folder, broken))
    assert ran.code == 2
    assert f"1 of {LAYERS + 2} dictionaries could not be measured; the first is {SAE}" in ran.err.splitlines()[-1]
    assert SAE in Path("outputs/quality_card.html").read_text()
    assert SET in ran.out


def test_nothing_is_left_behind_when_it_is_interrupted(capsys, tiny_folder, release, elsewhere, monkeypatch):
    def stopped(*_arguments, **_settings):
        raise KeyboardInterrupt

    monkeypatch.setattr("gemlens.study.quality.set_fidelity", stopped)
    ran = run(capsys, *arguments(tiny_folder, release, "--sae-category", "transcoder_all"))
    assert (ran.code, ran.out) == (130, "")
    assert everything_in(elsewhere) == ["text.txt"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--sae-id", "x"], ["--sae-id x", "--all", "--sae-category"]),
        (["--sweep"], ["--sweep and --all exclude"]),
        (["--layer", "2"], ["--layer goes with --sweep"]),
        (["--plot", "a.svg"], ["--plot goes with --sweep"]),
        (["--export", "svg"], ["--export svg", "html or json"]),
        (["--export", "text.txt/a.json"], ["text.txt"]),
        (["--sae-category", "resid_pots"], ["resid_pots", "did you mean resid_post"]),
        (["--out-dir", "text.txt"], ["text.txt", "not a folder"]),
    ],
)
def test_slips_are_told_in_one_line_before_anything_is_measured(
    capsys, tiny_folder, release, elsewhere, monkeypatch, more, words
):
    monkeypatch.setattr("gemlens.study.reconstruction.activations", lambda *_: pytest.fail("went on to measure"))
    assert_refused(run(capsys, *arguments(tiny_folder, release, *more)), *words)
    assert everything_in(elsewhere) == ["text.txt"]


def test_options_of_a_card_need_one(capsys, tiny_folder, release, elsewhere):
    without = [word for word in arguments(tiny_folder, release) if word != "--all"]
    assert_refused(run(capsys, *without, "--out-dir", "a"), "--out-dir goes with --all")
    assert_refused(run(capsys, *without, "--export", "html"), "name a .json file")
    assert_refused(run(capsys, *without, "--export", "a.json", "--export", "b.json"), "b.json", "one file")


def test_the_starters_dictionaries_are_measured_on_the_starter(capsys, elsewhere, monkeypatch):
    """Unless another model is named."""
    asked = []
    monkeypatch.setattr(
        "gemlens.app.fidelity.run_all", lambda console, model, release, **_: asked.append((model, release))
    )
    for more in ([], ["--model-id", "some/gemma"]):
        ran = run(capsys, "fidelity", "--all", "--sae-release", "starter", "--texts", "text.txt", *more)
        assert ran.code == 0, ran.err
    assert asked == [("starter", "starter"), ("some/gemma", "starter")]
