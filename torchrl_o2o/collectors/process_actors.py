# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Actors in processes of this machine, each a collector of TorchRL."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import gymnasium
import torch
from tensordict.nn import TensorDictModuleBase
from torch import multiprocessing
from torchrl.collectors import MultiAsyncCollector

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.collectors.actors import PublishedActors, TransitionStream
from torchrl_o2o.collectors.vector import no_interrupt_for_children
from torchrl_o2o.errors import O2OSpecError, check_option

__all__ = ["ProcessActors"]

_START = threading.Lock()


class ProcessActors(PublishedActors):
    """Actors in processes of this machine, each with its own :class:`torchrl.collectors.MultiAsyncCollector`.

    Each actor has a separate collector, because a collector with several processes ends all of them when one dies. The
    processes communicate by pipes and shared memory, without ports.

    Args:
        make_env: builds a gymnasium environment in the actor's process, with actions in [-1, 1]. It is pickled, so it
            should be a function of a module, or a ``functools.partial`` of one, that holds nothing large.
        actor: the learner's policy, which :meth:`publish` reads.

    Keyword Args:
        seed: of environments and noise, with the actor's number and attempt. Defaults to 0.
        frames_per_batch: number of transitions that an actor sends at once. Defaults to 1.
        intervened: whether transitions carry :data:`~torchrl_o2o.data.INTERVENED`, from ``info["intervened"]`` of the
            environment's steps: the action that was executed instead of the policy's, in the policy's units. Steps
            without this entry, or with ``None``, had no intervention. Defaults to ``False``.
        start_method: ``"forkserver"`` (default) imports the package once for all actors, so that an actor starts in a
            fraction of a second; ``"spawn"`` imports it for each.

    Raises:
        O2OSpecError: if a number is out of range, or the start method is unknown.

    Examples:
        >>> from functools import partial
        >>> from torchrl_o2o.envs import make_gym_env
        >>> from torchrl_o2o.modules import make_actor
        >>> actors = ProcessActors(partial(make_gym_env, "Pendulum-v1"), make_actor(3, 1))
        >>> actors.frames_per_batch
        1
    """

    @checked_arguments
    def __init__(
        self,
        make_env: Callable[[], gymnasium.Env],
        actor: TensorDictModuleBase,
        *,
        seed: int = 0,
        frames_per_batch: int = 1,
        intervened: bool = False,
        start_method: str = "forkserver",
    ) -> None:
        check_option("start_method", start_method, ("forkserver", "spawn"))
        self.start_method = start_method
        super().__init__(make_env, actor, seed=seed, frames_per_batch=frames_per_batch, intervened=intervened)

    def start(self, number: int, attempt: int) -> TransitionStream:
        """Start an actor's process; returns when it has built its environment.

        Args:
            number: of the actor.
            attempt: number of its earlier starts.

        Raises:
            O2OSpecError: in a process that is still importing the script that started the actors.
        """
        if getattr(multiprocessing.current_process(), "_inheriting", False):
            raise O2OSpecError(
                "an actor's process imports the script that started it, and this script starts actors when it is "
                'imported; put what it does under `if __name__ == "__main__":`'
            )
        make_env, policy = self.env_of(number, attempt), self.policy.for_actor(number, attempt)
        threads = torch.get_num_threads()
        with _START, no_interrupt_for_children(), _started_by(self.start_method):
            # Without num_threads TorchRL would change the learner's number of threads.
            return MultiAsyncCollector(
                [make_env],
                policy,
                frames_per_batch=self.frames_per_batch,
                total_frames=-1,
                num_threads=threads,
            )


@contextmanager
def _started_by(method: str) -> Iterator[None]:
    """Set the process-wide start method, which TorchRL uses, and restore it afterwards."""
    if method == "forkserver":
        multiprocessing.set_forkserver_preload(["torchrl_o2o.collectors"])
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(method, force=True)
    try:
        yield
    finally:
        multiprocessing.set_start_method(before, force=True)
