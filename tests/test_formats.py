"""Every published layout loads and computes its formula; what contradicts itself is refused, naming what and where.

The files are written by hand (``layouts``), never by gemlens.
"""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fake_hub import FakeHub, connected
from gemlens.errors import InputError, NotFoundError, WeightsError
from gemlens.scope.activation import TopK
from gemlens.scope.load import load_clt, load_crosscoder, load_sae, load_transcoder
from gemlens.scope.save import save_sae
from layouts import (
    CLT,
    CROSSCODER,
    GEMMA_SCOPE_1,
    WIDTH,
    D,
    formula,
    random_layers,
    random_weights,
    saelens_config,
    some_x,
    write_circuit_tracer,
    write_circuit_tracer_clt,
    write_gemma_scope_1,
    write_gemma_scope_2,
    write_layers,
    write_saelens,
    write_yaml,
)
from tiny import files_below

RES = "resid_post/layer_2_width_16k_l0_small"


def holds(sae, weights, *, seed=1):
    acts, recon = formula(weights, some_x(seed=seed))
    assert acts.count_nonzero()
    torch.testing.assert_close(sae.encode(some_x(seed=seed)).dense(), acts)
    torch.testing.assert_close(sae.reconstruct(some_x(seed=seed)), recon)
    assert sae.b_enc.dtype == torch.float32


def sites(sae):
    return str(sae.reads), str(sae.writes)


def refused(kind, function, *arguments, **options):
    with pytest.raises(kind) as caught:
        function(*(str(each) for each in arguments), **options)
    assert caught.type is kind
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# Gemma Scope 1


@pytest.mark.parametrize(
    ("path", "expected", "model"),
    [
        (GEMMA_SCOPE_1, ("resid_post.20", "resid_post.20"), "google/gemma-2-2b"),
        ("gemma-scope-9b-pt-att/layer_3/width_16k/average_l0_9", ("attn_out.3", "attn_out.3"), "google/gemma-2-9b"),
        ("gemma-scope-2b-pt-mlp/layer_0/width_65k/average_l0_9", ("mlp_out.0", "mlp_out.0"), "google/gemma-2-2b"),
        ("gemma-scope-9b-it-res/layer_20/width_131k/average_l0_13", ("resid_post.20",) * 2, "google/gemma-2-9b-it"),
        (
            "gemma-scope-2b-pt-transcoders/layer_4/width_16k/average_l0_88",
            ("mlp_in_normalized.4", "mlp_out.4"),
            "google/gemma-2-2b",
        ),
    ],
)
def test_gemma_scope_1(tmp_path, path, expected, model):
    weights = random_weights()
    write_gemma_scope_1(tmp_path / path, weights, scaling_factor=np.ones(WIDTH, np.float32))
    repo, _, inside = path.partition("/")
    for sae in (load_sae(str(tmp_path / repo), inside), load_sae(str(tmp_path), path), load_sae(str(tmp_path / path))):
        holds(sae, weights)
        assert (sites(sae), sae.info.model_name, sae.info.width) == (expected, model, WIDTH)


def test_an_embedding_sae_is_fed_with_what_the_model_has(tmp_path):
    """Trained on e = x / sqrt(d): the features are those of e, the reconstruction is sqrt(d) times that of e."""
    weights = random_weights()
    path = "embedding/width_4k/average_l0_6"
    write_gemma_scope_1(tmp_path / "gemma-scope-2b-pt-res" / path, weights)
    sae = load_sae(str(tmp_path / "gemma-scope-2b-pt-res"), path)
    assert sites(sae) == ("embed", "embed")
    e = some_x()
    acts, recon = formula(weights, e)
    torch.testing.assert_close(sae.encode(e * D**0.5).dense(), acts)
    torch.testing.assert_close(sae.reconstruct(e * D**0.5), recon * D**0.5)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4", "int32", "bool", "complex64", "U3"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_of_other_types(tmp_path, dtype, save):
    weights = random_weights()
    folder = write_gemma_scope_1(tmp_path / GEMMA_SCOPE_1, weights)
    arrays = dict(np.load(folder / "params.npz"))
    save(folder / "params.npz", **arrays | {"W_enc": np.asfortranarray(arrays["W_enc"].astype(dtype))})
    if dtype in (np.float16, np.float64):
        holds(
            load_sae(str(tmp_path), GEMMA_SCOPE_1),
            weights | {"w_enc": torch.tensor(arrays["W_enc"].astype(dtype)).float()},
        )
    else:
        assert "W_enc holds" in refused(WeightsError, load_sae, tmp_path, GEMMA_SCOPE_1)


@pytest.mark.parametrize("name", ["W_enc", "threshold", "extra", "scaling_factor"])
def test_an_npz_with_python_objects_is_never_unpickled(tmp_path, name):
    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "exploded",)

    folder = write_gemma_scope_1(tmp_path / GEMMA_SCOPE_1, random_weights())
    arrays = dict(np.load(folder / "params.npz"))
    np.savez(folder / "params.npz", **arrays | {name: np.array([Bomb()], dtype=object)})
    assert "pickled Python objects" in refused(WeightsError, load_sae, tmp_path, GEMMA_SCOPE_1)
    # The same pickle under a header that says numbers.
    with zipfile.ZipFile(folder / "params.npz", "a") as archive:
        archive.writestr("threshold.npy", pickle.dumps(Bomb()))
    refused(WeightsError, load_sae, tmp_path, GEMMA_SCOPE_1)
    assert not (tmp_path / "exploded").exists()


def test_an_npz_that_claims_more_than_it_holds(tmp_path):
    folder = write_gemma_scope_1(tmp_path / GEMMA_SCOPE_1, random_weights())
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**7, 10**6)})
    with zipfile.ZipFile(folder / "params.npz", "a") as archive:
        archive.writestr("W_enc.npy", header.getvalue())
    assert "not as long as its header says" in refused(WeightsError, load_sae, tmp_path, GEMMA_SCOPE_1)


def test_gemma_scope_1_files_that_do_not_hold_together(tmp_path):
    weights = random_weights()
    folder = tmp_path / GEMMA_SCOPE_1

    def fails(**more):
        return refused(WeightsError, load_sae, write_gemma_scope_1(folder, weights | more))

    assert "W_dec has shape [6, 20], expected [20, 6]; the file is not a Gemma Scope 1" in fails(
        w_dec=weights["w_dec"].T
    )
    assert "b_enc holds values that are not finite" in fails(b_enc=weights["b_enc"] / 0)
    write_gemma_scope_1(folder, weights, scaling_factor=np.full(WIDTH, 2, np.float32))
    assert "scaling_factor other than 1" in refused(WeightsError, load_sae, folder)
    np.savez(folder / "params.npz", W_enc=weights["w_enc"].numpy())
    assert "lacks W_dec, b_dec, b_enc, threshold; it holds W_enc" in refused(WeightsError, load_sae, folder)
    for content in (b"", b"PK\x03\x04", (folder / "params.npz").read_bytes()[:-30]):
        (folder / "params.npz").write_bytes(content)
        assert "truncated or damaged" in refused(WeightsError, load_sae, folder)


def test_a_gemma_scope_1_file_whose_folders_say_nothing(tmp_path):
    write_gemma_scope_1(tmp_path / "mine", random_weights())
    assert "put it below a folder named like its repository" in refused(NotFoundError, load_sae, tmp_path / "mine")
    write_gemma_scope_1(tmp_path / "gemma-scope-2b-pt-res" / "mine", random_weights())
    assert "of which layer" in refused(NotFoundError, load_sae, tmp_path / "gemma-scope-2b-pt-res", "mine")


def test_a_flipped_bit_in_a_member_is_found_by_its_checksum(tmp_path):
    folder = write_gemma_scope_1(tmp_path / GEMMA_SCOPE_1, random_weights())
    content = bytearray((folder / "params.npz").read_bytes())
    at = content.index(random_weights()["w_dec"].numpy().tobytes())
    content[at] ^= 1
    (folder / "params.npz").write_bytes(content)
    assert "truncated or damaged (Bad CRC-32" in refused(WeightsError, load_sae, folder)


# Gemma Scope 2


def test_a_skip_is_applied_from_the_left_in_every_layout(tmp_path):
    """S[0, 1] = 1: input 0 goes to output 1. Some layouts store S, some S.T."""
    weights = {name: torch.zeros_like(each) for name, each in random_weights(skip=True).items()}
    weights["skip"][0, 1] = 1
    write_gemma_scope_2(tmp_path / "a/transcoder/layer_2_width_16k_l0_small_affine", weights)
    config = saelens_config("jumprelu_skip_transcoder", hook="blocks.2.mlp.hook_in", d_out=D)
    config["metadata"]["hook_name_out"] = "blocks.2.hook_mlp_out"
    write_saelens(tmp_path / "b", weights, config)
    write_circuit_tracer(tmp_path / "c", weights)
    x = torch.eye(D)[:1] * 5
    for name in "abc":
        transcoder = load_transcoder(str(tmp_path / name))
        assert transcoder.reconstruct(x).tolist() == [[0.0, 5.0, 0.0, 0.0, 0.0, 0.0]]


@pytest.mark.parametrize("config", [{"affine_connection": True}, None])
def test_a_skip_that_is_announced_and_missing(tmp_path, config):
    folder = tmp_path / "transcoder/layer_2_width_16k_l0_small_affine"
    write_gemma_scope_2(folder, random_weights())
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    name = str(folder.relative_to(tmp_path))
    assert "should have an affine skip connection" in refused(WeightsError, load_sae, tmp_path, name)
    (folder / "config.json").write_text('{"affine_connection": false}')
    holds(load_sae(str(tmp_path), name), random_weights())


def test_a_skip_that_is_there_is_applied_whatever_the_config_says(tmp_path):
    weights = random_weights(skip=True)
    folder = write_gemma_scope_2(tmp_path / "transcoder/layer_2_width_16k_l0_small", weights)
    (folder / "config.json").write_text('{"affine_connection": false}')
    holds(load_transcoder(str(folder)), weights)


def test_a_multi_layer_folder_that_does_not_hold_together(tmp_path):
    layers = random_layers(skip=True)
    folder = write_layers(tmp_path / CLT, layers)
    (folder / "config.json").write_text('{"architecture": "jump_relu", "width": 262144, "affine_connection": true}')
    assert load_clt(str(tmp_path), CLT).width == 51  # the width in a name or config is a round total
    (folder / "params_layer_1.safetensors").rename(folder / "kept")
    assert "is of 3 layers and lacks params_layer_1" in refused(WeightsError, load_clt, tmp_path, CLT)
    write_gemma_scope_2(folder, layers[1] | {"w_dec": layers[1]["w_dec"][:, :2]}, "params_layer_1.safetensors")
    assert "w_dec has shape [14, 2, 6], expected [14, 3, 6]" in refused(WeightsError, load_clt, tmp_path, CLT)
    (folder / "kept").rename(folder / "params_layer_1.safetensors")
    write_gemma_scope_2(folder, layers[1], "params_layer_3.safetensors")
    assert "files of two dictionaries are mixed" in refused(WeightsError, load_clt, tmp_path, CLT)
    (folder / "params_layer_3.safetensors").unlink()
    write_layers(folder, random_layers())
    assert "should have an affine skip" in refused(WeightsError, load_clt, tmp_path, CLT)
    (folder / "config.json").write_text('{"architecture": "topk"}')
    assert "gemlens reads jump_relu ones" in refused(WeightsError, load_clt, tmp_path, CLT)
    write_gemma_scope_2(folder, random_weights(), "params_layer_0.safetensors")
    (folder / "config.json").unlink()
    assert "the file is not of a CLT or crosscoder" in refused(WeightsError, load_clt, tmp_path, CLT)


def test_a_crosscoder_whose_name_lists_other_layers(tmp_path):
    name = CROSSCODER.replace("7_13_17", "7_13_17_22")
    write_layers(tmp_path / name, random_layers())
    said = refused(WeightsError, load_crosscoder, tmp_path, name)
    assert "says it is of the layers 7_13_17_22, its tensors are of 3" in said


def test_layers_of_two_dictionaries(tmp_path):
    """Each file holds together by itself; a reconstruction would not."""
    name = CLT.removesuffix("_affine")
    layers = random_layers()
    wide = torch.nn.functional.pad(layers[1]["w_dec"], (0, 1))
    layers[1] |= {"w_dec": wide, "b_dec": torch.zeros(D + 1)}
    write_layers(tmp_path / name, layers)
    assert "files of two dictionaries are mixed" in refused(WeightsError, load_clt, tmp_path, name)
    layers = random_layers(skip=True)
    layers[1].pop("skip")
    write_layers(tmp_path / "b" / name, layers)
    assert "some layers have a skip" in refused(WeightsError, load_clt, tmp_path / "b", name)


def test_values_too_large_for_the_dtype_that_is_asked_for(tmp_path):
    write_gemma_scope_2(tmp_path / RES, random_weights() | {"b_dec": torch.full((D,), 1e6)})
    assert "not finite as float16" in refused(WeightsError, load_sae, tmp_path, RES, dtype=torch.float16)
    assert load_sae(str(tmp_path), RES, dtype=torch.bfloat16).b_dec.dtype == torch.bfloat16


# SAELens


def test_saelens_jumprelu(tmp_path):
    weights = random_weights()
    sae = load_sae(str(write_saelens(tmp_path / "mine", weights, saelens_config())))
    holds(sae, weights)
    assert (sites(sae), sae.info.model_name) == (("resid_post.2", "resid_post.2"), "google/gemma-3-270m")


def relu(weights):
    return weights | {"threshold": torch.zeros(WIDTH)}


def test_saelens_standard_and_its_older_config(tmp_path):
    weights = random_weights()
    holds(load_sae(str(write_saelens(tmp_path / "new", weights, saelens_config("standard")))), relu(weights))
    old = {"hook_point": "blocks.5.hook_resid_pre", "d_in": D, "d_sae": WIDTH, "activation_fn_str": "relu"}
    old |= {"normalize_activations": False, "apply_b_dec_to_input": False}
    sae = load_sae(str(write_saelens(tmp_path / "old", weights, old)))
    holds(sae, relu(weights))
    assert sites(sae) == ("resid_post.4", "resid_post.4")


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("k", [1, 4, WIDTH])
def test_saelens_topk(tmp_path, k, old):
    weights = random_weights()
    config = saelens_config("topk", k=k)
    if old:
        config = saelens_config("standard", activation_fn_str="topk", activation_fn_kwargs={"k": k})
    sae = load_sae(str(write_saelens(tmp_path / "mine", weights, config)))
    pre = some_x() @ weights["w_enc"] + weights["b_enc"]
    top = pre.topk(k, dim=1)
    acts = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
    torch.testing.assert_close(sae.encode(some_x()).dense(), acts)
    torch.testing.assert_close(sae.reconstruct(some_x()), acts @ weights["w_dec"] + weights["b_dec"])
    with pytest.raises(InputError, match="is a TopK dictionary"):
        save_sae(sae, tmp_path / "other", l0=k)


def test_topk_over_blocks_and_ties(tmp_path, monkeypatch):
    """Whatever the blocks, k features fire, and of equal ones those with the lowest ids."""
    from gemlens.scope.rows import DenseRows

    weights = {name: torch.zeros_like(each) for name, each in random_weights().items()}
    weights["b_enc"] = torch.tensor([1.0, 2.0, 1.0, 3.0, 1.0] * 4)
    sae = load_sae(str(write_saelens(tmp_path / "mine", weights, saelens_config("topk", k=10))))
    assert sae.activation == TopK(10)
    for block in (WIDTH, 7, 3, 1):
        monkeypatch.setattr(DenseRows, "BLOCK", block)
        ids, values = sae.encode(torch.zeros(3, D)).row(1)
        assert ids.tolist() == [0, 1, 2, 3, 6, 8, 11, 13, 16, 18]
        assert values.sum() == 4 * 2 + 4 * 3 + 2
    assert sae.encode(torch.zeros(0, D)).l0.tolist() == []


def test_saelens_bias_of_the_input_is_folded(tmp_path):
    weights = random_weights()
    sae = load_sae(str(write_saelens(tmp_path / "mine", weights, saelens_config(apply_b_dec_to_input=True))))
    pre = (some_x() - weights["b_dec"]) @ weights["w_enc"] + weights["b_enc"]
    acts = torch.relu(pre) * (pre > weights["threshold"])
    torch.testing.assert_close(sae.encode(some_x()).dense(), acts)
    torch.testing.assert_close(sae.reconstruct(some_x()), acts @ weights["w_dec"] + weights["b_dec"])


def test_saelens_norms_of_the_decoder_are_folded(tmp_path):
    weights = random_weights()
    weights["w_dec"][3] = 0
    config = saelens_config("topk", k=4, rescale_acts_by_decoder_norm=True, apply_b_dec_to_input=True)
    sae = load_sae(str(write_saelens(tmp_path / "mine", weights, config)))
    norms = weights["w_dec"].norm(dim=1)
    pre = ((some_x() - weights["b_dec"]) @ weights["w_enc"] + weights["b_enc"]) * norms
    top = pre.topk(4, dim=1)
    acts = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
    recon = (acts / norms.masked_fill(norms == 0, 1)) @ weights["w_dec"] + weights["b_dec"]
    torch.testing.assert_close(sae.encode(some_x()).dense(), acts)
    torch.testing.assert_close(sae.reconstruct(some_x()), recon)


@pytest.mark.parametrize(
    "architecture", ["transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"]
)
def test_saelens_transcoders(tmp_path, architecture):
    weights = random_weights(d_out=4, skip="skip" in architecture)
    config = saelens_config(architecture, d_out=4)
    # SAELens' own name for the site is another one in TransformerLens; Hugging Face's name decides.
    config["metadata"] |= {
        "hook_name": "blocks.2.ln2.hook_normalized",
        "hf_hook_name": "model.layers.2.pre_feedforward_layernorm.output",
        "hook_name_out": "blocks.2.hook_mlp_out",
    }
    transcoder = load_transcoder(str(write_saelens(tmp_path / "mine", weights, config)))
    holds(transcoder, weights if "jumprelu" in architecture else relu(weights))
    assert sites(transcoder) == ("mlp_in.2", "mlp_out.2")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"normalize_activations": "layer_norm"},
            "says normalize_activations 'layer_norm', which gemlens cannot apply",
        ),
        ({"normalize_activations": "expected_average_only_in"}, "normalize_activations"),
        ({"architecture": "gated"}, "describes a 'gated' dictionary; gemlens reads standard, topk, jumprelu"),
        ({"architecture": None}, "describes a 'None' dictionary"),
        ({"architecture": "topk", "k": 0}, "says k '0'"),
        ({"architecture": "topk", "k": "all"}, "says k 'all'"),
        ({"architecture": "topk", "k": WIDTH + 1}, "says k 21, the tensors beside it have 20 features"),
        ({"activation_fn": "tanh"}, "activation_fn 'tanh'"),
        ({"finetuning_scaling_factor": True}, "finetuning_scaling_factor"),
        ({"apply_b_dec_to_input": "yes"}, "apply_b_dec_to_input 'yes'"),
        ({"rescale_acts_by_decoder_norm": True}, "which only topk dictionaries have"),
        ({"hook_head_index": 3}, "hook_head_index"),
        ({"d_in": D + 1}, "says d_in '7', the tensors beside it have 6"),
        ({"d_sae": 16384}, "says d_sae '16384', the tensors beside it have 20"),
    ],
)
def test_saelens_configs_that_cannot_be_honoured(tmp_path, changes, words):
    write_saelens(tmp_path / "mine", random_weights(), saelens_config() | changes)
    assert words in refused(WeightsError, load_sae, tmp_path / "mine")


def test_saelens_places_that_gemlens_does_not_know(tmp_path):
    write_saelens(tmp_path / "mine", random_weights(), saelens_config(hook="blocks.2.hook_attn_out"))
    assert "'blocks.2.hook_attn_out' is not a site gemlens knows" in refused(NotFoundError, load_sae, tmp_path / "mine")
    write_saelens(tmp_path / "mine", random_weights(), saelens_config(metadata={}))
    assert "no hook_name that says what" in refused(NotFoundError, load_sae, tmp_path / "mine")
    (tmp_path / "mine/cfg.json").unlink()
    assert "cfg.json does not exist; it says what" in refused(NotFoundError, load_sae, tmp_path / "mine")


# circuit-tracer


@pytest.mark.parametrize("threshold", [None, "threshold", "activation_function.threshold"])
@pytest.mark.parametrize(
    ("hooks", "expected"),
    [
        ({}, ("resid_mid.2", "mlp_out.2")),
        ({"reads": "mlp.hook_in"}, ("mlp_in.2", "mlp_out.2")),
        ({"reads": "ln2.hook_normalized"}, ("mlp_in_normalized.2", "mlp_out.2")),
        ({"reads": "'blocks.{layer}.hook_resid_pre'"}, ("resid_post.1", "mlp_out.2")),
    ],
)
def test_circuit_tracer_transcoders(tmp_path, threshold, hooks, expected):
    weights = random_weights(skip=True)
    write_circuit_tracer(tmp_path, weights, threshold=threshold, **hooks)
    write_circuit_tracer(tmp_path, random_weights(seed=5), 11, **hooks)
    transcoder = load_transcoder(str(tmp_path), "layer_2")
    holds(transcoder, weights if threshold else relu(weights))
    assert (sites(transcoder), transcoder.info.id) == (expected, "layer_2")
    assert sites(load_transcoder(str(tmp_path), "layer_11"))[1] == "mlp_out.11"
    assert "name one: layer_11, layer_2" in refused(NotFoundError, load_transcoder, tmp_path)
    assert "did you mean layer_2" in refused(NotFoundError, load_transcoder, tmp_path, "layer_3")


@pytest.mark.parametrize("shape", [(), (1,), (1, WIDTH)])
def test_circuit_tracer_thresholds_of_other_shapes(tmp_path, shape):
    weights = random_weights()
    threshold = weights["threshold"].reshape(1, WIDTH) if shape == (1, WIDTH) else torch.full(shape, 0.3)
    write_circuit_tracer(tmp_path, weights | {"threshold": threshold}, threshold="threshold")
    holds(load_transcoder(str(tmp_path)), weights | {"threshold": threshold.flatten().expand(WIDTH)})
    write_circuit_tracer(tmp_path, weights | {"threshold": torch.ones(WIDTH - 1)}, threshold="threshold")
    assert "threshold has shape [19], expected [20]" in refused(WeightsError, load_transcoder, tmp_path)


def test_a_circuit_tracer_clt_of_relus(tmp_path):
    layers = random_layers()
    clt = load_clt(str(write_circuit_tracer_clt(tmp_path / "mine", layers, jump=False)))
    pre = some_x() @ layers[1]["w_enc"] + layers[1]["b_enc"]
    torch.testing.assert_close(clt.encode({clt.reads[1]: some_x()})[clt.reads[1]].dense(), torch.relu(pre))


def test_circuit_tracer_folders_that_do_not_hold_together(tmp_path):
    layers = random_layers(skip=True)
    folder = write_circuit_tracer_clt(tmp_path / "mine", layers)
    first = (folder / "W_enc_1.safetensors").read_bytes()
    save_file(
        {n: t for n, t in load_file(folder / "W_enc_1.safetensors").items() if "skip" not in n},
        folder / "W_enc_1.safetensors",
    )
    assert "some layers have a skip and some lack it" in refused(WeightsError, load_clt, folder)
    (folder / "W_enc_1.safetensors").unlink()
    assert "lacks W_enc_1.safetensors" in refused(WeightsError, load_clt, folder)
    (folder / "W_enc_1.safetensors").write_bytes(first)
    save_file({"W_dec_2": torch.zeros(17, 2, D)}, folder / "W_dec_2.safetensors")
    assert "W_dec_2 has shape [17, 2, 6], expected [17, 1, 6]" in refused(WeightsError, load_clt, folder)
    (folder / "W_dec_2.safetensors").unlink()
    assert "lacks W_dec_2.safetensors" in refused(WeightsError, load_clt, folder)
    (folder / "W_enc_3.safetensors").write_bytes(first)
    write_circuit_tracer_clt(folder, layers)
    assert "files of two dictionaries are mixed" in refused(WeightsError, load_clt, folder)


def test_circuit_tracer_configs(tmp_path):
    folder = write_circuit_tracer(tmp_path / "mine", random_weights())

    def fails(kind, text):
        (folder / "config.yaml").write_text(text)
        return refused(kind, load_transcoder, folder)

    hooks = "feature_input_hook: hook_resid_mid\nfeature_output_hook: hook_mlp_out\n"
    assert "of a transcoder_set" in fails(WeightsError, hooks + "model_kind: cross_layer_transcoder")
    assert "(hf://a/b/c.npz, …)" in fails(InputError, hooks + "transcoders: ['hf://a/b/c.npz']")
    assert "no feature_input_hook" in fails(NotFoundError, "model_kind: transcoder_set")
    assert "is not a site gemlens knows" in fails(NotFoundError, hooks.replace("hook_resid_mid", "hook_pattern"))
    for text in ("[1]", "3", "", "a: [", "!!python/object/apply:os.system ['touch /nowhere/x']", "a: !!timestamp x"):
        assert "config.yaml" in fails(WeightsError, text)
    (folder / "config.yaml").unlink()
    assert "config.yaml does not exist; it says what" in refused(NotFoundError, load_transcoder, folder)


# Which one


def test_a_folder_of_none_one_or_several(tmp_path):
    assert "there are none here" in refused(NotFoundError, load_sae, tmp_path)
    write_gemma_scope_2(tmp_path / RES, random_weights())
    assert load_sae(str(tmp_path)).info.path == RES
    write_layers(tmp_path / CLT, random_layers(skip=True))
    write_saelens(tmp_path / "blocks.2.hook_resid_post", random_weights(), saelens_config())
    message = refused(NotFoundError, load_sae, tmp_path)
    assert f"several dictionaries; name one: blocks.2.hook_resid_post, {CLT}, {RES}" in message
    assert f"did you mean {RES}" in refused(NotFoundError, load_sae, tmp_path, RES + "x")
    holds(load_sae(str(tmp_path), "blocks.2.hook_resid_post"), random_weights())


def test_two_formats_in_one_folder(tmp_path):
    write_gemma_scope_2(tmp_path / GEMMA_SCOPE_1, random_weights())
    write_gemma_scope_1(tmp_path / GEMMA_SCOPE_1, random_weights())
    message = refused(InputError, load_sae, tmp_path, GEMMA_SCOPE_1)
    assert "holds several dictionaries; keep one of" in message
    assert "params.npz" in message


def test_each_loader_names_the_right_one(tmp_path):
    write_layers(tmp_path / CLT, random_layers(skip=True))
    write_layers(tmp_path / CROSSCODER, random_layers())
    write_gemma_scope_2(tmp_path / RES, random_weights())
    assert "use load_clt" in refused(InputError, load_sae, tmp_path, CLT)
    assert "use load_crosscoder" in refused(InputError, load_sae, tmp_path, CROSSCODER)
    assert "use load_crosscoder" in refused(InputError, load_clt, tmp_path, CROSSCODER)
    assert "use load_clt" in refused(InputError, load_crosscoder, tmp_path, CLT)
    assert "use load_sae or load_transcoder" in refused(InputError, load_clt, tmp_path, RES)
    assert "is an SAE" in refused(InputError, load_transcoder, tmp_path, RES)
    assert "use load_clt" in refused(InputError, load_sae, "google/gemma-scope-2-1b-it", CLT)


# The hub


def test_every_format_from_the_hub_then_offline(tmp_path, hub_home):
    weights, layers = random_weights(), random_layers(skip=True)
    write_gemma_scope_1(tmp_path / GEMMA_SCOPE_1, weights)
    root = tmp_path / "scope"
    write_layers(root / CLT, layers)
    write_layers(root / CROSSCODER, layers)
    write_saelens(root / "mine/here", weights, saelens_config())
    write_circuit_tracer(root / "sets/one", weights, threshold="threshold")
    write_circuit_tracer_clt(tmp_path / "clt", layers)
    repos = {
        "google/gemma-scope-2b-pt-res": files_below(tmp_path / "gemma-scope-2b-pt-res"),
        "org/scope": files_below(root),
        "org/clt": files_below(tmp_path / "clt"),
        "org/set": files_below(root / "sets/one"),
    }
    inside = GEMMA_SCOPE_1.partition("/")[2]

    def load_all():
        saes = [
            load_sae("google/gemma-scope-2b-pt-res", inside),
            load_sae("gemma-scope-2b-pt-res", inside),  # SAELens' name
            load_sae("org/scope", "mine/here"),
            load_transcoder("org/scope", "sets/one/layer_2"),
            load_sae("org/set", "layer_2", category="resid_post"),  # the command line's default
        ]
        for sae in saes:
            holds(sae, weights)
        assert saes[1].info == saes[0].info
        return [
            *saes,
            load_clt("org/scope", CLT),
            load_crosscoder("org/scope", CROSSCODER),
            load_clt("org/clt"),
        ]

    with FakeHub(repos) as hub, connected(hub.url, home=hub_home):
        infos = [each.info for each in load_all()]
        assert [info.revision for info in infos[2:]] == [hub[info.release].commit for info in infos[2:]]
        assert "has no file mine/her" in refused(NotFoundError, load_sae, "org/scope", "mine/her")
        write_yaml(tmp_path / "yaml", "transcoder_set")
    with connected(hub.url, home=hub_home, offline=True):
        assert [each.info for each in load_all()] == infos


def test_a_name_that_no_repository_can_have(hub_home):
    with FakeHub({}) as hub, connected(hub.url, home=hub_home):
        assert "is not a name on the hub" in refused(InputError, load_sae, "a--b/c", RES)


def test_saelens_names_that_do_not_exist():
    assert "release of the catalogue: did you mean gemma-scope-2b-pt-res" in refused(
        NotFoundError, load_sae, "gemma-scope-2b-pt-rez", "layer_20/width_16k/canonical"
    )
    assert "the catalogue has no 'layer_99/width_16k/canonical'" in refused(
        NotFoundError, load_sae, "gemma-scope-2b-pt-res-canonical", "layer_99/width_16k/canonical"
    )
