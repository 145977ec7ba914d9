# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The network of the density ratio w(s, a) = d_on(s, a) / d_off(s, a), which separates online from offline rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torch.nn.functional import softplus
from torchrl.data import TensorSpec

from torchrl_o2o._moved import renamed_arguments
from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.errors import O2OSpecError, check_number
from torchrl_o2o.modules.initialization import Initialization, initialize_
from torchrl_o2o.modules.trunk import feature_dim, make_trunk

__all__ = ["DensityRatio", "DensityRatioNet", "Parametrization"]

Parametrization = Literal["logit", "softplus", "relu"]

_LINEAR_BELOW = -15.0  # below this, log softplus(x) equals x in float32, and softplus itself underflows


class DensityRatioNet(nn.Module):
    r"""Maps (s, a) to :math:`\log w(s,a)`, computed from the network's raw output x.

    ``"logit"``: :math:`\log w=x`. ``"softplus"``: :math:`w=\log(1+e^x)`. ``"relu"``:
    :math:`\log w=\log(\max(x,0)+\mathrm{eps})`.

    Args:
        trunk: maps [*B, o + A] to [*B, F].
        features: F.
        parametrization: the meaning of x, as above.
        eps: for ``"relu"`` only.

    Examples:
        >>> import torch
        >>> from torchrl_o2o.modules import make_trunk
        >>> DensityRatioNet(make_trunk(5, (8,)), 8, "logit")(torch.zeros(4, 3), torch.zeros(4, 2)).shape
        torch.Size([4, 1])
    """

    @checked_arguments
    def __init__(self, trunk: nn.Module, features: int, parametrization: Parametrization, eps: float = 1e-10) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(features, 1)
        self.parametrization: Parametrization = parametrization
        check_number("eps", eps, least=0)
        self.eps = eps

    @property
    def offset(self) -> float:
        """What is added to w inside the logarithm: ``eps`` after a ReLU, otherwise 0."""
        return self.eps if self.parametrization == "relu" else 0.0

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """Map observation [*B, o] and action [*B, A] to log w, [*B, 1]."""
        output = self.head(self.trunk(torch.cat([observation, action], -1)))
        if self.parametrization == "logit":
            return output
        if self.parametrization == "softplus":
            return torch.where(
                output < _LINEAR_BELOW, output, softplus(output.clamp_min(_LINEAR_BELOW)).log()
            )  # clamped inside, too, so that the unused branch has a finite gradient
        return (torch.relu(output) + self.eps).log()


class _Standardize(nn.Module):
    """(x - mean) / std with fixed mean and std, which are part of the state."""

    mean: Tensor
    std: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def forward(self, values: Tensor) -> Tensor:
        return (values - self.mean) / self.std


class DensityRatio(TensorDictModule):
    r"""Network of the density ratio of online to offline state-action pairs; it writes the logarithm.

    The Jensen-Shannon objective by which it is trained (:class:`~torchrl_o2o.objectives.DensityRatioLoss`) *is*
    logistic regression on :math:`\log w`, so by default the network outputs :math:`\log w`: w is then positive and
    needs no epsilon. In the papers the network ends in a ReLU, whose output can be exactly 0 and then has no gradient.
    On two Gaussians in 17 dimensions logit and softplus reach a correlation of at least 0.97 with the true log-ratio
    (``tests/objectives/test_density_ratio.py``).

    Source: A3RL section 4.1 and Off2On (Lee et al. 2022) section 4.2; both 2 x 256 with ReLU.

    Args:
        observation: spec of the observation, shape [o], or o.
        action: spec of the action, shape [A], or A.

    Keyword Args:
        hidden_sizes: widths of the hidden layers. Defaults to (256, 256).
        parametrization: ``"logit"`` (default), ``"softplus"`` or ``"relu"`` (A3RL, Off2On).
        initialization: a recipe of :func:`~torchrl_o2o.modules.initialize_`. Defaults to ``"xavier_uniform"`` (A3RL);
            Off2On's is ``"fanin_raised_bias"``.
        output_bias: the output layer's initial bias; ``None`` (default) leaves the recipe's, Off2On's is 1.
        eps: added to w inside the logarithm, for ``"relu"`` only. Defaults to 1e-10, the references'.
        standardize: whether pairs are standardized by the statistics of the data passed to :meth:`fit_scale`. Defaults
            to ``False``, as in the papers.
        in_keys: entries of observation and action. Defaults to ``("observation", "action")``.
        out_key: entry written, shape [*B, 1]. Defaults to ``"log_density_ratio"``.

    Raises:
        O2OSpecError: if the parametrization is unknown or a spec is not a flat vector.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> ratio = DensityRatio(17, 6, hidden_sizes=(32, 32))
        >>> data = TensorDict({"observation": torch.zeros(4, 17), "action": torch.zeros(4, 6)}, [4])
        >>> ratio(data)["log_density_ratio"].shape
        torch.Size([4, 1])
    """

    @renamed_arguments(standardise="standardize", parametrisation="parametrization", initialisation="initialization")
    @checked_arguments
    def __init__(
        self,
        observation: TensorSpec | int,
        action: TensorSpec | int,
        *,
        hidden_sizes: Sequence[int] = (256, 256),
        parametrization: Parametrization = "logit",
        initialization: Initialization = "xavier_uniform",
        output_bias: float | None = None,
        eps: float = 1e-10,
        standardize: bool = False,
        in_keys: tuple[NestedKey, NestedKey] = ("observation", "action"),
        out_key: NestedKey = "log_density_ratio",
    ) -> None:
        if parametrization not in get_args(Parametrization):
            known = ", ".join(map(repr, get_args(Parametrization)))
            raise O2OSpecError(f"got parametrization={parametrization!r}, expected one of {known}")
        width = feature_dim(observation, "observation") + feature_dim(action, "action")
        trunk: nn.Module = make_trunk(width, hidden_sizes)
        if standardize:
            trunk = nn.Sequential(_Standardize(width), trunk)
        net = DensityRatioNet(trunk, hidden_sizes[-1], parametrization, eps)
        initialize_(net, initialization)
        if output_bias is not None:
            nn.init.constant_(net.head.bias, output_bias)
        super().__init__(net, in_keys=list(in_keys), out_keys=[out_key])

    @torch.no_grad()
    def fit_scale(self, data: TensorDictBase) -> None:
        """Set mean and standard deviation from a data set. Call it before a loss is built on this module.

        Args:
            data: rows [N] with the entries of ``in_keys``; a constant dimension is not rescaled.

        Raises:
            O2OSpecError: if it was built without ``standardize=True``.
        """
        scale = next((part for part in self.modules() if isinstance(part, _Standardize)), None)
        if scale is None:
            raise O2OSpecError(
                "got a DensityRatio without statistics, expected one built with standardize=True; build it so, or do "
                "not call fit_scale"
            )
        pairs = torch.cat([data.get(key) for key in self.in_keys], -1)
        std = pairs.std(0, correction=0)
        scale.mean.copy_(pairs.mean(0))
        scale.std.copy_(torch.where(std > 1e-6, std, 1.0))
