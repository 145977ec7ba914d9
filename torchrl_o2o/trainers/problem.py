# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A problem: an environment, its data, and the convention for both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium
from tensordict import TensorDictBase

from torchrl_o2o.data import load_offline
from torchrl_o2o.data.conventions import Convention, FittedConvention
from torchrl_o2o.envs.make import make_gym_env
from torchrl_o2o.envs.success import EndAtSuccess
from torchrl_o2o.envs.video import drawing_arguments

__all__ = ["Problem"]


@dataclass(frozen=True)
class Problem:
    """An environment, its data, and the convention by which the learner sees both.

    Args:
        env: arguments of :func:`~torchrl_o2o.envs.make_gym_env`.
        offline: transitions [N] as the learner sees them.
        convention: the convention that was applied to them.
        end_at_success: whether a collected episode ends at its first success; evaluation episodes continue. Defaults to
            ``False``.

    Examples:
        >>> from torchrl_o2o.data import Convention
        >>> from torchrl_o2o.testing import random_transitions
        >>> rows = random_transitions(100, 3, 1)
        >>> convention = Convention(reward_shift=-1.0).fit(rows)
        >>> problem = Problem({"env_id": "Pendulum-v1"}, convention.data(rows), convention)
        >>> problem.dims, problem.make_env().action_space
        ((3, 1), Box(-1.0, 1.0, (1,), float32))
    """

    env: Mapping[str, Any]
    offline: TensorDictBase
    convention: FittedConvention
    end_at_success: bool = False

    @classmethod
    def load(cls, env: Mapping[str, Any], dataset: Mapping[str, Any], convention: Convention) -> Problem:
        """Load and check the data, and apply the convention to them once.

        Args:
            env: arguments of :func:`~torchrl_o2o.envs.make_gym_env`.
            dataset: arguments of :func:`~torchrl_o2o.data.load_offline`.
            convention: see :func:`~torchrl_o2o.data.get_convention`.

        Raises:
            O2ODataError: if the data are broken or belong to another environment.
        """
        raw = load_offline(**dataset, env=make_gym_env(**env))
        fitted = convention.fit(raw)
        return cls(env, fitted.data(raw), fitted)

    @property
    def dims(self) -> tuple[int, int]:
        """Observation and action dimension."""
        return self.offline["observation"].shape[-1], self.offline["action"].shape[-1]

    def make_env(self, *, drawing: bool = False) -> gymnasium.Env:
        """A new environment with the learner's observations and the task's own rewards.

        Keyword Args:
            drawing: whether it renders, for videos. Defaults to ``False``.
        """
        return _env(drawing_arguments(self.env) if drawing else self.env, self.convention)

    @property
    def env_factory(self) -> Callable[[], gymnasium.Env]:
        """Makes new environments for collecting: :meth:`make_env`, and an episode ends as ``end_at_success`` says.

        It holds no data, so it can be sent to another process.
        """
        return partial(_training_env if self.end_at_success else _env, self.env, self.convention)


def _env(env: Mapping[str, Any], convention: FittedConvention) -> gymnasium.Env:
    return convention.env(make_gym_env(**env))


def _training_env(env: Mapping[str, Any], convention: FittedConvention) -> gymnasium.Env:
    return EndAtSuccess(_env(env, convention))
