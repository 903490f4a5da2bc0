"""The page of a feature: what it says is what the activations say, in every view, and hostile text is only text."""

from __future__ import annotations

import dataclasses
import io
import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from rich.console import Console

from evidence_sample import counted, examples_of, random_case, write_evidence, write_google
from gemlens.errors import InputError, MismatchError, NotFoundError
from gemlens.lm.vocabulary import Vocabulary, load_vocabulary, read_vocabulary
from gemlens.records.feature import FeatureLabel
from gemlens.report.feature_folder import write_features
from gemlens.report.feature_html import feature_to_html, frequency
from gemlens.report.feature_json import feature_to_dict, feature_to_json, feature_to_jsonl
from gemlens.report.feature_table import render_feature, render_features
from gemlens.scope.evidence import load_evidence
from gemlens.study.feature import feature_page, feature_pages
from report_sample import PAYLOADS
from tiny import VOCAB, published_config, random_tensors, tiny_model_folder, write_dictionary

ID = "resid_post/layer_2_width_40_l0_small"


@pytest.fixture(scope="module")
def case():
    return random_case(n_seq=40, length=100)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return read_vocabulary(tiny_model_folder(tmp_path_factory.mktemp("model")) / "tokenizer.json", "tiny")


@pytest.fixture(scope="module")
def evidence(tmp_path_factory, case):
    root = tmp_path_factory.mktemp("scope")
    write_evidence(write_dictionary(root / ID, random_tensors(16, 40), published_config(2)), *case, k=300)
    return load_evidence(str(root), ID)


def hostile_vocabulary():
    """Every piece is an attack."""
    pieces = [f"▁{PAYLOADS[token % len(PAYLOADS)]}" for token in range(VOCAB)]
    return Vocabulary("tiny", ("<pad>", "<eos>", "<bos>", *pieces[3:]), frozenset({0, 1, 2}))


def printed(draw, *things, width=100, encoding="utf-8"):
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace")  # as app.console
    console = Console(file=out, width=width, markup=False, highlight=False)
    draw(*things, console)
    out.flush()
    return out.buffer.getvalue().decode(encoding)


# The record


def test_levels_are_quarters_of_the_strongest_and_count_all_on_file(evidence, case, vocabulary):
    activations, _ = case
    for feature in (0, 17, 39):
        page = feature_page(evidence, feature, vocabulary=vocabulary)
        values = activations[..., feature].flatten().sort(descending=True).values[:300].half().double()
        top = float(values[0])
        assert page.max_activation == top
        assert page.on_file == 300 == sum(level.on_file for level in page.levels)
        for level, share in zip(page.levels, (1, 0.75, 0.5, 0.25), strict=True):
            assert (level.high, level.low) == pytest.approx((share * top, (share - 0.25) * top))
            assert level.on_file == int(((values <= share * top) & (values > (share - 0.25) * top)).sum())
            strengths = [example.activation for example in level.examples]
            assert strengths == sorted(strengths, reverse=True)
            assert all(level.low < each <= level.high for each in strengths)
        sequences = [example.sequence for example in page.examples]
        assert len(set(sequences)) == len(sequences)
        assert page.examples[0].activation == top


def test_an_example_is_its_sequence_around_the_token(evidence, case, vocabulary):
    activations, tokens = case
    page = feature_page(evidence, 5, vocabulary=vocabulary)
    for example in page.examples:
        row = tokens[example.sequence]
        start = example.position - example.peak
        assert activations[example.sequence, example.position, 5].half() == example.activation
        end = int((row != 0).sum())
        assert example.cut_before == (start > 0)
        assert example.cut_after == (start + len(example.tokens) < end)
        assert [token.token for token in example.tokens] == [
            vocabulary.pieces[token] for token in row[start : start + len(example.tokens)].tolist()
        ]
        assert example.tokens[example.peak].activation == example.activation
        for at, token in enumerate(example.tokens):
            true = float(activations[example.sequence, start + at, 5].half())
            assert token.activation is None or token.activation == true
        known = sum(token.activation is not None for token in example.tokens)
        # All 300 strongest are on file: what is shaded is what fires that strongly, nothing less and nothing more.
        weakest = min(each.low for each in page.levels if each.on_file)
        assert known >= sum(
            float(each.half()) > max(weakest, float(activations[..., 5].flatten().sort(descending=True).values[299]))
            for each in activations[example.sequence, start : start + len(example.tokens), 5]
        )


def test_histogram_and_thirds_are_direct_counts(evidence, case, vocabulary):
    activations, tokens = case
    page = feature_page(evidence, 9, vocabulary=vocabulary)
    values = activations[..., 9].flatten()
    fired = values[values > 0].double().numpy()
    histogram = page.histogram
    assert histogram.complete
    assert sum(histogram.counts) == len(fired)
    edges = np.array(histogram.edges)
    direct = [int(((fired >= low) & (fired < high)).sum()) for low, high in pairwise(edges)]
    if histogram.all_below:
        direct[0] += int((fired < edges[0]).sum())
    assert list(histogram.counts) == direct
    np.testing.assert_allclose(edges[1:] / edges[:-1], 2**0.5)
    thirds = [0, 0, 0]
    for row, acts in zip(tokens, activations[..., 9], strict=True):
        places = counted(row).nonzero()[:, 0]
        for rank, place in enumerate(places.tolist()):
            thirds[rank * 3 // len(places)] += int(acts[place] > 0)
    assert [page.positions.first, page.positions.middle, page.positions.last] == thirds
    assert page.positions.complete
    assert page.frequency == pytest.approx(len(fired) / int(counted(tokens).sum()))


def test_without_statistics_pages_say_what_they_are_of(tmp_path, case, vocabulary):
    folder = write_dictionary(tmp_path / ID, random_tensors(16, 40), published_config(2))
    tensors = examples_of(*case, k=50) | {"logit_effects": torch.full((40, 50), 0.734375)}
    write_google(folder, tensors)
    page = feature_page(load_evidence(str(tmp_path), ID), 4, vocabulary=vocabulary)
    assert not page.histogram.complete
    assert not page.positions.complete
    assert sum(page.histogram.counts) == page.positions.first + page.positions.middle + page.positions.last == 50
    assert {example.logit_effect for example in page.examples} == {0.734375}  # kept, not interpreted
    assert len(page.neighbours) == len(page.basis) == 10  # from the decoder beside it
    assert page.coactive == page.neurons == ()
    html = feature_to_html(page)
    assert "weaker ones were not kept" in html
    assert "0.73" not in html


def test_levels_below_the_first_are_spread_over_their_range(evidence, vocabulary):
    few = feature_page(evidence, 0, vocabulary=vocabulary, per_level=3)
    many = feature_page(evidence, 0, vocabulary=vocabulary, per_level=1000)
    for level, whole in zip(few.levels[1:], many.levels[1:], strict=True):
        if len(whole.examples) > 3:
            assert len(level.examples) == 3
            assert (level.examples[0], level.examples[-1]) == (whole.examples[0], whole.examples[-1])
    assert few.levels[0].examples == many.levels[0].examples[:3]


def test_a_feature_that_never_fired(evidence, vocabulary):
    page = feature_page(evidence, 3, vocabulary=vocabulary)
    assert page.never_fired
    assert page.levels == page.coactive == ()
    assert page.histogram is page.positions is None
    assert page.promoted and page.neighbours  # what it would write is known
    assert "It never fired" in feature_to_html(page)
    assert "never fired" in page._repr_html_()
    assert "It never fired on the 3,953 tokens" in printed(render_feature, page)
    assert "never fired" in printed(render_features, [page])
    assert json.loads(feature_to_json(page))["max_activation"] == 0


def test_a_vocabulary_of_another_model_is_refused(evidence, vocabulary):
    small = Vocabulary("other", vocabulary.pieces[:300], frozenset({0, 1, 2}))
    with pytest.raises(MismatchError, match=r"vocabulary of other has 300.*--model-id"):
        feature_page(evidence, 0, vocabulary=small)


def test_without_a_vocabulary_tokens_are_numbers_and_the_page_says_why(evidence):
    page = feature_page(evidence, 0)  # its model is called "tiny", which is nowhere
    assert page.warnings and "tokens are shown as numbers" in page.warnings[0]
    assert all(token.token.startswith("#") for example in page.examples for token in example.tokens)
    assert page.promoted[0].text == f"#{page.promoted[0].token_id}"
    assert page.warnings[0].split(":")[0] in feature_to_html(page)


def test_many_pages_are_those_of_one(evidence, vocabulary):
    label = FeatureLabel("what it is", "a person")
    pages = list(feature_pages(evidence, [7, 2], vocabulary=vocabulary, labels={2: label}))
    assert pages[0] == feature_page(evidence, 7, vocabulary=vocabulary)
    assert pages[1] == feature_page(evidence, 2, vocabulary=vocabulary, label=label)
    with pytest.raises(NotFoundError, match="there is no feature 40"):
        feature_page(evidence, 40, vocabulary=vocabulary)


@pytest.mark.parametrize(
    ("share", "read", "said"),
    [
        (None, None, "not counted"),
        (0.0, 9, "never"),
        (0.25, 400, "25 % of tokens (100)"),
        (0.01, 20_000, "1 of 100 tokens (200)"),
        (17.0, None, "17 tokens"),
    ],
)
def test_how_often_in_words(evidence, vocabulary, share, read, said):
    page = feature_page(evidence, 0, vocabulary=vocabulary)
    assert frequency(dataclasses.replace(page, frequency=share, tokens_read=read)) == said


# The vocabulary


def test_texts_by_the_vocabulary_are_the_tokenizers(starter):
    from gemlens.lm.text import pieces, texts

    vocabulary = load_vocabulary("starter")
    generator = np.random.default_rng(0)
    for ids in [
        generator.integers(0, 262_144, 400).tolist(),
        list(range(300)),
        starter.tokenizer("naïve 🜚 café\n\tx")["input_ids"],
    ]:
        assert vocabulary.texts(ids) == texts(starter, ids)
        assert [vocabulary.pieces[token] for token in ids] == pieces(starter, ids)
    special = set(starter.tokenizer.all_special_ids)
    assert special <= vocabulary.special


def test_a_vocabulary_that_is_none(tmp_path):
    from gemlens.errors import WeightsError

    with pytest.raises(NotFoundError, match="does not exist"):
        read_vocabulary(tmp_path / "tokenizer.json", "x")
    for content in ("", "[]", '{"model": {"vocab": 3}}', '{"model": {"vocab": {}}, "added_tokens": []}'):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(WeightsError, match="holds no vocabulary"):
            read_vocabulary(tmp_path / "tokenizer.json", "x")
    with pytest.raises(NotFoundError, match="is no model of this machine"):
        load_vocabulary("org/name", fetch=False)


# Views


def test_json_is_the_record(evidence, vocabulary):
    page = feature_page(evidence, 6, vocabulary=vocabulary, label=FeatureLabel("x \ud800", "me", "high"))
    found = json.loads(feature_to_json(page))
    assert found == json.loads(feature_to_jsonl(page)) == json.loads(json.dumps(feature_to_dict(page)))
    assert found["schema_version"] == 1
    assert list(found)[1:] == [field.name for field in dataclasses.fields(page)]
    assert found["label"] == {"text": "x \ud800", "source": "me", "confidence": "high"}
    assert len(found["levels"]) == 4
    assert found["levels"][0]["examples"][0]["tokens"][0].keys() == {"text", "token", "activation", "is_special"}
    assert feature_to_jsonl(page).count("\n") == 1


def test_the_table_fits_and_shows_everything(evidence, vocabulary):
    page = feature_page(
        evidence, 6, vocabulary=vocabulary, label=FeatureLabel("sums [red]of[/red] things", "me", "0.7")
    )
    text = printed(render_feature, page)
    for word in ("Feature 6", "resid_post.2", "sums [red]of[/red] things", "labelled by me, confidence 0.7", "promotes",
                 "suppresses", "write alike", "fire together", "dimensions", "first third", "activations"):  # fmt: skip
        assert word in text
    assert max(map(len, text.splitlines())) <= 100
    ascii_only = printed(render_feature, page, encoding="ascii")
    assert "Feature 6" in ascii_only
    rows = printed(render_features, list(feature_pages(evidence, [1, 2], vocabulary=vocabulary)), width=80)
    assert max(map(len, rows.splitlines())) <= 80


def test_the_notebook_embeds_neuronpedias_dashboard_where_there_is_one(evidence, vocabulary):
    page = feature_page(evidence, 6, vocabulary=vocabulary)
    assert "<iframe" not in page._repr_html_()
    info = dataclasses.replace(page.dictionary, neuronpedia="gemma-3-270m-it/12-gemmascope-2-res-16k")
    html = dataclasses.replace(page, dictionary=info)._repr_html_()
    assert (
        'src="https://www.neuronpedia.org/gemma-3-270m-it/12-gemmascope-2-res-16k/6?embed=true&amp;embedexplanation=true'
        "&amp;embedplots=true&amp;embedtest=true&amp;height=300"
    ) in html or "?embed=true&embedexplanation=true&embedplots=true&embedtest=true&height=300" in html
    assert "neuronpedia.org/gemma-3-270m-it/12-gemmascope-2-res-16k/6" in feature_to_html(
        dataclasses.replace(page, dictionary=info)
    )
    hostile = dataclasses.replace(info, neuronpedia='x/y"onload="alert(1)')
    assert "<iframe" not in dataclasses.replace(page, dictionary=hostile)._repr_html_()


def test_hostile_tokens_labels_and_names_are_only_text(evidence, tmp_path):
    page = feature_page(
        evidence, 6, vocabulary=hostile_vocabulary(), label=FeatureLabel(PAYLOADS[0], PAYLOADS[1], PAYLOADS[2])
    )
    info = dataclasses.replace(page.dictionary, release=PAYLOADS[0], id=PAYLOADS[1])
    page = dataclasses.replace(
        page, dictionary=info, warnings=tuple(PAYLOADS), texts=tuple(PAYLOADS), source=PAYLOADS[3]
    )
    write_features([page], [6], tmp_path)
    folder = [path.read_text("utf-8") for path in (tmp_path / "index.html", tmp_path / "pages" / "00000.html")]
    for html in [feature_to_html(page), page._repr_html_(), *folder]:
        assert "<script>window" not in html
        assert "<img" not in html.replace("&lt;img", "")
        assert "</script><" not in html.replace("</script>\n<", "")
    assert "default-src &#39;none&#39;" in feature_to_html(page)
    printed(render_feature, page)
    json.loads(feature_to_json(page))


def test_a_folder_holds_an_index_and_a_file_for_every_64(evidence, vocabulary, tmp_path):
    ids = [0, 3, 39]
    path = write_features(feature_pages(evidence, ids, vocabulary=vocabulary), ids, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "index.html"
    assert [each.name for each in path.parent.rglob("*.html")] and sorted(
        each.name for each in path.parent.iterdir()
    ) == [
        "index.html",
        "pages",
    ]
    page = (path.parent / "pages" / "00000.html").read_text("utf-8")
    assert [f'id="f{feature}"' in page for feature in (0, 1, 3, 39)] == [True, False, True, True]
    data = path.read_text("utf-8").split('id="data">')[1].split("</script>")[0]
    rows = json.loads(data)["rows"]
    assert [row[0] for row in rows] == ids
    assert rows[1][8] == "never"
    with pytest.raises(InputError, match="ascending"):
        write_features([], [3, 2], tmp_path)
    with pytest.raises(InputError, match="ascending"):
        write_features([], [], tmp_path)


def test_neighbours_are_linked_where_the_folder_has_them(evidence, vocabulary, tmp_path):
    page = feature_page(evidence, 0, vocabulary=vocabulary)
    other = page.neighbours[0].index
    ids = sorted({0, other})
    write_features(feature_pages(evidence, ids, vocabulary=vocabulary), ids, tmp_path)
    html = (tmp_path / "pages" / "00000.html").read_text("utf-8")
    assert f'<a class="name" href="00000.html#f{other}">{other}</a>' in html
    assert f'href="00000.html#f{page.neighbours[1].index}"' not in html or page.neighbours[1].index in ids
