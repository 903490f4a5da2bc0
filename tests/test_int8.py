"""int8 storage: it changes the matrices by half a step at most, and nothing else."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from gemlens.errors import InputError, OutputError, WeightsError
from gemlens.scope.int8 import OUTPUT_POWER, Int8Rows, quantize
from gemlens.scope.load import load_clt, load_crosscoder, load_sae, load_transcoder
from gemlens.scope.rows import DenseRows
from gemlens.scope.save import save_multilayer, save_sae
from gemlens.sites import parse_site
from layouts import CLT, CROSSCODER, LAYERS, D, random_layers, some_x, write_layers
from tiny import random_tensors, sae_of

ID = "transcoder/layer_3_width_40_l0_small_affine"
SMALL = ("b_enc", "b_dec", "threshold")


def made(seed=0):
    """A transcoder with a skip, one input dimension with small weights, and a feature without weights."""
    tensors = random_tensors(6, 40, d_out=5, skip=True, seed=seed)
    tensors["w_enc"][2] /= 30
    tensors["w_enc"][:, 7] = 0
    tensors["w_dec"][7] = 0
    return tensors, sae_of(tensors, parse_site("mlp_in.3"), parse_site("mlp_out.3"), model_name="google/gemma-3-tiny")


def whole(rows):
    return torch.cat([block for _, block in rows.blocks()])


@pytest.fixture
def saved(tmp_path):
    save_sae(made()[1], tmp_path / ID, l0=7, dtype=torch.int8)
    return tmp_path


def half_steps(rows, exact):
    step = rows.scale[:, None] * (1 if rows.columns is None else rows.columns)
    return ((whole(rows) - exact).abs() / step).max()


def test_int8_changes_the_matrices_by_half_a_step_and_nothing_else(saved):
    exact, _ = made()
    back = load_transcoder(str(saved), ID)
    assert isinstance(back.encoder, Int8Rows)
    assert 0.4 < half_steps(back.encoder, exact["w_enc"].T) <= 0.5001
    assert 0.4 < half_steps(back.decoder, exact["w_dec"]) <= 0.5001
    skip = quantize(DenseRows(exact["affine_skip_connection"]), power=OUTPUT_POWER)
    assert 0.4 < half_steps(skip, exact["affine_skip_connection"]) <= 0.5001
    torch.testing.assert_close(back.skip, whole(skip), rtol=1e-6, atol=0)
    assert all(torch.equal(getattr(back, name), exact[name]) for name in SMALL)
    assert (whole(back.encoder)[7] == 0).all()
    assert (str(back.reads), str(back.writes), back.info.model_name) == ("mlp_in.3", "mlp_out.3", "google/gemma-3-tiny")


@pytest.mark.parametrize("name", ["w_enc", "w_dec", "affine_skip_connection"])
def test_a_column_of_small_weights_is_finer(tmp_path, name):
    """An encoder's multiply the largest inputs; what is written there, a norm may enlarge."""
    tensors, _ = made()
    column = tensors[name][2] if name == "w_enc" else tensors[name][:, 2]
    column /= 30
    save_sae(sae_of(tensors, parse_site("mlp_in.3"), parse_site("mlp_out.3")), tmp_path / ID, l0=7, dtype=torch.int8)
    back = load_transcoder(str(tmp_path), ID)
    exact = {"w_enc": tensors["w_enc"].T}.get(name, tensors[name])
    kept = {"w_enc": whole(back.encoder), "w_dec": whole(back.decoder), "affine_skip_connection": back.skip}[name]
    by_row = exact.abs().amax(dim=1, keepdim=True).clamp(min=1e-30) / 127

    def lost(rows):
        return float((rows[:, 2] - exact[:, 2]).norm() / exact[:, 2].norm())

    assert lost(kept) < lost((exact / by_row).round() * by_row) / 2.5


def test_it_computes_with_the_dequantised_weights_exactly(saved, monkeypatch):
    back = load_sae(str(saved), ID)
    x = torch.randn(50, 6)
    other = sae_of(
        {"w_enc": whole(back.encoder).T, "w_dec": whole(back.decoder), "affine_skip_connection": back.skip}
        | {name: getattr(back, name) for name in SMALL},
        back.reads,
        back.writes,
    )
    assert torch.equal(back.encode(x).dense(), other.encode(x).dense())
    assert torch.equal(back.reconstruct(x), other.reconstruct(x))
    assert back.encode(x).values.numel()
    monkeypatch.setattr(Int8Rows, "BLOCK", 7)
    torch.testing.assert_close(back.encode(x).dense(), other.encode(x).dense())
    assert torch.equal(back.decoder.rows(torch.tensor([9, 3])), whole(other.decoder)[[9, 3]])


def test_the_file_is_what_the_documentation_says(saved):
    """Read with nothing of gemlens."""
    config = json.loads((saved / ID / "config.json").read_text())
    assert config["quantized"] == "int8"
    assert (config["l0"], config["affine_connection"]) == (7, True)
    stored = load_file(saved / ID / "params.safetensors")
    encoder = stored["w_enc"].float() * stored["w_enc_scale"] * stored["w_enc_input_scale"][:, None]
    decoder = stored["w_dec"].float() * stored["w_dec_scale"][:, None] * stored["w_dec_output_scale"]
    skip = stored["affine_skip_connection"].float() * stored["affine_skip_connection_scale"][:, None]
    skip *= stored["affine_skip_connection_output_scale"]
    for name, weight in (("w_enc", encoder), ("w_dec", decoder), ("affine_skip_connection", skip)):
        assert stored[name].dtype == torch.int8
        assert (weight - made()[0][name]).norm() / weight.norm() < 0.01


def test_it_takes_a_quarter_of_the_memory_and_follows_dtypes(tmp_path):
    sae = sae_of(random_tensors(256, 512), parse_site("resid_post.3"))
    save_sae(sae, tmp_path / "mine", l0=7, dtype=torch.int8)
    back = load_sae(str(tmp_path / "mine"))
    for rows, exact in ((back.encoder, sae.encoder), (back.decoder, sae.decoder)):
        assert rows.nbytes < exact.nbytes / 4 * 1.04
    half = load_sae(str(tmp_path / "mine"), dtype=torch.bfloat16)
    assert half.encoder.nbytes == back.encoder.nbytes
    assert torch.equal(whole(half.encoder), whole(back.encoder).bfloat16())
    x = torch.randn(9, 256)
    assert half.reconstruct(x).dtype == back.to(torch.bfloat16).reconstruct(x).dtype == torch.bfloat16


def test_what_is_int8_is_saved_again_to_the_bit(saved):
    save_sae(load_sae(str(saved), ID), saved / "again", l0=7, dtype=torch.int8)
    first, second = (load_file(saved / name / "params.safetensors") for name in (ID, "again"))
    assert all(torch.equal(first[name], second[name]) for name in first if "skip" not in name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize(("name", "load"), [(CLT, load_clt), (CROSSCODER, load_crosscoder)])
def test_dictionaries_over_layers_there_and_back(tmp_path, name, load, dtype):
    write_layers(tmp_path / name, random_layers(skip=True))
    exact = load(str(tmp_path), name)
    save_multilayer(exact, tmp_path / "out" / name, l0=9, dtype=dtype)
    back = load(str(tmp_path / "out"), name)
    assert (back.reads, back.writes, back.width) == (exact.reads, exact.writes, exact.width)
    for site in exact.reads:
        first, second = exact.layer(site), back.layer(site)
        assert (first.first, first.outputs) == (second.first, second.outputs)
        assert torch.equal(
            second.threshold, first.threshold.to(torch.float32 if dtype == torch.int8 else dtype).float()
        )
        if dtype == torch.int8:
            assert second.encoder.codes.dtype == torch.int8
            assert half_steps(second.encoder, first.encoder.weight) <= 0.5001
            assert half_steps(second.decoder, first.decoder.weight) <= 0.5001
        else:
            assert torch.equal(second.decoder.weight, first.decoder.weight.to(dtype).float())
    if dtype == torch.float32:
        x = {site: some_x() for site in exact.reads}
        made = back.reconstruct(x)
        assert all(torch.equal(made[site], each) for site, each in exact.reconstruct(x).items())


def test_a_name_that_says_other_sites_is_refused(tmp_path):
    write_layers(tmp_path / CROSSCODER, random_layers())
    crosscoder = load_crosscoder(str(tmp_path), CROSSCODER)
    for name in ("mine", "layer_7_13_width_262k_l0_medium"):
        with pytest.raises(InputError, match="names its layers"):
            save_multilayer(crosscoder, tmp_path / name)
    assert len(crosscoder) == LAYERS and not (tmp_path / "mine").exists()
    with pytest.raises(InputError, match="not float16"):
        save_sae(made()[1], tmp_path / "mine", l0=3, dtype=torch.float16)


def change(**tensors):
    return lambda stored, _config: stored.update(tensors)


def drop(name):
    return lambda stored, _config: stored.pop(name)


def say(value):
    return lambda _stored, config: config.update(quantized=value)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (drop("w_enc_scale"), "lacks w_enc_scale"),
        (drop("affine_skip_connection_scale"), "lacks affine_skip_connection_scale"),
        (change(w_dec_scale=torch.ones(39)), r"w_dec_scale has shape \[39\], expected \[40\]"),
        (change(w_enc_input_scale=torch.ones(5)), r"w_enc_input_scale has shape \[5\], expected \[6\]"),
        (change(w_dec_scale=torch.full((40,), torch.nan)), "w_dec_scale holds values that are not finite"),
        (change(w_dec_scale=torch.zeros(40)), "w_dec_scale holds 0; scales are above 0"),
        (change(w_enc_scale=-torch.ones(40)), "w_enc_scale holds -1"),
        (change(w_enc_scale=torch.full((40,), 3e38)), "w_enc by its scales is not finite as float32"),
        (change(w_enc_scale=torch.ones(40).bfloat16()), "w_enc_scale is stored as bfloat16, expected float32"),
        (change(w_dec=torch.ones(40, 5)), "w_dec is stored as float32, and its config says quantized: int8"),
        (change(w_dec=torch.ones(40, 5, dtype=torch.int16)), "w_dec is stored as I16"),
        (change(b_enc=torch.ones(40, dtype=torch.int8)), "b_enc holds I8"),
        (say("int4"), "says quantized 'int4'; gemlens knows int8"),
        (say(None), "stored as int8, and no config.json beside it says quantized: int8"),
    ],
)
def test_tensors_that_contradict_the_config_are_refused(saved, damage, words):
    file, about = saved / ID / "params.safetensors", saved / ID / "config.json"
    stored, config = load_file(file), json.loads(about.read_text())
    damage(stored, config)
    save_file(stored, file)
    about.write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=words):
        load_sae(str(saved), ID)


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    from safetensors import SafetensorError

    def full(*_args, **_kwargs):
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OutputError, match="No space left"):
        save_sae(made()[1], tmp_path / "new/mine", l0=3, dtype=torch.int8)
    assert list(tmp_path.iterdir()) == []


def test_quantising_zeros_and_the_smallest_numbers():
    for value in (0.0, 1e-44, 3e38):
        rows = quantize(DenseRows(torch.full((3, D), value)), power=0.5)
        assert whole(rows).isfinite().all()
        assert (whole(rows) - value).abs().max() <= max(1e-38, value * 1e-6)
