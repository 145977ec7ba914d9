# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The options of a run: folder, configuration, seed, schedule, evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
from torchrl.data import ReplayBuffer

from torchrl_o2o import deploy
from torchrl_o2o.envs.guard import GuardedEnv
from torchrl_o2o.envs.scores import find_reference
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.record.recorder import Recorder
from torchrl_o2o.trainers.evaluation import EvaluationResult, evaluate
from torchrl_o2o.trainers.learner import Learner
from torchrl_o2o.trainers.problem import Problem
from torchrl_o2o.trainers.session import HasMetrics, Schedule, Session
from torchrl_o2o.trainers.settings import check_arguments

__all__ = ["RunOptions"]

#: What is passed on: to which function, and the arguments of it that the run sets itself.
_PASSED_ON = {
    "evaluation": (evaluate, ("actor", "env", "seed", "reference")),
    "recorder": (Recorder, ("folder", "config", "seed", "resume")),
    "env_guard": (GuardedEnv, ("make_env",)),
}


@dataclass(frozen=True)
class RunOptions:
    """The options of a run.

    Args:
        folder: the run's folder.
        config: recorded, and compared when a run is resumed.
        seed: seed of networks, sampling and exploration; evaluation uses ``seed + 10_000``.
        schedule: how often to evaluate, log and save.
        resume: whether to continue the run in the folder. Defaults to ``False``.
        evaluation: ``num_episodes``, ``num_envs`` and ``video`` of :func:`~torchrl_o2o.trainers.evaluate`. With
            ``num_episodes=0`` the policy is never evaluated.
        recorder: further arguments of :class:`~torchrl_o2o.record.Recorder`.
        env_guard: further arguments of :class:`~torchrl_o2o.envs.GuardedEnv`.

    Raises:
        O2OSpecError: if an argument in ``evaluation``, ``recorder`` or ``env_guard`` is unknown, of another type, or
            set by the run itself, or a video of no episodes is asked for.

    Examples:
        >>> RunOptions("runs/awac", {"algorithm": "awac"}, seed=0).schedule.eval_every
        5000
    """

    folder: str | Path
    config: Any
    seed: int
    schedule: Schedule = field(default_factory=Schedule)
    resume: bool = False
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    recorder: Mapping[str, Any] = field(default_factory=dict)
    env_guard: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the arguments that are passed on later, some of them only in the first evaluation."""
        for name, (function, own) in _PASSED_ON.items():
            check_arguments(name, getattr(self, name), function, own=own)
        if not self.evaluates and (video := self.evaluation.get("video")) is not None:
            raise O2OSpecError(f"got evaluation.video={video} and evaluation.num_episodes=0, expected episodes to film")

    @property
    def evaluates(self) -> bool:
        """Whether the policy is evaluated."""
        return self.evaluation.get("num_episodes") != 0

    def session(
        self, problem: Problem, learner: Learner, buffer: ReplayBuffer | None, objects: Mapping[str, Any], total: int
    ) -> Session:
        """Open the run folder for a learner; ``total`` is the last step, for the progress bar."""
        score = self.scorer(learner, problem.make_env, problem.env["env_id"])
        labels = self.labels()
        save = deploy.policy_saver(learner.actor, convention=problem.convention, env=problem.env, metadata=labels)
        return self.open(objects, buffer, score, total, save)

    def open(
        self,
        objects: Mapping[str, Any],
        buffer: ReplayBuffer | None,
        evaluate: Callable[[], HasMetrics] | None,
        total: int,
        on_save: Callable[[Path], object] | None = None,
    ) -> Session:
        """Open the run folder; ``total`` is the last step, for the progress bar, the rest as in :class:`Session`."""
        recorder = {"progress_total": total, **self.recorder}
        return Session(
            self.folder, self.config, objects, buffer, evaluate, self.schedule, self.resume, recorder, on_save
        )

    def labels(self) -> dict[str, Any]:
        """What a policy file of this run says of its origin: the seed, and the algorithm and data if they are known."""
        known = self.config if isinstance(self.config, Mapping) else {}
        return {"seed": int(self.seed)} | {name: known[name] for name in ("algorithm", "task_name") if name in known}

    def scorer(
        self, learner: Learner, make_env: Callable[..., gymnasium.Env], env_id: str
    ) -> Callable[[], EvaluationResult] | None:
        """A function that evaluates a learner's policy, always with the same seeds; ``make_env`` takes ``drawing``.

        ``None`` if there are no evaluations.
        """
        if not self.evaluates:
            return None

        def score() -> EvaluationResult:
            reference, seed = find_reference(env_id), self.seed + 10_000
            settings = {"timeout": self.env_guard.get("timeout"), **self.evaluation}
            make = partial(make_env, drawing=bool(settings.get("video")))
            return evaluate(learner.tester, make, seed=seed, reference=reference, **settings)

        return score
