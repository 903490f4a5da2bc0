"""Multiple-choice items: every shape rendered as the harness does, every bad row said."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest

from check_items import ITEMS, rows, runs, wrong
from gemlens.data.items import read_items, sample
from gemlens.data.pairs import read_pairs
from gemlens.errors import InputError, NotFoundError

PIQA = {"goal": "ice box", "sol1": "turns cold with water", "sol2": "turns cold with soda", "label": 0}


def jsonl(path: Path, *lines: dict) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def one(tmp_path: Path, row: dict, **options):
    (item,) = read_items(str(jsonl(tmp_path / "items.jsonl", row)), **options).items
    return item


def test_piqa_is_rendered_as_the_harness_renders_it(tmp_path):
    item = one(tmp_path, PIQA)
    assert item.contexts == ("Question: ice box\nAnswer:",) * 2
    assert item.continuations == (" turns cold with water", " turns cold with soda")
    assert (item.id, item.question, item.gold) == (0, "ice box", 0)


@pytest.mark.parametrize(
    ("row", "texts", "gold"),
    [
        (
            {"query": "Question: ice box\n", "choices": ["a b", "c d"], "gold": 1},
            ["Question: ice box\nAnswer: a b", "Question: ice box\nAnswer: c d"],
            1,
        ),
        (
            {
                "ctx_a": "A man sits.",
                "ctx_b": "he",
                "ctx": "x",
                "activity_label": "Roof",
                "endings": ["is [step] up.", "falls."],
                "label": "1",
            },
            ["Roof: A man sits. He is up.", "Roof: A man sits. He falls."],
            1,
        ),
        (
            {"question": "Which?", "choices": {"text": ["x", "y", "z"], "label": ["A", "B", "C"]}, "answerKey": "C"},
            ["Question: Which?\nAnswer: x", "Question: Which?\nAnswer: y", "Question: Which?\nAnswer: z"],
            2,
        ),
        (
            {"premise": "It rained.", "question": "effect", "choice1": "The street dried.", "choice2": "It got wet."}
            | {"label": 1},
            ["It rained therefore the street dried.", "It rained therefore it got wet."],
            1,
        ),
        (
            {"sentence": "The cup beat the jug as _ was new.", "option1": "cup", "option2": "jug", "answer": "1"},
            ["The cup beat the jug as cup was new.", "The cup beat the jug as jug was new."],
            0,
        ),
    ],
    ids=["llm-foundry", "hellaswag", "arc", "copa", "winogrande"],
)
def test_known_shapes(tmp_path, row, texts, gold):
    item = one(tmp_path, row)
    assert [context + text for context, text in zip(item.contexts, item.continuations, strict=True)] == texts
    assert item.gold == gold


def test_any_columns_by_a_mapping(tmp_path):
    table = tmp_path / "items.csv"
    table.write_text("stem,first,second,key\nWhy?,so,thus,second\nHow?,well,badly,A\n", encoding="utf-8")
    found = read_items(str(table), fields={"question": "stem", "choices": "first+second", "label": "key"}).items
    assert [(item.question, item.choices, item.gold) for item in found] == [
        ("Why?", ("so", "thus"), 1),
        ("How?", ("well", "badly"), 0),
    ]


def test_csv_and_parquet_are_read_as_jsonl_is(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([PIQA]), tmp_path / "items.parquet")
    (tmp_path / "items.csv").write_text(",".join(PIQA) + "\n" + ",".join(map(str, PIQA.values())), encoding="utf-8")
    there = one(tmp_path, PIQA)
    for name in ("items.parquet", "items.csv"):
        assert read_items(str(tmp_path / name)).items == [there]


def test_labels_beside_the_rows_are_found_and_others_named(tmp_path):
    row = {key: value for key, value in PIQA.items() if key != "label"}
    path = jsonl(tmp_path / "valid.jsonl", row, row)
    other = tmp_path / "other.lst"
    other.write_text("0\n0\n", encoding="utf-8")
    assert [item.gold for item in read_items(str(path), labels=other).items] == [0, 0]
    (tmp_path / "valid-labels.lst").write_text("1\n0\n", encoding="utf-8")
    assert [item.gold for item in read_items(str(path)).items] == [1, 0]
    (tmp_path / "valid-labels.lst").write_text("1\n0\n1\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"2 rows and .* 3 labels"):
        read_items(str(path))
    with pytest.raises(NotFoundError, match=r"nowhere.lst does not exist"):
        read_items(str(path), labels="nowhere.lst")


def test_rows_that_cannot_be_scored_are_left_out_and_listed(tmp_path):
    path = jsonl(
        tmp_path / "items.jsonl",
        PIQA,
        PIQA | {"label": -1},
        PIQA | {"sol2": PIQA["sol1"] + " "},
        PIQA | {"sol2": " "},
        PIQA | {"label": None},
    )
    found = read_items(str(path))
    assert [item.id for item in found.items] == [0]
    assert [(each.id, each.reason) for each in found.skipped] == [
        (1, "no answer"),
        (2, "two choices are equal"),
        (3, "an empty choice"),
        (4, "no answer"),
    ]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (PIQA | {"label": 2}, "label 2 is out of range; it has 2 choices"),
        (PIQA | {"label": "x"}, "'label' is 'x'; expected the number"),
        (PIQA | {"label": True}, "'label' is 'True'"),
        (PIQA | {"goal": 3}, "'goal' is no text but int"),
        (PIQA | {"sol1": "\ud800"}, "surrogate"),
        ({"goal": "x", "sol1": "y", "label": 0}, "no 'sol2'; it has goal, sol1, label"),
        ({"text": "x"}, "it has text; known are goal, sol1, sol2"),
        ({}, "it has nothing"),
        ({"sentence": "no blank", "option1": "a", "option2": "b", "answer": "1"}, "has 0 blanks"),
        (
            {"question": "?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "D"},
            "none of the labels",
        ),
        ({"question": "?", "choices": ["a", "b"], "answerKey": "D"}, "no 'text' and 'label'"),
        ({"query": "?", "choices": "ab", "gold": 0}, "'choices' is no list"),
        ({"premise": "?", "question": "why", "choice1": "a", "choice2": "b", "label": 0}, "expected cause or effect"),
    ],
)
def test_bad_rows_name_the_row_and_the_field(tmp_path, row, said):
    with pytest.raises(InputError, match="row 1") as error:
        one(tmp_path, row)
    assert said in str(error.value)


def test_a_later_row_that_lacks_a_field_is_named(tmp_path):
    with pytest.raises(InputError, match=r"row 2: no 'sol2', it has goal"):
        read_items(str(jsonl(tmp_path / "items.jsonl", PIQA, {"goal": "x", "sol1": "y", "label": 0})))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("items.jsonl", b"{", "line 1: not JSON"),
        ("items.jsonl", b"[1]\n", "row 1: no object"),
        ("items.jsonl", b"", "holds no row"),
        ("items.json", b"{}", "is no list"),
        ("items.csv", b"\xff\xfe\x00", "not UTF-8"),
        ("items.parquet", b"no", "cannot be read as Parquet"),
        ("items.txt", b"x", "no file of items"),
    ],
)
def test_bad_files(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        read_items(str(tmp_path / name))
    assert said in str(error.value)


def test_a_mapping_that_names_no_column_is_refused(tmp_path):
    path = jsonl(tmp_path / "items.jsonl", {"a": "x"})
    with pytest.raises(InputError, match="no 'q', it has a"):
        read_items(str(path), fields={"question": "q", "choices": "b+c", "label": "d"})


def test_nothing_there():
    with pytest.raises(NotFoundError, match="builtin, piqa"):
        read_items("nothing.jsonl")
    if importlib.util.find_spec("datasets") is None:
        from gemlens.errors import MissingPackageError

        with pytest.raises(MissingPackageError, match="ybisk/piqa"):
            read_items("piqa")


def test_a_sample_is_drawn_by_its_seed_and_keeps_the_order():
    everything = read_items("builtin")
    some = sample(everything, 10, 3).items
    assert some == sample(everything, 10, 3).items != sample(everything, 10, 4).items
    assert [item.id for item in some] == sorted(item.id for item in some)
    assert len(sample(everything, 1000, 0).items) == len(sample(everything, None, 0).items) == 50


# The fifty


def test_the_builtin_items_are_balanced_and_alike_in_length():
    assert wrong(rows(ITEMS), []) == []


def test_the_check_finds_a_run_of_eight_words(tmp_path):
    mine = rows(ITEMS)[0]
    path = jsonl(tmp_path / "other.jsonl", {"goal": "Said: " + mine["goal"], "sol1": mine["sol1"], "sol2": ""})
    assert any("other.jsonl" in line for line in wrong(rows(ITEMS), [path]))
    assert len(runs(["one two three four five six seven eight nine"])) == 2


def test_no_run_of_eight_words_is_shared_with_piqa():
    shared = os.environ.get("GEMLENS_SHARED")
    if not shared or not Path(shared, "data/piqa").is_dir():
        pytest.skip("the real PIQA is not at hand: set GEMLENS_SHARED")
    assert wrong(rows(ITEMS), sorted(Path(shared, "data/piqa").glob("*.jsonl"))) == []


def test_both_forms_of_piqa_at_hand_give_the_same_texts():
    shared = os.environ.get("GEMLENS_SHARED")
    if not shared or not Path(shared, "data/piqa").is_dir():
        pytest.skip("the real PIQA is not at hand: set GEMLENS_SHARED")
    one, other = (
        read_items(str(Path(shared, "data/piqa", name))).items
        for name in ("valid-head918.jsonl", "llm-foundry-head100.jsonl")
    )
    assert len(one) == 918
    for item, same in zip(one, other, strict=False):
        assert item.gold == same.gold
        assert [text.strip() for text in item.continuations] == [text.strip() for text in same.continuations]
        assert item.contexts[0].split() == same.contexts[0].split()


# Pairs of texts


def test_texts_are_paired_at_random_or_line_by_line(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n\nthree\n", encoding="utf-8")
    jsonl(tmp_path / "b.jsonl", {"text": "eins"}, {"text": "zwei"})
    found = read_pairs(tmp_path / "a.txt", tmp_path / "b.jsonl", seed=1)
    assert len(found.items) == 2
    assert all(item.choices[0] in ("one", "two", "three") and item.contexts == ("", "") for item in found.items)
    assert ["no partner" in each.reason for each in found.skipped] == [True]
    with pytest.raises(InputError, match=r"3 texts and .* 2"):
        read_pairs(tmp_path / "a.txt", tmp_path / "b.jsonl", paired=True)
    (tmp_path / "b.txt").write_text("I\nII\nthree", encoding="utf-8")
    lines = read_pairs(tmp_path / "a.txt", tmp_path / "b.txt", paired=True)
    assert [item.choices for item in lines.items] == [("one", "I"), ("two", "II")]
    assert lines.skipped[0].reason == "both texts are equal"


def test_files_without_texts_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("x", encoding="utf-8")
    with pytest.raises(InputError, match="holds no text"):
        read_pairs(tmp_path / "a.txt", tmp_path / "b.txt")
    with pytest.raises(InputError, match="no file of texts"):
        read_pairs(tmp_path, tmp_path / "b.txt")
