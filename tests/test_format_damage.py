"""Thousands of damaged files: each gives a dictionary or a GemlensError of one line, and nothing is ever executed."""

from __future__ import annotations

import io
import json
import pickle
import random
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from gemlens.errors import GemlensError
from gemlens.scope.load import load_clt, load_crosscoder, load_sae, load_transcoder
from gemlens.scope.save import save_sae
from gemlens.sites import parse_site
from layouts import (
    CLT,
    CROSSCODER,
    GEMMA_SCOPE_1,
    WIDTH,
    D,
    random_layers,
    random_weights,
    saelens_config,
    write_circuit_tracer,
    write_circuit_tracer_clt,
    write_gemma_scope_1,
    write_layers,
    write_saelens,
)
from tiny import random_tensors, sae_of

# Values that a hand, a script or a bad disk leaves behind, in JSON and YAML alike.
ODD = [None, True, False, -1, 0, 3, 1e400, -1.5, "", "x", "layer_norm", "topk", [], {}, [[]], {"a": 1}, "9" * 5000]
YAML = ["!!int ''", "!!bool x", "!!timestamp x", "!!float ''", "!!binary x", "!!set [a]", "!!omap x", "*a", "&a [*a]"]
YAML += ["2001-99-99", "0o9", "1:99", "0b2", "? [a]", "<<: 3", "%", "\t", "\0", "[" * 3000, "!!python/name:os.system"]


def compressed(folder, weights):
    write_gemma_scope_1(folder, weights)
    np.savez_compressed(folder / "params.npz", **np.load(folder / "params.npz"))
    return folder


def gemma_scope_1(root):
    return load_sae, write_gemma_scope_1(root / GEMMA_SCOPE_1, random_weights()) / "params.npz"


def gemma_scope_1_compressed(root):
    return load_sae, compressed(root / GEMMA_SCOPE_1, random_weights()) / "params.npz"


def clt(root):
    return load_clt, write_layers(root / CLT, random_layers(skip=True)) / "params_layer_1.safetensors"


def int8(root):
    """Codes, scales and a skip."""
    sae = sae_of(random_tensors(D, WIDTH, skip=True), parse_site("mlp_in.3"), parse_site("mlp_out.3"))
    save_sae(sae, root, l0=5, dtype=torch.int8)
    return load_sae, root / "params.safetensors"


def crosscoder(root):
    return load_crosscoder, write_layers(root / CROSSCODER, random_layers()) / "params_layer_0.safetensors"


def saelens(root):
    folder = write_saelens(root, random_weights(), saelens_config(apply_b_dec_to_input=True))
    return load_sae, folder / "sae_weights.safetensors"


def saelens_cfg(root):
    folder = write_saelens(root, random_weights(), saelens_config("topk", k=3, rescale_acts_by_decoder_norm=True))
    return load_sae, folder / "cfg.json"


def circuit_tracer(root):
    folder = write_circuit_tracer(root, random_weights(skip=True), threshold="threshold")
    return load_transcoder, folder / "layer_2.safetensors"


def circuit_tracer_yaml(root):
    return load_transcoder, write_circuit_tracer(root, random_weights()) / "config.yaml"


def circuit_tracer_clt(root):
    return load_clt, write_circuit_tracer_clt(root, random_layers(skip=True)) / "W_dec_0.safetensors"


def outcome(load, folder):
    """ "loaded" or "refused"; whatever else happens fails the test."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's on headers that it has to mend
            dictionary = load(str(folder))
    except GemlensError as error:
        assert len(str(error).splitlines()) == 1
        assert len(str(error)) < 2000
        return "refused"
    if load in (load_sae, load_transcoder):
        dictionary.reconstruct(torch.ones(2, dictionary.d_in))
    else:
        dictionary.reconstruct({site: torch.ones(2, dictionary.layer(site).encoder.d) for site in dictionary.reads})
    return "loaded"


def mutated(content, dice, end):
    """One to four changes before ``end``: bytes, a number made huge, a cut, a hole, a repetition, a swap."""
    content = bytearray(content)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(max(1, min(end, len(content))))
        match dice.randrange(7):
            case 0 | 1 | 2 if content:
                content[at % len(content)] = dice.choice([dice.randrange(256), 0, 255, ord("9"), ord("["), ord("'")])
            case 3:
                del content[at : at + dice.randint(1, 20)]
            case 4:
                content[at:at] = content[at : at + dice.randint(1, 20)]
            case 5 if dice.random() < 0.3:
                del content[at:]
            case 6:
                other = dice.randrange(max(1, min(end, len(content))))
                content[at : at + 8], content[other : other + 8] = content[other : other + 8], content[at : at + 8]
    return bytes(content)


@pytest.mark.parametrize(
    "write",
    [
        gemma_scope_1,
        gemma_scope_1_compressed,
        int8,
        clt,
        crosscoder,
        saelens,
        saelens_cfg,
        circuit_tracer,
        circuit_tracer_yaml,
        circuit_tracer_clt,
    ],
    ids=lambda write: write.__name__,
)
@pytest.mark.parametrize("part", ["start", "anywhere"])
def test_random_damage_gives_a_dictionary_or_a_reason(write, part, tmp_path):
    load, file = write(tmp_path / "release")
    intact = file.read_bytes()
    folder = file.parent
    assert outcome(load, folder) == "loaded"
    dice, outcomes = random.Random(0), []
    for _ in range(300):
        file.write_bytes(mutated(intact, dice, 400 if part == "start" else len(intact)))
        outcomes.append(outcome(load, folder))
    assert outcomes.count("refused") > 20


def test_damage_inside_an_npz_whose_checksums_are_right(tmp_path):
    """What a zip of its own making holds is up to whoever made it: headers, types, shapes, pickles."""
    load, file = gemma_scope_1(tmp_path)
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    dice, outcomes = random.Random(1), []
    for _ in range(1500):
        name = dice.choice(sorted(members))
        changed = members | {name: mutated(members[name], dice, 140)}
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", dice.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
            for member, content in changed.items():
                archive.writestr(member, content)
        file.write_bytes(buffer.getvalue())
        outcomes.append(outcome(load, file.parent))
    assert min(outcomes.count("refused"), outcomes.count("loaded")) > 50


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '|O', 'fortran_order': False, 'shape': (20,), }",
        "{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (20,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-20,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (20.0,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (True,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,), }",
        "{'descr': '<V4', 'fortran_order': False, 'shape': (20,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (0,), }",
        "__import__('pathlib').Path('exploded').touch()",
        "{'descr': " + "(" * 5000,
        "{'descr': '" + "f" * 70_000,
        "\0\xff",
    ],
    ids=range(12),
)
@pytest.mark.parametrize("version", [1, 2, 3, 9])
def test_hostile_npy_headers(tmp_path, monkeypatch, header, version):
    monkeypatch.chdir(tmp_path)
    load, file = gemma_scope_1(tmp_path)
    content = header.encode("latin1")[:65_000] + b"\n"
    length = len(content).to_bytes(2 if version == 1 else 4, "little")
    payload = pickle.dumps(Path.touch)[:80].ljust(80, b"\0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(file, "a") as archive:
            archive.writestr("threshold.npy", b"\x93NUMPY" + bytes([version, 0]) + length + content + payload)
    assert outcome(load, file.parent) == "refused"
    assert not (tmp_path / "exploded").exists()


def test_any_value_anywhere_in_a_saelens_config(tmp_path):
    load, file = saelens_cfg(tmp_path)
    config = json.loads(file.read_text())
    names = [*config, "hook_name", "hf_hook_name", "hook_name_out", "activation_fn", "activation_fn_kwargs", "d_out"]
    for place in (config, config["metadata"]):
        for name in names:
            before = place.get(name)
            for value in ODD:
                place[name] = value
                file.write_text(json.dumps(config))
                outcome(load, file.parent)
            place.pop(name)
            if before is not None:
                place[name] = before


def test_any_value_anywhere_in_a_circuit_tracer_config(tmp_path):
    load, file = circuit_tracer_yaml(tmp_path)
    lines = file.read_text().splitlines()
    for index, line in enumerate([*lines, "transcoders: "]):
        for value in [*YAML, *map(json.dumps, ODD)]:
            changed = [*lines[:index], f"{line.partition(':')[0]}: {value}", *lines[index + 1 :]]
            file.write_text("\n".join(changed))
            outcome(load, file.parent)


def test_a_yaml_bomb(tmp_path):
    load, file = circuit_tracer_yaml(tmp_path)
    lines = file.read_text().splitlines()
    bomb = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    bomb += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    for key in ("feature_input_hook", "feature_output_hook", "model_kind", "model_name", "transcoders"):
        others = [line for line in lines if not line.startswith(key)]
        file.write_text("\n".join([*bomb, *others, f"{key}: *a29"]))
        assert outcome(load, file.parent) == ("loaded" if key == "model_name" else "refused")


def test_a_json_config_that_holds_nothing_but_depth_or_length(tmp_path):
    load, file = saelens_cfg(tmp_path)
    for content in (b"[" * 100_000, b'{"k": 1' + b"0" * 5000 + b"}", b"{}", b" " * (2 << 20), b"\xff\xfe{}"):
        file.write_bytes(content)
        assert outcome(load, file.parent) == "refused"
