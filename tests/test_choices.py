"""Multiple choice: scores and features are those of each text alone; tests, causes and views say what holds."""

from __future__ import annotations

import dataclasses
import gc
import json
import weakref

import numpy as np
import pytest
import torch

from choices_sample import dictionaries, items, record
from gemlens import analyze
from gemlens.data.items import read_items, sample
from gemlens.errors import InputError, MismatchError
from gemlens.lm.gemma import activations, logits, writing
from gemlens.records.choices import Item
from gemlens.sites import Site, parse_site
from gemlens.study import choice_gather
from gemlens.study.choice_ablation import Ablations, ablatable, ablated
from gemlens.study.choice_cause import chosen_features, drawn_features
from gemlens.study.choice_features import Source, pooled, streamed
from gemlens.study.choice_parts import Parts, remove
from gemlens.study.choice_pass import score_items
from gemlens.study.choice_texts import ids_of, read_texts, scored_pairs
from gemlens.study.choices import choices
from tiny import random_sae, tiny_gemma


def plain(model, ids: list[int], begin: int) -> float:
    """One text, whole logits, exponentials added in float64."""
    residual = activations(model, torch.tensor([ids]), [Site(model.n_layers - 1, "resid_post")])
    scores = logits(model, next(iter(residual.values()))[0]).double().log_softmax(-1)
    return sum(float(scores[place - 1, ids[place]]) for place in range(begin, len(ids)))


def ids(model, text: str) -> list[int]:
    return [model.bos, *model.tokenizer(text, add_special_tokens=False)["input_ids"]]


# Scores


@pytest.mark.parametrize("kind", ["gemma3", "gemma2", "multimodal"])
@pytest.mark.parametrize("most", [2, 5])
def test_scores_are_those_of_each_text_alone(kind, most):
    model = tiny_gemma(kind=kind)
    found = choices(model, [random_sae(model, "resid_post.2")], items(12, most=most), lens_items=0)
    wanted = [
        plain(model, ids(model, context + text), len(ids(model, context)))
        for item in found.items
        for context, text in zip(item.contexts, item.continuations, strict=True)
    ]
    np.testing.assert_allclose(found.log_likelihood, wanted, atol=2e-4)


def test_on_the_starter_scores_are_within_a_thousandth_of_a_nat(starter):
    """Real items on the real model; tools/check_choices.py does 200 rows of PIQA."""
    some = sample(read_items("builtin"), 6, 0).items
    _, read, _ = read_texts(starter, some)
    wanted = [plain(starter, ids_of(each, c), each.begins[c]) for each in read for c in range(2)]
    np.testing.assert_allclose(score_items(starter, read), wanted, atol=1e-3)


def test_the_ids_fed_are_those_of_the_whole_string_with_one_bos(starter):
    some = read_items("builtin").items
    _, read, _ = read_texts(starter, some)
    for item, each in zip(some, read, strict=True):
        for choice in range(2):
            whole = ids_of(each, choice)
            assert whole == ids(starter, item.contexts[choice] + item.continuations[choice])
            assert whole.count(starter.bos) == 1
            assert starter.tokenizer.decode(whole[each.begins[choice] :]) == item.continuations[choice]
        assert not each.joined


def test_a_token_across_the_end_of_the_context_is_scored_and_said(model):
    """``an`` + ``d`` is one token: the context's own tokens do not begin the whole string's."""
    item = Item(0, "x", ("d", "t"), 0, ("Answer: an",) * 2, ("d", "t"))
    _, (read,), _ = read_texts(model, [item])
    assert read.joined
    pieces = model.tokenizer.convert_ids_to_tokens(ids_of(read, 0))
    assert pieces[read.begins[0] :] == ["▁and"] or pieces[read.begins[0] :] == ["and"]
    found = choices(model, [random_sae(model, "resid_post.2")], [item], lens_items=0)
    assert "1 of 1 items a token spans the end of the context" in found.warnings[0]


def test_the_right_choice_is_the_likeliest_and_ties_go_to_the_first():
    found = record()
    right = 0
    for index, item in enumerate(found.items):
        start = found.first_text[index]
        right += int(np.argmax(found.log_likelihood[start : start + 2])) == item.gold
    acc, norm = found.accuracies
    assert (acc.name, acc.correct, acc.items, norm.name) == ("acc", right, 24, "acc_norm")
    assert acc.low < acc.share < acc.high
    one = dataclasses.replace(found.items[0], gold=1)
    from gemlens.study.choice_tests import accuracies

    assert accuracies([one], np.array([-1.0, -1.0]))[0].correct == 0


def test_accuracy_by_characters_can_turn_the_answer():
    from gemlens.study.choice_tests import accuracies

    item = Item(0, "q", ("aa", "a" * 10), 1, ("", ""), ("aa", "a" * 10))
    acc, norm = accuracies([item], np.array([-3.0, -10.0]))
    assert (acc.correct, norm.correct) == (0, 1)


def test_the_lens_ends_in_the_models_own_margin():
    found = record()
    assert found.lens.layers == (1, 3, 4, 6)
    np.testing.assert_allclose(found.lens.margins[-1], [found.margin(k) for k in range(8)], atol=1e-4)
    assert not np.allclose(found.lens.margins[0], found.lens.margins[-1], atol=0.1)


# Features


def test_features_of_the_last_token_are_those_of_analyze():
    model = tiny_gemma()
    found = record()
    for dictionary, sae in enumerate(dictionaries(model)):
        for text in (0, 7, 20):
            item = found.items[text // 2]
            alone = analyze(model, sae, item.contexts[0] + item.continuations[text % 2], chat=False)
            wanted, values = alone.activations[0].row(len(alone.tokens) - 1)
            mine, activation = found.features[dictionary].row(text)
            assert mine.tolist() == wanted.tolist()
            np.testing.assert_allclose(activation, values, rtol=1e-3, atol=1e-4)


def test_mean_and_max_are_over_the_scored_tokens_and_all_keeps_each():
    every, mean, most = record("all"), record("mean"), record("max")
    text = 9
    rows = (every.row_text == text).nonzero()[0]
    assert len(rows) == every.n_tokens[text] and every.row_position[rows].tolist() == list(range(len(rows)))
    dense = np.zeros((len(rows), 40))
    for k, row in enumerate(rows):
        where, values = every.features[0].row(row)
        dense[k, where] = values
    for found, wanted in ((mean, dense.mean(0)), (most, dense.max(0))):
        where, values = found.features[0].row(text)
        assert where.tolist() == wanted.nonzero()[0].tolist()
        np.testing.assert_allclose(values, wanted[where], rtol=1e-5)


def test_windows_and_batches_change_nothing(monkeypatch):
    model = tiny_gemma()
    whole = choices(model, dictionaries(model), items(), lens_items=3)
    monkeypatch.setattr(choice_gather, "_WINDOW_ITEMS", 5)
    parts = choices(model, dictionaries(model), items(), lens_items=8)
    np.testing.assert_allclose(parts.log_likelihood, whole.log_likelihood, atol=1e-4)
    np.testing.assert_allclose(parts.lens.margins[:, :3], whole.lens.margins, atol=1e-3)
    for one, other in zip(parts.features, whole.features, strict=True):
        assert one.indptr.tolist() == other.indptr.tolist() and one.ids.tolist() == other.ids.tolist()


def test_two_dictionaries_are_in_memory_at_most_and_a_wrong_name_is_refused(model):
    alive: list[weakref.ref] = []
    most = 0

    def load(layer: int):
        sae = random_sae(model, f"resid_post.{layer}")
        alive.append(weakref.ref(sae))
        return sae

    sources = [Source(Site(layer, "resid_post"), lambda layer=layer: load(layer), str(layer)) for layer in range(6)]
    for sae in streamed(sources):
        del sae
        gc.collect()
        most = max(most, sum(each() is not None for each in alive))
    assert len(alive) == 6 and most <= 3
    with pytest.raises(InputError, match=r"reads resid_post.1, its name says resid_post.2"):
        list(streamed([Source(Site(2, "resid_post"), lambda: load(1), "x")]))


def test_pooling_nothing_is_nothing():
    from gemlens.records.analysis import ActiveFeatures

    none = ActiveFeatures(np.zeros(3, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32))
    found = pooled(none, [np.array([0, 1]), np.array([1])])
    assert found.indptr.tolist() == [0, 0, 0] and len(found.ids) == 0


# Cause


def test_ablating_takes_a_features_own_contribution_where_logits_are_scored(model):
    """By hand: one text, the SAE's activation times its decoder row off the residual stream at those tokens."""
    sae = random_sae(model, "resid_post.3", seed=3)
    some = items(3)
    _, read, _ = read_texts(model, some)
    wanted = [7, 19]
    part = ablatable(sae, [19, 7, 30])
    found = score_items(model, read, lambda group: ablated(model, group, {0: part}, [(0, each) for each in wanted]))
    clean = score_items(model, read)
    text = 0
    for each in read:
        for choice in range(2):
            whole, begin = ids_of(each, choice), each.begins[choice]

            def edit(x, begin=begin, whole=whole):
                x = x.clone()
                at = slice(begin - 1, len(whole) - 1)
                acts = sae.encode(x[0, at]).select(torch.tensor(wanted))
                x[0, at] -= acts @ sae.decoder.rows(torch.tensor(wanted))
                return x

            with writing(model, parse_site("resid_post.3"), edit):
                assert found[text] == pytest.approx(plain(model, whole, begin), abs=2e-4)
            text += 1
    assert np.abs(found - clean).max() > 1e-2


def test_ablating_nothing_and_what_never_fires_changes_nothing(model):
    sae = random_sae(model, "resid_post.3")
    sae.threshold.fill_(1e6)
    _, read, _ = read_texts(model, items(4))
    clean = score_items(model, read)
    for features in ([], [(0, 5)]):
        part = {0: ablatable(sae, [5])}
        assert (score_items(model, read, lambda group, f=features, p=part: ablated(model, group, p, f)) == clean).all()


def test_a_transcoders_feature_is_taken_off_the_mlps_output(model):
    from tiny import random_transcoders

    sae = random_transcoders(model)[2]
    _, read, _ = read_texts(model, items(2))
    part = ablatable(sae, range(40))
    found = score_items(model, read, lambda group: ablated(model, group, {0: part}, [(0, k) for k in range(40)]))
    whole, begin = ids_of(read[0], 0), read[0].begins[0]
    entry = activations(model, torch.tensor([whole]), [sae.reads])[sae.reads][0]

    def edit(x):
        x = x.clone()
        at = slice(begin - 1, len(whole) - 1)
        x[0, at] -= sae.decode(sae.encode(entry[at])) - sae.b_dec
        return x

    with writing(model, sae.writes, edit):
        assert found[0] == pytest.approx(plain(model, whole, begin), abs=2e-4)


@pytest.mark.parametrize(("kind", "most"), [("gemma3", 2), ("gemma2", 4)])
def test_choices_that_no_feature_touches_are_not_read_again(kind, most, monkeypatch):
    """The same scores as all items read with the edit; those of untouched choices bit for bit."""
    from gemlens.study import choice_ablation

    model = tiny_gemma(kind=kind)
    parts = {key: ablatable(sae, range(12)) for key, sae in enumerate(dictionaries(model))}
    _, read, _ = read_texts(model, items(14, most=most))
    ablations = Ablations(model, read, parts, lambda _name, make: make())
    inner, texts = choice_ablation.score_items, []

    def counted(model, items, around):
        texts.append(sum(len(item.begins) for item in items))
        return inner(model, items, around)

    monkeypatch.setattr(choice_ablation, "score_items", counted)
    fewer = 0
    for features in [[(0, 1)], [(1, 3)], [(2, 5)], [(0, 2), (2, 7), (1, 11)]]:
        found = ablations.without(features)
        whole = inner(model, read, lambda group, f=features: ablated(model, group, parts, f))
        np.testing.assert_allclose(found, whole, atol=2e-4)
        changed = np.abs(whole - ablations.clean) > 1e-3
        assert not (found == ablations.clean)[changed].any()
        fewer += texts.pop() < len(found) if texts else 1
    assert fewer
    ablations.without([(0, 1)])
    assert not texts  # known already


def test_the_record_of_a_cause_compares_like_with_like():
    cause = record().cause
    assert cause.items == 12
    assert len(cause.together.features) == 2 and [each.features for each in cause.alone] == [
        (each,) for each in cause.together.features
    ]
    for effect in (cause.together, *cause.alone):
        assert len(effect.random_margin_change) == 3 and 0.25 <= effect.p <= 1


def test_draws_are_of_the_same_dictionary_and_about_as_frequent():
    found = record()
    chosen = chosen_features(found.tests, 3)
    draws = drawn_features(found.features, chosen, 10, 0)
    assert draws == drawn_features(found.features, chosen, 10, 0) != drawn_features(found.features, chosen, 10, 1)
    for draw in draws:
        assert [dictionary for dictionary, _ in draw] == [dictionary for dictionary, _ in chosen]
        assert not set(draw) & set(chosen) and len(set(draw)) == 3


def test_a_dictionary_that_keeps_the_largest_has_no_ablation(model):
    from gemlens.scope.activation import TopK

    sae = random_sae(model, "resid_post.3")
    sae.activation = TopK(3)
    with pytest.raises(InputError, match="--cause needs thresholds"):
        ablatable(sae, [1])


# Parts


def test_a_run_that_was_killed_goes_on_and_ends_in_the_same_record(tmp_path, monkeypatch):
    from gemlens.report.choices_json import to_json

    monkeypatch.setattr(choice_gather, "_WINDOW_ITEMS", 7)
    model = tiny_gemma()
    made = dictionaries(model)
    whole = choices(model, made, items(), folder=tmp_path / "whole", lens_items=4)
    loads, passes = [], []

    def sources(limit: int) -> list[Source]:
        def load(sae):
            loads.append(sae.info.id)
            if len(loads) > limit:
                raise KeyboardInterrupt
            return sae

        return [Source(sae.reads, lambda sae=sae: load(sae), sae.info.id) for sae in made]

    inner = choice_gather.run_items
    monkeypatch.setattr(choice_gather, "run_items", lambda *a, **k: passes.append(1) or inner(*a, **k))
    for limit in (2, 4, 5):
        loads.clear()
        with pytest.raises(KeyboardInterrupt):
            choices(model, sources(limit), items(), folder=tmp_path / "cut", lens_items=4)
    found = choices(model, sources(10**6), items(), folder=tmp_path / "cut", lens_items=4)
    assert to_json(found) == to_json(whole)
    assert found.tests == whole.tests and (found.lens.margins == whole.lens.margins).all()
    assert len(passes) <= 4 + 3  # a window is read once, unless it was killed while it was read
    remove(tmp_path / "cut")
    assert not (tmp_path / "cut").exists()


def test_a_cause_that_was_killed_goes_on_and_ends_in_the_same_record(tmp_path, monkeypatch):
    from gemlens.study import choice_ablation

    model = tiny_gemma()
    options = {"cause": 2, "draws": 3, "lens_items": 0, "seed": 1}
    whole = choices(model, dictionaries(model), items(), **options)
    inner, passes, limit = choice_ablation.score_items, [], 5

    def counted(*arguments):
        passes.append(1)
        if len(passes) == limit:
            raise KeyboardInterrupt
        return inner(*arguments)

    def cut(**others):
        passes.clear()
        return choices(model, dictionaries(model), items(), folder=tmp_path / "cut", **options | others)

    monkeypatch.setattr(choice_ablation, "score_items", counted)
    with pytest.raises(KeyboardInterrupt):
        cut()
    limit = 10**6
    kept = len(list((tmp_path / "cut").glob("cause-*")))
    assert kept >= 4 and cut().cause == whole.cause
    assert len(passes) <= len(list((tmp_path / "cut").glob("cause-*"))) - kept
    assert cut().cause == whole.cause and not passes
    assert cut(seed=2).cause != whole.cause and passes  # another half


def test_another_runs_parts_are_not_taken_and_strange_files_not_deleted(tmp_path):
    folder = tmp_path / "parts"
    Parts(folder, {"items": 1}).keep("0000", {"x": torch.ones(2)})
    assert Parts(folder, {"items": 1}).read("0000")["x"].tolist() == [1, 1]
    assert Parts(folder, {"items": 2}).read("0000") is None
    (folder / "0000.safetensors").write_bytes(b"damaged")
    assert Parts(folder, {"items": 2}).read("0000") is None
    (folder / "letter.txt").write_text("dear", encoding="utf-8")
    from gemlens.errors import OutputError

    with pytest.raises(OutputError, match=r"holds letter.txt"):
        Parts(folder, {"items": 3})
    assert (folder / "letter.txt").exists()


# Bad input


def test_what_cannot_be_read_is_left_out_and_said(model):
    long = Item(7, "q", ("x" * 200, "y"), 0, ("a", "a"), (" " + "x" * 200, " y"))
    found = choices(model, [random_sae(model, "resid_post.1")], [*items(4), long], lens_items=0)
    assert len(found.items) == 4
    assert found.skipped[0].id == 7 and "the context of google/gemma-3-tiny holds 128" in found.skipped[0].reason
    with pytest.raises(InputError, match="no item can be read; the first of 1"):
        choices(model, [random_sae(model, "resid_post.1")], [long])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"token": "first"}, "take last, mean, max, all"),
        ({"top_k": 0}, "at least 1 feature"),
        ({"draws": 0}, "draws 0"),
        ({"cause": -1}, "cause -1"),
    ],
)
def test_options_out_of_range(model, options, said):
    with pytest.raises(InputError, match=said):
        choices(model, [random_sae(model, "resid_post.1")], items(2), **options)


def test_without_items_or_dictionaries_or_layers(model):
    with pytest.raises(InputError, match="no dictionary"):
        choices(model, [], items(2))
    with pytest.raises(InputError, match="no item"):
        choices(model, [random_sae(model, "resid_post.1")], [])
    with pytest.raises(MismatchError, match="layers are 0 to 6"):
        choices(model, [Source(Site(9, "resid_post"), lambda: None, "x")], items(2))


def test_texts_without_a_question_are_only_compared(model):
    pairs = [Item(k, f"{k}", (f"cat {k}", f"dog {k}"), 0, ("", ""), (f"cat {k}", f"dog {k}")) for k in range(12)]
    found = choices(model, [random_sae(model, "resid_post.1")], pairs, scored=False, token="mean")
    assert found.accuracies == () and found.lens is None and np.isnan(found.log_likelihood).all()
    assert found.n_tokens.tolist() == [len(ids(model, text)) - 1 for item in pairs for text in item.choices]
    row = json.loads(__import__("gemlens.report.choices_json", fromlist=["x"]).to_json(found))[0]
    assert "log_likelihood" not in row["positive_solution_details"] and "model_is_correct" not in row


def test_scored_pairs_name_each_place_once(model):
    _, read, _ = read_texts(model, items(5, most=4))
    for each in read:
        places, at, targets, choice = scored_pairs(each)
        assert len(set(places.tolist())) == len(places) and len(at) == len(targets) == len(choice)
        for k in range(len(each.begins)):
            whole = ids_of(each, k)
            assert targets[choice == k].tolist() == whole[each.begins[k] :]
            assert each.fork.ids[places[at[choice == k]]].tolist() == whole[each.begins[k] - 1 : -1]
