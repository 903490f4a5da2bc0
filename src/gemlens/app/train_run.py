"""The run behind ``gemlens train``: by one process or as one of several, told about as it goes, measured at its end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gemlens.app.console import tell
from gemlens.app.train_progress import Report, progress
from gemlens.train.config import FitConfig
from gemlens.train.ranks import Place, Ranks, dealt, place_from_environment

if TYPE_CHECKING:
    from rich.console import Console

    from gemlens.app.train_source import Source
    from gemlens.data.corpus import Text
    from gemlens.scope.multilayer import MultiLayer
    from gemlens.train.learner import Step

__all__ = ["processes", "run"]


def processes(configs: Mapping[str, FitConfig], split: str | None) -> tuple[Ranks | Place, dict[str, FitConfig]]:
    """Who trains, as ``torchrun`` started them, and what this process takes part in.

    Args:
        split: ``dictionaries``, ``features``, or None for dictionaries where each process gets one.

    Raises:
        InputError: fewer dictionaries than processes that they are to be dealt out to.
        NetworkError: processes that are to share features do not find one another.
    """
    place = place_from_environment()
    if place.size == 1:
        return place, dict(configs)
    if split == "features" or (split is None and len(configs) < place.size):
        from gemlens.train.distributed import ranks_from_environment

        return ranks_from_environment(), dict(configs)
    own = dealt(configs, place)
    from gemlens.train.distributed import take_device

    take_device()
    return place, own


def run(
    console: Console,
    source: Source,
    configs: Mapping[str, FitConfig],
    out: Path,
    held_out: Sequence[Text],
    *,
    ranks: Ranks | Place,
    save_dtype: str,
    device: str,
    refit: int | None,
    dead: bool,
    tensorboard: Path | None,
) -> None:
    """Train ``configs`` into ``out``, or go on there, and write what is measured beside each dictionary.

    Args:
        refit: tokens on which decoders are solved anew, or None to leave them.
    """
    import torch

    from gemlens.app.train_refit import write_refitted
    from gemlens.app.train_results import write_results
    from gemlens.scope.sae import SAE
    from gemlens.train.run import train
    from gemlens.train.run_folder import has_checkpoint

    exact: dict[str, SAE] = {}  # to refit, and to measure what int8 costs

    def keep(path: str, dictionary: SAE | MultiLayer) -> None:
        if isinstance(dictionary, SAE) and (refit or (save_dtype == "int8" and held_out)):
            exact[path] = dictionary

    # Of processes that share features, each would write the same.
    scalars = None if ranks.rank and not isinstance(ranks, Place) else tensorboard
    with _reporting(console, configs, scalars) as report:
        try:
            trained = train(
                source.stream,
                configs,
                out,
                source=source.about,
                model_name=source.model_name,
                save_dtype=getattr(torch, save_dtype),
                device=source.device,
                ranks=ranks,
                report=report,
                say=lambda line: tell(console, line),
                finished=keep,
            )
        except (KeyboardInterrupt, SystemExit):
            goes_on = "; the same command goes on there" if has_checkpoint(out) else " before a checkpoint was due"
            tell(console, f"stopped{goes_on}")
            raise
    if refit:
        trained, exact = write_refitted(
            console, out, trained, exact, source, refit, device=device, save_dtype=getattr(torch, save_dtype)
        )
    if save_dtype != "int8":
        exact.clear()
    write_results(console, out, trained, source, held_out, exact=exact, device=device, dead=dead)


@contextmanager
def _reporting(console: Console, configs: Mapping[str, FitConfig], tensorboard: Path | None) -> Iterator[Report]:
    with ExitStack() as stack:
        add = None
        if tensorboard is not None:
            from gemlens.external.tensorboard import scalars

            add = stack.enter_context(scalars(tensorboard.expanduser()))
        show = stack.enter_context(progress(console, configs))

        def report(steps: Mapping[str, Step]) -> None:
            show(steps)
            if add is not None:
                for path, at in steps.items():
                    values = {"loss": at.loss, "fvu": at.fvu, "l0": at.l0, "dead": float(at.dead)}
                    add({f"{path}/{name}": value for name, value in values.items()}, at.step)

        yield report
