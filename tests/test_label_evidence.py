"""Labels from a real ``examples.safetensors``: the one place where labels meet evidence."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from cli_helpers import ID, assert_refused, make_world, run
from gemlens.scope.labels import LabelStore

WIDTH, SLOTS, SEQUENCES, LENGTH = 40, 6, 40, 24


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Feature f fires on token 300 + f, once in each of six sequences; feature 0 never fires."""
    made = make_world(tmp_path_factory.mktemp("world"))
    draw = np.random.default_rng(0)
    tokens = draw.integers(262, 290, (SEQUENCES, LENGTH)).astype(np.int32)
    tokens[:, 0] = 2
    activations = np.zeros((WIDTH, SLOTS), np.float32)
    positions, seq_ids = np.zeros((WIDTH, SLOTS), np.int32), np.full((WIDTH, SLOTS), -1, np.int64)
    for feature in range(1, WIDTH):
        seq_ids[feature] = draw.choice(SEQUENCES, SLOTS, replace=False)
        positions[feature] = 1 + (feature - 1) % (LENGTH - 1)
        activations[feature] = np.arange(SLOTS, 0, -1)
        tokens[seq_ids[feature], positions[feature]] = 300 + feature
    # Later features overwrite earlier ones' tokens at the same place: only what is left is evidence.
    for feature in range(1, WIDTH):
        gone = tokens[seq_ids[feature], positions[feature]] != 300 + feature
        activations[feature, gone], seq_ids[feature, gone] = 0, -1
    tensors = {
        "activations": activations, "positions": positions, "seq_ids": seq_ids, "tokens": tokens,
        "feature_frequencies": (seq_ids >= 0).sum(1) / (SEQUENCES * (LENGTH - 1)),
    }  # fmt: skip
    about = {"model_id": str(made.model), "tokens": SEQUENCES * LENGTH}
    save_file(tensors, made.release / ID / "examples.safetensors", metadata={"gemlens": json.dumps(about)})
    return made


def test_auto_labels_name_the_token_that_the_evidence_has(world, capsys, label_home):
    ran = run(capsys, "labels", "auto", "--sae-release", world.release, "--sae-id", ID)
    assert ran.code == 0, ran.err
    with LabelStore() as store:
        found = store.of((world.release.resolve() / ID).as_posix())
    from tiny import tiny_tokenizer

    vocabulary = tiny_tokenizer()
    assert 0 not in found
    for feature, (label,) in found.items():
        token = vocabulary.convert_ids_to_tokens(300 + feature).replace("▁", " ").strip().casefold()
        assert f"“{token}”" in label.text
    assert len(found) > 30


def test_base_rates_of_find_are_the_evidences(world, capsys, label_home):
    names = ["--model-id", world.model, "--sae-release", world.release, "--sae-id", ID]
    ran = run(capsys, "find", "the ship", "--json", "--limit", "40", *names)
    assert "their mean is taken" not in ran.err
    assert all(each["base_rate"] < 0.01 for each in json.loads(ran.out))


def test_a_dictionary_without_evidence_is_one_line(world, capsys, label_home):
    other = "resid_post/layer_5_width_40_l0_small"
    assert_refused(
        run(capsys, "labels", "auto", "--sae-release", world.release, "--sae-id", other), "examples.safetensors"
    )
