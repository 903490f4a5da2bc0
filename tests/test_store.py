"""The store of activations: the same bytes however often a run was killed, nothing mixed, nothing damaged unnamed."""

import dataclasses
import json
import random
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gemlens.data.activations import MANIFEST, open_store
from gemlens.data.corpus import documents, pack
from gemlens.data.mix import mixed
from gemlens.errors import InputError, MismatchError, NotFoundError, OutputError, WeightsError
from gemlens.lm.stream import activation_stream
from gemlens.lm.text import encode_documents
from gemlens.sites import parse_site
from gemlens.train import collect as collecting
from gemlens.train.collect import collect_activations
from gemlens.train.stored import StoredStream
from tiny import tiny_gemma

A, B = parse_site("resid_post.2"), parse_site("attn_out.4")
ROW, TOKENS = 16, 2000  # 134 rows of 15 tokens: 5 passes of 32 rows, the last one short
SHARDS = 3


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return make_texts(tmp_path_factory.mktemp("texts"))


def make_texts(folder, seed=0):
    rng = random.Random(seed)
    for name in "ab":
        text = " ".join("".join(rng.choices("abcdefghij", k=rng.randint(1, 9))) for _ in range(400))
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    return documents([folder])


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """Two passes a shard: 3 shards, the last of them of one pass that is not full."""
    monkeypatch.setattr(collecting, "SHARD_BYTES", 2 * 32 * (ROW - 1) * (16 + 24) * 4)


def collect(model, texts, folder, **changes):
    settings = {"sites": [B, A], "tokens": TOKENS, "row_length": ROW} | changes
    return collect_activations(model, texts, folder=folder, **settings)


def files_in(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def made(tmp_path_factory, texts):
    """A finished store, never changed."""
    folder = tmp_path_factory.mktemp("made") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collecting, "SHARD_BYTES", 2 * 32 * (ROW - 1) * (16 + 24) * 4)
        collect(tiny_gemma(), texts, folder)
    return folder


def test_a_store_holds_what_the_model_computes(made, model, texts):
    rows = pack(mixed(texts, 0), lambda group: encode_documents(model, group), bos=2, length=ROW)
    chunks = list(activation_stream(model, (row for row, _ in zip(rows, range(134), strict=False)), [A, B]))
    shards = [load_file(made / f"shard-0000{n}.safetensors") for n in range(SHARDS)]
    for site in (A, B):
        direct = torch.cat([chunk[site] for chunk in chunks])
        assert torch.equal(torch.cat([shard[str(site)] for shard in shards]), direct)
    manifest = json.loads((made / MANIFEST).read_text("utf-8"))
    assert manifest["sites"] == {"resid_post.2": 16, "attn_out.4": 24}
    assert [shard["tokens"] for shard in manifest["shards"]] == [960, 960, 90]
    assert [text["name"] for text in manifest["texts"]] == ["a.txt", "b.txt"]


def test_its_size_is_said_before_it_is_written(model, texts, tmp_path):
    said = []
    collect(model, texts, tmp_path, begin=lambda info, size: said.append((size, len(list(tmp_path.iterdir())))))
    written = sum(x.nbytes for n in range(SHARDS) for x in load_file(tmp_path / f"shard-0000{n}.safetensors").values())
    assert said == [(written, 0)]


def test_progress_ends_where_it_said(model, texts, tmp_path):
    seen = []
    collect(model, texts, tmp_path, report=lambda *at: seen.append(at))
    assert seen == [(480 * n, 2010) for n in range(1, 5)] + [(2010, 2010)]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("killed_at", range(5))
def test_a_killed_run_goes_on_to_the_same_bytes(made, model, texts, tmp_path, monkeypatch, killed_at):
    """Killed at every pass: at the boundaries of shards and between them."""
    stream = collecting.activation_stream
    passes, sizes = [], []

    def watched(*arguments, **settings):
        for chunk in stream(*arguments, **settings):
            if len(passes) == killed_at:
                raise Killed
            passes.append(1)
            yield chunk

    monkeypatch.setattr(collecting, "activation_stream", watched)
    with pytest.raises(Killed):
        collect(model, texts, tmp_path)
    whole = killed_at // 2
    assert len(list(tmp_path.glob("shard*"))) == whole
    passes, killed_at = [], None
    collect(model, texts, tmp_path, begin=lambda _info, size: sizes.append(size))
    assert files_in(tmp_path) == files_in(made)
    assert sizes == [160 * (2010 - 960 * whole)]
    assert len(passes) == 5 - 2 * whole


@pytest.mark.parametrize("written", ["shard-00000.safetensors", "shard-00001.safetensors", MANIFEST])
@pytest.mark.parametrize("before", [True, False])
def test_a_run_killed_while_it_writes_goes_on_to_the_same_bytes(
    made, model, texts, tmp_path, monkeypatch, written, before
):
    """Before or after a file gets its final name, with what is left of it under the temporary one."""
    replace = Path.replace

    def kill(path, target):
        if Path(target).name == written:
            shutil.copy(path, path.with_name(".gemlens-dead.tmp"))
            if not before:
                replace(path, target)
            raise Killed
        return replace(path, target)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, "replace", kill)
        collect(model, texts, tmp_path)
    collect(model, texts, tmp_path)
    assert files_in(tmp_path) == files_in(made)


@pytest.mark.parametrize("shard", range(SHARDS))
@pytest.mark.parametrize("harm", ["missing", "truncated", "header"])
def test_a_damaged_shard_is_named_and_made_again(made, model, texts, tmp_path, shard, harm):
    folder = shutil.copytree(made, tmp_path / "store")
    path = folder / f"shard-0000{shard}.safetensors"
    content = path.read_bytes()
    path.unlink()
    if harm != "missing":
        path.write_bytes(content[:-1] if harm == "truncated" else b"\xff" * 16 + content[16:])
    with pytest.raises(WeightsError, match=rf"{path.name} is (missing|truncated or damaged)"):
        open_store(folder)
    collect(model, texts, folder)
    assert files_in(folder) == files_in(made)


def test_a_shard_of_another_store_is_named(made, tmp_path):
    folder = shutil.copytree(made, tmp_path / "store")
    shutil.copy(folder / "shard-00000.safetensors", folder / "shard-00002.safetensors")
    with pytest.raises(WeightsError, match=r"shard-00002\.safetensors holds .*960.* the manifest says .*90"):
        open_store(folder)


def test_values_that_are_not_finite_are_named(made, tmp_path):
    folder = shutil.copytree(made, tmp_path / "store")
    path = folder / "shard-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-4:] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"shard-00001\.safetensors holds values at \S+ that are not finite"):
        list(StoredStream(open_store(folder), batch=100))


def test_a_finished_store_is_left_alone(made, model, texts, tmp_path, monkeypatch):
    folder = shutil.copytree(made, tmp_path / "store")
    monkeypatch.setattr(collecting, "activation_stream", None)
    sizes = []
    assert collect(model, texts, folder, begin=lambda _info, size: sizes.append(size)).tokens == 2010
    assert sizes == [0]


# Refusals


def other_tokenizer():
    model = tiny_gemma()
    model.tokenizer.add_tokens(["qqq"])
    return model


@pytest.mark.parametrize(
    ("other_model", "changes", "words"),
    [
        (lambda: tiny_gemma(name="b"), {}, "model google/gemma-3-tiny there, b asked for"),
        (lambda: dataclasses.replace(tiny_gemma(), revision="abc"), {}, "revision None there, abc asked for"),
        (lambda: as_bfloat16(tiny_gemma()), {}, "dtype float32 there, bfloat16 asked for"),
        (other_tokenizer, {}, "tokenizer [0-9a-f]{64} there, [0-9a-f]{64} asked for"),
        (tiny_gemma, {"sites": [A]}, r"sites resid_post.2 \(16\), attn_out.4 \(24\) there, resid_post.2 \(16\) asked"),
        (tiny_gemma, {"seed": 1}, "seed 0 there, 1 asked for"),
        (tiny_gemma, {"row_length": 17}, "row_length 16 there, 17 asked for"),
        (tiny_gemma, {"tokens": 3000}, "tokens 2000 there, 3000 asked for"),
    ],
)
def test_what_differs_is_not_mixed(made, texts, tmp_path, other_model, changes, words):
    folder = shutil.copytree(made, tmp_path / "store")
    with pytest.raises(InputError, match=words):
        collect(other_model(), texts, folder, **changes)
    assert files_in(folder) == files_in(made)


def as_bfloat16(model):
    model.module.bfloat16()
    return model


def test_other_text_is_not_mixed(made, model, texts, tmp_path):
    folder = shutil.copytree(made, tmp_path / "store")
    (tmp_path / "b.txt").write_text("something else", encoding="utf-8")
    with pytest.raises(InputError, match=r"texts b.txt \(sha256 \w{12}\) there, b.txt \(sha256 \w{12}\) asked for"):
        collect(model, [texts[0], tmp_path / "b.txt"], folder)
    with pytest.raises(InputError, match=r"texts b.txt \(sha256 \w{12}\) there, 1 in this order asked for"):
        collect(model, texts[:1], folder)
    with pytest.raises(InputError, match="texts 2 in this order there, 2 in this order asked for"):
        collect(model, texts[::-1], folder)


def test_too_little_room_is_told_before_anything_is_written(model, texts, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(collecting.shutil, "disk_usage", lambda _: usage(10**9, 10**9, 2010 * 160 - 1))
    with pytest.raises(OutputError, match=r"the activations need 0\.3 MB and .* free"):
        collect(model, texts, tmp_path)
    assert files_in(tmp_path) == {}


def test_a_run_that_goes_on_needs_room_for_the_rest_only(made, model, texts, tmp_path, monkeypatch):
    folder = shutil.copytree(made, tmp_path / "store")
    (folder / "shard-00002.safetensors").unlink()
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(collecting.shutil, "disk_usage", lambda _: usage(10**9, 10**9, 90 * 160))
    collect(model, texts, folder)
    assert files_in(folder) == files_in(made)


def test_slips_are_told(made, model, texts, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.tex").write_text("mine")
    (tmp_path / "short.txt").write_text("the cat")
    new = tmp_path / "new"
    for changes, error, words in [
        ({"folder": tmp_path / "used"}, OutputError, "holds other files, thesis.tex"),
        ({"tokens": 0}, InputError, "tokens 0"),
        ({"row_length": 1}, InputError, "row length 1: take 2 to 128"),
        ({"row_length": 129}, InputError, "row length 129"),
        ({"sites": []}, InputError, "no site"),
        ({"sites": [parse_site("resid_post.7")]}, MismatchError, r"resid_post\.7 does not exist"),
        ({"texts": [tmp_path / "short.txt"]}, InputError, "the text fills no row of 16 tokens"),
    ]:
        with pytest.raises(error, match=words):
            collect(model, **({"texts": texts, "folder": new} | changes))
    assert not new.exists() or files_in(new) == {}


def test_text_that_ends_before_makes_a_smaller_store(model, texts, tmp_path):
    store = collect(model, texts, tmp_path, tokens=10**6)
    assert store.complete
    assert 2010 < open_store(tmp_path).tokens < 10**5
    before = files_in(tmp_path)
    assert collect(model, texts, tmp_path, tokens=10**6).tokens == store.tokens
    assert files_in(tmp_path) == before


@pytest.mark.parametrize(
    ("change", "says"),
    [({"format": 9}, "format 9"), ({"sites": 3}, "cannot be read"), ({"dtype": "int3"}, "cannot be read"),
     ({"complete": False}, "holds 2,010 of 2,000 tokens; run the same"), ({"sites": {"resid.1": 3}}, "cannot be read")],
)  # fmt: skip
def test_a_manifest_that_makes_no_sense_is_refused(made, tmp_path, change, says):
    folder = shutil.copytree(made, tmp_path / "store")
    content = json.loads((folder / MANIFEST).read_text("utf-8"))
    (folder / MANIFEST).write_text(json.dumps(content | change), encoding="utf-8")
    with pytest.raises(InputError, match=says):
        open_store(folder)
    (folder / MANIFEST).write_text("[", encoding="utf-8")
    with pytest.raises(InputError, match="cannot be read"):
        open_store(folder)
    with pytest.raises(NotFoundError, match="gemlens collect activations"):
        open_store(tmp_path)


def test_what_a_norm_computes_in_float32_is_stored_in_the_dtype_of_the_store(texts, tmp_path):
    site = parse_site("mlp_in_normalized.2")
    store = collect(as_bfloat16(tiny_gemma()), texts, tmp_path, sites=[site, A])
    found = open_store(tmp_path).read(0, 3, 9, store.sites)
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert found[site].shape == (6, 16)


# Batches from a store


def rows_of(batches, site=A):
    return torch.cat([batch[site] for batch in batches])


def keys(tensor):
    return sorted(map(tuple, tensor.tolist()))


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr("gemlens.train.stored._PIECE", 100)


@pytest.fixture
def store(made, small_pieces):
    return open_store(made)


def test_each_pass_gives_every_token_once_in_another_order(store):
    stored = torch.cat([store.read(n, 0, tokens, [A])[A] for n, tokens in enumerate(store.shard_tokens)])
    batches = list(StoredStream(store, batch=67, epochs=2, buffer=450))  # 67 x 30 = 2010
    assert len(batches) == 60
    first, second = rows_of(batches[:30]), rows_of(batches[30:])
    assert keys(first) == keys(second) == keys(stored)
    assert not torch.equal(first, second)
    place = {row: at for at, row in enumerate(map(tuple, stored.tolist()))}
    order = torch.tensor([place[row] for row in map(tuple, first.tolist())])
    assert (order.diff().abs() == 1).float().mean() < 0.05
    assert order[:450].unique().max() - order[:450].min() > 1000  # a buffer holds pieces from all over


def test_sites_of_a_stored_batch_keep_together(store):
    both = {}
    for n, tokens in enumerate(store.shard_tokens):
        found = store.read(n, 0, tokens, [A, B])
        both |= dict(zip(map(tuple, found[A].tolist()), found[B].tolist(), strict=True))
    for batch in StoredStream(store, batch=64, buffer=300):
        assert [both[row] for row in map(tuple, batch[A].tolist())] == batch[B].tolist()


@pytest.mark.parametrize(("batch", "buffer"), [(64, 300), (300, 128), (67, 5000)])
def test_a_restored_stored_stream_goes_on_to_the_bit(store, batch, buffer):
    def new():
        return StoredStream(store, batch=batch, epochs=3, buffer=buffer, seed=2)

    whole = list(new())
    assert len(whole) == 3 * store.tokens // batch
    stream = new()
    given, states = iter(stream), [stream.state()]
    for _ in whole:
        next(given)
        states.append(stream.state())
    for done, state in list(enumerate(states))[::5]:
        fresh = new()
        fresh.restore(json.loads(json.dumps(state)))
        rest = list(fresh)
        assert len(rest) == len(whole) - done
        assert all(torch.equal(x[s], y[s]) for x, y in zip(rest, whole[done:], strict=True) for s in (A, B))


def test_a_stored_stream_can_go_on_forever(store):
    stream = iter(StoredStream(store, batch=500, epochs=None, sites=[B]))
    assert all(set(next(stream)) == {B} for _ in range(20))


def test_slips_with_stored_streams_are_told(store):
    with pytest.raises(NotFoundError, match=r"holds nothing of resid_post\.3; did you mean resid_post\.2"):
        StoredStream(store, batch=5, sites=[parse_site("resid_post.3")])
    with pytest.raises(InputError, match="epochs 0"):
        StoredStream(store, batch=5, epochs=0)
    state = StoredStream(store, batch=5, seed=1).state()
    with pytest.raises(InputError, match="seed 1"):
        StoredStream(store, batch=5).restore(state)
