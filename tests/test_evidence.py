"""Evidence files: what is written is read again, a feature at a time, and damage is told from absence."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from evidence_sample import examples_of, random_case, statistics_of, write_evidence, write_google
from gemlens.errors import GemlensError, InputError, NotFoundError, WeightsError
from gemlens.parts import LocalParts
from gemlens.scope.evidence import evidence_at_hand, load_evidence
from gemlens.scope.examples import write_examples
from gemlens.scope.slices import SliceFile, write_safetensors
from gemlens.scope.statistics import write_statistics
from tiny import published_config, random_tensors, write_dictionary

ID = "resid_post/layer_2_width_40_l0_small"


@pytest.fixture
def case():
    return random_case()


@pytest.fixture
def release(tmp_path, case):
    folder = write_dictionary(tmp_path / "scope" / ID, random_tensors(16, 40), published_config(2))
    write_evidence(folder, *case)
    return tmp_path / "scope"


def changed(path, **tensors):
    """Write a file of examples again with other tensors; None takes one away."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    stored = load_file(path) | tensors
    save_file({name: each for name, each in stored.items() if each is not None}, path, header.get("__metadata__"))


# Files read in slices


DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16]


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int8, torch.uint8])
def test_rows_are_those_that_safetensors_reads(tmp_path, dtype):
    tensor = (torch.randn(30, 7) * 50).clamp(0, 120).to(dtype)
    save_file({"a": tensor, "b": torch.zeros(3, 2)}, tmp_path / "x.safetensors")
    file = SliceFile(LocalParts(tmp_path / "x.safetensors"))
    a, b, again = file.rows([("a", [29, 3, 4, 5, 0]), ("b", [1]), ("a", range(2, 9))])
    np.testing.assert_array_equal(a, tensor[[29, 3, 4, 5, 0]].double().numpy())
    np.testing.assert_array_equal(again, tensor[2:9].double().numpy())
    assert b.shape == (1, 2)
    assert a.dtype == (
        np.int64 if not dtype.is_floating_point else np.float64 if dtype == torch.float64 else np.float32
    )
    np.testing.assert_array_equal(file.all("a"), tensor.double().numpy())


def test_the_writer_writes_what_safetensors_reads_and_the_same_bytes_again(tmp_path):
    tensors = {f"t{i}": torch.randn(5, 3).to(dtype) for i, dtype in enumerate([*DTYPES, torch.uint8])}
    metadata = {f"key {i}": "ü\n" * i for i in range(9)}
    write_safetensors(tmp_path / "a", tensors, metadata)
    write_safetensors(tmp_path / "b", dict(reversed(tensors.items())), dict(reversed(metadata.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    found = load_file(tmp_path / "a")
    assert found.keys() == tensors.keys()
    assert all(found[name].dtype == each.dtype and torch.equal(found[name], each) for name, each in tensors.items())
    assert SliceFile(LocalParts(tmp_path / "a")).metadata == metadata
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_what_no_reader_knows_is_not_written(tmp_path):
    with pytest.raises(InputError, match=r"mask holds torch\.bool"):
        write_safetensors(tmp_path / "a", {"mask": torch.zeros(2, dtype=torch.bool)}, {})
    assert not list(tmp_path.iterdir())


def test_no_damage_is_more_than_a_weights_error(tmp_path):
    """Bytes anywhere, header included, may only lead to a typed refusal or to numbers."""
    path = tmp_path / "x.safetensors"
    save_file({"activations": torch.rand(4, 3), "tokens": torch.ones(2, 5, dtype=torch.int32)}, path)
    whole, generator = path.read_bytes(), np.random.default_rng(0)
    # Digits and quotes as well, which leave a header that can be read.
    refused = 0
    for kind in [b"0", b"9", b'"', b"-", b"[", b"}", b"\x00", b"\xff", None] * 60:
        junk = bytes(generator.integers(0, 256, generator.integers(1, 40), dtype=np.uint8)) if kind is None else kind
        at = int(generator.integers(0, len(whole)))
        path.write_bytes(whole[:at] + junk + whole[at + len(junk) :])
        try:
            file = SliceFile(LocalParts(path))
            for name in file.names:
                file.all(name)
        except WeightsError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 100


# One feature


def test_a_feature_is_what_a_full_sort_says(release, case):
    activations, tokens = case
    evidence = load_evidence(str(release), ID)
    assert evidence.info.site == "resid_post.2"
    assert (evidence.examples.width, evidence.examples.sequences, evidence.examples.length) == (40, 12, 40)
    flat = activations.reshape(-1, 40)
    for feature in range(40):
        found = evidence.examples.feature(feature)
        fired = flat[:, feature]
        want = fired.sort(descending=True).values[:16]
        want = want[want > 0]
        np.testing.assert_allclose(found.activations, want.numpy(), rtol=1e-3)
        at = activations[found.seq_ids, found.positions, feature]
        np.testing.assert_allclose(found.activations, at.numpy(), rtol=1e-3)
        assert found.frequency == pytest.approx(float((fired > 0).sum()) / int(((tokens != 2) & (tokens != 0)).sum()))
        assert found.logit_effects is None
        assert len(found.top) == len(found.bottom) == 10
    assert len(evidence.examples.feature(3).activations) == 0
    rows = evidence.examples.token_rows([7, 2, 7])
    assert sorted(rows) == [2, 7]
    np.testing.assert_array_equal(rows[7], tokens[7].numpy())


def test_googles_own_files_are_read(tmp_path, case):
    folder = write_dictionary(tmp_path / ID, random_tensors(16, 40), published_config(2))
    tensors = examples_of(*case, k=20)
    tensors["logit_effects"] = torch.randn(40, 20)
    write_google(folder, tensors, pad_header=3)
    evidence = load_evidence(str(tmp_path), ID)
    assert evidence.statistics is None
    assert evidence.model_id == "google/gemma-3-270m-it"
    found = evidence.examples.feature(11)
    np.testing.assert_array_equal(found.activations, tensors["activations"][11].double().numpy())
    np.testing.assert_array_equal(found.logit_effects, tensors["logit_effects"][11].double().numpy())
    assert found.top == tuple(zip(tensors["top_tokens"][11].tolist(), tensors["top_logits"][11].tolist(), strict=True))


def test_what_is_not_sorted_is_sorted(tmp_path, case):
    folder = write_dictionary(tmp_path / ID, random_tensors(16, 40), published_config(2))
    tensors = examples_of(*case, k=10)
    turned = {
        name: each.flip(1) if each.shape == (40, 10) and "_" not in name[:4] else each for name, each in tensors.items()
    }
    turned["seq_ids"] = tensors["seq_ids"].flip(1)
    write_google(folder, turned)
    found = load_evidence(str(tmp_path), ID).examples.feature(8)
    np.testing.assert_array_equal(found.seq_ids, tensors["seq_ids"][8].numpy())
    assert (np.diff(found.activations) <= 0).all()


def test_tokens_may_lie_in_a_file_of_the_release(tmp_path, case):
    root = tmp_path / "scope"
    folder = write_dictionary(root / ID, random_tensors(16, 40), published_config(2))
    write_evidence(folder, *case, tokens_file="../../tokens.safetensors")
    for release, name in ((root, ID), (root / ID, "")):
        evidence = load_evidence(str(release), name)
        np.testing.assert_array_equal(evidence.examples.token_rows([5])[5], case[1][5].numpy())


@pytest.mark.parametrize("named", ["../../../tokens.safetensors", "/etc/passwd", "../../../../x"])
def test_tokens_outside_of_the_release_are_not_read(tmp_path, case, named):
    root = tmp_path / "scope"
    folder = write_dictionary(root / ID, random_tensors(16, 40), published_config(2))
    write_evidence(folder, *case)
    save_file({"tokens": case[1]}, tmp_path / "tokens.safetensors")
    stored = load_file(folder / "examples.safetensors")
    del stored["tokens"]
    save_file(stored, folder / "examples.safetensors", {"tokens": named})
    with pytest.raises(WeightsError, match="outside of its release"):
        load_evidence(str(root), ID)


def test_statistics_are_read_a_feature_at_a_time(release, case):
    want = statistics_of(*case, random_tensors(16, 40)["w_dec"])
    statistics = load_evidence(str(release), ID).statistics
    for feature in (0, 3, 39):
        found = statistics.feature(feature)
        assert found.keys() == want.keys()
        for name, each in want.items():
            np.testing.assert_array_equal(found[name], each[feature].numpy(), err_msg=name)
    silent = statistics.feature(3)
    assert statistics.pairs(silent, "coactive") == []
    assert len(statistics.pairs(silent, "neighbours")) == 6


# Without statistics, the decoder says what it can


def test_neighbours_and_direction_come_from_the_decoder(tmp_path, case):
    tensors = random_tensors(16, 40)
    folder = write_dictionary(tmp_path / ID, tensors, published_config(2))
    write_google(folder, examples_of(*case, k=4))
    evidence = load_evidence(str(tmp_path), ID)
    unit = torch.nn.functional.normalize(tensors["w_dec"], dim=1)
    np.testing.assert_allclose(evidence.direction(5), unit[5].numpy(), rtol=1e-5)
    cosines = unit @ unit[5]
    cosines[5] = -2
    want = cosines.topk(7)
    found = evidence.nearest(5, 7)
    assert [index for index, _ in found] == want.indices.tolist()
    np.testing.assert_allclose([value for _, value in found], want.values.numpy(), rtol=1e-5)
    (folder / "params.safetensors").unlink()
    bare = load_evidence(str(tmp_path), ID)
    assert bare.direction(5) is None
    assert bare.nearest(5, 7) == []


# Found by name


def test_the_only_evidence_needs_no_name_and_several_do(release, case):
    assert load_evidence(str(release)).info.id == "layer_2_width_40_l0_small"
    assert load_evidence(str(release / ID)).examples.width == 40
    assert load_evidence(str(release), "layer_2_width_40_l0_small", category="resid_post").info.category == "resid_post"
    other = write_dictionary(release / ID.replace("2", "5", 1), random_tensors(16, 40), published_config(5))
    write_evidence(other, *case)
    with pytest.raises(NotFoundError, match="holds evidence of several dictionaries; name one: resid_post/layer_2"):
        load_evidence(str(release))
    with pytest.raises(NotFoundError, match="did you mean resid_post/layer_5"):
        load_evidence(str(release), "resid_post/layer_6_width_40_l0_small")


def test_a_dictionary_without_evidence_says_how_to_make_it(tmp_path):
    write_dictionary(tmp_path / ID, random_tensors(16, 40), published_config(2))
    with pytest.raises(NotFoundError, match=f"gemlens collect features --sae-release {tmp_path} --sae-id {ID}"):
        load_evidence(str(tmp_path), ID)


def test_evidence_is_at_hand_or_is_not(release):
    info = load_evidence(str(release), ID).info
    assert evidence_at_hand(info).examples.width == 40
    (release / ID / "statistics.safetensors").write_bytes(b"junk")
    assert evidence_at_hand(info) is None
    (release / ID / "examples.safetensors").unlink()
    assert evidence_at_hand(info) is None


# Bad input


def refused(release, words, feature=1):
    with pytest.raises(GemlensError, match=words) as caught:
        evidence = load_evidence(str(release), ID)
        found = evidence.examples.feature(feature)
        evidence.examples.token_rows(found.seq_ids.tolist())
        if evidence.statistics:
            evidence.statistics.feature(feature)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, WeightsError | NotFoundError)


@pytest.mark.parametrize("feature", [-1, 40, 10**9])
def test_a_feature_that_does_not_exist(release, feature):
    refused(release, f"there is no feature {feature} in .*: it has 0 to 39", feature)


def test_examples_of_another_width(release):
    path = release / ID / "examples.safetensors"
    stored = load_file(path)
    changed(path, **{name: each[:39] for name, each in stored.items() if len(each) == 40})
    refused(release, "has examples of 39 features, the dictionary beside it has 40")


@pytest.mark.parametrize("name", ["positions", "feature_frequencies", "top_tokens"])
def test_tensors_of_several_widths(release, name):
    path = release / ID / "examples.safetensors"
    changed(path, **{name: load_file(path)[name][:39]})
    refused(release, f"{name} has shape")


@pytest.mark.parametrize("name", ["activations", "seq_ids", "tokens", "feature_frequencies"])
def test_a_missing_tensor(release, name):
    changed(release / ID / "examples.safetensors", **{name: None})
    refused(release, f"lacks {name}; it holds")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("seq_ids", 12, "a sequence out of range: there are 12"),
        ("seq_ids", -2, "a sequence out of range"),
        ("positions", 40, "a position out of range: sequences have 40 tokens"),
        ("positions", -1, "a position out of range"),
        ("activations", float("nan"), "not finite"),
        ("activations", float("inf"), "not finite"),
    ],
)
def test_indices_out_of_range_and_numbers_that_are_none(release, name, value, words):
    path = release / ID / "examples.safetensors"
    tensor = load_file(path)[name]
    tensor[1, 0] = value
    changed(path, **{name: tensor})
    refused(release, f"feature 1 has .*{words}")
    assert len(load_evidence(str(release), ID).examples.feature(2).activations) == 16  # the others are as they were


def test_a_neighbour_that_does_not_exist(release):
    path = release / ID / "statistics.safetensors"
    tensor = load_file(path)["neighbours"]
    tensor[1, 2] = 40
    changed(path, neighbours=tensor)
    refused(release, "feature 1 has a neighbour out of range")


def test_statistics_of_another_width(release):
    path = release / ID / "statistics.safetensors"
    changed(path, **{name: each[:30] for name, each in load_file(path).items()})
    refused(release, "the examples beside it 40 features")


@pytest.mark.parametrize("name", ["examples.safetensors", "statistics.safetensors"])
@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_files(release, name, keep):
    path = release / ID / name
    path.write_bytes(path.read_bytes()[:keep])
    refused(release, f"{name} is truncated or damaged")


def test_the_writers_refuse_what_they_could_not_read(tmp_path, case):
    found = examples_of(*case, k=4)
    with pytest.raises(InputError, match="examples need seq_ids"):
        write_examples(tmp_path / "x", {k: v for k, v in found.items() if k != "seq_ids"}, about={})
    with pytest.raises(InputError, match="positions has shape"):
        write_examples(tmp_path / "x", found | {"positions": found["positions"][:, :2]}, about={})
    with pytest.raises(InputError, match="tokens_file"):
        write_examples(tmp_path / "x", found, about={}, tokens_file="../tokens.safetensors")
    statistics = statistics_of(*case, random_tensors(16, 40)["w_dec"])
    with pytest.raises(InputError, match="no statistic"):
        write_statistics(tmp_path / "x", statistics | {"mystery": torch.zeros(40)}, about={})
    with pytest.raises(InputError, match="go together"):
        write_statistics(tmp_path / "x", {"basis": statistics["basis"]}, about={})
    assert not list(tmp_path.iterdir())
