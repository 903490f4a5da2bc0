"""Views of multiple choice: the seed's JSON field for field, Parquet, the page, the terminal."""

from __future__ import annotations

import dataclasses
import html.parser
import io
import json

import numpy as np
import pytest

from choices_sample import record
from gemlens.records.labels import Label
from gemlens.report.choices_json import layer_keys, strongest_of, summary_json, to_json
from gemlens.report.choices_page import to_html
from gemlens.report.choices_parquet import tables, write_parquet


def test_the_json_has_the_promised_fields():
    found = record()
    rows = json.loads(to_json(found))
    assert len(rows) == 24
    for index, row in enumerate(rows):
        assert list(row)[:5] == [
            "example_id",
            "question",
            "model_is_correct",
            "positive_solution_details",
            "negative_solution_details",
        ]
        assert row["example_id"] == index and isinstance(row["model_is_correct"], bool)
        assert row["model_is_correct"] == (found.margin(index) > 0)
        right, wrong = row["positive_solution_details"], row["negative_solution_details"]
        item = found.items[index]
        assert (right["text"], wrong["text"]) == (item.choices[item.gold], item.choices[1 - item.gold])
        for details in (right, wrong):
            assert details["log_likelihood"] < 0
            assert details["log_likelihood_per_char"] == pytest.approx(
                details["log_likelihood"] / len(details["text"]), rel=1e-5
            )
            assert list(details["active_features_by_layer"]) == ["1", "4", "mlp_in.3"]
            for layer, features in details["active_features_by_layer"].items():
                values = [each["activation"] for each in features]
                assert values == sorted(values, reverse=True) and all(value > 0 for value in values)
                assert all(set(each) == {"feature_id", "activation", "layer", "site"} for each in features)
                assert {each["layer"] for each in features} <= {int(layer.split(".")[-1])}
    text = found.first_text[3] + found.items[3].gold
    ids, values = found.features[0].row(text)
    best = rows[3]["positive_solution_details"]["active_features_by_layer"]["1"][0]
    assert best["feature_id"] == ids[values.argmax()] and best["activation"] == pytest.approx(values.max(), rel=1e-6)


def test_more_than_two_choices_have_a_list_of_wrong_ones():
    rows = json.loads(to_json(record(most=4)))
    several = [row for row in rows if "negative_solutions_details" in row]
    assert several and all(len(row["negative_solutions_details"]) in (2, 3) for row in several)
    assert all(("negative_solution_details" in row) != ("negative_solutions_details" in row) for row in rows)


def test_top_k_cuts_and_every_token_names_its_place():
    found = dataclasses.replace(record("all"), top_k=3)
    tops = strongest_of(found, 0)
    for text, top in enumerate(tops):
        assert len(top) <= 3 and len({feature for feature, _, _ in top}) == len(top)
        rows = (found.row_text == text).nonzero()[0]
        largest = max((found.features[0].row(row)[1].max(initial=0) for row in rows), default=0)
        assert not top or top[0][1] == pytest.approx(float(largest))
    assert "position" in json.loads(to_json(found))[0]["positive_solution_details"]["active_features_by_layer"]["1"][0]


def test_two_dictionaries_of_one_site_keep_apart():
    found = record()
    twice = dataclasses.replace(
        found, dictionaries=(found.dictionaries[0], found.dictionaries[0], *found.dictionaries[2:])
    )
    assert layer_keys(twice)[:2] == ["1 layer_1", "1 layer_1"] and layer_keys(found) == ["1", "4", "mlp_in.3"]


def test_the_side_file_says_what_made_it_and_what_was_found():
    found = record()
    said = json.loads(summary_json(found))
    assert said["provenance"]["gemlens_version"] and said["model_id"] == "google/gemma-3-tiny"
    assert [each["site"] for each in said["tests"]] == ["resid_post.1", "resid_post.4", "mlp_in.3"]
    assert said["accuracy"][0]["share"] == found.accuracies[0].share
    assert len(said["margin_lens"]["margins"]) == 4 and len(said["first_half"]) == 12
    assert said["cause"]["together"]["features"]


def test_parquet_holds_every_feature_that_fired(tmp_path):
    import pyarrow.parquet as pq

    found = record()
    write_parquet(found, tmp_path / "x.parquet")
    table = pq.read_table(tmp_path / "x.parquet").to_pydict()
    assert len(table["feature_id"]) == sum(len(each.ids) for each in found.features)
    assert {"example_id", "choice", "is_right", "site", "layer", "feature_id", "activation"} <= set(table)
    third = [
        (feature, activation)
        for item, choice, site, feature, activation in zip(
            *(table[name] for name in ("example_id", "choice", "site", "feature_id", "activation")), strict=True
        )
        if (item, choice, site) == (2, 1, "resid_post.4")
    ]
    ids, values = found.features[1].row(5)
    assert third == list(zip(ids.tolist(), values.tolist(), strict=True))
    assert next(tables(found)).schema.metadata[b"token"] == b"last"


class Balanced(html.parser.HTMLParser):
    """What is opened is closed; no attribute carries a style or a handler."""

    VOID = frozenset({"meta", "link", "br", "input", "path", "circle"})

    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.bad: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.bad += [name for name, _ in attrs if name == "style" or name.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.mark.parametrize(("token", "most"), [("last", 2), ("mean", 2), ("last", 4)])
def test_the_page_is_whole_and_says_what_was_found(token, most):
    found = record(token, most)
    first = int(found.tests[0].features[0].feature_id)
    page = to_html(found, labels=({first: Label("k", first, "of <b>cats</b>", "me")},))
    parser = Balanced()
    parser.feed(page)
    assert parser.open == [] and parser.bad == []
    assert "of &lt;b&gt;cats&lt;/b&gt;" in page and "<b>cats" not in page
    for words in ("What right and wrong share", "Margin, if the model stopped there", "Taken away", "Where they fire"):
        assert words in page
    assert f"{100 * found.accuracies[0].share:.1f} %" in page
    assert "built-in method" not in page


def test_text_of_users_is_never_markup():
    evil = "</script><script>alert(1)</script>\x00\ud800<img src=x onerror=alert(1)>"
    found = record()
    item = dataclasses.replace(found.items[0], question=evil, choices=(evil, evil + "2"))
    page = to_html(dataclasses.replace(found, items=(item, *found.items[1:]), dataset=evil, warnings=(evil,)))
    assert "<script>alert" not in page and "<img" not in page
    page.encode()
    to_json(dataclasses.replace(found, items=(item, *found.items[1:]))).encode()


def test_what_says_nothing_draws_nothing():
    """No lens, no cause, no examples, no score: two sets of texts."""
    found = record()
    bare = dataclasses.replace(found, lens=None, cause=None, examples=(), accuracies=(), scored=False)
    page = to_html(bare)
    assert "Taken away" not in page and "Margin, if" not in page and "Contrast: nonsense" in page


def test_the_terminals_view():
    from rich.console import Console

    from gemlens.records.choices import Skipped
    from gemlens.report.choices_table import render

    out = io.StringIO()
    found = dataclasses.replace(record(), dataset="[red]x[/red]", skipped=(Skipped(3, "no answer"),))
    render(found, Console(file=out, width=100, markup=False))
    text = out.getvalue()
    assert "[red]x[/red]" in text and "1 rows were left out; the first, 3: no answer" in text
    assert "resid_post.4" in text and "ablating 2 on 12 other items" in text


def test_numbers_in_the_json_are_finite():
    found = record()
    holes = dataclasses.replace(found, log_likelihood=np.full_like(found.log_likelihood, np.nan))
    json.loads(to_json(holes), parse_constant=lambda name: pytest.fail(name))
