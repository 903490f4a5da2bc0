"""Dictionaries load from the layout that Gemma Scope 2 publishes; what is wrong with a file is said, not guessed.

The files here are written by hand (``tiny.write_dictionary``), never by gemlens.
"""

from __future__ import annotations

import json
import pickle
import random
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fake_hub import FakeHub, connected
from gemlens.errors import GemlensError, MissingPackageError, NotFoundError, WeightsError
from gemlens.scope import load as load_module
from gemlens.scope.load import load_sae, split_id
from gemlens.scope.sae import SAE
from gemlens.scope.starter import STARTER_DICTIONARY, starter_root
from tiny import files_below, published_config, random_tensors, write_dictionary

D, WIDTH = 8, 40
NAME = "layer_2_width_16k_l0_small"
PATH = f"resid_post/{NAME}"
TRANSCODER = {
    "hf_hook_point_in": "model.layers.2.pre_feedforward_layernorm.output",
    "hf_hook_point_out": "model.layers.2.post_feedforward_layernorm.output",
    "type": "transcoder",
    "affine_connection": True,
}


@pytest.fixture
def release(tmp_path) -> Path:
    """A folder laid out as a hub repository, with one SAE in it."""
    root = tmp_path / "gemma-scope-2-270m-it"
    write_dictionary(root / PATH, random_tensors(D, WIDTH), published_config())
    return root


def rewrite(release, *, without=(), config=None, **changes):
    """Write the one dictionary again, with other tensors or another config."""
    tensors = {name: t for name, t in (random_tensors(D, WIDTH) | changes).items() if name not in without}
    write_dictionary(release / PATH, tensors, config if config is not None else published_config())


def refused(kind, release, sae_id=PATH, **options):
    with pytest.raises(kind) as caught:
        load_sae(str(release), sae_id, **options)
    assert caught.type is kind
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def assert_holds(sae, tensors):
    """The dictionary computes the published formula with these tensors."""
    x = torch.randn(5, tensors["w_enc"].shape[0], generator=torch.Generator().manual_seed(1))
    pre = x @ tensors["w_enc"].float() + tensors["b_enc"].float()
    acts = torch.relu(pre) * (pre > tensors["threshold"].float())
    recon = acts @ tensors["w_dec"].float() + tensors["b_dec"].float()
    if "affine_skip_connection" in tensors:
        recon = recon + x @ tensors["affine_skip_connection"].float()
    assert acts.count_nonzero()
    torch.testing.assert_close(sae.encode(x).dense(), acts)
    torch.testing.assert_close(sae.reconstruct(x), recon)


# What works


def test_the_published_layout(release):
    sae = load_sae(str(release), PATH)
    assert_holds(sae, random_tensors(D, WIDTH))
    assert (str(sae.reads), str(sae.writes), sae.is_transcoder) == ("resid_post.2", "resid_post.2", False)
    info = sae.info
    assert (info.release, info.category, info.id, info.path) == (str(release), "resid_post", NAME, PATH)
    assert (info.site, info.layer, info.width) == ("resid_post.2", 2, WIDTH)
    assert (info.model_name, info.revision, info.neuronpedia) == ("google/gemma-3-270m-it", None, None)


@pytest.mark.parametrize(
    ("sae_id", "category", "expected"),
    [
        (PATH, None, ("resid_post", NAME)),
        (NAME, "resid_post", ("resid_post", NAME)),
        (PATH, "mlp_out", ("resid_post", NAME)),
        (f"/{PATH}/", None, ("resid_post", NAME)),
        (NAME, None, ("", NAME)),
    ],
)
def test_the_category_in_the_id_wins(sae_id, category, expected, release):
    assert split_id(sae_id, category) == expected
    if expected[0]:
        assert load_sae(str(release), sae_id, category=category).info.path == PATH


def test_a_folder_that_holds_the_files_itself(release):
    sae = load_sae(str(release / PATH), NAME)
    assert_holds(sae, random_tensors(D, WIDTH))
    assert (sae.info.category, sae.info.id) == ("", NAME)
    assert load_sae(str(release / "resid_post"), NAME).info.id == NAME


def test_from_the_hub_with_the_commit_it_came_from(release, hub_home):
    name = "org/gemma-scope-2-tiny"
    with FakeHub({name: files_below(release)}) as hub, connected(hub.url, home=hub_home):
        sae = load_sae(name, PATH)
        assert_holds(sae, random_tensors(D, WIDTH))
        assert (sae.info.release, sae.info.revision) == (name, hub[name].commit)
        assert load_sae(name, PATH, revision=hub[name].commit).info.revision == hub[name].commit
        assert "did you mean layer_2_width_16k_l0_small" in refused(NotFoundError, name, PATH.replace("small", "big"))
        assert "org/absent does not exist" in refused(NotFoundError, "org/absent")
    with connected(hub.url, home=hub_home, offline=True):
        assert_holds(load_sae(name, PATH), random_tensors(D, WIDTH))


def test_from_the_hub_without_config(release, hub_home):
    (release / PATH / "config.json").unlink()
    with FakeHub({"org/scope": files_below(release)}) as hub, connected(hub.url, home=hub_home):
        assert str(load_sae("org/scope", PATH).reads) == "resid_post.2"
    # What the hub does not have is remembered, so this is a dictionary that works offline, too.
    with connected(hub.url, home=hub_home, offline=True):
        assert str(load_sae("org/scope", PATH).reads) == "resid_post.2"


def test_a_config_that_was_never_fetched_is_not_taken_for_missing(release, hub_home):
    with FakeHub({"org/scope": files_below(release)}) as hub, connected(hub.url, home=hub_home):
        load_sae("org/scope", PATH)
    for config in hub_home.rglob("config.json"):
        config.unlink()
    with connected(hub.url, home=hub_home, offline=True), pytest.raises(GemlensError, match="HF_HUB_OFFLINE is set"):
        load_sae("org/scope", PATH)


@pytest.mark.parametrize("skip", [True, False])
def test_a_transcoder_reads_the_mlps_input_and_writes_its_output(skip, release):
    tensors = random_tensors(D, WIDTH, d_out=5, skip=skip)
    config = published_config(**(TRANSCODER | {"affine_connection": skip}))
    write_dictionary(release / "transcoder_all" / NAME, tensors, config)
    sae = load_sae(str(release), f"transcoder_all/{NAME}")
    assert (str(sae.reads), str(sae.writes), sae.is_transcoder) == ("mlp_in.2", "mlp_out.2", True)
    assert (sae.skip is not None) is skip
    assert_holds(sae, tensors)


@pytest.mark.parametrize(
    ("category", "reads", "writes"),
    [
        ("resid_post", "resid_post.2", "resid_post.2"),
        ("resid_post_all", "resid_post.2", "resid_post.2"),
        ("attn_out", "attn_out.2", "attn_out.2"),
        ("attn_out_all", "attn_out.2", "attn_out.2"),
        ("mlp_out_all", "mlp_out.2", "mlp_out.2"),
        ("transcoder", "mlp_in.2", "mlp_out.2"),
        ("transcoder_all", "mlp_in.2", "mlp_out.2"),
    ],
)
@pytest.mark.parametrize("config", [None, {}, {"width": WIDTH, "hf_hook_point_in": None}])
def test_without_hook_points_the_path_says_what_is_read(category, reads, writes, config, release):
    write_dictionary(release / category / "layer_2_width_16k_l0_big", random_tensors(D, WIDTH), config)
    sae = load_sae(str(release), f"{category}/layer_2_width_16k_l0_big")
    assert (str(sae.reads), str(sae.writes)) == (reads, writes)
    assert sae.info.model_name is None


def test_the_config_is_right_where_the_path_says_something_else(release):
    write_dictionary(release / "mlp_out" / "layer_5_mine", random_tensors(D, WIDTH), published_config(layer=3))
    assert str(load_sae(str(release), "mlp_out/layer_5_mine").reads) == "resid_post.3"


@pytest.mark.parametrize("written", ["google/gemma-v3-270m-it", "google/gemma-3-270m-it"])
def test_both_spellings_of_the_model_are_one(written, release):
    rewrite(release, config=published_config(model_name=written))
    assert load_sae(str(release), PATH).info.model_name == "google/gemma-3-270m-it"


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float64])
def test_files_in_another_dtype_compute_in_float32(stored, release):
    tensors = {name: tensor.to(stored) for name, tensor in random_tensors(D, WIDTH).items()}
    rewrite(release, **tensors)
    sae = load_sae(str(release), PATH)
    assert sae.b_enc.dtype == torch.float32
    assert_holds(sae, tensors)
    assert load_sae(str(release), PATH, dtype=torch.bfloat16).encode(torch.ones(1, D)).values.dtype == torch.bfloat16


def test_tensors_that_nobody_knows_are_left_alone(release):
    rewrite(release, extra=torch.zeros(3))
    assert_holds(load_sae(str(release), PATH), random_tensors(D, WIDTH))


@pytest.mark.parametrize(
    ("repo", "path", "expected"),
    [
        ("270m-pt", "resid_post/layer_12_width_16k_l0_medium", "gemma-3-270m/12-gemmascope-2-res-16k"),
        ("4b-it", "resid_post/layer_17_width_262k_l0_medium", "gemma-3-4b-it/17-gemmascope-2-res-262k"),
        ("270m-pt", "resid_post_all/layer_12_width_16k_l0_medium", None),
        ("270m-pt", "resid_post/layer_12_width_16k_l0_small", None),
    ],
)
def test_neuronpedia_is_named_for_exactly_this_dictionary(repo, path, expected, release, hub_home):
    write_dictionary(release / path, random_tensors(D, WIDTH))
    name = f"google/gemma-scope-2-{repo}"
    with FakeHub({name: files_below(release)}) as hub, connected(hub.url, home=hub_home):
        assert load_sae(name, path).info.neuronpedia == expected


# The starter


def test_the_starter_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "gemlens_starter", None)
    with pytest.raises(MissingPackageError, match="pip install"):
        starter_root()
    assert "pip install" in refused(MissingPackageError, "starter", STARTER_DICTIONARY)


def test_the_starter_is_a_folder_like_any_other(monkeypatch, release):
    monkeypatch.setattr(load_module, "starter_root", lambda: release)
    sae = load_sae("starter", PATH)
    assert (sae.info.release, sae.info.path) == ("starter", PATH)
    assert "did you mean resid_post/layer_2" in refused(NotFoundError, "starter", STARTER_DICTIONARY)


def test_a_name_of_another_category_is_suggested_first(tmp_path):
    for layer in (5, 9, 12, 15):
        write_dictionary(tmp_path / f"resid_post/layer_{layer}_width_4k_l0_medium", random_tensors(D, WIDTH))
    transcoder = "transcoder_all/layer_9_width_2k_l0_small_affine"
    write_dictionary(tmp_path / transcoder, random_tensors(D, WIDTH, skip=True))
    message = refused(NotFoundError, tmp_path, "layer_9_width_2k_l0_small_affine", category="resid_post")
    assert message.endswith(f"did you mean {transcoder}?")


# Names


def test_an_unknown_id_gets_the_nearest(release):
    for name in ("layer_2_width_65k_l0_small", "layer_9_width_16k_l0_big"):
        write_dictionary(release / "resid_post" / name, random_tensors(D, WIDTH))
    message = refused(NotFoundError, release, "resid_post/layer_2_width_16k_l0_smal")
    assert f"did you mean {PATH}," in message
    assert "holds no dictionary 'resid_post/layer_2_width_16k_l0_smal'" in message


def test_a_folder_without_dictionaries(tmp_path):
    assert "there are none here" in refused(NotFoundError, tmp_path)


@pytest.mark.parametrize("name", ["no-such-folder", "./none", "/none/at/all", "a/b/c"])
def test_neither_a_folder_nor_a_repository(name):
    assert "is neither a folder nor a hub repository" in refused(NotFoundError, name)


def test_a_path_that_says_nothing_without_config(tmp_path):
    write_dictionary(tmp_path / "mine", random_tensors(D, WIDTH))
    assert "has no config.json that says what it reads" in refused(NotFoundError, tmp_path, "mine")
    write_dictionary(tmp_path / "resid_post" / "mine", random_tensors(D, WIDTH))
    assert "expected CATEGORY/layer_L_" in refused(NotFoundError, tmp_path, "resid_post/mine")


@pytest.mark.parametrize("digits", [7, 5000])
def test_a_huge_layer_number(digits, release):
    name = f"layer_{'9' * digits}_x"
    (release / PATH / "config.json").unlink()
    assert "its path does not" in refused(NotFoundError, release / PATH, f"resid_post/{name}")
    rewrite(release, config=published_config(hf_hook_point_in=f"model.layers.{'9' * digits}.output"))
    assert "is not a site gemlens knows" in refused(NotFoundError, release)


@pytest.mark.parametrize("point", ["model.layers.2.mlp.output", "blocks.2.hook_attn_out", "", 3, ["a"], {}, True])
@pytest.mark.parametrize("key", ["hf_hook_point_in", "hf_hook_point_out"])
def test_an_unknown_hook_point(point, key, release):
    rewrite(release, config=published_config(**{key: point}))
    assert "is not a site gemlens knows" in refused(NotFoundError, release)


# Damage


@pytest.mark.parametrize("keep", [0, 5, 60, 0.5, -1])
def test_a_truncated_file(keep, release):
    file = release / PATH / "params.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    assert "truncated or damaged" in refused(WeightsError, release)


@pytest.mark.parametrize("name", ["w_enc", "w_dec", "b_enc", "b_dec", "threshold"])
def test_a_missing_tensor(name, release):
    rewrite(release, without=[name])
    assert f"lacks {name}; it holds " in refused(WeightsError, release)


@pytest.mark.parametrize("name", ["w_enc", "w_dec", "b_enc", "b_dec", "threshold", "affine_skip_connection"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite(name, value, release):
    tensors = random_tensors(D, WIDTH, skip=True)
    tensors[name].view(-1)[3] = value
    rewrite(release, **tensors)
    assert f"{name} holds values that are not finite" in refused(WeightsError, release)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_tensors_that_are_not_real_numbers(dtype, release):
    rewrite(release, w_enc=torch.ones(D, WIDTH).to(dtype))
    assert "w_enc" in refused(WeightsError, release)


@pytest.mark.parametrize(
    "shapes",
    [
        {"w_enc": (WIDTH, D)},
        {"w_enc": (D, WIDTH - 1)},
        {"w_enc": (D * WIDTH,)},
        {"w_enc": ()},
        {"w_enc": (1, D, WIDTH)},
        {"w_dec": (D, WIDTH)},
        {"w_dec": (WIDTH, D + 1)},
        {"b_enc": (D,)},
        {"b_enc": (WIDTH, 1)},
        {"b_dec": (D + 1,)},
        {"b_dec": ()},
        {"threshold": (1,)},
        {"threshold": ()},
        {"affine_skip_connection": (D, D + 1)},
        {"affine_skip_connection": (D,)},
        {"w_enc": (D, 0), "w_dec": (0, D), "b_enc": (0,), "threshold": (0,)},
        {"w_enc": (0, WIDTH)},
        {"w_dec": (WIDTH, 0), "b_dec": (0,)},
    ],
    ids=str,
)
def test_shapes_that_contradict_each_other(shapes, release):
    rewrite(release, config={}, **{name: torch.zeros(shape) for name, shape in shapes.items()})
    assert re.search("has shape .*, expected", refused(WeightsError, release))


@pytest.mark.parametrize("width", [WIDTH + 1, 16384, "40k", None, [WIDTH], 40.5])
def test_a_width_that_is_not_that_of_the_tensors(width, release):
    rewrite(release, config=published_config(width=width))
    assert "the tensors beside it have 40 features" in refused(WeightsError, release)


@pytest.mark.parametrize("architecture", ["topk", "standard", "", None, ["jump_relu"]])
def test_another_architecture(architecture, release):
    rewrite(release, config=published_config(architecture=architecture))
    assert "gemlens reads jump_relu ones" in refused(WeightsError, release)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"3", b'"jump_relu"', b"\xff\xfe", b"[" * 100_000, b'{"width": 1' + b"0" * 5000],
)
def test_a_damaged_config(content, release):
    (release / PATH / "config.json").write_bytes(content)
    assert "config.json" in refused(WeightsError, release)


def test_pickles_are_never_loaded(release, tmp_path):
    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "exploded",)

    for file in (release / PATH).iterdir():
        file.unlink()
    for name in ("params.pt", "params.npz", "sae.pkl"):
        (release / PATH / name).write_bytes(pickle.dumps(Bomb()))
    refused(WeightsError, release)  # params.npz is a name that gemlens reads
    (release / PATH / "params.npz").unlink()
    refused(NotFoundError, release)
    (release / PATH / "params.safetensors").write_bytes(pickle.dumps(Bomb()))
    refused(WeightsError, release)
    torch.save(
        load_file(write_dictionary(tmp_path / "x", random_tensors(D, WIDTH)) / "params.safetensors"),
        release / PATH / "params.safetensors",
    )
    refused(WeightsError, release)
    assert not (tmp_path / "exploded").exists()


def mutated(content, dice):
    """One to four changes: a byte, a cut, a hole, a repetition."""
    content = bytearray(content)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(content) + 1)
        match dice.randrange(6):
            case 0 | 1 | 2 if content:
                content[at % len(content)] = dice.randrange(256)
            case 3:
                del content[at : at + dice.randint(1, 20)]
            case 4:
                content[at:at] = content[at : at + dice.randint(1, 20)]
            case 5 if dice.random() < 0.3:
                del content[at:]
    return bytes(content)


@pytest.mark.parametrize("name", ["params.safetensors", "config.json"])
@pytest.mark.parametrize("part", ["header", "anywhere"])
def test_random_damage_gives_a_dictionary_or_a_reason(name, part, tmp_path):
    folder = write_dictionary(tmp_path / PATH, random_tensors(3, 5, skip=True), published_config(width=5))
    intact = (folder / name).read_bytes()
    # The tensors follow the header; damage there gives other numbers, or numbers that are not finite.
    end = intact.rindex(b"}") + 1 if part == "header" else len(intact)
    dice, outcomes = random.Random(0), {"loaded": 0, "refused": 0}
    for _ in range(400):
        (folder / name).write_bytes(mutated(intact[:end], dice) + intact[end:])
        try:
            sae = load_sae(str(tmp_path), PATH)
        except GemlensError as error:
            outcomes["refused"] += 1
            assert len(str(error).splitlines()) == 1
            continue
        outcomes["loaded"] += 1
        assert isinstance(sae, SAE)
        sae.reconstruct(torch.ones(2, sae.d_in))
    assert min(outcomes.values()) > 10


def test_any_json_value_anywhere_in_the_config(release):
    values = [None, True, -1, 0, 1e400, "x", "", [], {}, [[]], {"a": 1}, "9" * 5000]
    for key in published_config():
        for value in values:
            (release / PATH / "config.json").write_text(json.dumps(published_config(width=WIDTH) | {key: value}))
            try:
                load_sae(str(release), PATH)
            except GemlensError as error:
                assert len(str(error)) < 1000 or len(str(value)) > 1000
