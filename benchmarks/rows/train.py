"""Train a dictionary of 4,096 features at layer 12 of the starter, 50 active a token, 1,024 tokens a step.

From stored activations, 49,152 tokens: all sides learn from the same batches. End to end, 8,192 tokens: the model in
bfloat16 reads rows of token ids, the same for all sides, and what was learned is written. No side computes an auxiliary
loss: so early, no feature counts as dead.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from timing import Aim, Case, Work

Job = Callable[[], Any]
WARM, D = 2048, 640


def _work(
    job: Callable[[int, int], Job], tokens: int, seed: int, facts: Callable[[Any], dict[str, Any]] = lambda _: {}
) -> Work:
    """``job`` of so many tokens and a seed makes everything ready, and leaves the training to do."""
    timed, warm = job(tokens, seed), job(WARM, seed + 1)
    return Work(lambda each: each(), [timed], warm, facts=lambda result: {"tokens": tokens} | facts(result))


def _stored_gemlens(activation: str) -> Callable[[int], Work]:
    def side(seed: int) -> Work:
        from gemlens import fit
        from gemlens.train.stored import StoredStream
        from training import BATCH, STORED, config, largest, stored

        def job(tokens: int, seed: int) -> Job:
            stream = StoredStream(stored(), batch=BATCH, seed=seed)
            return lambda: fit(stream, config(activation, tokens, seed))

        return _work(job, STORED, seed, lambda sae: _quality(largest(sae, activation)))

    return side


def _stored_sae_lens(activation: str) -> Callable[[int], Work]:
    def side(seed: int) -> Work:
        from peers_training import sae_lens_trainer
        from training import STORED

        scaling = _scaling()

        def job(tokens: int, seed: int) -> Job:
            return sae_lens_trainer(activation, tokens, D, _scaled_batches(scaling, seed), seed).fit

        def facts(sae: Any) -> dict[str, Any]:
            return _quality(lambda x: sae.decode(sae.encode(scaling.apply(x))) / scaling.scale + scaling.mean)

        return _work(job, STORED, seed, facts)

    return side


def _stored_sparsify(seed: int) -> Work:
    import torch

    from peers_training import Lookup, sparsify_trainer
    from training import BATCH, ROW, STORED

    scaling = _scaling()

    def job(tokens: int, seed: int) -> Job:
        batches = _scaled_batches(scaling, seed)
        x = torch.cat([next(batches) for _ in range(tokens // BATCH)])
        rows = torch.arange(tokens).view(-1, ROW - 1).numpy()
        trainer = sparsify_trainer(Lookup(x), "store", rows, seed, "")
        trainer.save = lambda: None  # the others write nothing here

        def run() -> Any:
            trainer.fit()
            return trainer

        return run

    def facts(trainer: Any) -> dict[str, Any]:
        for optimizer in trainer.optimizers:
            optimizer.eval()  # the averaged weights
        (sae,) = trainer.saes.values()
        return _quality(lambda x: sae(scaling.apply(x)).sae_out / scaling.scale + scaling.mean)

    return _work(job, STORED, seed, facts)


def _scaling() -> Any:
    """As gemlens finds it itself, within its time; for the peers it is there."""
    from gemlens.train.folding import Scaling
    from given import SITE
    from training import STORED, stored

    return Scaling.of(stored().read(0, 0, STORED, [SITE])[SITE], SITE)


def _scaled_batches(scaling: Any, seed: int) -> Iterator[Any]:
    from gemlens.train.stored import StoredStream
    from given import SITE
    from training import BATCH, stored

    return (scaling.apply(batch[SITE]) for batch in StoredStream(stored(), batch=BATCH, seed=seed))


def _quality(reconstruct: Any) -> dict[str, Any]:
    from training import fvu, held_out

    return {"told": {"unexplained, of tokens held out": fvu(reconstruct, held_out())}}


# Loads a model, and returns what makes a job of rows of token ids, a seed and a folder to write into.
Start = Callable[[], Callable[[Any, int, str], Job]]


def _live(start: Start) -> Callable[[int], Work]:
    def side(seed: int) -> Work:
        from training import LIVE, rows, starter_bfloat16

        begin, tokenizing, folder = start(), starter_bfloat16(), tempfile.TemporaryDirectory()

        def job(tokens: int, seed: int) -> Job:
            return begin(rows(tokenizing, tokens, seed), seed, str(Path(folder.name, str(tokens))))

        return _work(job, LIVE, seed)

    return side


def _live_gemlens(activation: str) -> Start:
    def start() -> Callable[[Any, int, str], Job]:
        from gemlens.train.run import train
        from gemlens.train.stream import ShuffledStream, harvest
        from given import SITE
        from training import BATCH, config, starter_bfloat16

        model = starter_bfloat16()

        def begin(ids: Any, seed: int, folder: str) -> Job:
            stream = ShuffledStream(harvest(model, lambda: ids, [SITE]), batch=BATCH, seed=seed)
            return lambda: train(stream, [config(activation, ids[:, 1:].size, seed)], Path(folder))

        return begin

    return start


def _live_sae_lens(activation: str) -> Start:
    def start() -> Callable[[Any, int, str], Job]:
        from gemlens.lm.starter import starter_folder
        from given import SITE
        from peers_training import sae_lens_model, sae_lens_runner

        model = sae_lens_model(str(starter_folder()), SITE.layer)
        return lambda ids, seed, into: sae_lens_runner(activation, model, SITE.layer, ids, D, seed, into).run

    return start


def _live_sparsify() -> Callable[[Any, int, str], Job]:
    from gemlens.lm.starter import starter_folder
    from given import SITE
    from peers_training import sparsify_model, sparsify_trainer

    model = sparsify_model(str(starter_folder()))
    return lambda ids, seed, into: sparsify_trainer(model, f"layers.{SITE.layer}", ids, seed, into).fit


def _same_live(seed: int) -> dict[str, Any]:
    """Do the peers' models give what gemlens trains on?"""
    import torch

    from gemlens.lm.gemma import activations
    from gemlens.lm.starter import starter_folder
    from given import SITE
    from peers_training import sae_lens_model, sae_lens_runner, sparsify_model
    from training import BATCH, rows, starter_bfloat16

    model, folder = starter_bfloat16(), str(starter_folder())
    ids = rows(model, BATCH, seed)
    ours = activations(model, torch.from_numpy(ids), [SITE])[SITE][:, 1:].flatten(0, 1).float()
    runner = sae_lens_runner("topk", sae_lens_model(folder, SITE.layer), SITE.layer, ids, D, seed, "")
    with torch.no_grad():
        states = sparsify_model(folder)(torch.from_numpy(ids), output_hidden_states=True).hidden_states
    theirs = {"SAELens": next(runner.activations_store), "sparsify": states[SITE.layer + 1][:, 1:].flatten(0, 1)}
    apart = {f"{name}_apart": float((x.float() - ours).norm() / ours.norm()) for name, x in theirs.items()}
    return {"tokens": len(ours)} | apart | {"holds": max(apart.values()) < 1e-2}  # bfloat16's rounding


TWICE = Aim(faster=2)
CASES = [
    Case(
        "stored, BatchTopK",
        {"gemlens": _stored_gemlens("batchtopk"), "SAELens": _stored_sae_lens("batchtopk")},
        {"SAELens": TWICE},
    ),
    Case(
        "stored, TopK",
        {"gemlens": _stored_gemlens("topk"), "SAELens": _stored_sae_lens("topk"), "sparsify": _stored_sparsify},
        {"SAELens": TWICE, "sparsify": TWICE},
    ),
    Case(
        "end to end, BatchTopK",
        {"gemlens": _live(_live_gemlens("batchtopk")), "SAELens": _live(_live_sae_lens("batchtopk"))},
        {"SAELens": TWICE},
    ),
    Case(
        "end to end, TopK",
        {
            "gemlens": _live(_live_gemlens("topk")),
            "SAELens": _live(_live_sae_lens("topk")),
            "sparsify": _live(_live_sparsify),
        },
        {"SAELens": TWICE, "sparsify": TWICE},
        _same_live,
    ),
]
