# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Collect whole episodes with a return-conditioned policy, such as a decision transformer."""

from __future__ import annotations

from collections.abc import Iterator

import gymnasium
import torch
from tensordict import TensorDict, stack
from tensordict.nn import TensorDictModuleBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.collectors.single import check_action, kind_of, refuse_standardized_twice
from torchrl_o2o.data.keys import cut_off_
from torchrl_o2o.envs.checks import warn_of_running_statistics
from torchrl_o2o.envs.guard import GuardedEnv
from torchrl_o2o.envs.outputs import CheckedEnv
from torchrl_o2o.envs.units import check_actions
from torchrl_o2o.errors import O2OSpecError, check_count, check_seed, check_state
from torchrl_o2o.modules.modes import in_mode
from torchrl_o2o.modules.units import declared_box

__all__ = ["ReturnConditionedRollouts"]


class ReturnConditionedRollouts:
    """Collect episodes one after the other with the same target return, from which each reward is subtracted.

    The policy reads ``observation``, ``action`` and ``return_to_go`` of the last steps, shape [1, K, ...]. The last
    action is unknown and zero. The policy writes ``action``, and the last one is taken. It acts in evaluation mode,
    without dropout. It may be on any device and have any floating dtype; delivered data are float32.

    It is a collector for :meth:`torchrl_o2o.trainers.Session.online` that delivers whole episodes.

    Source: Zheng et al. 2022 (ODT), Algorithm 1; Chen et al. 2021 (decision transformer), Algorithm 1.

    Args:
        env: environment with the observations and actions of the policy. A :class:`~torchrl_o2o.envs.GuardedEnv` may
            end an episode early; the rejected step is left out. Other environments are put into a
            :class:`~torchrl_o2o.envs.CheckedEnv`.
        actor: the policy.
        asked: the target return, unscaled.

    Keyword Args:
        context: K, number of steps that the policy reads. Defaults to 5.
        return_scale: factor of the returns that the policy reads. Defaults to 0.001.
        total_frames: no episode begins after this number of steps; ``None`` (default) has no end.
        seed: seed of the first episode; each further episode has the next seed. Defaults to 0.

    Raises:
        O2OSpecError: if a number is out of range, the environment's spaces are not vectors, its action box is another
            than the policy's, or both standardize observations; while it collects, if an action has another shape or is
            not finite.
        EnvFaultError: while it collects, if an environment without a guard returns malformed or infinite values.

    Examples:
        >>> import gymnasium, torch
        >>> from tensordict.nn import TensorDictModule
        >>> keys = ["observation", "action", "return_to_go"]
        >>> actor = TensorDictModule(lambda s, a, g: torch.tanh(g).expand_as(a), in_keys=keys, out_keys=["action"])
        >>> rollouts = ReturnConditionedRollouts(gymnasium.make("Pendulum-v1"), actor, -100.0, total_frames=1)
        >>> [episode.shape for episode in rollouts], rollouts.frames
        ([torch.Size([200])], 200)
    """

    @checked_arguments
    def __init__(
        self,
        env: gymnasium.Env,
        actor: TensorDictModuleBase,
        asked: float,
        *,
        context: int = 5,
        return_scale: float = 0.001,
        total_frames: int | None = None,
        seed: int = 0,
    ) -> None:
        if not return_scale > 0.0:
            raise O2OSpecError(f"got return_scale={return_scale}, expected more than 0")
        self.env = env if isinstance(env, GuardedEnv | CheckedEnv) else CheckedEnv(env)
        warn_of_running_statistics(env)
        check_actions(env.action_space, declared_box(actor))
        refuse_standardized_twice(env, actor)
        self.actor, self.asked = actor, asked
        self.context, self.return_scale = check_count("context", context, least=1), return_scale
        self.total_frames = None if total_frames is None else check_count("total_frames", total_frames)
        self.seed = check_seed(seed)
        self.frames = 0  #: steps delivered
        self.episodes = 0  #: episodes delivered

    def __iter__(self) -> Iterator[TensorDict]:
        """Deliver episodes until ``total_frames`` are reached."""
        while self.total_frames is None or self.frames < self.total_frames:
            episode = self.roll_out(self.asked, seed=self.seed + self.episodes)
            self.episodes += 1
            if len(episode):  # a guard may have rejected the first step
                self.frames += len(episode)
                yield episode

    @torch.no_grad()
    def roll_out(self, asked: float, *, seed: int, explore: bool = True) -> TensorDict:
        """One episode.

        Args:
            asked: the target return, unscaled.

        Keyword Args:
            seed: of the episode.
            explore: whether to sample actions; ``False`` takes the policy's deterministic ones. Defaults to ``True``.

        Returns:
            ``observation``, ``action`` and, under ``next``, ``reward``, ``terminated``, ``truncated``, ``done`` and
            ``episode_reward``, the sum so far; shape [T].
        """
        how = ExplorationType.RANDOM if explore else ExplorationType.DETERMINISTIC
        with in_mode(self.actor, training=False), set_exploration_type(how):
            rows = list(self._steps(asked * self.return_scale, seed))
        if rows:
            cut_off_(rows[-1])  # the step after it may have been rejected
        episode = TensorDict.lazy_stack(rows).contiguous() if rows else self._nothing()
        return episode.set(("next", "episode_reward"), episode["next", "reward"].cumsum(0))

    def _steps(self, to_go: float, seed: int) -> Iterator[TensorDict]:
        """The steps of an episode, without those that its guard rejected."""
        size, (device, dtype) = self.env.action_space.shape, kind_of(self.actor)
        observation, done = self.env.reset(seed=seed)[0], False
        seen: list[TensorDict] = []
        while not done:
            own = torch.tensor(observation, dtype=torch.float32)  # the environment may reuse its array
            columns = {"observation": own, "action": torch.zeros(size)}  # type: ignore[arg-type]
            seen = [*seen, TensorDict({**columns, "return_to_go": torch.tensor([to_go])})][-self.context :]
            read = stack(seen).unsqueeze(0).to(device, dtype)
            action = self.actor(read)["action"][0, -1].to("cpu", torch.float32)
            check_action(action, size or (), [own])
            seen[-1]["action"] = action
            observation, reward, terminated, truncated, info = self.env.step(action.numpy().copy())
            if info.get("rejected", False):
                return
            done, to_go = terminated or truncated, to_go - float(reward) * self.return_scale
            ends = {"reward": reward, "terminated": terminated, "truncated": truncated, "done": done}
            row = {name: torch.tensor([value]) for name, value in ends.items()}
            yield TensorDict({"observation": own, "action": action, "next": TensorDict(row)})

    def _nothing(self) -> TensorDict:
        flags = {name: torch.zeros(0, 1, dtype=torch.bool) for name in ("terminated", "truncated", "done")}
        following = TensorDict({"reward": torch.zeros(0, 1), **flags}, [0])
        columns = {"observation": self.env.observation_space.shape, "action": self.env.action_space.shape}
        return TensorDict({name: torch.zeros(0, *size) for name, size in columns.items()} | {"next": following}, [0])  # type: ignore[misc]

    def state_dict(self) -> dict[str, int]:
        """The counters; an unfinished episode starts again."""
        return {"frames": self.frames, "episodes": self.episodes}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue from what :meth:`state_dict` returned."""
        check_state(self, state_dict, {"frames": 0, "episodes": 0})
        self.frames, self.episodes = state_dict["frames"], state_dict["episodes"]
