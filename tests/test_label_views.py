"""Labels in every view of an analysis, and what a phrase leads to."""

import dataclasses
import io
import json
from math import log

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from cli_helpers import ID, REPORT, assert_refused, make_world, run
from gemlens.records.labels import Label
from gemlens.report import files
from gemlens.report.html import to_html
from gemlens.report.json import to_dict, to_json, to_jsonl
from gemlens.report.notebook import token_view
from gemlens.report.summary import strongest
from gemlens.report.table import render
from gemlens.scope.base_rates import base_rates
from gemlens.scope.label_names import key_of
from gemlens.scope.labels import LabelStore
from gemlens.study.analyze import analyze, analyze_many
from gemlens.study.phrase import phrase_features, surprise
from report_sample import PAYLOADS, sample
from tiny import random_sae

pytestmark = pytest.mark.usefixtures("label_home")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


def named(text="the sea", analysis=None, **more):
    """The sample, its strongest feature of the first dictionary labelled."""
    analysis = analysis or sample()
    feature = strongest(analysis, 0, 1)[0].feature_id
    label = Label("k", feature, text, "me", **more)
    return dataclasses.replace(analysis, labels=({feature: label}, {})), feature


def printed(analysis, width=200):
    out = io.StringIO()
    render(analysis, Console(file=out, width=width, markup=False, highlight=False))
    return out.getvalue()


# Views


def test_every_view_shows_a_label_and_none_shows_one_for_the_other_dictionary(tmp_path):
    analysis, feature = named()
    assert "the sea" in printed(analysis)
    assert "the sea" in token_view(analysis)
    data = to_html(analysis)
    assert f'"labels":{{"{feature}":"the sea"}}' in data
    assert data.count('"the sea"') == 1
    said = json.loads(to_json(analysis))
    rows = [each for token in said["tokens"] for each in token["features"]]
    assert {each.get("label") for each in rows if each["feature_id"] == feature and "dictionary" not in each} == {
        "the sea"
    }
    assert {each.get("label") for each in rows if each["feature_id"] != feature or "dictionary" in each} == {None}
    (label,) = said["labels"]
    assert (label["dictionary"], label["feature_id"], label["text"], label["source"]) == (0, feature, "the sea", "me")
    assert '"label": "the sea"' in to_jsonl(analysis)
    table = pq.read_table(files.export(analysis, "parquet", tmp_path)).to_pylist()
    first = table[0]["dictionary"]
    assert {row["label"] for row in table if row["feature_id"] == feature and row["dictionary"] == first} == {"the sea"}
    assert {row["label"] for row in table if row["feature_id"] != feature or row["dictionary"] != first} == {None}


def test_a_long_label_is_cut_in_the_terminal_and_numbers_are_not():
    analysis, feature = named("a label that is much longer than any line of a terminal has room for, " * 3)
    for width in (60, 80, 200):
        text = printed(analysis, width)
        row = next(line for line in text.splitlines()[::-1] if line.split()[:1] == [str(feature)] and "a label" in line)
        whole = next(line for line in printed(sample(), 200).splitlines()[::-1] if line.split()[:1] == [str(feature)])
        assert row.split()[:4] == whole.split()[:4]
        assert len(row.rstrip()) <= width


def test_views_without_labels_are_as_they_were():
    assert "label" not in printed(sample()).split()
    assert ">label<" not in token_view(sample())
    assert to_dict(sample())["labels"] == []
    assert '"label":' not in to_jsonl(sample())


def test_an_automatic_label_says_so_everywhere():
    analysis, _ = named(method="auto")
    for view in (printed(analysis), token_view(analysis), to_html(analysis), to_jsonl(analysis)):
        assert "(auto) the sea" in view


@pytest.mark.parametrize("payload", [*PAYLOADS, "\x1b[31mred", "a\x00b", "a\u202eb", "[red]x[/red]", "two\nlines"])
def test_markup_and_control_characters_in_labels_are_text(payload):
    analysis, _ = named(payload)
    page, cell, table = to_html(analysis), token_view(analysis), printed(analysis, 400)
    if "<" in payload:
        assert payload not in page
        assert payload not in cell
    for view in (page, cell, table):
        assert not {"\x1b", "\x00", "\u202e"} & set(view)
    assert "two\nlines" not in table
    if payload.startswith("[red]"):
        assert payload in table
    json.loads(to_json(analysis))


def test_the_argument_of_to_html_wins():
    analysis, feature = named()
    assert '"another"' in to_html(analysis, labels={0: {feature: "another"}})


# The record


def store_for(dictionary, features, text="label {}"):
    with LabelStore() as store:
        store.add(Label(key_of(dictionary.info), feature, text.format(feature), "me") for feature in features)


def test_an_analysis_carries_labels_of_the_features_that_fire(model):
    here, other = random_sae(model, "resid_post.2", path="a"), random_sae(model, "resid_post.3", path="b")
    store_for(here, range(40))
    analysis = analyze(model, [here, other], "the sea", max_new_tokens=0)
    fired = set(analysis.activations[0].ids.tolist())
    assert set(analysis.labels[0]) == fired
    assert fired
    assert analysis.labels[1] == {}, "labels of one dictionary are never another's"
    assert analysis.label_of(0, min(fired)).text == f"label {min(fired)}"
    assert analysis.label_of(1, min(fired)) is None


def test_many_texts_carry_their_own(model):
    here = random_sae(model, "resid_post.2", path="a")
    store_for(here, range(40))
    for analysis in analyze_many(model, here, ["sea", "the land and the ship"]):
        assert set(analysis.labels[0]) == set(analysis.activations[0].ids.tolist())


def test_without_a_store_nothing_is_carried_and_none_is_made(model, label_home):
    analysis = analyze(model, random_sae(model, "resid_post.2"), "the sea", max_new_tokens=0)
    assert analysis.labels == ()
    assert not label_home.exists()


def test_a_store_that_cannot_be_read_is_a_warning(model, label_home):
    label_home.mkdir()
    (label_home / "labels.sqlite").write_text("no database " * 100)
    analysis = analyze(model, random_sae(model, "resid_post.2"), "the sea", max_new_tokens=0)
    assert any("labels are not shown" in warning for warning in analysis.warnings)


def test_the_command_shows_them_in_table_and_reports(world, capsys, tmp_path):
    with LabelStore() as store:
        key = (world.release.resolve() / ID).as_posix()
        store.add(Label(key, feature, f"label {feature}", "me") for feature in range(40))
    ran = run(
        capsys, *world.arguments("--export", "json", "--export", "html", "--export", "parquet", "--out-dir", tmp_path)
    )
    assert ran.code == 0, ran.err
    assert "label " in ran.out
    said = json.loads((tmp_path / f"{REPORT}.json").read_text("utf-8"))
    assert all(each["label"] == f"label {each['feature_id']}" for token in said["tokens"] for each in token["features"])
    assert '"labels":{"' in (tmp_path / f"{REPORT}.html").read_text("utf-8")
    other = run(capsys, *world.arguments(sae_id="resid_post/layer_5_width_40_l0_small"))
    assert "label " not in other.out


# What a phrase leads to


def test_surprise_is_the_ratio_of_likelihoods_and_nothing_below_the_base_rate():
    assert surprise(3, 4, 0.01) == pytest.approx(3 * log(75) + log(0.25 / 0.99))
    assert surprise(4, 4, 0.5) == pytest.approx(4 * log(2))
    assert surprise(1, 4, 0.25) == 0
    assert surprise(0, 4, 0.1) == 0
    assert surprise(2, 4, 0.0) > surprise(2, 4, 1e-3)


def test_a_phrase_leads_to_features_that_are_rare_elsewhere_and_to_labels(model):
    sae = random_sae(model, "resid_post.2", path="a")
    analysis = analyze(model, sae, "sea", max_new_tokens=0)
    fired = np.bincount(analysis.activations[0].ids, minlength=40)
    often, rare = np.argsort(-fired, kind="stable")[:2].tolist()
    rates = np.full(40, 0.9999)
    rates[rare] = 0.001
    silent = int(np.flatnonzero(fired == 0)[0])
    hit = Label(key_of(sae.info), silent, "ships", "me")
    stranger = Label("another", 1, "ships", "me")
    found = phrase_features(analysis, [rates], {}, [hit, stranger])
    assert found[0].feature == rare
    assert found[0].fired == fired[rare]
    assert found[0].tokens == len(analysis.tokens) - 1, "BOS is left out"
    assert found[0].max_activation == analysis.activations[0].values[analysis.activations[0].ids == rare].max()
    assert found[-1].feature == silent
    assert (found[-1].fired, found[-1].by_label, found[-1].label) == (0, True, hit)
    assert {each.dictionary for each in found} == {key_of(sae.info)}
    assert often not in {each.feature for each in found if fired[often] < 0.9999 * found[0].tokens}


def test_base_rates_come_from_what_training_wrote():
    rates = base_rates("starter", "resid_post/layer_12_width_4k_l0_medium", 4096)
    assert rates.sum() == pytest.approx(55, abs=5), "the dictionary's L0"
    assert base_rates("starter", "resid_post/layer_12_width_4k_l0_medium", 4095) is None
    assert base_rates("google/gemma-scope-2-270m-it", "resid_post/x", 5) is None


def test_find_merges_what_fires_with_what_is_called_so(world, capsys):
    with LabelStore() as store:
        key = (world.release.resolve() / ID).as_posix()
        store.add([Label(key, 3, "[b]ships[/b] at sea", "me"), Label("elsewhere", 4, "ships at sea", "me")])
    arguments = ["find", "ships", "--model-id", world.model, "--sae-release", world.release, "--sae-id", ID]
    ran = run(capsys, *arguments)
    assert ran.code == 0, ran.err
    assert "[b]ships[/b] at sea" in ran.out
    assert "their mean is taken" in ran.err
    found = json.loads(run(capsys, *arguments, "--json", "--limit", "40").out)
    assert {each["feature"] for each in found if each["by_label"]} == {3}
    assert all(each["fired"] or each["by_label"] for each in found)
    assert [each["surprise"] for each in found if not each["by_label"]] == sorted(
        (each["surprise"] for each in found if not each["by_label"]), reverse=True
    )


def test_find_on_the_starter_names_the_capital(starter, capsys):
    """On " Paris" and " Rome" features fire that are silent on nearly everything else."""
    found = json.loads(
        run(capsys, "find", "Paris, Rome, London", "--model-id", "starter", "--json", "--limit", "5").out
    )
    assert all(each["base_rate"] < 0.05 and each["fired"] >= 1 for each in found)
    assert any(each["strongest_on"].strip() in ("Paris", "Rome", "London") for each in found)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([" "], "the phrase is empty"),
        (["x", "--limit", "0"], "--limit 0"),
        (["x", "--model-id", "nobody"], "--model-id"),
    ],
)
def test_find_with_bad_options(capsys, arguments, said):
    assert_refused(run(capsys, "find", *arguments), said)
