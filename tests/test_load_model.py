"""A model comes from a folder or a hub whole, or not at all: every damage is refused with a reason and a next step."""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from fake_hub import FakeHub, connected
from gemlens import precision
from gemlens.errors import GemlensError, InputError, MismatchError, NotFoundError, WeightsError
from gemlens.lm.gemma import activations, generate, logits
from gemlens.lm.load import load_model, pick_device, pick_dtype
from gemlens.lm.text import prompt_text
from gemlens.sites import parse_site
from tiny import CHAT_TEMPLATE, LAYERS, files_below, some_tokens, tiny_gemma, tiny_model_folder, tiny_module

TOKENS, SITE = some_tokens(9), parse_site("resid_post.6")
WEIGHTS = "model.safetensors"
CPU = {"device": "cpu"}


@pytest.fixture(scope="module")
def intact(tmp_path_factory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("models") / "gemma-3-tiny", chat=True)


@pytest.fixture
def folder(intact, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(intact, tmp_path / "gemma-3-tiny"))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("models") / "sharded", shard_size="20KB")


def refused(kind, path, **options):
    """The message, one line that names the model."""
    with pytest.raises(kind) as caught:
        load_model(str(path), **(CPU | options))
    message = str(caught.value)
    assert caught.type is kind
    assert str(path) in message
    assert len(message.splitlines()) == 1
    return message


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# What works


def test_a_folder_is_the_model_that_was_saved(intact):
    model = load_model(str(intact), **CPU)
    assert (model.name, model.revision, model.n_layers) == (str(intact), None, LAYERS)
    assert model.dtype == torch.float32
    assert not model.module.training
    assert not any(parameter.requires_grad for parameter in model.module.parameters())
    expected = tiny_module()
    for name, parameter in expected.state_dict().items():
        assert torch.equal(model.module.state_dict()[name], parameter), name
    assert prompt_text(model, "Hi").startswith("<bos><start_of_turn>user")
    assert model.bos == 2


def test_a_sharded_folder_is_the_same_model(intact, sharded):
    assert len(list(sharded.glob("*.safetensors"))) > 2
    ours, theirs = (activations(load_model(str(path), **CPU), TOKENS, [SITE])[SITE] for path in (sharded, intact))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_dtype_is_the_one_asked_for(dtype, intact):
    assert load_model(str(intact), dtype=dtype, **CPU).dtype == getattr(torch, dtype)


def test_a_template_beside_the_tokenizer_wins_over_none(folder):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_model(str(folder), **CPU).tokenizer.chat_template is None
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    assert load_model(str(folder), **CPU).tokenizer.chat_template == CHAT_TEMPLATE


@pytest.mark.parametrize("entry", ["<bos>", {"content": "<bos>", "special": True}, None])
def test_special_tokens_are_strings_or_objects_or_left_to_the_default(entry, folder):
    edit_json(folder / "tokenizer_config.json", bos_token=entry)
    assert load_model(str(folder), **CPU).bos == 2


def test_a_folder_without_tokenizer_config_has_gemmas_tokens(folder):
    (folder / "tokenizer_config.json").unlink()
    model = load_model(str(folder), **CPU)
    assert (model.bos, model.tokenizer.eos_token_id, model.tokenizer.chat_template) == (2, 1, None)


def test_from_the_hub_with_the_commit_it_came_from(intact, hub_home):
    extra = {"pytorch_model.bin": b"never asked for", "README.md": b"#"}
    with FakeHub({"org/tiny": files_below(intact) | extra}) as hub, connected(hub.url, home=hub_home):
        model = load_model("org/tiny", **CPU)
        assert (model.name, model.revision) == ("org/tiny", hub["org/tiny"].commit)
        assert hub.bytes_of("pytorch_model.bin") == hub.bytes_of("README.md") == 0
        assert load_model("org/tiny", revision=hub["org/tiny"].commit, **CPU).revision == hub["org/tiny"].commit
        with pytest.raises(NotFoundError, match="has no revision 'other'"):
            load_model("org/tiny", revision="other", **CPU)
        with pytest.raises(NotFoundError, match="org/absent does not exist"):
            load_model("org/absent", **CPU)
    with connected(hub.url, home=hub_home, offline=True):
        again = load_model("org/tiny", **CPU)
    expected = activations(load_model(str(intact), **CPU), TOKENS, [SITE])[SITE]
    assert torch.equal(activations(again, TOKENS, [SITE])[SITE], expected)


def test_a_hub_repository_that_lacks_its_weights(intact, hub_home):
    files = files_below(intact)
    del files[WEIGHTS]
    refusal = pytest.raises(NotFoundError, match=r"org/tiny holds no \*\.safetensors file")
    with FakeHub({"org/tiny": files}) as hub, connected(hub.url, home=hub_home), refusal:
        load_model("org/tiny", **CPU)


# Gemma 2, and Gemma 3 with a vision tower


@pytest.fixture(scope="module", params=["gemma2", "multimodal"])
def kind_and_folder(request, tmp_path_factory) -> tuple[str, Path]:
    path = tmp_path_factory.mktemp("models") / request.param
    return request.param, tiny_model_folder(path, kind=request.param, chat=True, shard_size="20KB")


def test_every_kind_loads_as_the_model_that_was_saved(kind_and_folder, capfd):
    kind, folder = kind_and_folder
    capfd.readouterr()
    model = load_model(str(folder), **CPU)
    assert capfd.readouterr() == ("", "")
    assert len(list(folder.glob("*.safetensors"))) > 2
    expected = tiny_gemma(kind=kind)
    assert model.n_layers == LAYERS
    for name, parameter in expected.backbone.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], parameter), name
    read_out = [activations(each, TOKENS, [SITE])[SITE] for each in (model, expected)]
    assert torch.equal(*read_out)
    assert torch.equal(*(logits(each, read_out[0]) for each in (model, expected)))
    assert not any(parameter.requires_grad or parameter.is_meta for parameter in model.module.parameters())
    assert not any(buffer.is_meta for buffer in model.module.buffers())
    assert load_model(str(folder), dtype="bfloat16", **CPU).dtype == torch.bfloat16


def test_of_a_multimodal_checkpoint_the_language_model_is_kept(tmp_path):
    folder = tiny_model_folder(tmp_path / "whole", kind="multimodal")
    settings = {"eos_token_id": [1, 106], "_from_model_config": False}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    # The names that Google publishes: transformers 4.57 and 5 both write them too.
    assert {name.split(".")[0] for name in load_file(folder / WEIGHTS)} == {
        "language_model",
        "vision_tower",
        "multi_modal_projector",
    }
    model = load_model(str(folder), **CPU)
    assert set(model.module.state_dict()) == set(tiny_module().state_dict())
    assert model.module.lm_head.weight is model.backbone.embed_tokens.weight
    assert model.module.generation_config.eos_token_id == [1, 106]
    ids, _ = generate(model, TOKENS, [SITE], max_new_tokens=4, greedy=True)
    assert torch.equal(ids, generate(tiny_gemma(), TOKENS, [SITE], max_new_tokens=4, greedy=True)[0])


def test_gemma_2_has_eager_attention_whatever_transformers_picks(tmp_path):
    folder = tiny_model_folder(tmp_path / "gemma2", kind="gemma2")
    assert load_model(str(folder), **CPU).config._attn_implementation == "eager"


def test_every_kind_from_the_hub_and_again_offline(kind_and_folder, hub_home):
    kind, folder = kind_and_folder
    with FakeHub({"org/tiny": files_below(folder)}) as hub, connected(hub.url, home=hub_home):
        commit = hub["org/tiny"].commit
        assert load_model("org/tiny", revision=commit, **CPU).revision == commit
    with connected(hub.url, home=hub_home, offline=True):
        again = load_model("org/tiny", revision=commit, **CPU)
    found, expected = (activations(model, TOKENS, [SITE])[SITE] for model in (again, tiny_gemma(kind=kind)))
    assert torch.equal(found, expected)


def test_a_language_model_that_is_incomplete(tmp_path):
    folder = tiny_model_folder(tmp_path / "whole", kind="multimodal")
    tensors = load_file(folder / WEIGHTS)
    (name,) = [name for name in tensors if name.endswith("layers.3.mlp.down_proj.weight")]
    del tensors[name]
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    assert "lacks 1 tensors" in refused(WeightsError, folder)


@pytest.mark.parametrize("inner", [None, [], "gemma3_text"])
def test_a_multimodal_config_without_its_language_model(inner, folder):
    """transformers would build one of 2 billion random parameters."""
    edit_json(folder / "config.json", model_type="gemma3", text_config=inner)
    assert "type gemma3 without text_config" in refused(WeightsError, folder)


# Devices and dtypes


def test_a_device_that_is_not_here_is_replaced_with_a_warning(intact, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.warns(UserWarning, match="no cuda device here; using the CPU"):
        model = load_model(str(intact), device="cuda")
    assert model.device.type == "cpu"
    assert model.dtype == torch.float32
    with pytest.warns(UserWarning, match="no cuda:1 device here"):
        assert pick_device("cuda:1") == torch.device("cpu")


def test_auto_takes_an_accelerator_where_there_is_one(monkeypatch):
    for cuda, mps, expected in [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=cuda: there)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda there=mps: there)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert pick_device("auto").type == expected
    assert pick_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert pick_dtype("auto", torch.device("cpu")) == pick_dtype("auto", torch.device("mps")) == torch.float32


def test_quick_is_bfloat16_only_where_the_processor_multiplies_it(monkeypatch):
    for there, expected in [(True, torch.bfloat16), (False, torch.float32)]:
        monkeypatch.setattr(precision, "cpu_multiplies_bfloat16", lambda there=there: there)
        assert pick_dtype("quick", torch.device("cpu")) == expected
        assert pick_dtype("quick", torch.device("cuda")) == torch.bfloat16


@pytest.mark.parametrize("name", ["tpu", "", "cpu:x", "cuda:x", "CPU", "cuda:-1"])
def test_an_unknown_device(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(InputError, match=r"no device is called .*; use auto, cuda, mps, cpu"):
        pick_device(name)


def test_an_unknown_dtype_is_refused_before_anything_is_read():
    with pytest.raises(InputError, match="no dtype is called 'float8'; use auto, quick, float32, bfloat16, float16"):
        load_model("/nowhere/at/all", dtype="float8", **CPU)


def test_a_device_that_cannot_hold_the_model(intact, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.nn.Module, "to", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("out of\nmemory"))
    )
    message = refused(InputError, intact, device="cuda", dtype="float32")
    assert "cannot be put on cuda (out of memory); use --device cpu" in message


# Names


@pytest.mark.parametrize("name", ["gemma", "./models/none", "/no/such/folder", "a/b/c", "org/", "org/na me"])
def test_neither_a_folder_nor_a_repository(name):
    assert "try google/gemma-3-270m-it, or starter" in refused(NotFoundError, name)


def test_a_file_is_not_a_model(intact):
    assert "is neither a folder nor a hub repository" in refused(NotFoundError, intact / WEIGHTS)


# Damage


def test_an_empty_folder(tmp_path):
    assert "holds no config.json" in refused(NotFoundError, tmp_path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", WEIGHTS])
def test_a_file_that_is_missing(name, folder):
    (folder / name).unlink()
    assert "holds no " in refused(NotFoundError, folder)


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1])
def test_truncated_weights(keep, folder):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    assert "cannot be read" in refused(WeightsError, folder)


def test_a_shard_that_is_missing_or_truncated(sharded, tmp_path):
    broken = Path(shutil.copytree(sharded, tmp_path / "broken"))
    shard = sorted(broken.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-7])
    refused(WeightsError, broken)
    shard.unlink()
    refused(WeightsError, broken)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": "b.safetensors"}}'])
def test_a_damaged_list_of_shards(content, sharded, tmp_path):
    broken = Path(shutil.copytree(sharded, tmp_path / "broken"))
    (broken / "model.safetensors.index.json").write_text(content)
    refused(WeightsError, broken)


@pytest.mark.parametrize(
    "name", ["model.layers.3.mlp.down_proj.weight", "model.norm.weight", "model.embed_tokens.weight"]
)
def test_a_tensor_that_is_missing(name, folder):
    tensors = load_file(folder / WEIGHTS)
    del tensors[name]
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    # The embeddings serve as head too, which may be what is named.
    assert "lacks" in (message := refused(WeightsError, folder))
    assert name in message or "lm_head" in message


def test_a_tensor_of_another_shape(folder):
    tensors = load_file(folder / WEIGHTS)
    tensors["model.norm.weight"] = torch.zeros(5)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    refused(WeightsError, folder)


def test_weights_without_metadata_load(folder):
    """Not every writer of safetensors says that the tensors are PyTorch's."""
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS)
    assert load_model(str(folder), **CPU).n_layers == LAYERS


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "3", '"gemma3_text"', b"\xff\xfe{}", "[" * 100_000])
def test_a_damaged_config(content, folder):
    (folder / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(WeightsError, folder)


@pytest.mark.parametrize("kind", ["llama", "gemma", "gemma3n_text", None, ["gemma3_text"], {}])
def test_another_architecture(kind, folder):
    edit_json(folder / "config.json", model_type=kind)
    assert "gemlens reads Gemma 2 and 3 (gemma2, gemma3_text, gemma3)" in refused(MismatchError, folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": "wide"},
        {"hidden_size": -16},
        {"hidden_size": 32},
        {"num_hidden_layers": 9},
        {"num_hidden_layers": None},
        {"num_attention_heads": 0},
        {"num_key_value_heads": 0},
        {"head_dim": 1.5},
        {"layer_types": ["diagonal_attention"] * LAYERS},
        {"layer_types": ["full_attention"]},
        {"hidden_activation": "none_such"},
        {"vocab_size": []},
        {"rope_scaling": 3, "rope_parameters": 3},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        {"quantization_config": {"quant_method": "none_such"}},
        {"torch_dtype": "float1", "dtype": "float1"},
    ],
    ids=str,
)
def test_a_config_that_makes_no_sense_never_ends_in_another_error(changes, folder):
    edit_json(folder / "config.json", **changes)
    try:
        load_model(str(folder), **CPU)
    except GemlensError as error:
        assert len(str(error).splitlines()) == 1
        assert str(folder) in str(error)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model": {"type": "BPE"}}'])
def test_a_damaged_tokenizer(content, folder):
    (folder / "tokenizer.json").write_text(content)
    assert "tokenizer" in refused(WeightsError, folder)


@pytest.mark.parametrize(
    "content", ["{", "[]", "3", '{"bos_token": 3}', '{"bos_token": {"content": 3}}', '{"bos_token": ["<bos>"]}']
)
def test_a_damaged_tokenizer_config(content, folder):
    (folder / "tokenizer_config.json").write_text(content)
    assert "tokenizer" in refused(WeightsError, folder)


def test_a_special_token_that_the_vocabulary_lacks(folder):
    """transformers would add it under an id that has no embedding."""
    edit_json(folder / "tokenizer_config.json", bos_token="<s>")
    assert "'<s>'" in refused(WeightsError, folder)


def test_a_chat_template_that_is_no_text(folder):
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe\x00")
    refused(WeightsError, folder)


def test_pickles_are_never_loaded(folder, tmp_path):
    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "exploded",)

    (folder / WEIGHTS).rename(folder / "adapter.safetensors")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    refused(WeightsError, folder)
    torch.save(tiny_module().state_dict(), folder / "pytorch_model.bin")
    refused(WeightsError, folder)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("shown", [True, False])
def test_the_users_choice_of_progress_bars_is_kept(shown, intact):
    before = logging.is_progress_bar_enabled()
    try:
        (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
        load_model(str(intact), **CPU)
        assert logging.is_progress_bar_enabled() is shown
    finally:
        (logging.enable_progress_bar if before else logging.disable_progress_bar)()


def test_loading_says_nothing(intact, capfd):
    load_model(str(intact), **CPU)
    assert capfd.readouterr() == ("", "")
