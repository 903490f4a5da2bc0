"""Train several dictionaries from one stream of batches, through kills and restarts.

1. The first batches give the sample for mean and scale, and are then trained on.
2. Every batch goes to every dictionary.
3. Every ten minutes, at the end and when asked to stop, a checkpoint: all of the run in one file. A run that finds its
   own goes on there; on the same machine the result is that of an unbroken one, to the bit.
4. At the end, a folder for each dictionary.

Several processes share a run in one of two ways: whole dictionaries are dealt out, and nothing is sent; or each holds a
slice of every dictionary's features, and they stop, save and go on together.

    FOLDER/checkpoint.safetensors                        of several processes, see ``run_folder``
    FOLDER/resid_post/layer_5_width_4k_l0_medium/config.json, params.safetensors, training.json, curves.csv
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gemlens.data.checkpoint import Checkpoint, check_same
from gemlens.errors import InputError, WeightsError
from gemlens.files import check_folder
from gemlens.records import Training
from gemlens.scope.multilayer import MultiLayer
from gemlens.scope.sae import SAE
from gemlens.sites import Site
from gemlens.train.config import FitConfig
from gemlens.train.curves import Recorder
from gemlens.train.fit import SAMPLE
from gemlens.train.learner import Learner, Step
from gemlens.train.names import info_of, named
from gemlens.train.outputs import write_dictionary
from gemlens.train.ranks import Alone, Place, Ranks, dealt
from gemlens.train.run_folder import RunFolder
from gemlens.train.signals import held_back, leave
from gemlens.train.stream import BatchStream

__all__ = ["train"]

SAMPLE_BYTES = 1 << 30
"""The sample is shortened to this where many sites are read."""

Batch = dict[Site, Tensor]


def train(
    stream: BatchStream,
    configs: Sequence[FitConfig] | Mapping[str, FitConfig],
    folder: Path,
    *,
    source: Mapping[str, Any] | None = None,
    model_name: str | None = None,
    save_dtype: torch.dtype = torch.bfloat16,
    checkpoint_every: float = 600,
    device: torch.device | str = "cpu",
    ranks: Ranks | Place | None = None,
    report: Callable[[Mapping[str, Step]], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
    finished: Callable[[str, SAE | MultiLayer], None] = lambda _path, _dictionary: None,
) -> list[Training]:
    """Train dictionaries into ``folder``, or go on where a run of the same settings stands there.

    Args:
        stream: activations of every site that a config names, BOS left out and tokens shuffled.
        configs: one a dictionary, all of the same batch size; by path inside ``folder``, or named as Gemma Scope 2's.
        source: what the stream reads, as JSON values: a checkpoint made from anything else is refused.
        model_name: of the model, for the dictionaries' ``config.json``.
        save_dtype: of the stored weights.
        checkpoint_every: seconds.
        device: where the dictionaries learn, and to which batches are brought.
        ranks: processes that share the features of every dictionary, each given the same stream. Or which of several
            processes this one is: then it trains its share of the dictionaries (``dealt``), and reads no other sites.
        report: called after every step, with where each dictionary stands that learned from it, by path.
        say: called with a line for a person to read, now and then.
        finished: called at the end with each path and its dictionary, float32, which is stored as ``save_dtype``.

    Returns:
        Of each dictionary that this process wrote; of shared ones, the first process writes all.

    Raises:
        InputError: the stream ends before the tokens asked for, or is empty, or lacks a site; a checkpoint of other
            settings, or of another number of processes; fewer dictionaries or features than processes.
        NetworkError: another process that shares the features ended; the checkpoint stays.
        WeightsError: a loss is no longer finite; the checkpoint before it stays. Or a damaged checkpoint.
        OutputError: the folder holds other files, or cannot be written; an older checkpoint stays.
        KeyboardInterrupt, SystemExit: on Ctrl-C and SIGTERM, after a checkpoint.
    """
    by_path = dict(configs) if isinstance(configs, Mapping) else named(configs)
    run = _Run(stream, by_path, check_folder(folder), dict(source or {}), model_name, device, ranks or Place())
    run.take_up(say)
    with held_back(say) as asked:
        saved = time.monotonic()
        for batch in run.batches():
            report(run.step(batch))
            stop, due = run.agreed(asked.signal or 0, time.monotonic() - saved >= checkpoint_every)
            if run.waiting:  # of the sample: the stream is ahead of the dictionaries, and little is lost
                if stop:
                    leave(stop)
                continue
            if stop or due:
                run.save()
                saved = time.monotonic()
                say(f"checkpoint at {run.tokens:,} tokens")
            if stop:
                leave(stop)
        run.save()
        run.check_complete()
        return run.write(save_dtype, finished)


class _Run:
    """Dictionaries in training, their curves, and the stream they learn from."""

    def __init__(
        self,
        stream: BatchStream,
        configs: dict[str, FitConfig],
        folder: Path,
        source: dict[str, Any],
        model_name: str | None,
        device: torch.device | str,
        ranks: Ranks | Place,
    ) -> None:
        if not configs:
            raise InputError("there is nothing to train; give at least one config")
        sizes = sorted({config.batch for config in configs.values()})
        if len(sizes) > 1:
            raise InputError(f"batches of {sizes[0]} and {sizes[1]} tokens in one run; one stream gives one size")
        self._ranks: Ranks = Alone() if isinstance(ranks, Place) else ranks
        self._kept_in = RunFolder(folder, Place(ranks.rank, ranks.size), self._ranks)
        # A model of this machine is told apart by its path, which is nobody's business in what is passed on.
        self._source = source | ({"model": model_name} if model_name else {})
        self._about = {
            "configs": [asdict(config) for config in configs.values()],
            "paths": list(configs),
            "source": source,
        }
        if ranks.size > 1:
            self._about["split"] = "dictionaries" if isinstance(ranks, Place) else "features"
        self._sites = len({site for config in configs.values() for site in config.sites_read + config.sites_written})
        if isinstance(ranks, Place):
            configs = dealt(configs, ranks)
        self._stream, self._configs, self._folder, self._device = stream, configs, folder, device
        self._infos = {path: info_of(each, path, folder.name, model_name) for path, each in configs.items()}
        self._learners: dict[str, Learner] = {}
        self._recorders = {path: Recorder(config) for path, config in configs.items()}
        self._steps = self._saved = 0
        self._seconds = 0.0
        self._since = time.monotonic()
        self.waiting: list[Batch] = []
        """Batches of the sample that were not trained on yet."""

    @property
    def tokens(self) -> int:
        return self._steps * self._batch

    @property
    def _batch(self) -> int:
        return next(iter(self._configs.values())).batch

    @property
    def _last(self) -> int:
        return max(config.steps for config in self._configs.values())

    def take_up(self, say: Callable[[str], None]) -> None:
        """Go on from the folder's checkpoint, if there is one; else the folder has to be empty."""
        checkpoint = self._kept_in.read()
        if checkpoint is None:
            return
        path = self._kept_in.path
        check_same(path, checkpoint.about, self._about)
        self._restore(checkpoint)
        say(f"going on at {self.tokens:,} tokens, from {path}")

    def batches(self) -> Iterator[Batch]:
        """Those still to be trained on, as far as the stream has them."""
        found = iter(self._stream)
        left = self._last - self._steps
        if not self._learners:
            left -= self._begin(found)
        while self.waiting:
            yield self.waiting.pop(0)
        yield from islice(found, left)

    def step(self, batch: Batch) -> dict[str, Step]:
        if (given := len(next(iter(batch.values())))) != self._batch:
            raise InputError(f"the stream gives batches of {given} tokens, the configs say {self._batch}")
        reached = {}
        for path, learner in self._learners.items():
            if self._steps < self._configs[path].steps:
                try:
                    reached[path] = learner.step(batch)
                except WeightsError as error:
                    raise WeightsError(f"{path}: {error}; {self._kept}") from error
                self._recorders[path].add(reached[path])
        self._steps += 1
        return reached

    def agreed(self, signal: int, due: bool) -> tuple[int, bool]:
        """Which signal any of the processes was given, and whether for any a checkpoint is due: they act together."""
        told = self._ranks.gather(torch.tensor([[signal, due]])).amax(dim=0)
        return int(told[0]), bool(told[1])

    def save(self) -> None:
        """Write a checkpoint; of a run that is done, without the stream's buffer."""
        now = time.monotonic()
        self._seconds, self._since = self._seconds + now - self._since, now
        parts: dict[str, Mapping[str, Any]] = {"run": {"steps": self._steps, "seconds": self._seconds}}
        for path, learner in self._learners.items():
            parts |= {f"learner {path}": learner.state(), f"curves {path}": self._recorders[path].state()}
        if self._steps < self._last:
            parts["stream"] = self._stream.state()
        self._kept_in.write(self._about, parts)
        self._saved = self._steps

    def check_complete(self) -> None:
        """Raise InputError if the stream ended too early."""
        if self._steps < self._last:
            raise InputError(
                f"the corpus gave {self.tokens:,} tokens, {self._last * self._batch:,} were asked for; {self._kept}; "
                "give more text, read it more often or ask for fewer, into another folder"
            )

    def write(self, dtype: torch.dtype, finished: Callable[[str, SAE | MultiLayer], None]) -> list[Training]:
        written = []
        for path, learner in self._learners.items():
            dictionary = learner.finish()  # by all processes together
            if self._ranks.rank:
                continue
            training = write_dictionary(
                self._folder / path,
                dictionary,
                self._configs[path],
                source=self._source,
                seconds=self._seconds,
                curves=self._recorders[path].points,
                dtype=dtype,
            )
            written.append(training)
            finished(path, dictionary)
        return written

    @property
    def _kept(self) -> str:
        if not self._saved:
            return "there is no checkpoint yet"
        return f"the checkpoint of {self._saved * self._batch:,} tokens is kept in {self._folder}"

    def _begin(self, batches: Iterator[Batch]) -> int:
        """Take the sample and make the learners from it; returns its batches."""
        wanted = min(self._last, -(-SAMPLE // self._batch))
        held = 0
        for batch in islice(batches, wanted):
            self.waiting.append(batch)
            held += sum(tensor.nbytes for tensor in batch.values())
            # As much as one process takes, for all of them: whichever of the sites are read here.
            if held * max(self._sites, len(batch)) >= SAMPLE_BYTES * len(batch):
                break
        if not self.waiting:
            raise InputError("there are no activations to train on; the corpus is empty or fills no batch")
        for path, config in self._configs.items():
            sites = {*config.sites_read, *config.sites_written} & self.waiting[0].keys()
            sample = {site: torch.cat([batch[site] for batch in self.waiting]) for site in sites}
            self._learners[path] = self._learner(path, sample)
        return len(self.waiting)

    def _learner(self, path: str, sample: Batch) -> Learner:
        return Learner(self._configs[path], sample, self._infos[path], device=self._device, ranks=self._ranks)

    def _restore(self, checkpoint: Checkpoint) -> None:
        parts = checkpoint.parts
        self._steps = self._saved = int(parts["run"]["steps"])
        self._seconds = float(parts["run"]["seconds"])
        for path, config in self._configs.items():
            state = parts[f"learner {path}"]
            # A learner is made from a sample; what it takes from this one, the state replaces.
            generator = torch.Generator().manual_seed(0)
            means = {site: torch.as_tensor(state[f"mean.{site}"]) for site in config.sites_read + config.sites_written}
            sample = {site: torch.randn(64, len(mean), generator=generator) for site, mean in means.items()}
            self._learners[path] = self._learner(path, sample)
            self._learners[path].restore(state)
            self._recorders[path].restore(parts[f"curves {path}"])
        if "stream" in parts:
            self._stream.restore(
                {name: value for name, value in parts["stream"].items() if not isinstance(value, float)}
            )
