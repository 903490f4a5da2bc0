"""Gemma: run a model only as deep as somebody looks, generate while looking.

The model is Hugging Face's own; nothing of its arithmetic is rebuilt here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gemlens.errors import MismatchError, WeightsError
from gemlens.lm.hooks import StopForward, read, replaced, write
from gemlens.lm.sampling import Nucleus
from gemlens.sites import Side, Site

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

__all__ = [
    "Model",
    "activations",
    "check_finite",
    "generate",
    "logits",
    "module_at",
    "ragged_activations",
    "reading",
    "writing",
]


@dataclass(frozen=True, eq=False)
class Model:
    """A Hugging Face Gemma with its tokenizer. A module that caps its attention logits is set to eager attention."""

    module: PreTrainedModel
    """``Gemma2ForCausalLM``, ``Gemma3ForCausalLM`` or ``Gemma3ForConditionalGeneration`` (of which only the language
    model is used), in eval mode."""
    tokenizer: PreTrainedTokenizerFast
    name: str
    """As the user asked for it: ``google/gemma-3-270m-it``, ``starter``, a folder."""
    revision: str | None = None

    def __post_init__(self) -> None:
        # Gemma 2. Other implementations leave the cap out without a word: SDPA does in transformers 4.57, where it is
        # what a user gets who asks for nothing.
        capped = getattr(self.config, "attn_logit_softcapping", None) is not None
        if capped and self.config._attn_implementation != "eager":
            self.module.set_attn_implementation("eager")

    @property
    def config(self) -> Any:
        """Of the language model."""
        return self.module.config.get_text_config()

    @property
    def backbone(self) -> nn.Module:
        """Embeddings, blocks and final norm, without the head."""
        return getattr(self.module.model, "language_model", self.module.model)

    @property
    def blocks(self) -> nn.ModuleList:
        return self.backbone.layers  # type: ignore[return-value]

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    @property
    def device(self) -> torch.device:
        return self.module.device

    @property
    def dtype(self) -> torch.dtype:
        return self.module.dtype

    @property
    def context(self) -> int:
        """Longest text in tokens."""
        return self.config.max_position_embeddings

    @property
    def bos(self) -> int:
        return self.tokenizer.bos_token_id

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids whose text ``skip_special_tokens`` hides: BOS, turn marks and the like.

        Asked once: Gemma 3 has 6,000 added tokens to go through, which takes as long as reading a word or two.
        """
        added = self.tokenizer.added_tokens_decoder.items()
        return frozenset(self.tokenizer.all_special_ids) | {index for index, token in added if token.special}

    @cached_property
    def mean_unembedding(self) -> Tensor:
        """[d_model], the mean row of the head: what is common to all logits. In float32 at least.

        Asked once: it reads as many bytes as the logits of a token do.
        """
        weight = self.module.lm_head.weight
        return weight.mean(dim=0, dtype=torch.promote_types(weight.dtype, torch.float32))


def module_at(model: Model, site: Site) -> tuple[nn.Module, Side]:
    """The module at which ``site`` is read, and the side it is on; to write there, use ``writing``.

    Raises:
        MismatchError: the model has no such layer.
    """
    if site.layer >= model.n_layers:
        raise MismatchError(
            f"{site} does not exist in {model.name}: its layers are 0 to {model.n_layers - 1}; "
            "choose a dictionary of one of them"
        )
    block = model.blocks[site.layer]
    return block.get_submodule(site.place.module), site.place.side


@contextmanager
def reading(model: Model, sites: Iterable[Site], *, stop: bool = False) -> Iterator[dict[Site, list[Tensor]]]:
    """Collect what passes each site, a tensor a forward call; ``stop`` ends the pass after the deepest site."""
    ordered = sorted(set(sites))
    with ExitStack() as stack:
        yield {
            site: stack.enter_context(read(*module_at(model, site), stop=stop and site == ordered[-1]))
            for site in ordered
        }


@contextmanager
def writing(model: Model, site: Site, edit: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replace what passes ``site`` by ``edit`` of it: everything that the model computes from it sees the change.

    Raises:
        MismatchError: the model has no such layer.
        ValueError: from the forward pass, when ``edit`` returns another shape.
    """
    module, side = module_at(model, site)
    if site.name != "resid_mid":
        with write(module, side, edit):
            yield
        return
    # The norm's input is one of two readers of resid_mid, the sum at the block's end is the other. Both see what
    # attention adds to the block's input, so the change goes there.
    block: Any = model.blocks[site.layer]

    def edited(added: Tensor) -> Tensor:
        middle = entry.pop() + added
        return added + (replaced(middle, edit) - middle)

    with (
        read(block.input_layernorm, "input") as entry,
        write(block.post_attention_layernorm, "output", edited),
    ):
        yield


@torch.no_grad()
def activations(model: Model, tokens: Tensor, sites: Sequence[Site]) -> dict[Site, Tensor]:
    """Activations at some sites, without computing anything deeper than the deepest of them.

    Args:
        tokens: [batch, n] ids without padding.
        sites: what to read.

    Returns:
        For each site [batch, n, d]; d is heads x head_dim at ``attn_out``, else d_model. In the model's dtype, at
        ``mlp_in_normalized`` in float32, in which the norm computes.

    Raises:
        MismatchError: the model lacks a layer.
        WeightsError: the activations are not finite.
    """
    result = _pass(model, tokens, sites)
    check_finite(model, result)
    return result


@torch.no_grad()
def ragged_activations(model: Model, texts: Sequence[Tensor], sites: Sequence[Site]) -> dict[Site, Tensor]:
    """Activations of texts of any lengths, in one pass; otherwise as ``activations``.

    Args:
        texts: [n] ids each.

    Returns:
        For each site [tokens of all texts, d], one text after the other.
    """
    # Attention is causal: what follows a token cannot change it, so texts filled up on the right need no mask. Any
    # token would do; 0 is Gemma's <pad>.
    tokens = nn.utils.rnn.pad_sequence([text.to(model.device) for text in texts], batch_first=True)
    lengths = torch.tensor([len(text) for text in texts], device=model.device)
    real = torch.arange(tokens.shape[1], device=model.device) < lengths[:, None]
    result = {site: found[real] for site, found in _pass(model, tokens, sites).items()}
    check_finite(model, result)
    return result


def _pass(model: Model, tokens: Tensor, sites: Sequence[Site]) -> dict[Site, Tensor]:
    masks = _no_masks(model, tokens.shape[1])
    with reading(model, sites, stop=True) as found, suppress(StopForward):
        model.backbone(input_ids=tokens.to(model.device), attention_mask=masks, use_cache=False)
    return {site: tensors[0] for site, tensors in found.items()}


def _no_masks(model: Model, n: int) -> dict[str, None] | None:
    """Masks by kind of layer for texts that fit into every window, where SDPA's own causal one is all it takes; else
    None, which has them built. transformers 4.57 always builds them, and attention with a mask is slower: 5 % of a
    pass over 128 tokens."""
    window = getattr(model.config, "sliding_window", None) or n
    plain = model.config._attn_implementation == "sdpa" and n <= window
    return {"full_attention": None, "sliding_attention": None} if plain else None


@torch.no_grad()
def logits(model: Model, residual: Tensor) -> Tensor:
    """Next-token logits [..., vocab] of the last block's output [..., d_model], through the model's norm and head."""
    scores = model.module.lm_head(model.backbone.norm(residual))  # type: ignore[operator]
    cap = model.config.final_logit_softcapping
    return scores if cap is None else cap * torch.tanh(scores / cap)


@torch.no_grad()
def generate(
    model: Model,
    tokens: Tensor,
    sites: Sequence[Site],
    *,
    max_new_tokens: int,
    temperature: float = 0.7,
    top_p: float = 0.95,
    greedy: bool = False,
    seed: int = 0,
) -> tuple[Tensor, dict[Site, Tensor]]:
    """Continue a text and keep the activations that the model computed on the way.

    Args:
        tokens: [1, n] ids.
        sites: what to read.

    Returns:
        [1, n + new] ids, and for each site [1, n + new, d]. The last token is sampled but never read by
        ``generate``; it is run through the cache once more, no deeper than the deepest site.

    Raises:
        WeightsError: the activations are not finite.
    """
    sampling: dict[str, Any] = {"do_sample": False}
    if not greedy and temperature > 0:
        # Logits divided by less than 1e-6 may overflow. top_k=0: no cut but the one that was asked for.
        nucleus = Nucleus(max(float(temperature), 1e-6), top_p)
        sampling = {"do_sample": True, "logits_processor": [nucleus], "top_k": 0}
    tokens = tokens.to(model.device)
    with reading(model, sites) as found, torch.random.fork_rng(), _own_settings(model):
        torch.manual_seed(seed)
        output = model.module.generate(  # type: ignore[operator]
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=max_new_tokens,
            return_dict_in_generate=True,
            use_cache=True,
            **sampling,
        )
    ids = output.sequences
    with reading(model, sites, stop=True) as last, suppress(StopForward):
        model.backbone(input_ids=ids[:, -1:], past_key_values=output.past_key_values, use_cache=True)
    result = {site: torch.cat([*found[site], *last[site]], dim=1) for site in found}
    check_finite(model, result)
    return ids, result


@contextmanager
def _own_settings(model: Model) -> Iterator[None]:
    """Hide what a checkpoint ships as its way to generate, but for the tokens that end a text.

    Sampling defaults would mix with what was asked for; beams and static caches break the capture.
    """
    from transformers import GenerationConfig

    module: Any = model.module
    saved = module.generation_config
    tokens = {name: getattr(saved, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    module.generation_config = GenerationConfig(**tokens)
    try:
        yield
    finally:
        module.generation_config = saved


def check_finite(model: Model, read_out: dict[Site, Tensor]) -> None:
    """Refuse NaN and infinity before they turn into features.

    Raises:
        WeightsError: naming the first site that holds one.
    """
    for site, tensor in read_out.items():
        if not torch.isfinite(tensor).all():
            way_out = "try --dtype bfloat16 or float32" if model.dtype == torch.float16 else "download it again"
            raise WeightsError(f"{model.name} computes values at {site} that are not finite; {way_out}")
