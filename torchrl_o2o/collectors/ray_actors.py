# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Actors on other machines, through Ray."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import gymnasium
from tensordict.nn import TensorDictModuleBase

from torchrl_o2o.collectors.actors import PublishedActors, TransitionStream
from torchrl_o2o.collectors.ray_start import check_ray, start_ray

__all__ = ["RayActors"]

_ENDLESS = 2**62
_INSTEAD = "ProcessActors for actors on this machine"


class RayActors(PublishedActors):
    """Actors in processes of a Ray cluster, each with its own :class:`torchrl.collectors.distributed.RayCollector`.

    Without an address, Ray is started on this machine and listens only on 127.0.0.1. With an address, it joins a
    cluster that you have started. The same version of this package must be installed on its machines. Anyone who
    reaches the cluster's ports can run code there, as Ray's documentation explains.

    TorchRL sends the weights after each batch of an actor, and each transition has their version.

    Args:
        make_env: see :class:`~torchrl_o2o.collectors.ProcessActors`.
        actor: the learner's policy.

    Keyword Args:
        address: address of a Ray cluster, such as ``"auto"`` or ``"ray://head:10001"``; ``None`` (default) is this
            machine.
        seed: of environments and noise. Defaults to 0.
        frames_per_batch: number of transitions that an actor sends at once. Defaults to 1.
        intervened: as of :class:`~torchrl_o2o.collectors.ProcessActors`. Defaults to ``False``.
        num_cpus: number of CPUs that an actor reserves. Defaults to 1.
        replay_buffer: of :func:`~torchrl_o2o.collectors.serve_replay`: actors write there, and the result of
            :meth:`start` delivers nothing; call its ``start()`` to collect. ``None`` (default) delivers transitions.

    Raises:
        O2OSpecError: if Ray is not installed.

    Examples:
        >>> from functools import partial
        >>> from torchrl_o2o.envs import make_gym_env
        >>> from torchrl_o2o.modules import make_actor
        >>> RayActors(partial(make_gym_env, "Pendulum-v1"), make_actor(3, 1))  # doctest: +SKIP
    """

    def __init__(
        self,
        make_env: Callable[[], gymnasium.Env],
        actor: TensorDictModuleBase,
        *,
        address: str | None = None,
        seed: int = 0,
        frames_per_batch: int = 1,
        intervened: bool = False,
        num_cpus: float = 1,
        replay_buffer: Any = None,
    ) -> None:
        check_ray(_INSTEAD)
        self.address, self.num_cpus, self.replay_buffer = address, num_cpus, replay_buffer
        super().__init__(make_env, actor, seed=seed, frames_per_batch=frames_per_batch, intervened=intervened)

    def start(self, number: int, attempt: int) -> TransitionStream:
        """Start an actor in the cluster, and Ray if it is not running yet.

        Args:
            number: of the actor.
            attempt: number of its earlier starts.
        """
        start_ray(self.address, _INSTEAD)
        from torchrl.collectors.distributed import RayCollector

        policy = self.policy.for_actor(number, attempt).with_buffers()
        collector = RayCollector(
            [self.env_of(number, attempt)],
            policy,
            frames_per_batch=self.frames_per_batch,
            total_frames=_ENDLESS,
            sync=False,
            collector_class=cast(Any, "single"),  # TorchRL's annotation omits the names it accepts
            update_after_each_batch=True,
            replay_buffer=self.replay_buffer,
            remote_configs={"num_cpus": self.num_cpus, "num_gpus": 0},
        )
        collector.update_policy_weights_(policy)
        return collector
