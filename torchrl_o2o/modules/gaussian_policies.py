# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Gaussian policies that are not squashed, with one standard deviation per action dimension: AWAC, IQL, ACA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from tensordict.nn import TensorDictModule
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torch import distributions as D
from torchrl.data import TensorSpec
from torchrl.modules import ProbabilisticActor

from torchrl_o2o._moved import renamed_arguments
from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.errors import check_number, check_option, check_order
from torchrl_o2o.functional.offline import normal_log_prob
from torchrl_o2o.modules.boxes import action_box, distribution_box, make_squash
from torchrl_o2o.modules.distributions import BoxDistribution
from torchrl_o2o.modules.initialization import Initialization, initialize_
from torchrl_o2o.modules.trunk import feature_dim, make_trunk

__all__ = ["BoxNormal", "GaussianVectorHead", "make_gaussian_actor"]


class BoxNormal(BoxDistribution):
    r"""Diagonal Gaussian whose samples are clipped to the action box; its density is the plain Gaussian's.

    :math:`a=\mathrm{clip}(\mu+\sigma\varepsilon, lo, hi)`, :math:`\log\pi(a)=\sum_i\log N(a_i;\mu_i,\sigma_i)`. The
    density of a clipped sample is that at its clipped value, as in the code of AWAC, IQL and ACA.

    Args:
        loc: mean, shape [*B, A].
        scale: standard deviation, positive, shape [*B, A].
        low: lower edge of the box, scalar or [A]. Defaults to -1.
        high: upper edge of the box, scalar or [A]. Defaults to 1.
        clip_samples: whether samples are clipped; otherwise the environment must clip them. Defaults to ``True``.

    Examples:
        >>> import torch
        >>> dist = BoxNormal(torch.tensor([0.0, 0.5]), torch.ones(2))
        >>> action, log_prob = dist.rsample_and_log_prob(noise=torch.tensor([0.0, 3.0]))
        >>> action, log_prob
        (tensor([0., 1.]), tensor(-1.9629))
    """

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        *,
        low: float | Tensor = -1.0,
        high: float | Tensor = 1.0,
        clip_samples: bool = True,
    ) -> None:
        self.clip_samples = clip_samples
        super().__init__(loc, scale, low, high)

    def _clip(self, value: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(value, self.low), self.high)

    def _place(self, value: Tensor) -> Tensor:
        return self._clip(value) if self.clip_samples else value

    def _score_drawn(self, action: Tensor, value: Tensor) -> Tensor:
        return self.log_prob(action)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of actions.

        Args:
            value: actions, shape [..., *B, A].

        Returns:
            Log-densities, shape [..., *B].
        """
        return normal_log_prob(value, self.loc, self.scale)

    def entropy(self) -> Tensor:
        """Entropy of the Gaussian before clipping, in nats, shape [*B]."""
        return D.Normal(self.loc, self.scale, validate_args=False).entropy().sum(-1)

    @property
    def mean(self) -> Tensor:
        """The Gaussian's mean, shape [*B, A]."""
        return self.loc

    @property
    def mode(self) -> Tensor:
        """The mean, clipped to the box, shape [*B, A]; evaluation takes this action."""
        return self._clip(self.loc)

    def expand(self, batch_shape: torch.Size | list[int] | tuple[int, ...], _instance: None = None) -> BoxNormal:
        """Broadcast to a larger batch shape.

        Args:
            batch_shape: the new batch shape.

        Returns:
            A new distribution over the same box.
        """
        shape = torch.Size(batch_shape) + self.event_shape
        settings = {"low": self.low, "high": self.high, "clip_samples": self.clip_samples}
        return BoxNormal(self.loc.expand(shape), self.scale.expand(shape), **settings)


class GaussianVectorHead(nn.Module):
    r"""Mean from features, standard deviation from one parameter per action dimension.

    :math:`\log\sigma=\mathrm{clip}(p, lo, hi)` with ``std="clip"``, :math:`lo+\mathrm{sigmoid}(p)(hi-lo)` with
    ``std="sigmoid"``; p = 0 at first, so :math:`\sigma=1` or the middle of the range.

    Args:
        in_features: width of the features.
        action_dim: number of action dimensions A.
        squash: module applied to the mean. Defaults to ``nn.Tanh()``; ``nn.Identity()`` for a linear mean.
        std: ``"clip"`` (default) or ``"sigmoid"``.
        log_std_bounds: (lo, hi). Defaults to (-20, 2).

    Examples:
        >>> import torch
        >>> loc, scale = GaussianVectorHead(8, 2, std="sigmoid", log_std_bounds=(-6.0, 0.0))(torch.zeros(5, 8))
        >>> scale[0]  # exp(-3)
        tensor([0.0498, 0.0498], grad_fn=<SelectBackward0>)
    """

    @checked_arguments
    def __init__(
        self,
        in_features: int,
        action_dim: int,
        squash: nn.Module | None = None,
        std: Literal["clip", "sigmoid"] = "clip",
        log_std_bounds: tuple[float, float] = (-20.0, 2.0),
    ) -> None:
        super().__init__()
        check_option("std", std, ("clip", "sigmoid"))
        self.mean = nn.Linear(in_features, action_dim)
        self.squash = nn.Tanh() if squash is None else squash
        self.log_std = nn.Parameter(torch.zeros(action_dim))
        check_order("log_std_bounds", log_std_bounds)
        for bound in (
            log_std_bounds if std == "sigmoid" else ()
        ):  # an infinite bound is none for a clip, NaN for a scale
            check_number("log_std_bounds", bound)
        self.std, self.log_std_bounds = std, log_std_bounds

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Map features [*B, F] to mean and standard deviation, each [*B, A]."""
        loc, (low, high) = self.squash(self.mean(features)), self.log_std_bounds
        if self.std == "clip":
            log_std = self.log_std.clamp(low, high)
        else:
            log_std = low + self.log_std.sigmoid() * (high - low)
        return loc, log_std.exp().expand_as(loc)


@renamed_arguments(initialisation="initialization")
@checked_arguments
def make_gaussian_actor(
    observation: TensorSpec | int,
    action: TensorSpec | int,
    *,
    hidden_sizes: Sequence[int] = (256, 256),
    initialization: Initialization = "torch",
    mean: Literal["tanh", "linear"] = "tanh",
    std: Literal["clip", "sigmoid"] = "clip",
    log_std_bounds: tuple[float, float] = (-20.0, 2.0),
    clip_samples: bool = True,
    dropout: float | None = None,
    observation_key: NestedKey = "observation",
    action_key: NestedKey = "action",
) -> ProbabilisticActor:
    r"""Unsquashed Gaussian policy with a state-independent standard deviation, as in AWAC and IQL.

    ==================  ============  =============  ==========  =======================
    reference           mean          std            bounds      hidden_sizes
    ==================  ============  =============  ==========  =======================
    AWAC, CORL          ``"linear"``  ``"clip"``     (-20, 2)    (256, 256, 256)
    AWAC, rlkit         ``"tanh"``    ``"sigmoid"``  (-6, 0)     (256, 256, 256, 256)
    AWAC, jaxrl         ``"tanh"``    ``"clip"``     (-10, 2)    (256, 256, 256, 256)
    IQL, authors        ``"tanh"``    ``"clip"``     (-5, 2)     (256, 256), orthogonal
    IQL, CORL           ``"tanh"``    ``"clip"``     (-20, 2)    (256, 256)
    ACA on AntMaze      ``"tanh"``    ``"sigmoid"``  (-5, 0)     (256, 256)
    ==================  ============  =============  ==========  =======================

    Args:
        observation: spec of the observation, shape [o], or o.
        action: bounded spec of the action, shape [A], or A for the box [-1, 1]^A.
        hidden_sizes: widths of the hidden layers. Defaults to (256, 256).
        initialization: a recipe of :func:`~torchrl_o2o.modules.initialization.initialize_`. Defaults to ``"torch"``.
        mean: ``"tanh"`` (default) keeps the mean in the box, ``"linear"`` does not.
        std: see :class:`GaussianVectorHead`. Defaults to ``"clip"``.
        log_std_bounds: range of the log standard deviation. Defaults to (-20, 2).
        clip_samples: whether samples are clipped to the box (all references but rlkit). Defaults to ``True``.
        dropout: drop probability in hidden layers, or ``None`` (default); IQL uses 0.1 on Adroit and Kitchen.
        observation_key: entry read. Defaults to ``"observation"``.
        action_key: entry written. Defaults to ``"action"``.

    Returns:
        An actor that reads the observation and writes ``loc``, ``scale`` and the action; random under
        ``ExplorationType.RANDOM``, the mean under ``DETERMINISTIC``.

    Raises:
        O2OSpecError: if a spec is not a flat vector, the action has no finite box, or an option is unknown.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> actor = make_gaussian_actor(17, 6, hidden_sizes=(32, 32))
        >>> data = actor(TensorDict({"observation": torch.zeros(4, 17)}, [4]))
        >>> data["action"].shape, bool((data["action"].abs() <= 1).all())
        (torch.Size([4, 6]), True)
    """
    check_option("mean", mean, ("tanh", "linear"))
    spec = action_box(action)
    squash = nn.Identity() if mean == "linear" else make_squash(spec)
    trunk = make_trunk(feature_dim(observation, "observation"), hidden_sizes, dropout=dropout)
    head = GaussianVectorHead(hidden_sizes[-1], feature_dim(spec, "action"), squash, std, log_std_bounds)
    net = initialize_(nn.Sequential(trunk, head), initialization, last_bound=1e-3)
    return ProbabilisticActor(
        TensorDictModule(net, in_keys=[observation_key], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        out_keys=[action_key],
        spec=spec,
        distribution_class=BoxNormal,
        distribution_kwargs={**distribution_box(spec), "clip_samples": clip_samples},
    )
