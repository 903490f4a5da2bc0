"""Saved activations to sparse features: the dictionary's own, in every kind of file, whoever saved them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from cli_helpers import ID, add_dictionary, assert_refused, everything_in, run
from gemlens.data import saved as saving
from gemlens.data.saved import open_saved
from gemlens.errors import InputError, MismatchError, NotFoundError, WeightsError
from gemlens.scope.load import load_sae
from gemlens.study.encode import encode_saved, encoding_of

D = 16


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scope")
    add_dictionary(folder, ID)
    return folder


@pytest.fixture(scope="module")
def sae(release):
    return load_sae(str(release), ID)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch, no_token):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def acts(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def save(x, name):
    if name.endswith(".npy"):
        np.save(name, x.numpy())
    else:
        save_file({"acts": x}, name)
    return Path(name)


def dense_of(parts, width, tokens):
    found = np.zeros((tokens, width), dtype=np.float32)
    for part in parts:
        row = np.repeat(np.arange(len(part.indptr) - 1), np.diff(part.indptr)) + part.first
        found[row, part.ids] = part.values
    return found


@pytest.mark.parametrize("name", ["x.npy", "x.safetensors"])
@pytest.mark.parametrize("shape", [(50, D), (6, 9, D)])
@pytest.mark.parametrize("together", [1, 1 << 22])
def test_features_are_the_dictionarys_whatever_the_file_and_the_parts(sae, name, shape, together, monkeypatch):
    monkeypatch.setattr(saving, "_PART", together)
    x = acts(*shape)
    saved = open_saved(save(x, name))
    parts = list(encode_saved(sae, saved))
    expected = sae.encode(x.reshape(-1, D)).dense()
    assert np.allclose(dense_of(parts, 40, saved.tokens), expected.numpy(), atol=1e-5)
    assert [part.first for part in parts] == list(np.cumsum([0, *(len(part.indptr) - 1 for part in parts[:-1])]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.bfloat16])
def test_other_floats_are_widened(sae, dtype):
    x = acts(20, D).to(dtype)
    saved = open_saved(save(x, "x.safetensors" if dtype == torch.bfloat16 else "x.npy"))
    expected = sae.encode(x.float()).dense().numpy()
    assert np.allclose(dense_of(encode_saved(sae, saved), 40, 20), expected, atol=1e-5)


def test_top_k_keeps_the_strongest_and_skip_leaves_out_the_first_tokens(sae):
    x = acts(4, 5, D)
    saved = open_saved(save(x, "x.npy"))
    found = dense_of(encode_saved(sae, saved, top_k=3, skip=2), 40, 20).reshape(4, 5, 40)
    assert not found[:, :2].any()
    whole = sae.encode(x.reshape(-1, D)).dense().numpy().reshape(4, 5, 40)
    for row, position in np.ndindex(4, 3):
        kept, full = found[row, position + 2], whole[row, position + 2]
        assert np.allclose(np.sort(kept)[-3:], np.sort(full)[-3:])
        assert (kept > 0).sum() == min(3, (full > 0).sum())


def test_of_equal_activations_the_lower_ids_are_kept():
    from gemlens.scope.features import Features
    from gemlens.study.encode import _ranks

    features = Features(torch.tensor([0, 3, 3, 5]), torch.tensor([1, 4, 9, 0, 2]), torch.tensor([2.0, 5, 2, 1, 7]), 10)
    assert _ranks(features).tolist() == [1, 0, 2, 1, 0]


# As a command


def arguments(release, file, *more):
    return ["encode", file, "--sae-release", release, "--sae-id", ID, *more]


def rows_of(sae, x):
    dense = sae.encode(x.reshape(-1, D)).dense().numpy()
    return [(t, f, float(dense[t, f])) for t, f in zip(*dense.nonzero(), strict=True)]


def test_parquet_holds_a_row_for_each_active_feature(sae, release, capsys):
    x = acts(4, 5, D)
    ran = run(capsys, *arguments(release, save(x, "x.npy")))
    assert ran.code == 0, ran.err
    table = pq.read_table("x.features.parquet")
    assert table.column_names == ["row", "position", "feature_id", "activation"]
    found = table.to_pylist()
    expected = rows_of(sae, x)
    assert [(each["row"] * 5 + each["position"], each["feature_id"]) for each in found] == [row[:2] for row in expected]
    assert np.allclose([each["activation"] for each in found], [row[2] for row in expected], atol=1e-5)
    about = json.loads(table.schema.metadata[b"gemlens"])
    assert (about["site"], about["shape"], about["source"]) == ("resid_post.2", [4, 5, 40], "x.npy")
    assert f"{len(expected):,} activations of 20 tokens" in ran.err


def test_npz_is_a_csr_matrix_and_json_lines_a_line_a_token(sae, release, capsys):
    x = acts(30, D)
    for out in ("f.npz", "f.jsonl"):
        assert run(capsys, *arguments(release, save(x, "x.safetensors"), "--out", out)).code == 0
    expected = sae.encode(x).dense().numpy()
    with np.load("f.npz", allow_pickle=False) as file:
        dense = np.zeros(file["shape"], dtype=np.float32)
        dense[np.repeat(np.arange(30), np.diff(file["indptr"])), file["ids"]] = file["values"]
        assert json.loads(str(file["about"]))["dictionary"].endswith(ID)
    assert np.allclose(dense, expected, atol=1e-5)
    lines = [json.loads(line) for line in Path("f.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == list(range(30))
    assert [line["l0"] for line in lines] == (expected > 0).sum(1).tolist()
    assert "position" not in lines[0]
    assert {each["feature_id"] for each in lines[7]["features"]} == set(expected[7].nonzero()[0].tolist())


def test_a_bos_among_them_is_told(release, capsys, monkeypatch):
    monkeypatch.setattr("gemlens.app.encode._MANY_TIMES", 2)  # few features make few times as many
    some = acts(20_000, D)
    by_l0 = some[load_sae(str(release), ID).encode(some).l0.argsort()]
    x = by_l0[:54].reshape(6, 9, D)  # hardly a feature fires there
    x[:, 0] = by_l0[-6:]
    ran = run(capsys, *arguments(release, save(x, "x.npy")))
    assert ran.code == 0 and "leave it out with --skip 1" in ran.err
    assert "warning" not in run(capsys, *arguments(release, "x.npy", "--skip", 1)).err


def test_the_example_does_the_same(release, capsys):
    save(acts(12, D), "x.npy")
    assert run(capsys, *arguments(release, "x.npy", "--out", "a.npz")).code == 0
    script = Path(__file__).parents[1] / "examples/encode_sae_features.py"
    command = [sys.executable, str(script), "x.npy", "--sae-release", str(release), "--sae-id", ID, "--out", "b.npz"]
    subprocess.run(command, check=True, capture_output=True)
    with np.load("a.npz") as ours, np.load("b.npz") as theirs:
        assert all((ours[name] == theirs[name]).all() for name in ("indptr", "ids", "values", "shape"))


def bad_files():
    save(acts(9, D + 1), "wide.npy")
    np.save("flat.npy", np.zeros(9, dtype=np.float32))
    np.save("whole.npy", np.zeros((9, D), dtype=np.int64))
    np.save("object.npy", np.array([[{}] * D]), allow_pickle=True)
    np.save("nothing.npy", np.zeros((0, D), dtype=np.float32))
    Path("cut.npy").write_bytes(save(acts(9, D), "fine.npy").read_bytes()[:-8])
    x = acts(9, D)
    x[5, 3] = torch.nan
    save(x, "nan.npy")
    save_file({"a": acts(9, D), "b": acts(9, D)}, "two.safetensors")
    Path("cut.safetensors").write_bytes(b"nothing")
    Path("x.pt").write_bytes(b"")


@pytest.mark.parametrize(
    ("file", "more", "words"),
    [
        ("absent.npy", [], ["absent.npy does not exist"]),
        ("x.pt", [], ["x.pt is not a .npy or .safetensors file"]),
        ("wide.npy", [], ["[9, 17]", "reads resid_post.2 as 16 numbers"]),
        ("flat.npy", [], ["shape [9]", "[n, d]"]),
        ("whole.npy", [], ["holds int64"]),
        ("object.npy", [], ["Python objects"]),
        ("nothing.npy", [], ["shape [0, 16]"]),
        ("cut.npy", [], ["truncated or damaged"]),
        ("cut.safetensors", [], ["truncated or damaged"]),
        ("nan.npy", [], ["row 5", "not finite"]),
        ("two.safetensors", [], ["holds 2 tensors", "--tensor", "a, b"]),
        ("two.safetensors", ["--tensor", "c"], ["no tensor 'c'"]),
        ("fine.npy", ["--tensor", "c"], ["leave out --tensor"]),
        ("fine.npy", ["--top-k", 0], ["--top-k 0"]),
        ("fine.npy", ["--skip", -1], ["--skip -1"]),
        ("fine.npy", ["--skip", 1], ["skip 1", "[n, sequence, d]"]),
        ("fine.npy", ["--out", "x.csv"], ["x.csv", ".parquet, .npz, .jsonl"]),
        ("fine.npy", ["--out", "fine.npy"], ["is the file of activations itself"]),
    ],
)
def test_slips_are_told_in_one_line_and_leave_nothing(release, capsys, elsewhere, file, more, words):
    bad_files()
    before = everything_in(elsewhere)
    assert_refused(run(capsys, *arguments(release, file, *more)), *words)
    assert everything_in(elsewhere) == before


def test_the_library_raises_what_the_command_says(sae):
    bad_files()
    with pytest.raises(MismatchError):
        encoding_of(sae, open_saved(Path("wide.npy")))
    with pytest.raises(WeightsError):
        list(encode_saved(sae, open_saved(Path("nan.npy"))))
    with pytest.raises(NotFoundError):
        open_saved(Path("absent.npy"))
    with pytest.raises(InputError):
        encoding_of(sae, open_saved(Path("fine.npy")), top_k=0)
