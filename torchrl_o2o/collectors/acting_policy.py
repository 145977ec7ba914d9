# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A policy in shared memory: publishing it costs one copy of its weights for any number of actors."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
from copy import copy, deepcopy

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.collectors.eval_mode import regularizers
from torchrl_o2o.collectors.numpy_actor import FastActor, find_parts
from torchrl_o2o.collectors.received_rows import PACKAGE_VERSION, POLICY_VERSION, package_stamp
from torchrl_o2o.collectors.single import check_action, kind_of
from torchrl_o2o.errors import O2OSpecError, check_seed
from torchrl_o2o.modules.chunks import chunk_length

__all__ = ["ActingPolicy"]

_BEGUN, _CHECK, _RANDOM, _PUBLISHED = range(4)


class ActingPolicy(TensorDictModuleBase):
    """A policy whose weights the learner publishes in shared memory; an actor reads them before it acts.

    An actor of this package acts through :class:`~torchrl_o2o.collectors.FastActor`, in numpy. Any other TorchRL actor
    that writes ``"action"`` is called directly, with dropout and batch normalization as in evaluation.

    The weights are one float32 array. An actor copies it when there is a new version, and uses the copy only if its
    checksum is the published one. It never acts by a mixture of two policies, and never waits for the learner.

    Args:
        actor: the policy; it is copied.

    Keyword Args:
        seed: seed of exploration noise and random actions, combined with the actor's number and attempt. Defaults to 0.

    Raises:
        O2OSpecError: if the actor chooses several actions at once.

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
                f"got an actor that chooses {chunk_length(actor)} actions at once, expected single actions, because "
                "rows of several actors are interleaved in the storage and do not form chunks; collect with "
                "StepCollector"
            )
        self.in_keys, self.out_keys = ["observation"], ["action", POLICY_VERSION, PACKAGE_VERSION]
        self.seed, self.number, self.attempt = check_seed(seed), 0, 0
        # In a tuple, so that TorchRL finds no parameters and sends none.
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
            attempt: number of its earlier starts. Defaults to 0.
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
        """Publish the current weights of a policy.

        Args:
            actor: a policy like the one passed to the constructor.
            version: at least 0, and higher than before.

        Keyword Args:
            random: whether actors act uniformly at random in [-1, 1] instead. Defaults to ``False``.
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
            action = self._copy[0](TensorDict({"observation": observation}, tensordict.batch_size))["action"].float()
        check_action(action, action.shape, [observation])  # only the environment knows the shape that it takes
        return action

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write ``"action"``, :data:`POLICY_VERSION` and :data:`PACKAGE_VERSION`.

        Args:
            tensordict: with ``"observation"``, [*B, o].

        Raises:
            O2OSpecError: if the policy's action is not finite.
            RuntimeError: if no complete weights were found in a second, which does not happen while the learner runs.
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
        tensordict[PACKAGE_VERSION] = package_stamp().expand(*shape, -1)
        return tensordict

    def _wait_for_weights(self) -> None:
        """Wait until the first weights are published, because there are no older ones."""
        deadline = time.monotonic() + 1.0
        while self._version < 0:
            if time.monotonic() > deadline:
                raise RuntimeError(
                    "got incomplete weights of the learner for a second, expected a running learner; check whether it "
                    "is alive"
                )
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
