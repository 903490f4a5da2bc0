"""What a trained dictionary is worth, as ``card.json`` and as ``README.md``."""

from __future__ import annotations

import json
from typing import Any

from gemlens.records import Fidelity, QuantizationCost, Training
from gemlens.report.visible import one_line

__all__ = ["MAX_ACTIVATION", "figures", "int8_figures", "readme", "to_json"]

MAX_ACTIVATION = "max_activation.safetensors"
"""Beside a card whose dead features were counted: how often each fired, and how strongly at most."""

_KINDS = {"sae": "Sparse autoencoder", "transcoder": "Transcoder", "clt": "Cross-layer transcoder"}


def to_json(training: Training, measured: Fidelity | None, cost: QuantizationCost | None = None) -> str:
    """Measured figures by the fidelity protocol, where they were taken, what int8 cost, then those of training."""
    card = {
        **(figures(measured) if measured else {}),
        **(int8_figures(cost) if cost else {}),
        "training_fvu": training.last("fvu"),
        "training_l0": training.last("l0"),
        "training_dead": training.last("dead"),
        "tokens_trained": training.tokens,
        "minutes_trained": round(training.seconds / 60, 1),
        "gemlens_version": training.version,
        "source": training.source,
        "config": training.config,
    }
    return json.dumps(card, indent=2) + "\n"


def figures(measured: Fidelity) -> dict[str, Any]:
    """What a card says of a measurement, by the card's names."""
    said: dict[str, Any] = {
        "l0": measured.l0,
        "variance_explained": measured.variance_explained,
        "fvu": measured.fvu,
        "variance_explained_trimmed": measured.variance_explained_trimmed,
        "variance_explained_tutorial": measured.variance_explained_tutorial,
        "variance_explained_pca": measured.variance_explained_pca,
        "cosine": measured.cosine,
        "ce_clean": measured.ce_clean,
        "ce_spliced": measured.spliced.ce,
        "ce_zero": measured.zeroed.ce,
        "ce_mean": measured.mean_ablated.ce,
        "ce_above_clean": measured.spliced.above_clean,
        "ce_above_clean_standard_error": measured.spliced.standard_error,
        "ce_recovered": measured.ce_recovered,
        "ce_recovered_mean": measured.ce_recovered_mean,
        "tokens_measured": measured.tokens_measured,
        "tokens_measured_ce": measured.ce_tokens,
    }
    if measured.variance_explained_linear is not None:
        said["variance_explained_linear"] = measured.variance_explained_linear
    if measured.dead is not None:
        said |= {"dead": measured.dead, "dead_tokens": measured.dead_tokens, "max_activation": MAX_ACTIVATION}
    return said


def int8_figures(cost: QuantizationCost) -> dict[str, Any]:
    """What a card says of storing in int8: shares of the active features, and changes of two figures."""
    return {
        "int8_kept": cost.kept,
        "int8_added": cost.added,
        "int8_ce_change": cost.ce_change,
        "int8_variance_explained_change": cost.variance_explained_change,
    }


def readme(training: Training, measured: Fidelity | None, cost: QuantizationCost | None = None) -> str:
    """A page in Markdown: what it is, how to use it, how it was trained, what was measured."""
    info, config = training.dictionary, training.config
    path = "/".join(filter(None, [info.category, info.id]))
    where = ", ".join(config["reads"])
    if config["writes"] != config["reads"]:
        where += f" to {', '.join(config['writes'])}"
    lines = [
        f"# {path}",
        "",
        f"{_KINDS[config['kind']]} of {info.width:,} features: {where} of {info.model_name or 'a model'}. "
        f"Trained by gemlens {training.version}; weights in Gemma Scope 2's layout.",
        "",
        "```console",
        f"$ gemlens analyze --sae-release {info.release} --sae-id {path} --model-id MODEL --prompt TEXT"
        if config["kind"] != "clt"
        else f'>>> gemlens.load_clt("{info.release}", "{path}")',
        "```",
        "",
        "## Training",
        "",
        *_table([*_source(training), *((name, _plain(value)) for name, value in config.items())]),
        "",
        f"At the end, on the batches trained on: FVU {training.last('fvu'):.3f}, L0 {training.last('l0'):.1f}, "
        f"{training.last('dead'):.1%} of the features silent for {config['dead_after']:,} tokens.",
        "",
        "![Loss, FVU, L0 and dead features over training](curves.svg)",
        "",
        "## Measured",
        "",
        *(
            _measured(measured, cost)
            if measured
            else ["Nothing was: no held-out text was given, or it is of several layers."]
        ),
        "",
    ]
    return "\n".join(lines)


def _source(training: Training) -> list[tuple[str, str]]:
    texts = [one_line(str(text["name"])) for text in training.source.get("texts", [])]
    more = f" and {len(texts) - 8} more" if len(texts) > 8 else ""
    told = [(name, _plain(value)) for name, value in training.source.items() if name != "texts"]
    return [
        ("tokens trained on", f"{training.tokens:,}"),
        ("minutes", f"{training.seconds / 60:.1f}"),
        *told,
        *([("texts", ", ".join(texts[:8]) + more)] if texts else []),
    ]


def _measured(measured: Fidelity, cost: QuantizationCost | None) -> list[str]:
    spliced = measured.spliced
    rows = [
        ("L0", f"{measured.l0:.1f}"),
        ("variance explained", f"{measured.variance_explained:.3f} (FVU {measured.fvu:.3f})"),
        *_linear(measured),
        ("without the 1 % of tokens of largest norm", f"{measured.variance_explained_trimmed:.3f}"),
        ("cosine", f"{measured.cosine:.3f}"),
        ("cross-entropy clean", f"{measured.ce_clean:.3f} nats"),
        ("above clean, spliced in", f"{spliced.above_clean:.3f} ± {spliced.standard_error:.3f} nats"),
        ("above clean, replaced by the mean", f"{measured.mean_ablated.above_clean:.3f} nats"),
        ("above clean, replaced by zero", f"{measured.zeroed.above_clean:.3f} nats"),
        ("recovered against the mean", f"{measured.ce_recovered_mean:.3f}"),
        ("recovered against zero", f"{measured.ce_recovered:.3f}"),
    ]
    if measured.dead is not None:
        rows.append(("dead", f"{measured.dead:.1%} never fired on {measured.dead_tokens:,} tokens of the training mix"))
    if cost is not None:
        rows += _int8(cost)
    said = f"On {measured.tokens_measured:,} tokens of held-out text, by the protocol of `gemlens fidelity`:"
    return [said, "", *_table(rows), "", *(f"- {sentence}" for sentence in measured.verdict)]


def _linear(measured: Fidelity) -> list[tuple[str, str]]:
    """What to hold the variance explained against."""
    best = f"{measured.variance_explained_pca:.3f}"
    if measured.variance_explained_linear is None:
        return [(f"by a PCA of rank {measured.l0:.0f} of the same tokens", best)]
    any_rank = f"by one of any rank, {measured.variance_explained_linear:.3f}"
    return [(f"by the best linear map of rank {measured.l0:.0f}", f"{best}; {any_rank}")]


def _int8(cost: QuantizationCost) -> list[tuple[str, str]]:
    changes = f"{cost.variance_explained_change:+.4f}", f"{cost.ce_change:+.4f} nats"
    return [
        ("active features kept by int8", f"{cost.kept:.2%}; {cost.added:.2%} more became active"),
        ("int8's change in variance explained, in cross-entropy", ", ".join(changes)),
    ]


def _table(rows: list[tuple[str, str]]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in rows)]


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value)) or "none"
    return "none" if value is None else one_line(str(value))
