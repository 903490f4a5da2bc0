"""Parquet holds every active feature of the record, and says what made it."""

import dataclasses
import errno
import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cli_helpers import ID, REPORT, assert_refused, everything_in, make_world, report, run
from gemlens.errors import OutputError
from gemlens.records import ActiveFeatures
from gemlens.report import files
from gemlens.report.parquet import parquet_file, to_table
from report_sample import SAE, TRANSCODER, hostile, sample


def rows_of(analysis, prompt_index=0):
    """What the file has to hold, token by token from the record."""
    return [
        {
            "prompt_index": prompt_index,
            "position": token.position,
            "text": token.text,
            "is_generated": token.is_generated,
            "is_special": token.is_special,
            "dictionary": f"{info.release}/{info.category}/{info.id}",
            "feature_id": int(feature),
            "label": None,
            "activation": float(value),
        }
        for info, active in zip(analysis.dictionaries, analysis.activations, strict=True)
        for index, token in enumerate(analysis.tokens)
        for feature, value in zip(*active.row(index), strict=True)
    ]


@pytest.mark.parametrize("dictionaries", [1, 2])
def test_the_file_holds_every_active_feature_of_the_record(tmp_path, dictionaries):
    analysis = sample(dictionaries)
    path = files.export(analysis, "parquet", tmp_path)
    assert path == tmp_path / f"{files.REPORT}.parquet"
    found = pq.read_table(path).to_pylist()
    assert found == rows_of(analysis)
    assert len(found) == sum(len(active.ids) for active in analysis.activations) > 5 * len(analysis.tokens)
    assert 0 not in {row["position"] for row in found}
    assert {row["dictionary"].split("/")[-1] for row in found} == {
        SAE.id,
        TRANSCODER.id if dictionaries > 1 else SAE.id,
    }


def test_the_schema_says_what_made_it_and_has_the_documented_columns(tmp_path):
    analysis = sample()
    schema = pq.read_schema(files.export(analysis, "parquet", tmp_path))
    said = {key.decode(): value.decode() for key, value in schema.metadata.items() if key != b"ARROW:schema"}
    assert {"schema_version": said["schema_version"], "model_id": said["model_id"]} == {
        "schema_version": "1",
        "model_id": analysis.model_id,
    }
    assert json.loads(said["provenance"]) == dataclasses.asdict(analysis.provenance)
    assert json.loads(said["dictionaries"]) == [dataclasses.asdict(info) for info in analysis.dictionaries]
    assert json.loads(said["warnings"]) == list(analysis.warnings)
    documented = Path(__file__).parents[1].joinpath("docs/formats.md").read_text("utf-8")
    section = documented.split("_report.parquet`")[1].split("##")[0]
    for name in schema.names:
        assert f"`{name}`" in section, name


def test_a_text_without_active_features_gives_an_empty_table_with_its_schema(tmp_path):
    none = ActiveFeatures(np.zeros(len(sample().tokens) + 1, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
    analysis = dataclasses.replace(sample(), activations=(none, none))
    table = pq.read_table(files.export(analysis, "parquet", tmp_path))
    assert table.num_rows == 0
    assert table.schema.names == to_table(sample()).schema.names
    assert table.schema.metadata[b"model_id"].decode() == analysis.model_id


def test_strings_that_utf8_cannot_hold_are_escaped(tmp_path):
    found = pq.read_table(files.export(hostile(), "parquet", tmp_path))
    texts = {row["text"] for row in found.to_pylist()}
    assert "\\ud800" in texts
    assert "</script><script>window.__xss=1</script>" in texts


def test_many_analyses_go_into_one_file_row_group_by_row_group(tmp_path):
    path = tmp_path / "all.parquet"
    one, two = sample(1), dataclasses.replace(sample(1), tokens=tuple(reversed(sample(1).tokens)))
    with parquet_file(path) as add:
        add(one, 0)
        assert not path.exists()
        add(two, 1)
    assert pq.read_table(path).to_pylist() == rows_of(one) + rows_of(two, 1)
    assert pq.ParquetFile(path).num_row_groups == 2


def test_a_failure_leaves_no_file_and_no_second_complaint(tmp_path, monkeypatch, recwarn):
    with pytest.raises(ZeroDivisionError), parquet_file(tmp_path / "a.parquet") as add:
        add(sample(), 0)
        _ = 1 / 0
    # What the block itself runs into is not a fault of the file.
    with pytest.raises(ValueError, match="of the block"), parquet_file(tmp_path / "a.parquet"):
        raise ValueError("of the block")

    def full(_file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="free some space"):
        files.export(sample(), "parquet", tmp_path)
    assert everything_in(tmp_path) == []
    assert not recwarn.list


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_fills_up_while_rows_are_written_is_told(tmp_path, monkeypatch):
    real = Path.open

    def full(path, mode="r", *more, **settings):
        return real(Path("/dev/full"), "wb", buffering=0) if mode == "xb" else real(path, mode, *more, **settings)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OutputError, match="No space left"):
        files.export(sample(), "parquet", tmp_path)


# The command


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def elsewhere(tmp_path, monkeypatch, no_token):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_writes_what_the_json_counts(world, capsys, elsewhere):
    second = ["--sae-id", "resid_post/layer_5_width_40_l0_small"]
    ran = run(capsys, *world.arguments("--export", "parquet", "--export", "json", *second))
    assert ran.code == 0, ran.err
    assert f"wrote outputs/{REPORT}.parquet" in ran.err
    rows = pq.read_table(f"outputs/{REPORT}.parquet").to_pylist()
    first = [row for row in rows if row["dictionary"].endswith(ID)]
    assert 0 < len(first) < len(rows)
    for token in report()["tokens"]:
        mine = {row["feature_id"]: row["activation"] for row in first if row["position"] == token["position"]}
        assert len(mine) == (token["l0"] or 0)
        for feature in token["features"]:
            if "dictionary" not in feature:
                assert mine[feature["feature_id"]] == pytest.approx(feature["activation"], rel=1e-6)


def test_many_prompts_make_one_file(world, capsys, elsewhere):
    Path("p.txt").write_text("the cat\nand the dog\n")
    more = ["--prompts", "p.txt", "--no-chat", "--export", "parquet", "--export", "jsonl"]
    ran = run(capsys, *world.arguments(*more))
    assert ran.code == 0, ran.err
    assert ran.err.splitlines() == [f"wrote outputs/{REPORT}.{kind}" for kind in ("jsonl", "parquet")]
    assert everything_in(Path("outputs")) == [f"{REPORT}.jsonl", f"{REPORT}.parquet"]
    found = pq.read_table(f"outputs/{REPORT}.parquet").to_pylist()
    tokens = [json.loads(line) for line in Path(f"outputs/{REPORT}.jsonl").read_text().splitlines()]
    assert {row["prompt_index"] for row in found} == {0, 1}
    for token in tokens:
        place = (token["prompt_index"], token["position"])
        assert sum((row["prompt_index"], row["position"]) == place for row in found) == (token["l0"] or 0)


def test_a_name_taken_by_a_folder_is_refused_before_loading(world, capsys, elsewhere, monkeypatch):
    monkeypatch.setattr("gemlens.app.analyze.load", lambda *_args, **_settings: pytest.fail("went on to load"))
    Path("outputs", f"{REPORT}.parquet").mkdir(parents=True)
    Path("p.txt").write_text("the cat\n")
    assert_refused(run(capsys, *world.arguments("--prompts", "p.txt", "--export", "parquet")), "is a folder")


def test_an_interrupt_between_prompts_leaves_no_part_of_the_file(world, capsys, elsewhere, monkeypatch):
    import gemlens.study.analyze as study

    real, calls = study.ragged_activations, []

    def second_time_interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(study, "_BATCH", 1)
    monkeypatch.setattr(study, "ragged_activations", second_time_interrupted)
    Path("p.txt").write_text("the cat\nand the dog\n")
    ran = run(capsys, *world.arguments("--prompts", "p.txt", "--export", "parquet"))
    assert (ran.code, ran.err.strip()) == (130, "error: interrupted")
    assert everything_in(elsewhere) == ["p.txt"]
