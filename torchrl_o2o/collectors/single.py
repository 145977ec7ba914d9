# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Collect online transitions one at a time, at a low cost per frame and resumable in mid-episode."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.collectors.eval_mode import has_batch_norm, in_eval_mode, regularizers
from torchrl_o2o.collectors.numpy_actor import FastActor, find_parts
from torchrl_o2o.envs.checks import box_of_observations, check_continuous, env_name, warn_of_running_statistics
from torchrl_o2o.envs.outputs import checked_reset, checked_step
from torchrl_o2o.envs.snapshot import env_state, restore_env_state
from torchrl_o2o.envs.units import check_actions, is_standardized
from torchrl_o2o.errors import O2OSpecError, check_count, check_seed, check_state
from torchrl_o2o.modules.chunks import chunk_length
from torchrl_o2o.modules.input_checks import raise_mismatch
from torchrl_o2o.modules.units import declared_box, standardizes

__all__ = ["StepCollector", "check_action", "kind_of", "refuse_collected", "refuse_standardized_twice"]

_ONE = torch.Size([1])
#: All existing collectors, for checks of the environments that they use.
_COLLECTORS: weakref.WeakSet[StepCollector] = weakref.WeakSet()


def _scalar(value: Any, dtype: type) -> torch.Tensor:
    """Shape [1, 1]; through numpy, because ``torch.tensor`` of a list takes several times as long."""
    return torch.from_numpy(np.array([[value]], dtype))


def action_bounds(space: spaces.Space, name: str, *, random: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The bounds of a continuous action space, in float32 like actors' actions.

    Args:
        space: of the actions.
        name: the environment's, for the message.

    Keyword Args:
        random: whether uniformly random actions will be drawn, which needs finite bounds.

    Raises:
        O2OSpecError: if the actions are discrete, or random actions are requested without finite bounds.
    """
    check_continuous(space, name)
    assert isinstance(space, spaces.Box)
    if random and not space.is_bounded():
        raise O2OSpecError(
            f"got init_random_frames with the actions {space} of {name}, expected finite bounds; set "
            "init_random_frames=0, or bound the action space"
        )
    return torch.as_tensor(space.low, dtype=torch.float32), torch.as_tensor(space.high, dtype=torch.float32)


def _observed(observation: Any) -> dict[NestedKey, torch.Tensor]:
    """Entries by name, float32; images stay uint8."""
    parts = observation if isinstance(observation, dict) else {"observation": observation}
    tensors = {key: torch.from_numpy(part) for key, part in parts.items()}
    return {key: part if part.dtype == torch.uint8 and part.ndim > 1 else part.float() for key, part in tensors.items()}


def kind_of(actor: TensorDictModuleBase) -> tuple[torch.device, torch.dtype]:
    """The device and dtype of an actor; float32 on the CPU if it has no parameters.

    Args:
        actor: any.

    Examples:
        >>> from torchrl_o2o.modules import make_actor
        >>> kind_of(make_actor(3, 1).double())
        (device(type='cpu'), torch.float64)
    """
    own = next((value for value in actor.parameters() if value.is_floating_point()), torch.zeros(()))
    return own.device, own.dtype


def refuse_collected(env: gymnasium.Env) -> None:
    """Raise for an environment that a :class:`StepCollector` is using, because a reset would end its episode.

    Args:
        env: an environment that other code will reset.

    Raises:
        O2OSpecError: if an unfinished collector uses it.

    Examples:
        >>> from torchrl_o2o.envs import make_gym_env
        >>> from torchrl_o2o.modules import make_actor
        >>> collector = StepCollector(make_gym_env("Pendulum-v1"), make_actor(3, 1), total_frames=2, seed=0)
        >>> refuse_collected(collector.env)
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OSpecError: got the Pendulum-v1 that a StepCollector collects from (0 of 2 transitions ...
    """
    for each in list(_COLLECTORS):
        if each.frames < each.total_frames and each.env.unwrapped is env.unwrapped:
            raise O2OSpecError(
                f"got the {env_name(env)} that a StepCollector collects from ({each.frames} of {each.total_frames} "
                "transitions so far), expected another one, because a reset would end the collector's episode; build "
                "a new one in each call: lambda: make_gym_env(...), not lambda: env"
            )


def refuse_standardized_twice(env: gymnasium.Env, actor: TensorDictModuleBase) -> None:
    """Raise if both an actor and its environment standardize observations.

    Args:
        env: the environment.
        actor: the actor.

    Raises:
        O2OSpecError: if both standardize.

    Examples:
        >>> from torchrl_o2o.envs import make_gym_env
        >>> from torchrl_o2o.modules import make_actor
        >>> refuse_standardized_twice(make_gym_env("Pendulum-v1"), make_actor(3, 1))
    """
    if is_standardized(env) and standardizes(actor):
        raise O2OSpecError(
            f"got a policy that standardizes observations, as from load_policy, and {env_name(env)} with standardized "
            "observations, expected only one of both; build the environment without its convention"
        )


def check_action(action: torch.Tensor, shape: Sequence[int], observed: Iterable[torch.Tensor]) -> None:
    """Raise unless an actor's action can be given to the environment.

    Args:
        action: on the CPU.
        shape: of the environment's actions.
        observed: what the actor saw, for the message.

    Raises:
        O2OSpecError: if the action has another shape, or is not finite.

    Examples:
        >>> check_action(torch.zeros(2), (1,), [torch.zeros(3)])
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OSpecError: got an action of shape [2] for observations of shape [[3]], expected [1]...
    """
    if action.shape != tuple(shape):
        shapes = [list(part.shape) for part in observed]
        raise O2OSpecError(
            f"got an action of shape {list(action.shape)} for observations of shape {shapes}, expected "
            f"{list(shape)} as in the environment; build the actor for this environment, and flatten "
            "observations that are not vectors"
        )
    if not np.isfinite(action.numpy()).all():
        raise O2OSpecError(
            f"got the action {action.tolist()} from the actor, expected finite numbers; its parameters or its "
            "observations are not finite: return to the last checkpoint with finite losses"
        )


class StepCollector:
    """Step one gymnasium environment with a stochastic actor; yields TED transitions of batch shape [1].

    For the same seeds of torch and environment, it delivers the same numbers as
    ``torchrl.collectors.Collector(frames_per_batch=1, init_random_frames=...)`` at a fraction of its cost per frame,
    and its state can be saved in mid-episode. Use TorchRL's collector for vectorized or remote environments.

    A step that a :class:`~torchrl_o2o.envs.GuardedEnv` rejects is not delivered, and a new episode begins. Without a
    guard, malformed or infinite values are an error. Delivered data share no memory with the environment.

    Dictionary observations, such as images and a state, are separate entries instead of ``"observation"``
    (:func:`~torchrl_o2o.data.transition_keys`).

    Each transition carries, besides :data:`~torchrl_o2o.data.TRANSITION`, the running ``("next", "episode_reward")``
    and ``("next", "step_count")`` of its episode, as TorchRL's ``RewardSum`` and ``StepCounter`` write them.

    An actor that chooses several actions at once (:func:`~torchrl_o2o.modules.act_in_chunks`) is called when its last
    chunk has been executed, and when an episode begins.

    While it acts, dropout is off and batch normalization uses its running statistics in every training mode of the
    actor, as in evaluation and in :class:`~torchrl_o2o.collectors.FastActor`.

    An actor of this package is called without its tensordict wrappers, which gives the same bits in a fraction of the
    time. Any other TorchRL actor is called directly. The actor may be on any device and have any floating dtype;
    delivered data are float32.

    Args:
        env: an environment of :func:`~torchrl_o2o.envs.make_gym_env`.
        actor: reads ``"observation"``, writes ``"action"``; called without gradient and with random exploration.

    Keyword Args:
        total_frames: total number of transitions to deliver.
        init_random_frames: number of first transitions with uniformly random actions. Defaults to 0.
        seed: seed of the environment, set by one reset; ``None`` (default) keeps its own seed.
        on_cut: called when the last delivered transition has become its episode's last, because the next step was
            rejected or a resumed collector had to begin a new episode. Pass for example
            :meth:`~torchrl_o2o.data.OnlineWriter.truncate_last`. Defaults to ``None``.
        device: where the transitions go; ``None`` (default) is the CPU.
        fast_act: whether to act through :class:`~torchrl_o2o.collectors.FastActor`, with the same noise but in numpy,
            so actions equal the actor's only up to rounding. Defaults to ``False``, the actor's own bits.

    Raises:
        O2OSpecError: if ``total_frames`` is below 1 or ``init_random_frames`` below 0, the environment is a TorchRL
            one, has discrete actions or another action box than the actor, random actions are requested without bounds,
            or ``fast_act`` does not support the actor; while it collects, if an action has another shape or is not
            finite.
        EnvFaultError: if an environment without a guard returns malformed or infinite values.

    Examples:
        >>> import torch
        >>> from torchrl_o2o.envs import make_gym_env
        >>> from torchrl_o2o.modules import make_actor
        >>> collector = StepCollector(make_gym_env("Pendulum-v1"), make_actor(3, 1), total_frames=2, seed=0)
        >>> [data["next", "step_count"].item() for data in collector]
        [1, 2]
    """

    @checked_arguments
    def __init__(
        self,
        env: gymnasium.Env,
        actor: TensorDictModuleBase,
        *,
        total_frames: int,
        init_random_frames: int = 0,
        seed: int | None = None,
        on_cut: Callable[[], object] | None = None,
        device: torch.device | str | None = None,
        fast_act: bool = False,
    ) -> None:
        if isinstance(env, EnvBase):
            raise O2OSpecError(
                f"got TorchRL's {type(env).__name__}, expected a gymnasium environment; build it with make_gym_env, or "
                f"collect with torchrl.collectors.Collector"
            )
        self.env, self.actor, self.device = env, actor, device
        self._fast = FastActor(actor, deterministic=False) if fast_act else None
        self.total_frames = check_count("total_frames", total_frames, least=1)
        self.init_random_frames = check_count("init_random_frames", init_random_frames)
        self.frames = 0
        self._queue: list[torch.Tensor] = []
        self.on_cut = on_cut
        self._space = box_of_observations(env)
        warn_of_running_statistics(env)
        self._low, self._high = action_bounds(env.action_space, env_name(env), random=init_random_frames > 0)
        check_actions(env.action_space, declared_box(actor))
        refuse_standardized_twice(env, actor)
        if seed is not None:  # torchrl's GymWrapper seeds by a reset of its own before the collector's first
            checked_reset(self.env, self._space, seed=check_seed(seed))
        self._start_episode()
        _COLLECTORS.add(self)

    def __iter__(self) -> Iterator[TensorDict]:
        """Collect until ``total_frames`` have been delivered in all."""
        # Looked up here, because an actor may be replaced or moved between two iterations.
        self._parts, self._switched = find_parts(self.actor), regularizers(self.actor)
        self._actor_device, self._actor_dtype = kind_of(self.actor)
        if self._fast is not None:
            self._fast.actor = self.actor
            self._fast.refresh()
        if self._cut_due and self.frames < self.total_frames:
            self._cut_due = False
            if self.on_cut is not None:
                self.on_cut()
        while self.frames < self.total_frames:
            transition = self._step()
            if transition is not None:
                yield transition

    def _start_episode(self) -> None:
        observation, _ = checked_reset(self.env, self._space)
        self._observation = _observed(observation)
        self._episode_reward, self._step_count = 0.0, 0
        self._queue = []

    def _act(self) -> torch.Tensor:
        if self.frames < self.init_random_frames:
            return torch.rand(self._low.shape) * (self._high - self._low) + self._low
        horizon = chunk_length(self.actor)
        if horizon == 1:
            return self._decide()
        if not self._queue:
            self._queue = list(self._decide().reshape(horizon, -1))
        return self._queue.pop(0)

    def _decide(self) -> torch.Tensor:
        try:
            return self._decided()
        except (RuntimeError, KeyError) as error:
            raise_mismatch(self.actor, self._observation, error)

    def _decided(self) -> torch.Tensor:
        if self._fast is not None:
            if self._actor_device.type != "cpu":  # because it then has a copy
                self._fast.refresh()
            return torch.from_numpy(self._fast.decide(self._observation["observation"].numpy())).float()
        device, dtype = self._actor_device, self._actor_dtype
        observation = {
            key: part.to(device, dtype if part.is_floating_point() else part.dtype)
            for key, part in self._observation.items()
        }
        rows = has_batch_norm(self._switched)
        observation = {key: part.unsqueeze(0) for key, part in observation.items()} if rows else observation
        with torch.no_grad(), in_eval_mode(self._switched):
            if self._parts is not None:
                action = self._parts.act(observation["observation"])
            else:
                with set_exploration_type(ExplorationType.RANDOM):
                    action = self.actor(TensorDict(observation, [1] if rows else []))["action"]
            return (action.squeeze(0) if rows else action).to("cpu", torch.float32)

    def _cut_episode(self) -> None:
        if self._step_count and self.on_cut is not None:
            self.on_cut()
        self._start_episode()

    def _step(self) -> TensorDict | None:
        observation, action = self._observation, self._act()
        check_action(action, self._low.shape, observation.values())
        # The environment gets a copy, because it may change its argument in place.
        result = checked_step(self.env, action.numpy().copy(), self._space)
        following, reward, terminated, truncated, info = result
        if info.get("rejected", False):
            return self._cut_episode()
        self.frames += 1
        self._step_count += 1
        self._episode_reward += reward
        self._observation = _observed(following)
        outcome = {
            **{key: part.clone().unsqueeze(0) for key, part in self._observation.items()},
            "reward": _scalar(reward, np.float32),
            "episode_reward": _scalar(self._episode_reward, np.float32),
            "terminated": _scalar(terminated, np.bool_),
            "truncated": _scalar(truncated, np.bool_),
            "done": _scalar(terminated or truncated, np.bool_),
            "step_count": _scalar(self._step_count, np.int64),
        }
        if terminated or truncated:
            self._start_episode()
        transition: dict[NestedKey, Any] = {key: part.unsqueeze(0) for key, part in observation.items()}
        transition["action"] = action.unsqueeze(0)
        # The constructor without checks, as in TorchRL's environments, which saves a tenth of a frame's time.
        transition["next"] = TensorDict._new_unsafe(outcome, batch_size=_ONE)
        data = TensorDict._new_unsafe(transition, batch_size=_ONE)
        return data if self.device is None else data.to(self.device)

    def state_dict(self) -> dict[str, Any]:
        """Counters, the current observation and the environment's own state (``None`` if it cannot be captured).

        Also the remaining actions of a chunk, if there are any.
        """
        queue = {"queue": torch.stack(self._queue)} if self._queue else {}
        kept = {key: part.clone() for key, part in self._observation.items()}
        return {
            **queue,
            "frames": self.frames,
            "observation": kept["observation"] if list(kept) == ["observation"] else kept,
            "episode_reward": self._episode_reward,
            "step_count": self._step_count or int(self._cut_due),  # the old episode counts as open until it is cut
            "env": env_state(self.env),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        An environment whose state could not be captured starts a new episode; ``restarted`` is then true. If an episode
        was unfinished, ``on_cut`` is called when collecting continues, because the buffer is restored by then.
        """
        known = {"frames": 0, "step_count": 0} | dict.fromkeys(("observation", "episode_reward", "env", "queue"))
        check_state(self, state_dict, known, optional=("queue",))
        self.frames = state_dict["frames"]
        self.restarted = state_dict["env"] is None
        self._cut_due = self.restarted and state_dict["step_count"] > 0
        if self.restarted:
            self._start_episode()
            return
        restore_env_state(self.env, state_dict["env"])
        stored = state_dict["observation"]
        named = {"observation": stored} if isinstance(stored, torch.Tensor) else stored
        self._observation = {key: part.clone() for key, part in named.items()}
        self._episode_reward, self._step_count = state_dict["episode_reward"], state_dict["step_count"]
        self._queue = list(state_dict.get("queue", ()))

    #: Whether the last :meth:`load_state_dict` had to start a new episode.
    restarted: bool = False
    #: Whether the last delivered transition must still be marked as its episode's last.
    _cut_due: bool = False

    def shutdown(self) -> None:
        """Close the environment, as TorchRL's collectors do."""
        self.env.close()
