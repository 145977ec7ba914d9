# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Standardized observations.

Shapes: N transitions, o observation dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.envs.transforms import ObservationNorm

from torchrl_o2o.data.keys import check_entries, check_flat
from torchrl_o2o.errors import O2ODataError, O2OSpecError, check_number

__all__ = ["ObservationStats"]

_OBSERVED: tuple[NestedKey, ...] = ("observation", ("next", "observation"))


@dataclass(frozen=True)
class ObservationStats:
    """Frozen mean and scale of a data set's observations; save them with the policy.

    Args:
        mean: [o].
        scale: [o], the population standard deviation plus 1e-3, as in CORL (and in TD3+BC).

    Raises:
        O2OSpecError: if one is no tensor.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_o2o.data.transforms import ObservationStats
        >>> observation = torch.tensor([[1.0], [3.0]])
        >>> data = TensorDict({"observation": observation, "next": {"observation": observation + 2}}, [2])
        >>> stats = ObservationStats.of(data)
        >>> stats.mean, stats.scale
        (tensor([2.]), tensor([1.0010]))
        >>> stats(data)["next", "observation"].squeeze(-1)
        tensor([0.9990, 2.9970])
    """

    mean: Tensor
    scale: Tensor

    def __post_init__(self) -> None:
        """Check that both are tensors, because everything that holds a policy reads them as such."""
        for name, value in (("mean", self.mean), ("scale", self.scale)):
            if not isinstance(value, Tensor):
                raise O2OSpecError(
                    f"got {name} of the type {type(value).__name__}, expected a tensor [o]; convert it with "
                    "torch.as_tensor(...)"
                )

    @classmethod
    def of(cls, data: TensorDictBase, *, eps: float = 1e-3) -> ObservationStats:
        """Compute the statistics over the rows' observations (not the next ones).

        Args:
            data: transitions [N] with vector observations.
            eps: added to the standard deviation.

        Raises:
            O2OSpecError: if the observations are images, or several entries, or ``eps`` is negative or not finite.
            O2ODataError: if there is no observation, the data are not flat, one is not finite, or a scale is 0.
        """
        check_number("eps", eps, least=0)
        check_flat(data)
        check_entries(data, "observation")
        observation = data.get("observation")
        if not isinstance(observation, Tensor):
            raise O2OSpecError(
                f"observations are several entries, {sorted(map(str, observation.keys()))}; expected one vector per "
                "row. Join them, or do not standardize observations"
            )
        if not observation.is_floating_point():
            raise O2OSpecError(f"observations are {observation.dtype}; expected floats. Images are not standardized.")
        if not len(data) or not observation.isfinite().all():
            raise O2ODataError(
                f"got {len(data)} transitions, {int((~observation.isfinite()).flatten(1).any(1).sum())} of them with "
                "observations that are not finite; expected at least one, and all finite. Load the data with "
                "load_offline, which checks both"
            )
        wide = observation.double()
        scale = (wide.std(0, correction=0) + eps).to(observation.dtype)
        if (zero := scale == 0).any():
            raise O2ODataError(
                f"entry {int(zero.flatten().nonzero()[0])} of the observations never changes, and eps={eps} is 0 in "
                f"{observation.dtype}, expected scales above 0, by which observations are divided; pass a larger eps"
            )
        return cls(wide.mean(0).to(observation.dtype), scale)

    def __call__(self, data: TensorDictBase) -> TensorDictBase:
        """Return the data with standardized observations of the same type; the input is not modified.

        Raises:
            O2OSpecError: if the observations have another width than those of the statistics.
            O2ODataError: if there are none.
        """
        check_entries(data, *_OBSERVED)
        out = data.copy()
        for key in _OBSERVED:
            observation = data.get(key)
            self.check(observation.shape[1:])
            value = (observation - self.mean) / self.scale
            out.set(key, value.to(observation.dtype) if observation.is_floating_point() else value)
        return out

    def check(self, shape: Sequence[int] | None) -> None:
        """Raise for observations of another width, because broadcasting might accept them.

        Args:
            shape: of one observation.

        Raises:
            O2OSpecError: if it is not that of the statistics.
        """
        if tuple(shape or ()) != tuple(self.mean.shape):
            raise O2OSpecError(
                f"got observations of shape {list(shape or ())}, expected {list(self.mean.shape)} as in the "
                "statistics; compute the statistics on data of this environment"
            )

    def transform(self) -> ObservationNorm:
        """Return the same transform for a TorchRL environment."""
        return ObservationNorm(loc=self.mean, scale=self.scale, in_keys=["observation"], standard_normal=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the statistics for a checkpoint."""
        return {"mean": self.mean, "scale": self.scale}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> ObservationStats:
        """Rebuild the statistics from :meth:`state_dict`."""
        return cls(state["mean"], state["scale"])
