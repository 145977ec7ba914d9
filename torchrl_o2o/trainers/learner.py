# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Learners: a policy, a loss and the update that trains it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from omegaconf import DictConfig
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor
from torch.optim import Optimizer
from torchrl.data import ReplayBuffer
from torchrl.data.replay_buffers.samplers import Sampler
from torchrl.objectives.common import LossModule

from torchrl_o2o.data import TRANSITION
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.updates import Update
from torchrl_o2o.updates.state import state_of

__all__ = ["Learner", "MakeLearner", "on_device"]

P = ParamSpec("P")
T = TypeVar("T")


class Learner:
    """A policy, its loss and its update, for the phases of a run.

    The constructors in :mod:`torchrl_o2o.trainers.algorithms` build learners of the papers' methods.

    Args:
        actor: the policy that is saved.
        loss: the loss module.
        update: one update from one batch.

    Keyword Args:
        tester: the policy that is evaluated; ``None`` (default) is ``actor``.
        explorer: the policy that collects; ``None`` (default) is ``actor``. For a deterministic actor, this one adds
            noise.
        keys: entries of a transition that the loss reads. Defaults to :data:`~torchrl_o2o.data.TRANSITION`.
        further: updates of other losses that the method trains, by name, for example of SPOT's VAE. Defaults to none.
        state: further objects that change while training, by name, for the checkpoint. Defaults to none.
        view: a function from the sampler of a buffer to the one that draws the update's batches, such as a
            :class:`~torchrl_o2o.data.ChunkSampler` around it; ``None`` (default) does not change it.

    Raises:
        O2OSpecError: if the update is of another loss, or the loss trains an actor and a policy shares no parameter
            with it.

    Examples:
        >>> import torch
        >>> from torchrl_o2o.modules import make_gaussian_actor
        >>> from torchrl_o2o.objectives import BCLoss
        >>> from torchrl_o2o.updates import Descend
        >>> actor = make_gaussian_actor(3, 2)
        >>> loss = BCLoss(actor)
        >>> learner = Learner(actor, loss, Update(loss, Descend("actor", torch.optim.Adam(loss.parameters()))))
        >>> sorted(learner.objects())
        ['actor_optim', 'loss', 'update']
    """

    actor: TensorDictModuleBase
    loss: LossModule
    update: Callable[[TensorDictBase], dict[str, Tensor]]
    optims: Mapping[str, Optimizer]
    keys: tuple[NestedKey, ...] = TRANSITION
    further: Mapping[str, Update] = {}
    state: Mapping[str, Any] = {}
    _explorer: TensorDictModuleBase | None = None
    _tester: TensorDictModuleBase | None = None
    _view: Callable[[Sampler], Sampler] | None = None

    def __init__(
        self,
        actor: TensorDictModuleBase,
        loss: LossModule,
        update: Update,
        *,
        tester: TensorDictModuleBase | None = None,
        explorer: TensorDictModuleBase | None = None,
        keys: tuple[NestedKey, ...] = TRANSITION,
        further: Mapping[str, Update] | None = None,
        state: Mapping[str, Any] | None = None,
        view: Callable[[Sampler], Sampler] | None = None,
    ) -> None:
        if getattr(update, "loss", loss) is not loss:
            raise O2OSpecError(
                f"got an update of another {type(update.loss).__name__} than the learner's loss, expected Update(loss, "
                "...) of the same loss, because otherwise the saved loss is not the trained one; build it so"
            )
        for name, policy in {"actor": actor, "tester": tester, "explorer": explorer}.items():
            if policy is not None and _is_left_behind(policy, loss):
                raise O2OSpecError(
                    f"got an {name} that shares no parameter with the {type(loss).__name__}, expected the policy from "
                    "which the loss was built, because a copy would never learn; pass that policy"
                )
        self.actor, self.loss, self.update = actor, loss, update
        self.optims = update.optims
        self.keys, self._explorer, self._tester, self._view = keys, explorer, tester, view
        self.further, self.state = further or {}, {"update": update, **(state or {})}

    @property
    def explorer(self) -> TensorDictModuleBase:
        """The policy that collects."""
        return self.actor if self._explorer is None else self._explorer

    def see(self, buffer: ReplayBuffer) -> None:
        """Apply the learner's ``view`` to the sampler of a new buffer.

        Args:
            buffer: the buffer of the batches, changed in place.
        """
        if self._view is not None:
            buffer.set_sampler(self._view(buffer.sampler))

    @property
    def tester(self) -> TensorDictModuleBase:
        """The policy that is evaluated."""
        return self.actor if self._tester is None else self._tester

    @property
    def device(self) -> torch.device:
        """The device of the loss's parameters, and of the batches that the update takes."""
        return next(self.loss.parameters()).device

    @property
    def calls(self) -> int:
        """The number of updates made, including those before a resumption; schedules use it."""
        return self.state["update"].calls

    def objects(self) -> dict[str, Any]:
        """The objects for the checkpoint, by name."""
        objects = {"loss": self.loss, **{f"{name}_optim": optim for name, optim in self.optims.items()}, **self.state}
        for name, update in self.further.items():
            objects |= {f"{name}_loss": update.loss, f"{name}_update": update}
            for of, optim in update.optims.items():
                objects[f"{name}_optim" if of in self.optims else f"{of}_optim"] = optim
        return objects


def _is_left_behind(policy: TensorDictModuleBase, loss: LossModule) -> bool:
    """Whether a loss trains an actor, but the policy's parameters are not those of the loss."""
    trained = getattr(loss, "actor_network_params", None)
    if trained is None or not any(value.requires_grad for value in trained.parameters()):
        return False
    own = {value.untyped_storage().data_ptr() for value in state_of(policy).values()}
    return bool(own) and own.isdisjoint(value.untyped_storage().data_ptr() for value in state_of(loss).values())


#: Builds a learner from configuration and dimensions, as the constructors of :mod:`torchrl_o2o.trainers.algorithms` do.
MakeLearner = Callable[[DictConfig, tuple[int, int]], Learner]


def on_device(make: Callable[Concatenate[DictConfig, P], T]) -> Callable[Concatenate[DictConfig, P], T]:
    """Let a constructor of learners create its networks on the device that the configuration names.

    Args:
        make: a function of the configuration, whose ``device`` is read, and further arguments. A configuration without
            ``device`` means the CPU.

    Returns:
        The function, which creates tensors on that device.

    Examples:
        >>> from omegaconf import OmegaConf
        >>> from torch import nn
        >>> make = on_device(lambda cfg, width: nn.Linear(width, 1))
        >>> make(OmegaConf.create({"device": "meta"}), 3).weight.device
        device(type='meta')
    """

    @functools.wraps(make)
    def made(cfg: DictConfig, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with torch.device(cfg.get("device", "cpu")):
            return make(cfg, *args, **kwargs)

    return made
