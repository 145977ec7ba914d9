# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Act from pixels: single camera frames in, numpy actions out."""

from __future__ import annotations

import numpy as np
import torch
from tensordict.nn import TensorDictModuleBase

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.collectors.numpy_actor import flags_of_rows, policy_parts
from torchrl_o2o.envs.outputs import all_finite
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules.pixels import ConvStack

__all__ = ["FrameActor"]


class FrameActor:
    """A policy from pixels as a function of raw frames, which it stacks.

    The first frame after :meth:`reset` fills the whole stack, as in training. Stacks, as from environments of
    :func:`~torchrl_o2o.envs.make_gym_env`, are not stacked again. It acts deterministically and always uses the actor's
    current parameters.

    Args:
        actor: of :func:`~torchrl_o2o.deploy.load_policy` on a run from pixels, or
            :func:`~torchrl_o2o.modules.make_pixel_actor`, with one camera.

    Raises:
        O2OSpecError: if the actor is another one.

    Examples:
        >>> from torchrl_o2o.modules import make_pixel_actor, make_pixel_encoder
        >>> encoder = make_pixel_encoder((9, 32, 32), features=(8, 8), strides=(2, 2))
        >>> act = FrameActor(make_pixel_actor(encoder, 2, hidden_sizes=(8,)))
        >>> act(np.zeros((32, 32, 3), np.uint8)).shape
        (2,)
    """

    @checked_arguments
    def __init__(self, actor: TensorDictModuleBase) -> None:
        self.actor, self._parts = actor, policy_parts(actor)
        stacks = [layer for layer in self._parts.net.modules() if isinstance(layer, ConvStack)]
        if len(stacks) != 1 or stacks[0].shape[0] % 3:
            raise O2OSpecError(
                f"got an actor with {len(stacks)} stacks of convolutions, expected one, on frames of three channels; "
                "use FastActor for other actors, or call them on a TensorDict"
            )
        self._shape, self._frames = stacks[0].shape, None

    def reset(self, mask: np.ndarray | None = None) -> None:
        """Drop the frames of episodes that have ended.

        Args:
            mask: the rows to reset, bool [B]; ``None`` (default) resets all.

        Raises:
            O2OSpecError: if the mask has no flag for each row of the last call.
        """
        if mask is None or self._frames is None:
            self._frames = None
        else:
            self._fresh = self._fresh | flags_of_rows(mask, len(self._frames))

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        """Act.

        Args:
            observation: uint8, frames [H, W, 3 or 4] or [B, H, W, 3 or 4], or stacks [C, H, W] or [B, C, H, W].

        Returns:
            Actions, [A] or [B, A].

        Raises:
            O2OSpecError: if it has another shape or dtype, or the action is not finite.
        """
        observation = np.asarray(observation)
        stack = torch.from_numpy(observation if observation.shape[-3:] == self._shape else self._stack(observation))
        device = next(self._parts.net.parameters()).device
        with torch.no_grad():
            action = self._parts.act(stack.to(device), deterministic=True).cpu().numpy()
        if not all_finite(action):
            raise O2OSpecError(
                f"the policy gave the action {action.tolist()}, expected finite numbers; load a policy with finite "
                "parameters"
            )
        return action

    def _stack(self, frames: np.ndarray) -> np.ndarray:
        """Append frames to those before them."""
        channels, height, width = self._shape
        sizes = [(height, width, number) for number in (3, 4)]
        if frames.dtype != np.uint8 or frames.ndim not in (3, 4) or frames.shape[-3:] not in sizes:
            raise O2OSpecError(
                f"got observations of type {frames.dtype} and shape {list(frames.shape)}, expected uint8 frames "
                f"[{height}, {width}, 3] or stacks {list(self._shape)}; resize frames, and do not scale them"
            )
        rows = np.moveaxis(frames[..., :3].reshape(-1, height, width, 3), -1, 1)
        if self._frames is None or len(self._frames) != len(rows):
            self._frames = np.zeros((len(rows), channels // 3, 3, height, width), np.uint8)
            self._fresh = np.ones(len(rows), bool)
        self._frames[:, :-1] = self._frames[:, 1:].copy()
        self._frames[:, -1] = rows
        self._frames[self._fresh] = rows[self._fresh, None]
        self._fresh = np.zeros(len(rows), bool)
        return self._frames.reshape(*frames.shape[:-3], *self._shape).copy()
