# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Build what collects in the online phase: a collector in this process, or actors in other processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import gymnasium
from torchrl.data import TensorDictReplayBuffer

from torchrl_o2o.collectors.fleet import Fleet
from torchrl_o2o.collectors.process_actors import ProcessActors
from torchrl_o2o.collectors.single import StepCollector
from torchrl_o2o.envs.guard import GuardedEnv
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.trainers.learner import Learner
from torchrl_o2o.trainers.options import RunOptions
from torchrl_o2o.trainers.problem import Problem

__all__ = ["make_collector", "make_fleet"]


def make_collector(
    problem: Problem,
    learner: Learner,
    options: RunOptions,
    buffer: TensorDictReplayBuffer,
    total_frames: int,
    init_random_frames: int = 0,
) -> StepCollector:
    """Build a collector: the learner's explorer steps a guarded environment; a failed step truncates the row before it.

    Args:
        problem: whose environment is stepped; its data stay here.
        learner: whose explorer acts.
        options: of which the seed and ``env_guard`` are read.
        buffer: where the transitions will lie; its writer truncates the row before a failed step.
        total_frames: transitions in all.
        init_random_frames: the first, with uniform actions. Defaults to 0.

    Returns:
        The collector.

    Raises:
        O2OSpecError: if a setting of ``env_guard`` or a count is out of range.

    Examples:
        >>> from torchrl_o2o.data import Convention
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> from torchrl_o2o.trainers.algorithms import make_bc
        >>> from torchrl_o2o.trainers import starting_buffer
        >>> rows = random_transitions(100, 3, 1)
        >>> problem = Problem({"env_id": "Pendulum-v1"}, rows, Convention().fit(rows))
        >>> cfg = script_config("bc", ["preset=cpu", "compile=false"])
        >>> learner, options = make_bc(cfg, problem.dims), RunOptions("runs/bc", {}, seed=0)
        >>> collector = make_collector(problem, learner, options, starting_buffer(rows, 10), total_frames=3)
        >>> [data.shape for data in collector]
        [torch.Size([1]), torch.Size([1]), torch.Size([1])]
    """
    env = GuardedEnv(problem.env_factory, **options.env_guard)
    cut = buffer.writer.truncate_last  # pyright: ignore[reportAttributeAccessIssue]
    return StepCollector(
        env,
        learner.explorer,
        total_frames=total_frames,
        init_random_frames=init_random_frames,
        seed=options.seed,
        on_cut=cut,
    )


#: Fleet settings that are not arguments of Fleet.
_OF_PROCESSES = ("frames_per_batch", "start_method")
_OF_FLEET = ("num_actors", "queue_size", "slack", "max_staleness", "max_restarts")


def make_fleet(
    problem: Problem,
    learner: Learner,
    options: RunOptions,
    total_frames: int,
    init_random_frames: int,
    settings: Mapping[str, Any],
) -> Fleet:
    """Build a fleet: the learner's explorer steps guarded environments in other processes.

    Args:
        problem: whose environment they step; its data stay here.
        learner: whose explorer acts.
        options: of which the seed and ``env_guard`` are read.
        total_frames: transitions in all.
        init_random_frames: the first, with uniform actions.
        settings: ``num_actors``, ``queue_size``, ``slack``, ``max_staleness``, ``max_restarts`` of
            :class:`~torchrl_o2o.collectors.Fleet`; ``frames_per_batch``, ``start_method`` of
            :class:`~torchrl_o2o.collectors.ProcessActors`.

    Returns:
        The fleet; no process starts before the iteration.

    Raises:
        O2OSpecError: if a setting is unknown or out of range.

    Examples:
        >>> from torchrl_o2o.data import Convention
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> from torchrl_o2o.trainers.algorithms import make_bc
        >>> rows = random_transitions(100, 3, 1)
        >>> problem = Problem({"env_id": "Pendulum-v1"}, rows, Convention().fit(rows))
        >>> cfg = script_config("bc", ["preset=cpu", "compile=false"])
        >>> learner, options = make_bc(cfg, problem.dims), RunOptions("runs/bc", {}, seed=0)
        >>> fleet = make_fleet(problem, learner, options, 10_000, 100, {"num_actors": 4})
        >>> fleet.total_frames, fleet.frames
        (10000, 0)
        >>> make_fleet(problem, learner, options, 10_000, 100, {"actors": 4})
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OSpecError: got fleet.actors, expected one of ['num_actors', ...]
    """
    unknown = sorted(settings.keys() - {*_OF_FLEET, *_OF_PROCESSES})
    if unknown:
        raise O2OSpecError(f"got fleet.{unknown[0]}, expected one of {[*_OF_FLEET, *_OF_PROCESSES]}")
    processes = {name: value for name, value in settings.items() if name in _OF_PROCESSES}
    own = {name: value for name, value in settings.items() if name in _OF_FLEET}
    make_env = partial(_guarded, problem.env_factory, dict(options.env_guard))
    actors = ProcessActors(make_env, learner.explorer, seed=options.seed, **processes)
    return Fleet(actors, problem.offline, total_frames=total_frames, init_random_frames=init_random_frames, **own)


def _guarded(make_env: Callable[[], gymnasium.Env], guard: Mapping[str, Any]) -> gymnasium.Env:
    return GuardedEnv(make_env, **guard)
