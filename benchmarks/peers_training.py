"""How SAELens and sparsify are driven to train: by their own trainers, with the fastest of what they offer.

SAELens     bfloat16 autocast. Live: Hugging Face's model in bfloat16, stopped after the layer; no mixing of rows, which
            would have it read more tokens than it trains on.
sparsify    float32, since its autocast is for CUDA alone. Its optimizer and learning rate. It knows no activations on
            disk, so its ``Trainer`` is given a model that looks them up.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from training import BATCH, L0, ROW, WIDTH

__all__ = ["Lookup", "sae_lens_model", "sae_lens_runner", "sae_lens_trainer", "sparsify_model", "sparsify_trainer"]

SAE_LENS_LR = 4e-3
"""Of 3e-4, its default, to 4e-3, gemlens' default, the one that leaves least unexplained after so few steps."""
ROWS = BATCH // (ROW - 1)
"""That make a batch."""


def sae_lens_trainer(activation: str, tokens: int, d: int, batches: Iterator[Tensor], seed: int) -> Any:
    """Its trainer, on batches from anywhere."""
    from sae_lens.saes.sae import TrainingSAE
    from sae_lens.training.sae_trainer import SAETrainer

    config = _sae_lens_config(activation, tokens, d)
    torch.manual_seed(seed)
    sae = TrainingSAE.from_dict(config.get_training_sae_cfg_dict())
    return SAETrainer(cfg=config.to_sae_trainer_config(), sae=sae, data_provider=batches)


def sae_lens_model(folder: str, layer: int) -> Any:
    """Its wrapper of Hugging Face's model, in bfloat16, which stops after the layer."""
    from sae_lens.load_model import load_model

    settings = {"torch_dtype": "bfloat16"}
    return load_model("AutoModelForCausalLM", folder, "cpu", settings, hook_names=[f"model.layers.{layer}"])


def sae_lens_runner(
    activation: str, model: Any, layer: int, rows: NDArray[np.int64], d: int, seed: int, folder: str
) -> Any:
    """Its runner: the model reads rows of token ids, BOS first; the result goes to ``folder``."""
    from datasets import Dataset
    from sae_lens import LanguageModelSAETrainingRunner

    config = _sae_lens_config(
        activation,
        rows[:, 1:].size,
        d,
        model_class_name="AutoModelForCausalLM",
        hook_name=f"model.layers.{layer}",
        context_size=ROW,
        seqpos_slice=(1, None),
        n_batches_in_buffer=ROWS,
        store_batch_size_prompts=min(len(rows), 32),
        activations_mixing_fraction=0.0,
        output_path=folder,
    )
    torch.manual_seed(seed)
    dataset = Dataset.from_dict({"input_ids": rows})
    return LanguageModelSAETrainingRunner(config, override_dataset=dataset, override_model=model)


def _sae_lens_config(activation: str, tokens: int, d: int, **live: Any) -> Any:
    from sae_lens import (
        BatchTopKTrainingSAEConfig,
        LanguageModelSAERunnerConfig,
        LoggingConfig,
        TopKTrainingSAEConfig,
    )

    kind = {"batchtopk": BatchTopKTrainingSAEConfig, "topk": TopKTrainingSAEConfig}[activation]
    return LanguageModelSAERunnerConfig(
        sae=kind(d_in=d, d_sae=WIDTH, k=L0, dtype="float32", device="cpu"),
        training_tokens=tokens,
        train_batch_size_tokens=BATCH,
        lr=SAE_LENS_LR,
        autocast=True,
        logger=LoggingConfig(log_to_wandb=False),
        checkpoint_path=None,
        verbose=False,
        **live,
    )


class Lookup(PreTrainedModel):
    """A model whose tokens are numbers of activations, which its ``store`` gives out."""

    config_class = PretrainedConfig

    def __init__(self, x: Tensor) -> None:
        super().__init__(PretrainedConfig())
        self.store = nn.Embedding.from_pretrained(x)

    def forward(self, input_ids: Tensor) -> Tensor:
        found: Tensor = self.store(input_ids)
        return found


def sparsify_model(folder: str) -> Any:
    """The model without its head, in bfloat16, as sparsify's command wants it.

    That loads it with ``AutoModel``, which with transformers 4.57 does not find the weights of a Gemma 3 of text alone
    in its own checkpoint, and starts from random ones.
    """
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).model


def sparsify_trainer(model: Any, hookpoint: str, rows: NDArray[np.int64], seed: int, folder: str) -> Any:
    """Its trainer on rows of ``ROW`` token ids, BOS first, or of one less without."""
    from datasets import Dataset
    from sparsify import SparseCoderConfig, TrainConfig, Trainer

    config = TrainConfig(
        SparseCoderConfig(num_latents=WIDTH, k=L0),
        batch_size=ROWS,
        hookpoints=[hookpoint],
        init_seeds=[seed],
        exclude_tokens=[model.config.bos_token_id] if rows.shape[1] == ROW else [],
        save_dir=folder,
        log_to_wandb=False,
    )
    return Trainer(config, Dataset.from_dict({"input_ids": rows}).with_format("torch"), model)
