# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Run many seeds of one configuration in one process: N runs in lockstep, each with its own folder and random state."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from omegaconf import DictConfig, OmegaConf, open_dict
from tensordict import TensorDictBase, stack
from torch import Tensor

from torchrl_o2o.checkpoint.lockstep import common_step
from torchrl_o2o.checkpoint.streams import RandomStream
from torchrl_o2o.errors import O2OSpecError, check_seed
from torchrl_o2o.functional.diagnostics import NonFiniteError
from torchrl_o2o.functional.noise import GeneratorNoise
from torchrl_o2o.objectives.base import TransitionLoss
from torchrl_o2o.trainers.interrupt import graceful_exit
from torchrl_o2o.trainers.learner import Learner
from torchrl_o2o.trainers.phases import Finetuning
from torchrl_o2o.updates import StackedNonFiniteError, StackedUpdate, Update

__all__ = ["Seeds", "seed_configs"]


class Seeds:
    """The online phases of N seeds, in rounds of one environment step each, as a context.

    Each seed draws its random numbers in a separate random state, so it equals the script's single run up to the
    rounding of the stacked update. After a kill during a save, all seeds return to the newest step that all of them
    have.

    Args:
        make: builds one seed's phase; called once per configuration, after which the seed's random state is kept.
        configs: one per seed.

    Examples:
        >>> import tempfile
        >>> from torchrl_o2o.data import Convention
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> from torchrl_o2o.trainers import Problem, online_phase
        >>> from torchrl_o2o.trainers.algorithms import make_rlpd
        >>> rows = random_transitions(100, 3, 1)
        >>> problem = Problem({"env_id": "Pendulum-v1", "max_episode_steps": 9}, rows, Convention().fit(rows))
        >>> words = ["preset=cpu", "compile=false", "online.total_frames=2", "online.batch_size=2", "handover.data=all"]
        >>> words += ["evaluation.num_episodes=1", f"run_dir={tempfile.mkdtemp()}/${{seed}}", "+seeds=[0, 1]"]
        >>> configs = seed_configs(script_config("rlpd", words))
        >>> with Seeds(lambda own: online_phase(own, problem, None, make_rlpd), configs) as seeds:
        ...     update = seeds.stacked()
        ...     for step, transitions in seeds.steps():
        ...         for run, data in zip(seeds.runs, transitions):
        ...             _ = run.buffer.extend(problem.convention.online(data).select(*run.learner.keys))
        ...         metrics = seeds.learn(update, seeds.draw(lambda run: run.sample()))
        ...         seeds.log(metrics)
        >>> step, metrics["loss_qvalue"].shape
        (2, torch.Size([2]))
    """

    def __init__(self, make: Callable[[DictConfig], Finetuning], configs: Sequence[DictConfig]) -> None:
        self.runs: list[Finetuning] = []
        self.streams: list[RandomStream] = []
        for config in configs:
            self.runs.append(make(config))
            _check_streams(self.runs[-1].learner)
            self.streams.append(RandomStream())
            for loss in (self.runs[-1].learner.loss, *(own.loss for own in self.runs[-1].learner.further.values())):
                if isinstance(loss, TransitionLoss):  # TorchRL's losses have no replaceable noise source
                    loss.noise = GeneratorNoise(self.streams[-1].generator)
        self._signals, self._stack = _SharedSignals(), ExitStack()
        for run in self.runs:
            run.session.interrupt = self._signals

    def stacked(self, name: str | None = None) -> StackedUpdate:
        """The seeds' updates as one.

        Args:
            name: name of one of the learner's ``further`` updates; ``None`` (default) is the learner's own.

        Returns:
            A function of batches [N, B], compiled if the configuration says so.
        """
        own = [run.learner.update if name is None else run.learner.further[name] for run in self.runs]
        updates = [update for update in own if isinstance(update, Update)]
        return Update.stack(updates)

    def __enter__(self) -> Self:
        """Enter all runs and restore them to a common step."""
        self._signals.begin()
        if self.runs[0].session.resume:
            common_step([Path(run.session.checkpoint.folder) for run in self.runs])
        for run, stream in zip(self.runs, self.streams, strict=True):
            with stream:
                self._stack.enter_context(run)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all folders."""
        try:
            self._stack.__exit__(kind, error, trace)
        finally:
            self._signals.end()

    def offline_steps(self, num_steps: int) -> Iterator[int]:
        """Yield updates on the data alone, of all seeds at once; see :meth:`Finetuning.offline_steps`.

        Args:
            num_steps: number of updates.
        """
        for each in self._rounds([run.offline_steps(num_steps) for run in self.runs]):
            yield each[0]

    def steps(self) -> Iterator[tuple[int, list[TensorDictBase]]]:
        """Rounds of environment steps: the step's number, and each seed's transition [1]."""
        for each in self._rounds([run.steps() for run in self.runs]):
            yield each[0][0], [data for _, data in each]

    def _rounds(self, runs: list[Iterator[Any]]) -> Iterator[list[Any]]:
        """Advance all runs by one step, each in its own random state; they stop together."""
        while True:
            self._signals.look()  # once per round, so that all seeds stop at the same step
            each: list[Any] = []
            for run, stream in zip(runs, self.streams, strict=True):
                with stream:
                    each.append(next(run, None))
            if any(one is None for one in each):
                return
            yield each

    def draw(self, sample: Callable[[Finetuning], TensorDictBase]) -> TensorDictBase:
        """One batch of each seed, drawn in its own random state.

        Args:
            sample: draws from one seed's run, for example ``lambda run: run.sample()``.

        Returns:
            Batches, shape [N, B].
        """
        batches = []
        for run, stream in zip(self.runs, self.streams, strict=True):
            with stream.torch_only():
                batches.append(sample(run))
        return stack(batches)

    def learn(self, update: StackedUpdate, batches: TensorDictBase) -> dict[str, Tensor]:
        """Make one update of all seeds; a batch that makes a loss or gradient non-finite is saved in its folder.

        Args:
            update: of :meth:`stacked`.
            batches: shape [N, B].

        Returns:
            Metrics, shape [N].

        Raises:
            NonFiniteError: if something is not finite; the message names the seeds and the files of their batches.
        """
        try:
            return update(batches)
        except StackedNonFiniteError as error:
            paths = [self.runs[agent].session.record.dump("offending-batch", batches[agent]) for agent in error.agents]
            seeds = [self.runs[agent].options.seed for agent in error.agents]
            raise NonFiniteError(f"{error}. Seeds {seeds}; the batches are in {', '.join(map(str, paths))}") from error

    def log(self, metrics: dict[str, Tensor], own: Sequence[dict[str, Tensor]] | None = None) -> None:
        """Log the metrics of an update of all seeds.

        Args:
            metrics: entries of shape [N].
            own: further scalars of each seed. Defaults to none.
        """
        for position, run in enumerate(self.runs):
            run.log({name: value[position] for name, value in metrics.items()} | (own[position] if own else {}))


def _check_streams(learner: Learner) -> None:
    """Raise for a learner whose random numbers a seed's stream does not determine."""
    if learner.device.type != "cpu":
        raise O2OSpecError(
            f"got device={learner.device}, expected cpu, because each seed's stream of random numbers is one of the "
            "CPU; train each seed in its own run, or stack the updates in your own loop (Update.stack)"
        )


class _SharedSignals(graceful_exit):
    """One pair of signal handlers for all runs, with one answer per round."""

    def __init__(self) -> None:
        super().__init__()
        self._seen = False

    def begin(self) -> None:
        super().__enter__()

    def end(self) -> None:
        super().__exit__(None, None, None)

    def look(self) -> None:
        self._seen = self._received is not None

    @property
    def requested(self) -> bool:
        return self._seen

    def __enter__(self) -> graceful_exit:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The handlers stay until all runs are closed."""


def seed_configs(cfg: DictConfig) -> list[DictConfig]:
    """The configurations of the single runs.

    Args:
        cfg: ``seeds``, ``run_dir`` with ``${seed}`` in it, ``resume``.

    Returns:
        One per seed, with ``seed`` in place of ``seeds``.

    Raises:
        O2OSpecError: if ``seeds`` is not a list of integers of at least 0, several seeds have one folder, or a folder
            holds a run and ``resume`` is off.

    Examples:
        >>> seed_configs(OmegaConf.create({"seeds": 3}))
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OSpecError: got seeds=3, expected a list of seeds, such as seeds=[3]
    """
    configs, seeds = [], cfg.get("seeds", OmegaConf.create(list(range(5))))
    if not OmegaConf.is_list(seeds) or not len(seeds):
        example = [seeds] if isinstance(seeds, int) else [0, 1, 2]
        raise O2OSpecError(f"got seeds={seeds}, expected a list of seeds, such as seeds={example}")
    for seed in [check_seed(each, "seeds") for each in seeds]:
        own = copy.deepcopy(cfg)
        with open_dict(own):
            own.pop("seeds", None)
            own.seed = seed
        configs.append(own)
    folders = [Path(own.run_dir) for own in configs]
    if len(set(folders)) < len(folders):
        raise O2OSpecError(f"got run_dir={folders[0]} for several seeds, expected one each; put ${{seed}} into it")
    taken = [str(folder) for folder in folders if (folder / "run.json").exists()]
    if taken and not cfg.resume:
        raise O2OSpecError(
            f"{', '.join(taken)} hold runs, expected new folders; continue with resume=true, or choose other seeds or "
            "another run_dir"
        )
    return configs
