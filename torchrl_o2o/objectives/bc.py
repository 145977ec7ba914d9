# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Behavior cloning (BC)."""

from __future__ import annotations

from tensordict import TensorDictBase, TensorDictParams
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule, TensorDictModuleBase
from torch import Tensor

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.objectives.base import Reduction, TransitionLoss, dispatch
from torchrl_o2o.objectives.imitation import imitation_error
from torchrl_o2o.objectives.networks import flat_parameters

__all__ = ["BCLoss"]


class BCLoss(TransitionLoss):
    r"""Behavior cloning: negative log-likelihood of a stochastic actor, mean squared error of a deterministic one.

    .. math:: L = -\frac1B\sum_b\log\pi(a_b|s_b) \qquad\text{or}\qquad
        L = \frac1B\sum_b\frac1A\lVert\pi(s_b)-a_b\rVert^2

    The type of the actor decides, not the names of its outputs. The loss reads no reward and no next state.

    Importance weights multiply the rows.

    Differences from :class:`torchrl.objectives.BCLoss`, which computes the same two numbers: TorchRL's treats an actor
    as deterministic, and clones a *sample* of it, unless one of its outputs is called ``loc``, ``scale``, ``logits`` or
    ``probs``. It reduces over elements or rows depending on the actor, ignores importance weights, and does not fix the
    order of its ``in_keys``. It supports discrete actions and padding masks, which this class does not.

    Args:
        actor_network: the actor, stochastic or deterministic.

    Keyword Args:
        action_clip: bound to whose plus and minus recorded actions are clamped, or ``None`` (default). Set it (1 - 1e-3
            in BRAC) if a squashed Gaussian clones actions at the edge of the box: their likelihood is unbounded and
            outweighs all other rows.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"`` over the batch.

    Raises:
        O2OSpecError: if ``action_clip`` is not positive.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_o2o.modules import make_gaussian_actor
        >>> from torchrl_o2o.objectives import BCLoss
        >>> loss = BCLoss(make_gaussian_actor(17, 6, hidden_sizes=(32, 32)))
        >>> batch = TensorDict({"observation": torch.randn(8, 17), "action": torch.rand(8, 6) * 2 - 1}, [8])
        >>> loss(batch)["loss_actor"].shape
        torch.Size([])
    """

    out_keys = ["loss_actor", "imitation_error"]

    actor_network: TensorDictModuleBase
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams

    _networks_read = (("actor_network",), ())
    _bootstraps = False

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential | TensorDictModule,
        *,
        action_clip: float | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        if action_clip is not None and not action_clip > 0.0:
            raise O2OSpecError(f"got action_clip={action_clip}, expected a positive bound, e.g. 1 - 1e-3, or None")
        self.action_clip = action_clip
        self.convert_to_functional(actor_network, "actor_network", create_target_params=False)

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Cloning loss of one minibatch.

        Args:
            tensordict: observations and actions, shape [*B]; not modified.

        Returns:
            The loss, and ``imitation_error`` per row, shape [*B], detached.
        """
        params, state = flat_parameters(self.actor_network_params), self._state(tensordict)
        action, key = self._action(tensordict), self.tensor_keys.action
        if self.action_clip is not None:
            action = action.clamp(-self.action_clip, self.action_clip)
        error = imitation_error(self.actor_network, params, state, action, key, over_dimensions="mean")
        return self._reduce(error, self._weights(tensordict)), {"imitation_error": error.detach()}

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The loss, and the error before importance weights."""
        loss, info = self.actor_loss(tensordict)
        return self._collect(tensordict, {"loss_actor": loss}, info)
