# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""DAPG's policy, whose network reads and writes standardized numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict.nn import TensorDictModule
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.modules import MLP, ProbabilisticActor

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules.boxes import action_box, distribution_box
from torchrl_o2o.modules.gaussian_policies import BoxNormal

__all__ = ["RescaledGaussian", "make_rescaled_actor"]


class RescaledGaussian(nn.Module):
    r"""Mean and standard deviation of a Gaussian around an MLP of standardized observations.

    :math:`\mu=f\big((s-m_s)/(\sigma_s+10^{-8})\big)\sigma_a+m_a`, with means m and standard deviations of
    demonstrations. :math:`\log\sigma` is one parameter per action dimension. It starts as that of the demonstrated
    actions, but at least ``min_log_std``. Clamp it to this bound after each step. The MLP has tanh between its layers,
    and its last layer starts at a hundredth of torch's initial values.

    Args:
        observation: the demonstrations', shape [N, o], N > 1, of any type of real numbers.
        action: the demonstrations', shape [N, A].
        hidden_sizes: widths of the hidden layers. Defaults to (32, 32).
        min_log_std: lower bound of the initial log standard deviation. Defaults to -3.

    Raises:
        O2OSpecError: if the demonstrations are fewer than two rows, not of one length or not finite, or an action never
            changes.

    Examples:
        >>> import torch
        >>> loc, scale = RescaledGaussian(torch.randn(9, 3), torch.randn(9, 2))(torch.zeros(5, 3))
        >>> loc.shape, scale.shape
        (torch.Size([5, 2]), torch.Size([5, 2]))
    """

    in_shift: Tensor
    in_scale: Tensor
    out_shift: Tensor
    out_scale: Tensor

    @checked_arguments
    def __init__(
        self, observation: Tensor, action: Tensor, hidden_sizes: Sequence[int] = (32, 32), min_log_std: float = -3.0
    ) -> None:
        super().__init__()
        shapes = list(observation.shape), list(action.shape)
        if observation.ndim != 2 or action.ndim != 2 or len(observation) != len(action) or len(action) < 2:
            raise O2OSpecError(f"got demonstrations of the shapes {shapes}, expected [N, o] and [N, A] with N >= 2")
        observation, action = (rows.to(torch.get_default_dtype()) for rows in (observation, action))
        for name, rows in {"observation": observation, "action": action}.items():
            if not bool(rows.isfinite().all()):
                raise O2OSpecError(
                    f"got {name}s of demonstrations that are not finite in the rows "
                    f"{(~rows.isfinite().all(-1)).nonzero().flatten().tolist()[:4]}, expected finite numbers; leave "
                    "these rows out"
                )
        deviation = action.std(0)
        if not bool((deviation > 0).all()):
            raise O2OSpecError(
                f"got actions of demonstrations with the standard deviations {deviation.tolist()}, expected more than "
                "0 in each dimension; leave constant dimensions out"
            )
        self.net = MLP(observation.shape[-1], action.shape[-1], num_cells=list(hidden_sizes), activation_class=nn.Tanh)
        for parameter in self.net[-1].parameters():
            parameter.data.mul_(1e-2)
        self.log_std = nn.Parameter(deviation.log().clamp(min=min_log_std))
        for name, rows in (("in", observation), ("out", action)):
            self.register_buffer(f"{name}_shift", rows.mean(0))
            self.register_buffer(f"{name}_scale", rows.std(0))

    def mean(self, observation: Tensor) -> Tensor:
        """The mean of observations [*B, o], shape [*B, A]."""
        return self.net((observation - self.in_shift) / (self.in_scale + 1e-8)) * self.out_scale + self.out_shift

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Map observations [*B, o] to mean and standard deviation, each [*B, A]."""
        loc = self.mean(observation)
        return loc, self.log_std.exp().expand_as(loc)


@checked_arguments
def make_rescaled_actor(
    observation: Tensor,
    action: Tensor,
    *,
    hidden_sizes: Sequence[int] = (32, 32),
    min_log_std: float = -3.0,
    observation_key: NestedKey = "observation",
    action_key: NestedKey = "action",
) -> ProbabilisticActor:
    """An unsquashed Gaussian policy with the statistics of demonstrations, as DAPG uses.

    Source: the code of Rajeswaran et al. 2018, arXiv:1709.10087. See :class:`RescaledGaussian`.

    Its samples are not clipped, because the policy gradient needs the original draws. The environment must clip them,
    as environments of :func:`~torchrl_o2o.envs.make_gym_env` do.

    Args:
        observation: the demonstrations', shape [N, o], N > 1.
        action: the demonstrations', shape [N, A].

    Keyword Args:
        hidden_sizes: widths of the hidden layers. Defaults to (32, 32).
        min_log_std: lower bound of the initial log standard deviation. Defaults to -3, the authors'.
        observation_key: entry read. Defaults to ``"observation"``.
        action_key: entry written. Defaults to ``"action"``.

    Returns:
        An actor that reads the observation and writes ``loc``, ``scale`` and the action; random under
        ``ExplorationType.RANDOM``, the clipped mean under ``DETERMINISTIC``. ``actor[0].module`` is its network.

    Raises:
        O2OSpecError: as :class:`RescaledGaussian`.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> actor = make_rescaled_actor(torch.randn(9, 3), torch.randn(9, 2))
        >>> actor(TensorDict({"observation": torch.zeros(4, 3)}, [4]))["action"].shape
        torch.Size([4, 2])
    """
    spec = action_box(action.shape[-1])
    net = RescaledGaussian(observation, action, hidden_sizes, min_log_std)
    return ProbabilisticActor(
        TensorDictModule(net, in_keys=[observation_key], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        out_keys=[action_key],
        spec=spec,
        distribution_class=BoxNormal,
        distribution_kwargs={**distribution_box(spec), "clip_samples": False},
    )
