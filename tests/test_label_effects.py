"""Labels beside what features do: in attributions, ablations, steering, lenses and contrasts."""

import dataclasses
import io
import json
import re

import pytest
from rich.console import Console

from choices_sample import record
from gemlens.records.labels import Label
from gemlens.report import (
    ablation,
    attribution,
    attribution_page,
    choices_page,
    choices_table,
    edits_page,
    lens_page,
    steering,
)
from gemlens.report import lens as lens_views
from gemlens.scope.label_names import key_of
from gemlens.scope.labels import LabelStore
from gemlens.study.ablation import ablation as ablate_features
from gemlens.study.attribute import attribute
from gemlens.study.lens import lens
from gemlens.study.steering import steer_sweep
from report_sample import PAYLOADS
from tiny import random_clt, random_sae

pytestmark = pytest.mark.usefixtures("label_home")

PROMPT = "hello and the"
ALL = range(40)


def attributed(model, dictionary):
    return attribute(model, [dictionary, random_sae(model, "resid_post.4", path="b")], PROMPT, "a", verify=3)


def ablated(model, dictionary):
    return ablate_features(model, [(dictionary, [3, 5]), (random_sae(model, "resid_post.4", path="b"), [5])], PROMPT)


def steered(model, dictionary):
    return steer_sweep(model, dictionary, [3, 5], PROMPT, [1.0], relative_to=None, max_new_tokens=2)


def looked_at(model, dictionary):
    return lens(model, dictionary, [3, 5])


STUDIES = [attributed, ablated, steered, looked_at]
PRINTED = {
    "Attribution": attribution.render,
    "Ablation": ablation.render,
    "Steering": steering.render,
    "FeatureLens": lens_views.render_features,
}
PAGES = {
    "Attribution": attribution_page.to_html,
    "Ablation": edits_page.ablation_to_html,
    "Steering": edits_page.steering_to_html,
    "FeatureLens": lens_page.features_to_html,
}
FILES = {"Attribution": attribution, "Ablation": ablation, "Steering": steering, "FeatureLens": lens_views}


def printed(show, found, **options):
    out = io.StringIO()
    show(found, Console(file=out, width=400, markup=False, highlight=False), **options)
    return out.getvalue()


def views(found):
    """Terminal, page, notebook and both files, as text."""
    kind = type(found).__name__
    files = FILES[kind]
    return {
        "terminal": printed(PRINTED[kind], found),
        "page": PAGES[kind](found),
        "notebook": found._repr_html_(),
        "json": files.to_json(found),
        "jsonl": files.to_jsonl(found),
    }


def store_for(dictionary, text="number {}", features=ALL):
    with LabelStore() as store:
        store.add(Label(key_of(dictionary.info), feature, text.format(feature), "me") for feature in features)


@pytest.mark.parametrize("study", STUDIES)
def test_every_view_shows_the_labels_of_its_features_and_only_of_the_dictionary_they_belong_to(study, model):
    dictionary = random_sae(model, "resid_post.2", path="a")
    store_for(dictionary)
    found = study(model, dictionary)
    for name, view in views(found).items():
        assert re.search(r"number \d", view), name
    (mine, *others) = found.labels
    assert mine
    assert all(label.text == f"number {feature}" for feature, label in mine.items())
    assert not any(others)
    said = json.loads(views(found)["json"])["labels"]
    assert [(each["dictionary"], each["feature_id"], each["text"]) for each in said] == [
        (0, feature, f"number {feature}") for feature in sorted(mine)
    ]


@pytest.mark.parametrize("study", STUDIES)
def test_without_labels_views_have_no_place_for_them(study, model):
    found = study(model, random_sae(model, "resid_post.2", path="a"))
    assert found.labels == ()
    shown = views(found)
    assert "label" not in shown["terminal"].split()
    assert ">label<" not in shown["notebook"]
    assert 'class="label"' not in shown["page"]
    assert '"label"' not in shown["jsonl"]


@pytest.mark.parametrize("study", STUDIES)
@pytest.mark.parametrize("payload", [*PAYLOADS[:3], "\x1b[31mred", "a\x00b", "a\u202eb", "[red]x[/red]", "two\nlines"])
def test_markup_and_control_characters_are_text(payload, study, model):
    dictionary = random_sae(model, "resid_post.2", path="a")
    found = study(model, dictionary)
    named = {feature: Label("k", feature, payload, "me") for feature in ALL}
    shown = views(dataclasses.replace(found, labels=(named, *[{}] * (len(found.labels) - 1))))
    for name in ("terminal", "page", "notebook"):
        assert not {"\x1b", "\x00", "\u202e"} & set(shown[name]), name
        assert "two\nlines" not in shown[name]
        assert name == "terminal" or "<" not in payload or payload not in shown[name]
    assert not payload.startswith("[red]") or payload in shown["terminal"]
    json.loads(shown["json"])


@pytest.mark.parametrize("study", STUDIES)
def test_a_store_that_cannot_be_read_is_a_warning(study, model, label_home):
    label_home.mkdir()
    (label_home / "labels.sqlite").write_text("no database " * 100)
    found = study(model, random_sae(model, "resid_post.2", path="a"))
    assert found.labels == ()
    assert any("labels are not shown" in warning for warning in found.warnings)


def test_a_clt_has_none_since_they_would_not_say_of_which_layer(model):
    clt, crosscoder = random_clt(model), random_clt(model, crosscoder=True)
    for dictionary in (clt, crosscoder):
        store_for(dictionary, features=range(30))
    assert lens(model, clt, [3], layer=1).labels == ()
    assert attribute(model, clt, PROMPT, "a").labels == ()
    assert attribute(model, crosscoder, PROMPT, "a").labels[0]


def test_a_contrast_and_a_set_of_choices_show_them_in_the_terminal_and_on_the_page():
    found = record()
    best = min(found.tests[0].features, key=lambda test: (not test.confirmed, test.p)).feature_id
    labels = ({best: Label("k", best, "of <b>cats\nand dogs", "me")}, *[{}] * (len(found.dictionaries) - 1))
    table = printed(choices_table.render, found, labels=labels)
    assert table.count("of <b>cats and dogs") == 1
    assert "of &lt;b&gt;cats and dogs" in choices_page.to_html(found, labels=labels)
    assert "label" not in printed(choices_table.render, found).split()
