"""Random Gemmas and dictionaries of a few kilobytes, made in code: nothing is downloaded.

    model = tiny_gemma()                    a Model: 7 layers, sliding and full attention, its own tokenizer
    model = tiny_gemma(kind="gemma2")       the same of Gemma 2, its soft-caps low enough to matter
    model = tiny_gemma(kind="multimodal")   Gemma 3 inside a checkpoint with a vision tower; the weights of the first
    tiny_model_folder(path)                 the same as a Hugging Face folder
    sae = random_sae(model, "resid_post.2")
    random_transcoders(model), random_clt(model)      one transcoder for each MLP, a CLT over all layers
    write_dictionary(path, random_tensors(16, 40))    a folder in Gemma Scope 2's published layout

The weights are much larger than a fresh initialisation, norms included, so that every module changes the residual.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    PreTrainedTokenizerFast,
)

from gemlens.lm.gemma import Model
from gemlens.records import DictionaryInfo
from gemlens.scope.multilayer import Layer, MultiLayer
from gemlens.scope.rows import DenseRows
from gemlens.scope.sae import SAE
from gemlens.sites import Site, parse_site

HIDDEN, HEADS, HEAD_DIM = 16, 2, 12  # heads x head_dim is not the hidden size, as in Gemma
LAYERS, VOCAB, CONTEXT = 7, 367, 128  # VOCAB is what tiny_tokenizer() knows
ATTENTION_CAP, LOGIT_CAP = 0.5, 2.0  # of Gemma 2, where Google has 50 and 30
SPECIAL = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
CHAT_TEMPLATE = (
    "{{ bos_token }}{% set system = messages[0]['content'] + '\n\n' if messages[0]['role'] == 'system' else '' %}"
    "{% for message in messages if message['role'] == 'user' %}"
    "<start_of_turn>user\n{{ system }}{{ message['content'] }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def tiny_tokenizer(*, chat: bool = False) -> PreTrainedTokenizerFast:
    """A BPE over spaces as ``▁`` with byte fallback, as Gemma's: printable ASCII, é and a few words are whole."""
    words = ["he", "the", "▁the", "an", "and", "▁and", "in", "ing"]
    merges = [("h", "e"), ("t", "he"), ("▁", "the"), ("a", "n"), ("an", "d"), ("▁", "and"), ("i", "n"), ("in", "g")]
    turns = ["<start_of_turn>", "<end_of_turn>"]
    entries = [
        *("<pad>", "<eos>", "<bos>", "<unk>"),
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *("▁", "\n", "é"),
        *(chr(code) for code in range(33, 127)),
        *words,
        *turns,
    ]
    vocab = {entry: index for index, entry in enumerate(entries)}
    backend = Tokenizer(BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", vocab["<bos>"])]
    )
    backend.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in [*SPECIAL.values(), *turns]]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)
    tokenizer.chat_template = CHAT_TEMPLATE if chat else None
    return tokenizer


def tiny_module(
    *, kind: str = "gemma3", layers: int = LAYERS, hidden: int = HIDDEN, seed: int = 0, **config: Any
) -> Gemma2ForCausalLM | Gemma3ForCausalLM | Gemma3ForConditionalGeneration:
    """A random Gemma: ``gemma3``, ``gemma2`` or ``multimodal``.

    Every sixth layer attends to everything, the others to 4 tokens.
    """
    settings = {
        "vocab_size": VOCAB,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 1,
        "head_dim": HEAD_DIM,
        "query_pre_attn_scalar": HEAD_DIM,
        "max_position_embeddings": CONTEXT,
        "sliding_window": 4,
        "layer_types": ["full_attention" if layer % 6 == 1 else "sliding_attention" for layer in range(layers)],
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    }
    if kind == "gemma2":
        caps = {"attn_logit_softcapping": ATTENTION_CAP, "final_logit_softcapping": LOGIT_CAP}
        return _filled(Gemma2ForCausalLM(Gemma2Config(**(settings | caps | config))), seed)
    text = _filled(Gemma3ForCausalLM(Gemma3TextConfig(**(settings | config))), seed)
    if kind == "gemma3":
        return text
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    whole = Gemma3ForConditionalGeneration(
        Gemma3Config(
            text_config=text.config.to_dict(),
            vision_config=vision | {"image_size": 28, "patch_size": 14},
            mm_tokens_per_image=4,
            eos_token_id=1,
        )
    )
    whole = _filled(whole, seed + 1)
    whole.model.language_model.load_state_dict(text.model.state_dict())
    return whole


def _filled(module: Any, seed: int) -> Any:
    module.eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module


def tiny_gemma(*, chat: bool = False, name: str = "google/gemma-3-tiny", **config: Any) -> Model:
    """A random Gemma with its tokenizer; ``config`` goes to ``tiny_module``."""
    return Model(tiny_module(**config), tiny_tokenizer(chat=chat), name)


def tiny_model_folder(path: Path, *, chat: bool = False, shard_size: str = "5GB", **config: Any) -> Path:
    """Write a tiny Gemma as transformers does, and the tokenizer as Google publishes it (tokens as objects)."""
    tiny_module(**config).save_pretrained(path, max_shard_size=shard_size)
    tokenizer = tiny_tokenizer(chat=chat)
    tokenizer.backend_tokenizer.save(str(path / "tokenizer.json"))
    about: dict[str, Any] = {"tokenizer_class": "GemmaTokenizer", "bos_token": {"content": "<bos>", "special": True}}
    if chat:
        about["chat_template"] = CHAT_TEMPLATE
    (path / "tokenizer_config.json").write_text(json.dumps(about), encoding="utf-8")
    return path


def some_tokens(n: int = 12, *, batch: int = 1, seed: int = 0) -> Tensor:
    """[batch, n] ids: BOS, then ordinary ones."""
    ids = torch.randint(4, VOCAB, (batch, n), generator=torch.Generator().manual_seed(seed))
    ids[:, 0] = 2
    return ids


def random_tensors(
    d_in: int, width: int, *, d_out: int | None = None, skip: bool = False, seed: int = 0
) -> dict[str, Tensor]:
    """The tensors of a dictionary under their published names; about half of the features fire on a random input."""
    generator = torch.Generator().manual_seed(seed)
    d_out = d_out or d_in
    shapes = {
        "w_enc": (d_in, width),
        "w_dec": (width, d_out),
        "b_enc": (width,),
        "b_dec": (d_out,),
        "threshold": (width,),
    }
    if skip:
        shapes["affine_skip_connection"] = (d_in, d_out)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return tensors | {"threshold": tensors["threshold"].abs()}


def sae_of(tensors: dict[str, Tensor], reads: Site, writes: Site | None = None, **info: Any) -> SAE:
    """A dictionary with these tensors, put together by hand."""
    about = {"release": "test", "category": "resid_post", "id": "handmade", "neuronpedia": None}
    width = tensors["w_enc"].shape[1]
    return SAE(
        DenseRows(tensors["w_enc"].T),
        DenseRows(tensors["w_dec"]),
        b_enc=tensors["b_enc"],
        b_dec=tensors["b_dec"],
        threshold=tensors["threshold"],
        skip=tensors.get("affine_skip_connection"),
        reads=reads,
        writes=writes or reads,
        info=DictionaryInfo(**(about | info), site=str(reads), layer=reads.layer, width=width),
    )


def random_sae(model: Model, site: str, width: int = 40, *, seed: int = 0, **info: Any) -> SAE:
    """A random SAE that fits one site of ``model``."""
    reads = parse_site(site)
    d = HEADS * HEAD_DIM if reads.name == "attn_out" else model.config.hidden_size
    return sae_of(random_tensors(d, width, seed=seed), reads, **info)


def random_transcoders(model: Model, width: int = 40, *, reads: str = "mlp_in", skip: bool = True) -> list[SAE]:
    """A random transcoder for every MLP of ``model``, named as a set of Gemma Scope 2's."""
    d, found = model.config.hidden_size, []
    for layer in range(model.n_layers):
        name = f"layer_{layer}_width_{width}_l0_small{'_affine' if skip else ''}"
        tensors = {key: each / 4 for key, each in random_tensors(d, width, skip=skip, seed=layer).items()}
        sites = Site(layer, reads), Site(layer, "mlp_out")
        found.append(sae_of(tensors, *sites, category="transcoder_all", id=name, path=f"transcoder_all/{name}"))
    return found


def random_clt(model: Model, width: int = 30, *, skip: bool = True, crosscoder: bool = False) -> MultiLayer:
    """A random CLT over all layers of ``model``, or a crosscoder of the same shapes over ``resid_post``."""
    d, n, layers = model.config.hidden_size, model.n_layers, []
    for index in range(n):
        tensors = {key: each / 4 for key, each in random_tensors(d, width, skip=skip, seed=index).items()}
        generator = torch.Generator().manual_seed(100 + index)
        outputs = n if crosscoder else n - index
        decoder = torch.randn(width * outputs, d, generator=generator) / 8
        layers.append(
            Layer(
                DenseRows(tensors["w_enc"].T),
                DenseRows(decoder),
                b_enc=tensors["b_enc"],
                threshold=tensors["threshold"],
                b_dec=tensors["b_dec"],
                skip=tensors.get("affine_skip_connection"),
                first=0 if crosscoder else index,
            )
        )
    names = ("resid_post", "resid_post") if crosscoder else ("mlp_in", "mlp_out")
    reads, writes = ([Site(layer, name) for layer in range(n)] for name in names)
    about = {"release": "test", "category": "clt", "id": f"width_{width * n}_l0_small", "neuronpedia": None}
    info = DictionaryInfo(**about, site=str(reads[0]), layer=0, width=width * n, path=f"clt/{about['id']}")
    return MultiLayer(layers, reads=reads, writes=writes, info=info)


def published_config(layer: int = 2, width: int = 40, **changes: Any) -> dict[str, Any]:
    """``config.json`` as Gemma Scope 2 has it."""
    point = f"model.layers.{layer}.output"
    config = {
        "hf_hook_point_in": point,
        "hf_hook_point_out": point,
        "width": width,
        "model_name": "google/gemma-3-270m-it",
        "architecture": "jump_relu",
        "l0": 20,
        "affine_connection": False,
        "type": "sae",
    }
    return config | changes


def write_dictionary(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any] | None = None) -> Path:
    """Write ``params.safetensors`` and, if given, ``config.json``, with nothing of gemlens."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "params.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def files_below(root: Path) -> dict[str, bytes]:
    """Every file under ``root`` by its path there, as ``FakeHub`` serves them."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
