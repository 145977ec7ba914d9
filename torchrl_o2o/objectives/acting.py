# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The base of policies that act by the networks of a loss."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Generic, TypeVar

from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.data import TensorSpec

from torchrl_o2o.modules.modes import in_mode
from torchrl_o2o.objectives.actor_critic import ActorCriticLoss

__all__ = ["ActsByLoss"]

L = TypeVar("L", bound=ActorCriticLoss)


class ActsByLoss(TensorDictModuleBase, Generic[L]):
    """A policy that acts by the current networks of a loss, without their dropout and batch normalization's batches.

    Its ``parameters()`` are those of the loss, by which collectors find its device and dtype. Its ``state_dict()`` is
    empty, because a checkpoint already has the loss.

    Args:
        loss: the loss.

    Examples:
        >>> from torchrl_o2o.modules import make_actor, make_qvalue_ensemble
        >>> from torchrl_o2o.objectives import AWACLoss, BestAction
        >>> loss = AWACLoss(make_actor(3, 2, hidden_sizes=(8,)), make_qvalue_ensemble(3, 2, hidden_sizes=(8,)))
        >>> policy = BestAction(loss.double())
        >>> isinstance(policy, ActsByLoss), next(policy.parameters()).dtype, len(policy.state_dict())
        (True, torch.float64, 0)
    """

    def __init__(self, loss: L) -> None:
        super().__init__()
        self.__dict__["loss"] = loss  # not a submodule, because a checkpoint already holds it
        self.in_keys: list[NestedKey] = list(loss._inputs_of(loss._networks_read[0]))
        self.out_keys: list[NestedKey] = [loss.tensor_keys.action]

    @property
    def by(self) -> L:
        """The loss."""
        return self.__dict__["loss"]

    @property
    def spec(self) -> TensorSpec:
        """The actor's action spec."""
        return self.by.actor_network.spec

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """The loss's parameters."""
        return self.by.parameters(recurse)

    def _state(self, tensordict: TensorDictBase) -> dict[NestedKey, Tensor]:
        """The entries that the networks read, checked."""
        return {key: self.by._entry(tensordict, key) for key in self.in_keys}

    @contextmanager
    def _acting(self) -> Iterator[None]:
        """The loss's networks in evaluation mode, which ``eval()`` of this policy does not reach."""
        networks = [value for value in vars(self.by).values() if isinstance(value, TensorDictModuleBase)]
        with ExitStack() as modes:
            for network in networks:
                modes.enter_context(in_mode(network, training=False))
            yield
