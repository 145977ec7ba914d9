# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Actors in other processes: their policy, and the TorchRL collectors that run them.

TorchRL provides the processes, the pipes and the stepping. This module adds a policy whose weights are in memory that
learner and actors share, so that publishing a policy costs one copy for any number of actors. It also adds two entries
to every transition: the version of the policy that acted, and the version of this package.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import copy, deepcopy
from functools import partial
from typing import Any, Protocol

import gymnasium
import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor, multiprocessing
from torchrl.collectors import MultiAsyncCollector
from torchrl.data import Composite, Unbounded
from torchrl.envs import Compose, EnvBase, GymWrapper, RewardSum, StepCounter, TransformedEnv
from torchrl.envs.gym_like import default_info_dict_reader
from torchrl.envs.utils import ExplorationType, set_exploration_type

import torchrl_o2o
from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.collectors.eval_mode import regularizers
from torchrl_o2o.collectors.numpy_actor import FastActor, find_parts
from torchrl_o2o.collectors.single import kind_of
from torchrl_o2o.collectors.vector import no_interrupt_for_children
from torchrl_o2o.envs.checks import check_continuous
from torchrl_o2o.errors import O2OSpecError, check_count, check_option, check_seed
from torchrl_o2o.modules.chunks import chunk_length

__all__ = [
    "PACKAGE_VERSION",
    "POLICY_VERSION",
    "ActingPolicy",
    "Actors",
    "ProcessActors",
    "TransitionStream",
    "not_finite",
    "package_stamp",
    "version_of",
]

#: How many policies the learner had published before the one that acted, int64, shape [*B, 1].
POLICY_VERSION = "policy_version"
#: The version of this package where the transition was made, as text in uint8, shape [*B, 24].
PACKAGE_VERSION = "package_version"

_TEXT = 24
_BEGUN, _CHECK, _RANDOM, _PUBLISHED = range(4)
_START = threading.Lock()


def package_stamp() -> Tensor:
    """The version of this package as a row of uint8, shape [24].

    Examples:
        >>> bytes(package_stamp()).rstrip(b"\\0").decode() == torchrl_o2o.__version__
        True
    """
    return torch.frombuffer(bytearray(torchrl_o2o.__version__.encode()[:_TEXT].ljust(_TEXT, b"\0")), dtype=torch.uint8)


def version_of(data: TensorDictBase) -> str | None:
    """The version of this package where some transitions were made, which are of one process.

    Args:
        data: transitions [N].

    Returns:
        The version; ``None`` if they have no stamp.

    Examples:
        >>> from tensordict import TensorDict
        >>> version_of(TensorDict({PACKAGE_VERSION: package_stamp().unsqueeze(0)}, [1])) == torchrl_o2o.__version__
        True
    """
    stamp = data.get(PACKAGE_VERSION, None)
    if stamp is None or stamp.dtype != torch.uint8 or stamp.numel() == 0:
        return None
    return bytes(stamp.reshape(-1, stamp.shape[-1])[0].tolist()).rstrip(b"\0").decode(errors="replace")


def not_finite(rows: TensorDictBase, keys: Iterable[NestedKey]) -> NestedKey | None:
    """The first entry that holds a value that is not finite; ``None`` if all are.

    Args:
        rows: transitions.
        keys: entries to look at.

    Examples:
        >>> from torchrl_o2o.testing import random_transitions
        >>> rows = random_transitions(2, 3, 1)
        >>> rows["action"][1] = float("nan")
        >>> not_finite(rows, ["observation", "action"])
        'action'
    """
    return next((key for key in keys if (value := rows[key]).is_floating_point() and not value.isfinite().all()), None)


class ActingPolicy(TensorDictModuleBase):
    """A policy whose weights the learner publishes into shared memory and an actor reads before it acts.

    An actor of this package acts as a :class:`~torchrl_o2o.collectors.FastActor`, in numpy. Any other TorchRL actor
    that writes ``"action"`` is called as it is, dropout and batch normalization as in evaluation.

    The weights are one float32 array. An actor copies it when a new version stands there, and takes the copy only if
    its checksum is the published one: it never acts by a mixture of two policies, and waits for nobody.

    Args:
        actor: the policy to act by; copied.

    Keyword Args:
        seed: of exploration noise and random actions, with the actor's number and its attempt. Defaults to 0.

    Raises:
        O2OSpecError: if the actor decides several actions at once.

    Examples:
        >>> from tensordict import TensorDict
        >>> from torchrl_o2o.modules import make_actor
        >>> actor = make_actor(3, 2)
        >>> policy = ActingPolicy(actor)
        >>> policy.publish(actor, 7)
        >>> policy(TensorDict({"observation": torch.zeros(3)}))["policy_version"]
        tensor([7])
    """

    @checked_arguments
    def __init__(self, actor: TensorDictModuleBase, *, seed: int = 0) -> None:
        super().__init__()
        if chunk_length(actor) > 1:
            raise O2OSpecError(
                f"got an actor that decides {chunk_length(actor)} actions at once; rows of several actors lie between "
                f"one another in the storage, so chunks cannot be learned from them. Collect with StepCollector"
            )
        self.in_keys, self.out_keys = ["observation"], ["action", POLICY_VERSION, PACKAGE_VERSION]
        self.seed, self.number, self.attempt = check_seed(seed), 0, 0
        # In a tuple, so that TorchRL finds no parameters and sends none itself.
        own = deepcopy(actor).cpu().requires_grad_(False)
        for module in regularizers(own):
            module.training = False
        self._copy = (own,)
        flat = _flat(actor)
        self._weights = torch.zeros_like(flat).share_memory_()
        self._stamp = torch.full((4,), -1, dtype=torch.int64).share_memory_()
        self._reset_acting()
        self.publish(actor, 0)

    def _reset_acting(self) -> None:
        self._version, self._random = -1, False
        self._generator: torch.Generator | None = None
        self._fast: FastActor | None = None

    def for_actor(self, number: int, attempt: int = 0) -> ActingPolicy:
        """The same policy, in the same memory, with a separate noise stream.

        Args:
            number: of the actor.
            attempt: how often it has been started before. Defaults to 0.
        """
        own = copy(self)
        own.number, own.attempt = number, attempt
        own._reset_acting()
        return own

    def with_buffers(self) -> ActingPolicy:
        """The same policy with its weights as buffers, which TorchRL's weight synchronization sends."""
        own = copy(self)
        own._buffers = {}
        for name in ("_weights", "_stamp"):
            own.register_buffer(name, own.__dict__.pop(name))
        return own

    def publish(self, actor: TensorDictModuleBase, version: int, *, random: bool = False) -> None:
        """Let actors act by the weights that a policy has now.

        Args:
            actor: as the one this was made with.
            version: not below 0; higher than before.

        Keyword Args:
            random: have them act uniformly at random in [-1, 1] instead. Defaults to ``False``.
        """
        flat = _flat(actor)
        self._stamp[_BEGUN] = version
        self._weights.copy_(flat)
        self._stamp[_CHECK], self._stamp[_RANDOM] = _checksum(self._weights), int(random)
        self._stamp[_PUBLISHED] = version

    def _follow(self) -> None:
        """Copy the newest weights. If they are being written at this moment, the next step copies them."""
        version = int(self._stamp[_PUBLISHED])
        if version == self._version:
            return
        flat, random, check = self._weights.clone(), bool(self._stamp[_RANDOM]), int(self._stamp[_CHECK])
        if int(self._stamp[_BEGUN]) != version or _checksum(flat) != check:
            return
        start = 0
        for value in _floats(self._copy[0]):
            value.copy_(flat[start : start + value.numel()].view_as(value))
            start += value.numel()
        self._version, self._random = version, random

    def _start_acting(self) -> None:
        derived = np.random.SeedSequence([self.seed, self.number, self.attempt]).generate_state(1)
        self._generator = torch.Generator().manual_seed(int(derived[0]))
        if find_parts(self._copy[0]) is not None:
            self._fast = FastActor(self._copy[0], deterministic=False, generator=self._generator)
        else:
            torch.manual_seed(int(derived[0]))  # in the actor's own process

    def _decide(self, tensordict: TensorDictBase) -> Tensor:
        if self._fast is not None:
            return torch.from_numpy(self._fast.decide(tensordict.get("observation").numpy())).float()
        observation = tensordict.get("observation")
        if observation.is_floating_point():
            observation = observation.to(kind_of(self._copy[0])[1])
        with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
            return self._copy[0](TensorDict({"observation": observation}, tensordict.batch_size))["action"].float()

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write ``"action"``, :data:`POLICY_VERSION` and :data:`PACKAGE_VERSION`.

        Args:
            tensordict: with ``"observation"``, [*B, o].

        Raises:
            RuntimeError: if no weights that are whole were found in a second, which no running learner causes.
        """
        if self._generator is None:
            self._start_acting()
        self._follow()
        if self._version < 0:
            self._wait_for_weights()
        action = self._decide(tensordict)
        if self._random:
            action = torch.rand(action.shape, generator=self._generator, dtype=action.dtype) * 2.0 - 1.0
        shape = tensordict.batch_size
        tensordict["action"] = action
        tensordict[POLICY_VERSION] = torch.full((*shape, 1), self._version, dtype=torch.int64)
        tensordict[PACKAGE_VERSION] = package_stamp().expand(*shape, _TEXT)
        return tensordict

    def _wait_for_weights(self) -> None:
        """Wait until the first weights are published: there are no older ones to act with."""
        deadline = time.monotonic() + 1.0
        while self._version < 0:
            if time.monotonic() > deadline:
                raise RuntimeError("the learner's weights were not whole for a second; is the learner alive?")
            self._follow()


def _floats(actor: TensorDictModuleBase) -> Iterator[Tensor]:
    """The tensors that are published: parameters, and floating-point buffers such as a noise scale."""
    yield from (value.data for value in actor.parameters())
    yield from (value for value in actor.buffers() if value.is_floating_point())


def _flat(actor: TensorDictModuleBase) -> Tensor:
    """An actor's weights as one float32 array, [P]."""
    return torch.cat([value.detach().reshape(-1).float() for value in _floats(actor)]).cpu()


def _checksum(flat: Tensor) -> int:
    return zlib.crc32(flat.numpy().data)


class TransitionStream(Protocol):
    """Transitions of one actor as they come, such as a collector of TorchRL.

    Examples:
        >>> from torchrl_o2o.testing import random_transitions
        >>> class Replayed:  # a recording in the place of an environment
        ...     def __init__(self, rows):
        ...         self.rows = rows
        ...     def __iter__(self):
        ...         return iter(self.rows.split(10))
        ...     def shutdown(self, timeout=None):
        ...         pass  # there is no process
        >>> source: TransitionStream = Replayed(random_transitions(30, 3, 2))
        >>> [batch.shape for batch in source]
        [torch.Size([10]), torch.Size([10]), torch.Size([10])]
    """

    def __iter__(self) -> Iterator[TensorDictBase]:
        """Deliver batches [n], without end."""
        ...

    def shutdown(self, timeout: float | None = None) -> None:
        """Close the environment and end the process."""
        ...


class Actors(Protocol):
    """Where a :class:`~torchrl_o2o.collectors.Fleet` gets its actors: :class:`ProcessActors`, or your own.

    Examples:
        >>> from functools import partial
        >>> from torchrl_o2o.envs import make_gym_env
        >>> from torchrl_o2o.modules import make_actor
        >>> actors: Actors = ProcessActors(partial(make_gym_env, "Pendulum-v1"), make_actor(3, 1), seed=0)
        >>> actors.publish(1, random=True)  # before the first is started: all will act at random
    """

    def start(self, number: int, attempt: int) -> TransitionStream:
        """Start an actor, or start it again.

        Args:
            number: of the actor.
            attempt: how often it has been started before.
        """
        ...

    def publish(self, version: int, *, random: bool) -> None:
        """Let all actors act by the learner's present weights, or at random.

        Args:
            version: of the weights.

        Keyword Args:
            random: act uniformly at random instead.
        """
        ...


class PublishedActors:
    """The base class of actors in other processes: an environment, and the learner's published policy.

    Args:
        make_env: builds the environment where the actor is.
        actor: the learner's policy, which :meth:`publish` reads.

    Keyword Args:
        seed: of environments and noise, with the actor's number and attempt.
        frames_per_batch: transitions that an actor sends at once.
        intervened: see :class:`ProcessActors`.
    """

    def __init__(
        self,
        make_env: Callable[[], gymnasium.Env],
        actor: TensorDictModuleBase,
        *,
        seed: int,
        frames_per_batch: int,
        intervened: bool,
    ) -> None:
        self.make_env, self.actor, self.intervened = make_env, actor, intervened
        self.seed, self.frames_per_batch = seed, check_count("frames_per_batch", frames_per_batch, least=1)
        self.policy = ActingPolicy(actor, seed=seed)

    def publish(self, version: int, *, random: bool) -> None:
        """Publish the learner's present weights.

        Args:
            version: of the weights.

        Keyword Args:
            random: have the actors act uniformly at random instead.
        """
        self.policy.publish(self.actor, version, random=random)

    def env_of(self, number: int, attempt: int) -> Callable[[], EnvBase]:
        """The function that builds an actor's environment, with its own seed.

        Args:
            number: of the actor.
            attempt: how often it has been started before.
        """
        seed = int(np.random.SeedSequence([self.seed, number, attempt]).generate_state(1)[0])
        return partial(actor_env, self.make_env, seed, intervened=self.intervened)


class ProcessActors(PublishedActors):
    """Actors in processes of this machine, each a :class:`torchrl.collectors.MultiAsyncCollector` of its own.

    One collector an actor, since one of several ends all its processes when one of them dies. Nothing listens on a
    port: the processes talk by pipes and shared memory.

    Args:
        make_env: builds a gymnasium environment in the actor's process, with actions in [-1, 1]. It is pickled, so it
            should be a function of a module, or a ``functools.partial`` of one, that holds nothing large.
        actor: the learner's policy, which :meth:`publish` reads.

    Keyword Args:
        seed: of environments and noise, with the actor's number and attempt. Defaults to 0.
        frames_per_batch: transitions that an actor sends at once. Defaults to 1.
        intervened: whether transitions carry :data:`~torchrl_o2o.data.INTERVENED`, from the ``info["intervened"]`` of
            the environment's steps: the action that was executed in place of the policy's, in its units. Steps
            without it had none. Defaults to ``False``.
        start_method: ``"forkserver"`` (default) imports the package once for all actors, so that one starts in a
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
            attempt: how often it has been started before.

        Raises:
            O2OSpecError: in a process that is still importing the script that started it.
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


def actor_env(make_env: Callable[[], gymnasium.Env], seed: int, *, intervened: bool = False) -> EnvBase:
    """A gymnasium environment as TorchRL's collectors step it, with the running return and length of the episode.

    Args:
        make_env: builds it.
        seed: of its resets.

    Keyword Args:
        intervened: as of :class:`ProcessActors`. Defaults to ``False``.

    Examples:
        >>> from torchrl_o2o.envs import make_gym_env
        >>> env = actor_env(partial(make_gym_env, "Pendulum-v1"), 0)
        >>> env.rollout(3)["next", "step_count"].squeeze(-1)
        tensor([1, 2, 3])
    """
    gym_env = make_env()
    entries = {"rejected": Unbounded(torch.Size(()))}  # set by a GuardedEnv
    if intervened:
        gym_env = _SaysIntervened(gym_env)
        entries["intervened"] = Unbounded(torch.Size(gym_env.nobody.shape))
    env = GymWrapper(gym_env)
    env.set_info_dict_reader(default_info_dict_reader(list(entries), spec=Composite(entries)))
    env = TransformedEnv(env, Compose([RewardSum(), StepCounter()]))
    env.set_seed(seed)
    return env


class _SaysIntervened(gymnasium.Wrapper):
    """Writes NaN for the intervention if nobody intervened; TorchRL would read zeros."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        space = env.action_space
        check_continuous(space, type(env.unwrapped).__name__)
        self.nobody = np.full(space.shape or (), np.nan, np.float32)

    def reset(self, **settings: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**settings)
        return observation, {**info, "intervened": self.nobody.copy()}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        *outcome, info = self.env.step(action)
        given = info.get("intervened", self.nobody.copy())
        return *outcome, {**info, "intervened": np.asarray(given, np.float32)}  # pyright: ignore[reportReturnType]


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
