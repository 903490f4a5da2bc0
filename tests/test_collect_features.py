"""Evidence of a corpus, against direct counts, through kills and restarts, and what is refused."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from gemlens.data.corpus import documents, pack
from gemlens.data.mix import mixed
from gemlens.errors import InputError, MismatchError, OutputError, WeightsError
from gemlens.lm.gemma import activations
from gemlens.lm.text import encode_documents
from gemlens.study import collect as collecting
from gemlens.study.collect import COLLECTING, collect_features
from gemlens.study.firing import half_octaves
from gemlens.study.strongest import Strongest
from tiny import random_sae, random_transcoders, tiny_gemma

ROW, EXAMPLES = 16, 6
SAE_PATH, TRANSCODER_PATH = "resid_post/one", "transcoder_all/layer_3_width_40_l0_small_affine"


def make_texts(folder, words=1200):
    rng = random.Random(0)
    for name in "ab":
        text = " ".join("".join(rng.choices("abcdefghij", k=rng.randint(1, 9))) for _ in range(words))
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    return documents([folder])


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return make_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def dictionaries(model):
    return [random_sae(model, "resid_post.2", category="resid_post", id="one"), random_transcoders(model)[3]]


def collect(model, dictionaries, texts, folder, **changes):
    settings = {"row_length": ROW, "examples": EXAMPLES, "tokens": 9000} | changes
    return collect_features(model, dictionaries, texts, folder, **settings)


def files_in(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory, model, dictionaries, texts):
    """Finished evidence of both, never changed."""
    folder = tmp_path_factory.mktemp("made")
    collect(model, dictionaries, texts, folder)
    return folder


@pytest.fixture(scope="module")
def direct(model, dictionaries, texts):
    """Rows of tokens, and of each dictionary the dense activations [rows, ROW - 1, width]."""
    rows = pack(mixed(texts, 0), lambda group: encode_documents(model, group), bos=2, length=ROW)
    rows = torch.stack([torch.from_numpy(row) for row, _ in zip(rows, range(600), strict=False)])
    found = []
    for dictionary in dictionaries:
        parts = [activations(model, part, [dictionary.reads])[dictionary.reads][:, 1:] for part in rows.split(32)]
        dense = torch.cat([dictionary.encode(part.flatten(0, 1)).dense() for part in parts])
        found.append(dense.unflatten(0, (len(rows), ROW - 1)))
    return rows, found


PATHS = [(0, SAE_PATH), (1, TRANSCODER_PATH)]


@pytest.mark.parametrize(("index", "path"), PATHS)
def test_examples_are_the_strongest_and_the_first_seen_of_equals(made, direct, index, path):
    rows, dense = direct[0], direct[1][index]
    found, tokens = load_file(made / path / "examples.safetensors"), load_file(made / "tokens.safetensors")["tokens"]
    flat = dense.flatten(0, 1)
    for feature in range(flat.shape[1]):
        values, order = flat[:, feature].sort(descending=True, stable=True)
        some = min(EXAMPLES, int((values > 0).sum()))
        assert torch.equal(found["activations"][feature, :some], values[:some])
        assert (found["activations"][feature, some:] == 0).all() and (found["seq_ids"][feature, some:] == -1).all()
        for slot, at in enumerate(order[:some].tolist()):
            row, position = at // (ROW - 1), 1 + at % (ROW - 1)
            assert found["positions"][feature, slot] == position
            assert torch.equal(tokens[found["seq_ids"][feature, slot]], rows[row].int())


@pytest.mark.parametrize(("index", "path"), PATHS)
def test_frequencies_histograms_profiles_and_pairs_are_a_direct_count(made, direct, index, path):
    dense = direct[1][index]
    fires = dense > 0
    found = load_file(made / path / "examples.safetensors") | load_file(made / path / "statistics.safetensors")
    assert torch.equal(found["feature_frequencies"], fires.flatten(0, 1).double().mean(0))
    thirds = fires.unflatten(1, (3, 5)).sum(dim=(0, 2)).T
    assert torch.equal(found["position_profile"], thirds)
    for feature in range(dense.shape[2]):
        bins = half_octaves(dense[..., feature][fires[..., feature]])
        columns = (int(found["histogram_top"][feature]) - bins).clamp(max=found["histogram"].shape[1] - 1)
        assert torch.equal(found["histogram"][feature], torch.bincount(columns, minlength=found["histogram"].shape[1]))
    flat = fires.flatten(0, 1).double()
    both = flat.T @ flat
    share = both / (flat.sum(0)[:, None] + flat.sum(0) - both).clamp(min=1)
    share.fill_diagonal_(0)
    assert torch.allclose(found["coactive_share"].double(), share.sort(descending=True).values[:, :5], atol=1e-6)
    listed = found["coactive"].long()
    assert torch.allclose(share.gather(1, listed.clamp(min=0)) * (listed >= 0), found["coactive_share"].double())


def test_only_rows_that_examples_need_are_kept(made, texts):
    tokens = load_file(made / "tokens.safetensors")["tokens"]
    used = torch.cat([load_file(made / path / "examples.safetensors")["seq_ids"].flatten() for _, path in PATHS])
    assert set(used.tolist()) - {-1} == set(range(len(tokens)))
    assert len(tokens) < 600 and (tokens[:, 0] == 2).all() and tokens.shape[1] == ROW


def test_one_dictionary_has_its_sequences_with_it(model, dictionaries, texts, made, tmp_path):
    result = collect(model, dictionaries[:1], texts, tmp_path)
    assert sorted(files_in(tmp_path)) == [f"{SAE_PATH}/{name}.safetensors" for name in ("examples", "statistics")]
    alone, shared = (load_file(folder / SAE_PATH / "examples.safetensors") for folder in (tmp_path, made))
    assert torch.equal(alone["activations"], shared["activations"])
    tokens = load_file(made / "tokens.safetensors")["tokens"]
    assert torch.equal(alone["tokens"][alone["seq_ids"][:, 0]], tokens[shared["seq_ids"][:, 0]])
    assert (result.tokens, result.sequences, result.dictionaries) == (9000, len(alone["tokens"]), (SAE_PATH,))
    assert result.size == sum(map(len, files_in(tmp_path).values()))


def test_the_files_say_what_made_them(made):
    with safe_open(made / SAE_PATH / "examples.safetensors", "pt") as file:
        metadata = file.metadata()
    about = json.loads(metadata["gemlens"])
    assert metadata["tokens"] == "../../tokens.safetensors"
    assert (about["model_id"], about["dictionary"], about["tokens"]) == ("google/gemma-3-tiny", SAE_PATH, 9000)
    assert (about["texts"], about["quantiles"]) == (["a.txt", "b.txt"], False)


def test_quantiles_spread_examples_over_all_that_fired(model, dictionaries, texts, direct, tmp_path):
    """Of a feature that fired less often than the sample has room for, exactly; of others, nearly."""
    collect(model, dictionaries[:1], texts, tmp_path, examples=8, quantiles=6)
    found = load_file(tmp_path / SAE_PATH / "examples.safetensors")
    flat = direct[1][0].flatten(0, 1)
    spread = []
    for feature in range(40):
        values = flat[:, feature][flat[:, feature] > 0].sort(descending=True).values
        shown = found["activations"][feature]
        assert torch.equal(shown, shown.sort(descending=True).values)
        places = found["seq_ids"][feature] * ROW + found["positions"][feature]
        assert len(set(places[shown > 0].tolist())) == int((shown > 0).sum())
        assert torch.equal(shown[:2], torch.cat([values, torch.zeros(2)])[:2])
        if len(values) >= 500:
            spread.append(torch.stack([(values > value).double().mean() for value in shown[2:]]))
    assert len(spread) > 5
    even = (torch.arange(6) + 0.5).double() / 6
    assert (torch.stack(spread) - even).abs().max() < 0.35  # a sample of 48: 5 standard deviations
    assert torch.allclose(torch.stack(spread).mean(0), even, atol=0.05)


def test_quantiles_of_a_feature_that_fired_seldom_are_exact():
    from gemlens.study.evidence import _with_spread

    values, places = torch.tensor([[9.0, 8.0]]), torch.tensor([[70, 30]])
    sampled = torch.tensor([[9.0, 8.0, 7, 6, 5, 4, 3, 2, 0, 0]])
    at = torch.tensor([[70, 30, 1, 2, 3, 4, 5, 6, -1, -1]])
    shuffle = torch.tensor([3, 9, 0, 5, 7, 1, 2, 8, 6, 4])
    found, where = _with_spread(values, places, sampled[:, shuffle], at[:, shuffle], 3)
    assert found.tolist() == [[9, 8, 6, 4, 2]]  # of the six left over: the middle of each third
    assert where.tolist() == [[70, 30, 2, 4, 6]]


def test_compact_files_hold_the_same_in_fewer_bytes(model, dictionaries, texts, made, tmp_path):
    collect(model, dictionaries, texts, tmp_path, compact=True)
    for name in ("examples", "statistics"):
        small, whole = (load_file(folder / SAE_PATH / f"{name}.safetensors") for folder in (tmp_path, made))
        assert small.keys() == whole.keys()
        for key, tensor in whole.items():
            assert small[key].element_size() <= tensor.element_size()
            if tensor.is_floating_point():
                assert torch.allclose(small[key].double(), tensor.double(), rtol=1e-3, atol=1e-6), key
            else:
                assert torch.equal(small[key].long(), tensor.long()), key
    assert sum(map(len, files_in(tmp_path).values())) < 0.65 * sum(map(len, files_in(made).values()))


def test_what_float16_cannot_hold_stays_float32():
    from gemlens.study.evidence import compacted

    found = compacted({"a": torch.tensor([70000.0]), "b": torch.tensor([300]), "c": torch.tensor([1 << 20])})
    assert [tensor.dtype for tensor in found.values()] == [torch.float32, torch.int16, torch.int32]


def test_a_feature_that_never_fires_has_empty_slots(model, texts, tmp_path):
    sae = random_sae(model, "resid_post.2", category="", id="silent")
    sae.threshold.fill_(1e9)
    collect(model, [sae], texts, tmp_path)
    found = load_file(tmp_path / "silent/examples.safetensors") | load_file(tmp_path / "silent/statistics.safetensors")
    assert (found["seq_ids"] == -1).all() and not found["activations"].any() and not found["histogram"].any()
    assert not found["feature_frequencies"].any() and len(found["tokens"]) == 1
    assert (found["coactive"] == -1).all()


# Through kills


class Killed(BaseException):
    pass


@pytest.mark.parametrize("killed_at", [0, 1, 7, 18])
def test_killed_between_passes_it_goes_on_and_reads_nothing_twice(
    made, model, dictionaries, texts, tmp_path, monkeypatch, killed_at
):
    monkeypatch.setattr(collecting, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(collecting, "_SAVING", 0)
    find, batches = collecting.finder(model, dictionaries), []

    def passes(given):
        for batch in given:
            if len(batches) == killed_at:
                raise Killed
            batches.append(batch)
            yield find(batch)

    with pytest.raises(Killed):
        collect(model, dictionaries, texts, tmp_path, passes=passes)
    assert (tmp_path / COLLECTING).exists() == (killed_at > 0)
    done, killed_at = len(batches), None
    collect(model, dictionaries, texts, tmp_path, passes=passes)
    assert files_in(tmp_path) == files_in(made)
    assert len(batches) == 19 and done < 19


@pytest.mark.parametrize("written", range(6))
def test_killed_while_it_writes_it_goes_on_to_the_same_bytes(
    made, model, dictionaries, texts, tmp_path, monkeypatch, written
):
    """Before each file gets its name: the checkpoint, the sequences, and both files of both dictionaries."""
    replace, seen = Path.replace, []

    def kill(path, target):
        seen.append(target)
        if len(seen) == written + 1:
            raise Killed
        return replace(path, target)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, "replace", kill)
        collect(model, dictionaries, texts, tmp_path)
    assert len(seen) == written + 1
    collect(model, dictionaries, texts, tmp_path)
    assert files_in(tmp_path) == files_in(made)


WORKER = """
import os, sys, torch
torch.set_num_threads(1)
from pathlib import Path
from gemlens.study import collect
from test_collect_features import collect as run, random_sae, random_transcoders, tiny_gemma
from gemlens.data.corpus import documents
collect.SAVE_SECONDS, collect._SAVING = 0.0, 0
model = tiny_gemma()
dictionaries = [random_sae(model, "resid_post.2", category="resid_post", id="one"), random_transcoders(model)[3]]
print("ready", flush=True)
for line in sys.stdin:  # a process for each run, without the seconds of its imports
    if not (child := os.fork()):
        run(model, dictionaries, documents([sys.argv[1]]), Path(line.strip()))
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


def test_killed_at_20_random_moments_it_ends_with_the_same_bytes(made, texts, tmp_path):
    """kill -9 of real processes, while they read, save and write."""
    rng, midway, kills = random.Random(7), 0, 0
    command = [sys.executable, "-c", WORKER, str(texts[0].parent)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent
    ) as process:

        def start(folder):
            process.stdin.write(f"{folder}\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        assert process.stdout.readline() == "ready\n"
        begun = time.monotonic()
        start(tmp_path / "timed")
        assert process.stdout.readline() == "0\n"
        whole = time.monotonic() - begun
        folder = tmp_path / "killed"
        while kills < 20:
            child = start(folder)
            time.sleep(rng.uniform(0, whole / 4))
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            if process.stdout.readline() == "0\n":  # it had ended, all of it
                assert files_in(folder) == files_in(made)
                shutil.rmtree(folder)
                continue
            kills += 1
            midway += (folder / COLLECTING).exists()
        start(folder)
        assert process.stdout.readline() == "0\n"
        process.stdin.close()
    assert files_in(folder) == files_in(made)
    assert midway >= 3, "hardly a kill fell into the work"


def test_the_same_command_again_finds_everything_there(made, model, dictionaries, texts, monkeypatch):
    before = files_in(made)
    monkeypatch.setattr(collecting, "finder", None)
    assert collect(model, dictionaries, texts, made).tokens == 9000
    assert files_in(made) == before


# What is refused


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokens": 0}, "tokens 0"),
        ({"row_length": 3}, "row length 3"),
        ({"row_length": 1000}, "row length 1000: take 4 to 128"),
        ({"examples": 0}, "examples 0"),
        ({"quantiles": 7}, "quantiles 7"),
        ({"quantiles": -1}, "quantiles -1"),
    ],
)
def test_numbers_out_of_range_are_refused(model, dictionaries, texts, tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        collect(model, dictionaries, texts, tmp_path / "new", **changes)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("text", ["", "the cat"])
def test_a_text_for_less_than_a_row_is_refused(model, dictionaries, tmp_path, text):
    (tmp_path / "few.txt").write_text(text)
    with pytest.raises(InputError, match="fills no row of 16 tokens"):
        collect(model, dictionaries, documents([tmp_path / "few.txt"]), tmp_path / "out")
    assert files_in(tmp_path / "out") == {}


def test_a_text_that_ends_early_is_read_to_its_end(model, dictionaries, tmp_path):
    (tmp_path / "few.txt").write_text("the cat and the dog sat in the sun. " * 3)
    result = collect(model, dictionaries, documents([tmp_path / "few.txt"]), tmp_path / "out")
    assert 15 <= result.tokens < 9000 and result.tokens % 15 == 0


def test_what_is_no_text_is_refused(model, dictionaries, tmp_path):
    (tmp_path / "bad.txt").write_bytes(bytes(range(256)) * 10)
    with pytest.raises(InputError, match=r"bad\.txt is not UTF-8 text"):
        collect(model, dictionaries, documents([tmp_path / "bad.txt"]), tmp_path / "out")


def test_dictionaries_of_another_model_or_of_one_name_are_refused(model, dictionaries, texts, tmp_path):
    with pytest.raises(MismatchError):
        collect(model, [random_sae(tiny_gemma(hidden=8), "resid_post.2")], texts, tmp_path)
    with pytest.raises(InputError, match="two dictionaries are called resid_post/one"):
        collect(model, [dictionaries[0], dictionaries[0]], texts, tmp_path)
    with pytest.raises(InputError, match="no dictionary was given"):
        collect(model, [], texts, tmp_path)


def test_other_evidence_is_never_mixed_in(made, model, dictionaries, texts, tmp_path):
    before = files_in(made)
    with pytest.raises(InputError, match="is of another collection"):
        collect(model, dictionaries, texts, made, examples=7)
    with pytest.raises(InputError, match="is missing beside"):
        collect(model, [*dictionaries, random_transcoders(model)[4]], texts, made)
    assert files_in(made) == before


def test_a_checkpoint_of_other_work_is_refused_by_what_differs(model, dictionaries, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(collecting, "SAVE_SECONDS", 0.0)

    def stopping(given):
        yield collecting.finder(model, dictionaries)(next(iter(given)))
        raise Killed

    with pytest.raises(Killed):
        collect(model, dictionaries, texts, tmp_path, passes=stopping)
    with pytest.raises(InputError, match="seed 0 there, 1 asked for"):
        collect(model, dictionaries, texts, tmp_path, seed=1)
    (tmp_path / COLLECTING).write_bytes(b"no checkpoint")
    with pytest.raises(WeightsError, match=re.escape(COLLECTING)):
        collect(model, dictionaries, texts, tmp_path)


def test_a_folder_that_cannot_be_written_is_told_before_the_work(model, dictionaries, texts, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        collect(model, dictionaries, texts, tmp_path / "file")


def test_what_is_too_wide_to_be_counted_in_pairs_is_noted(model, dictionaries, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(collecting, "COACTIVATION_WIDTH", 39)
    result = collect(model, dictionaries, texts, tmp_path)
    assert [note for note in result.notes if SAE_PATH in note and "39 at most" in note]
    assert (load_file(tmp_path / SAE_PATH / "statistics.safetensors")["coactive"] == -1).all()


def test_memory_does_not_grow_with_the_text(model, dictionaries):
    """What is held after much text is no more than after little."""
    held = []
    found = Strongest(40, EXAMPLES)
    for step in range(60):
        found.add(torch.randint(40, (5000,)), torch.rand(5000) + 0.01, torch.arange(5000) + 5000 * step)
        held.append(found._held)
    assert max(held[30:]) < 5000
