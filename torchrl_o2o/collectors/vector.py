# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Step many environments at once, each with its own seed and its own noise.

Shapes: ``N`` environments, ``o`` observation entries, ``A`` action dimensions.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing import resource_tracker
from typing import Any, cast

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.collectors.eval_mode import in_eval_mode, regularizers
from torchrl_o2o.collectors.numpy_actor import PolicyParts, find_parts
from torchrl_o2o.collectors.single import action_bounds, kind_of, refuse_standardized_twice
from torchrl_o2o.envs.checks import check_apart, warn_of_running_statistics
from torchrl_o2o.envs.guard import GuardedEnv
from torchrl_o2o.envs.outputs import CheckedEnv, EnvFaultError
from torchrl_o2o.envs.snapshot import env_state, restore_env_state
from torchrl_o2o.envs.units import check_actions
from torchrl_o2o.errors import O2OSpecError, check_count, check_seed, check_state
from torchrl_o2o.modules.chunks import chunk_length
from torchrl_o2o.modules.input_checks import raise_mismatch
from torchrl_o2o.modules.units import declared_box

__all__ = ["VectorCollector", "make_vector_env"]


@checked_arguments
def make_vector_env(make_env: Callable[[], gymnasium.Env], num_envs: int, *, asynchronous: bool = False) -> VectorEnv:
    """Build a gymnasium vector environment that keeps the last observation of every episode.

    Args:
        make_env: builds one environment.
        num_envs: number of copies, N.
        asynchronous: whether each environment has its own process, which is faster if a step takes much longer than a
            message (about 0.1 ms). TorchRL makes Python spawn its processes, so a script needs ``if __name__ ==
            "__main__":``, and each process takes seconds to start. Defaults to ``False``.

    Each environment is put into a :class:`~torchrl_o2o.envs.CheckedEnv` unless it is guarded. Separate processes do not
    get Ctrl-C, so that the run can finish its update, save and close them.

    Returns:
        The vector environment; its spaces are those of N environments.

    Raises:
        O2OSpecError: if ``num_envs`` is below 1, ``make_env`` returns one environment several times, the spaces are not
            a ``Box`` of real numbers, or a process cannot build its environment.

    Examples:
        >>> from torchrl_o2o.envs import make_gym_env
        >>> make_vector_env(lambda: make_gym_env("Pendulum-v1"), 3).num_envs
        3
    """
    if num_envs < 1:
        raise O2OSpecError(f"got num_envs={num_envs}, expected at least 1")
    makers = [partial(_checked, make_env)] * num_envs
    if not asynchronous:
        envs = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)
        check_apart(envs.envs)
        return envs
    try:
        with no_interrupt_for_children():
            return AsyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)
    except (EOFError, ConnectionError) as error:
        raise O2OSpecError(
            "a process of the vector environment ended before it had built its environment; see its own message. A "
            "new process does not know environments that the script registered (register them in make_env, or name "
            'their module, "my_module:MyEnv-v0"), and the script needs if __name__ == "__main__":'
        ) from error


def _checked(make_env: Callable[[], gymnasium.Env]) -> gymnasium.Env:
    """Wrap an environment so that a reset cannot overwrite its last observation, which gymnasium does not copy."""
    env = make_env()
    return env if isinstance(env, GuardedEnv | CheckedEnv) else CheckedEnv(env)


@contextmanager
def no_interrupt_for_children() -> Iterator[None]:
    """Keep Ctrl-C, which a terminal sends to all processes, from processes that are started within the context.

    A signal that arrives meanwhile is delivered to this process afterwards.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # because it unblocks the signal when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class VectorCollector:
    """Step N environments at once; yields TED transitions of batch shape [N].

    ``("next", "observation")`` is always the step's own result, also if an episode ended and the environment has begun
    another. Given the same actions, environment i delivers the same as a :class:`~torchrl_o2o.collectors.StepCollector`
    with ``seed=seeds[i]``.

    With ``seeds``, every environment also has its own generator for random actions and exploration noise. They equal
    those of a ``StepCollector`` under ``torch.manual_seed(seeds[i])``, so actions differ only by the rounding of a
    batched product. An actor that is not from this package draws its noise from the global generator.

    The iteration acts with ``actor``, with dropout and batch normalization as in evaluation. :meth:`step` gets actions
    as an argument, for example one agent's per environment. A step that a :class:`~torchrl_o2o.envs.GuardedEnv` rejects
    is not delivered by the iteration; :meth:`step` returns all N rows and marks the valid ones in :attr:`accepted`.

    Args:
        envs: of :func:`make_vector_env`, or any whose autoreset mode is ``SAME_STEP`` or ``DISABLED``. The copies of a
            ``SyncVectorEnv`` are put into a :class:`~torchrl_o2o.envs.CheckedEnv` here; the environments of other
            classes must be checked by their builder.
        actor: reads ``"observation"``, writes ``"action"``; only needed for the iteration. Defaults to ``None``.

    Keyword Args:
        total_frames: the iteration ends when at least this number of transitions was delivered. Defaults to ``None``,
            no end.
        init_random_frames: number of first transitions, over all environments, with uniformly random actions. Defaults
            to 0.
        seeds: one seed per environment; ``None`` (default) keeps their own seeds and draws from the global generator.
        on_cut: called with i when the last delivered transition of environment i has become its episode's last, because
            the next step was rejected or a resumed collector had to begin a new episode. Defaults to ``None``.
        device: where the transitions go; ``None`` (default) is the CPU.

    Raises:
        O2OSpecError: if the environments restart in the step after an episode's end, have discrete actions or another
            action box than the actor, or a number does not fit.

    Examples:
        >>> from torchrl_o2o.envs import make_gym_env
        >>> from torchrl_o2o.modules import make_actor
        >>> envs = make_vector_env(lambda: make_gym_env("Pendulum-v1"), 3)
        >>> collector = VectorCollector(envs, make_actor(3, 1), total_frames=6, seeds=[0, 1, 2])
        >>> [data.shape for data in collector]
        [torch.Size([3]), torch.Size([3])]
        >>> collector.step(torch.zeros(3, 1))["next", "step_count"].squeeze(-1)
        tensor([3, 3, 3])
    """

    @checked_arguments
    def __init__(
        self,
        envs: VectorEnv,
        actor: TensorDictModuleBase | None = None,
        *,
        total_frames: int | None = None,
        init_random_frames: int = 0,
        seeds: Sequence[int] | None = None,
        on_cut: Callable[[int], object] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self._autoreset = _autoreset_mode(envs)
        inside = envs.unwrapped if isinstance(envs, VectorWrapper) else envs
        if isinstance(inside, SyncVectorEnv):
            check_apart(inside.envs)
            inside.envs = [_checked(lambda env=env: env) for env in inside.envs]
        self._guarded = _guarded(inside)
        warn_of_running_statistics(envs)
        if seeds is not None and (not hasattr(seeds, "__len__") or len(seeds) != envs.num_envs):
            given = f"{len(seeds)} seeds" if hasattr(seeds, "__len__") else f"seeds={seeds!r}"
            raise O2OSpecError(
                f"got {given} for {envs.num_envs} environments, expected one for each; pass seeds=range(n) for example"
            )
        self.envs, self.actor, self.device = envs, actor, device
        self.total_frames = None if total_frames is None else check_count("total_frames", total_frames, least=1)
        self.init_random_frames = check_count("init_random_frames", init_random_frames)
        self.on_cut = on_cut
        self.frames = 0
        #: Which rows of the last step are transitions, bool, shape [N]; a guard rejected the others.
        self.accepted: Tensor = torch.ones(envs.num_envs, dtype=torch.bool)
        #: One generator per environment, or ``None`` without seeds.
        self.generators: list[torch.Generator] | None = None
        name = envs.spec.id if envs.spec is not None else type(envs).__name__
        if len(envs.single_observation_space.shape or ()) != 1:
            raise O2OSpecError(
                f"the observations of {name} are {envs.single_observation_space}, expected vectors; "
                "collect from images with StepCollector"
            )
        self._low, self._high = action_bounds(envs.single_action_space, name, random=init_random_frames > 0)
        check_actions(envs.single_action_space, None if actor is None else declared_box(actor))
        if actor is not None and isinstance(inside, SyncVectorEnv):
            for env in inside.envs:
                refuse_standardized_twice(env, actor)
        if seeds is not None:
            numbers = [check_seed(seed, "seeds") for seed in seeds]
            self.generators = [torch.Generator().manual_seed(seed) for seed in numbers]
            each = cast(Any, numbers)  # gymnasium's base class declares a single seed only
            envs.reset(seed=each)  # as in StepCollector, whose first episode begins with a separate reset
        #: The remaining actions of each environment's chunk, for an actor that chooses several actions at once.
        self._queues: list[list[Tensor]] = [[] for _ in range(envs.num_envs)]
        #: Environments whose last transition must still be marked as an episode's last, after :meth:`load_state_dict`.
        self._cut_due = np.zeros(envs.num_envs, np.bool_)
        self._start_all()

    @property
    def num_envs(self) -> int:
        """Number of environments, N."""
        return self.envs.num_envs

    @property
    def observation(self) -> Tensor:
        """The current observations, a float32 copy on the CPU, shape [N, o]."""
        return torch.from_numpy(self._observation.copy())

    def __iter__(self) -> Iterator[TensorDict]:
        """Collect with the actor until ``total_frames`` have been delivered in all."""
        if self.actor is None:
            raise O2OSpecError(
                "got a collector without actor, expected one for the iteration; pass an actor, or call step with your "
                "own actions"
            )
        parts, self._switched = find_parts(self.actor), regularizers(self.actor)
        while self.total_frames is None or self.frames < self.total_frames:
            random = self.frames < self.init_random_frames
            data = self.step(self.random_action() if random else self._act(parts))
            if self.accepted.all():
                yield data
            elif self.accepted.any():
                yield data[self.accepted.to(data.device or "cpu")]

    def random_action(self) -> Tensor:
        """Uniformly random actions, each environment's from its own generator, shape [N, A]."""
        return self._draw(torch.rand, self._low.shape) * (self._high - self._low) + self._low

    def exploration_noise(self) -> Tensor:
        """Standard-normal numbers, each environment's from its own generator, shape [N, A]."""
        return self._draw(torch.randn, self._low.shape)

    def _draw(self, draw: Callable[..., Tensor], shape: torch.Size, rows: Sequence[int] | None = None) -> Tensor:
        rows = range(self.num_envs) if rows is None else rows
        if self.generators is None:
            return draw(len(rows), *shape)
        return torch.stack([draw(shape, generator=self.generators[row]) for row in rows])

    def _act(self, parts: PolicyParts | None) -> Tensor:
        assert self.actor is not None
        horizon = chunk_length(self.actor)
        if horizon == 1:
            return self._decide(parts, range(self.num_envs), self._low.shape)
        rows = [row for row, queue in enumerate(self._queues) if not queue]
        if rows:
            chunks = self._decide(parts, rows, torch.Size([horizon * self._low.numel()]))
            for row, chunk in zip(rows, chunks, strict=True):
                self._queues[row] = list(chunk.reshape(horizon, -1))
        return torch.stack([queue.pop(0) for queue in self._queues])

    def _decide(self, parts: PolicyParts | None, rows: Sequence[int], shape: torch.Size) -> Tensor:
        """The actor's output in some of the environments, shape [len(rows), *shape]."""
        assert self.actor is not None
        device, dtype = kind_of(self.actor)
        observation = self.observation[list(rows)].to(device, dtype)
        noise = (
            None
            if parts is None or parts.distribution is None
            else self._draw(torch.randn, shape, rows).to(device, dtype)
        )
        try:
            with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM), in_eval_mode(self._switched):
                if parts is None:
                    return self.actor(TensorDict({"observation": observation}, [len(rows)]))["action"].cpu()
                return parts.act(observation, noise=noise).cpu()
        except (RuntimeError, KeyError) as error:
            raise_mismatch(self.actor, {"observation": observation}, error)

    def step(self, action: Tensor | np.ndarray) -> TensorDict:
        """Step every environment once.

        Args:
            action: one action per environment, shape [N, A].

        Returns:
            N transitions with :data:`~torchrl_o2o.data.TRANSITION`, ``("next", "episode_reward")`` and ``("next",
            "step_count")``; rows that are not :attr:`accepted` are not transitions.

        Raises:
            O2OSpecError: if there is not one action per environment, or one is not finite.
            EnvFaultError: if a process of an environment has died, or another kind of vector environment returns values
                that are not finite or no final observations.
        """
        taken = torch.as_tensor(action, dtype=self._low.dtype).detach().cpu().clone()
        if taken.shape != (self.num_envs, *self._low.shape):
            raise O2OSpecError(f"got actions {tuple(taken.shape)}, expected {(self.num_envs, *self._low.shape)}")
        if not taken.isfinite().all():
            raise O2OSpecError(f"got the actions {taken.tolist()}, expected finite ones; check the actor's parameters")
        self._cut(self._cut_due)
        self._cut_due[:] = False
        observation = self.observation
        following, reward, terminated, truncated, infos = self._step_all(taken.numpy().copy())
        done = terminated | truncated
        if not isinstance(self.envs, SyncVectorEnv):  # whose copies are checked
            _require_finite(following, reward)
        self._episode_reward += reward
        self._step_count += 1
        outcome = {
            "observation": self._restart(np.array(following, np.float32), done, infos),
            "reward": reward.astype(np.float32),
            "terminated": terminated.copy(),
            "truncated": truncated.copy(),
            "done": done,
            "episode_reward": self._episode_reward.astype(np.float32),
            "step_count": self._step_count.copy(),
        }
        self._count(done, self._guarded & _rejected(infos, done))
        columns = {name: _column(value) for name, value in outcome.items()}
        data = TensorDict({"observation": observation, "action": taken, "next": columns}, [self.num_envs])
        return data if self.device is None else data.to(self.device)

    def _step_all(self, action: np.ndarray) -> Any:
        try:
            following, reward, *ends, infos = self.envs.step(action)
            reward, *flags = (np.asarray(each).reshape(self.num_envs) for each in (reward, *ends))
            if not isinstance(infos, Mapping):
                raise O2OSpecError(
                    f"got infos as a {type(infos).__name__}, expected a dictionary of arrays as of gymnasium's vector "
                    "environments, because it holds the last observations of episodes; leave DictInfoToList out"
                )
            return np.asarray(following), reward.astype(np.float64), *(flag.astype(np.bool_) for flag in flags), infos
        except (EOFError, ConnectionError) as error:
            # Closing would wait for an answer of the dead process.
            for process in getattr(self.envs, "processes", ()):
                process.terminate()
            self.envs.closed = True
            raise EnvFaultError(
                f"a process of the vector environment has died ({error!r}); see its own message, and resume from the "
                "last checkpoint"
            ) from error

    def _restart(self, following: np.ndarray, done: np.ndarray, infos: dict[str, Any]) -> np.ndarray:
        """Set the current observations, and return the final observations of the step."""
        self._observation = following.copy()
        if not done.any():
            return following
        if self._autoreset is AutoresetMode.SAME_STEP:
            if "final_obs" not in infos:
                raise EnvFaultError(
                    f"the environments {np.flatnonzero(done).tolist()} were reset, but infos has no 'final_obs', the "
                    "last observations of their episodes; return them like gymnasium's vector environments, or set "
                    "autoreset_mode DISABLED"
                )
            final = following.copy()
            final[done] = np.stack([infos["final_obs"][i] for i in np.flatnonzero(done)])
            return final
        fresh, _ = self.envs.reset(options={"reset_mask": done})
        mask = done.reshape(-1, *[1] * (following.ndim - 1))
        self._observation = np.where(mask, fresh, following).astype(np.float32)
        return following

    def _count(self, done: np.ndarray, rejected: np.ndarray) -> None:
        self.accepted = torch.from_numpy(~rejected)
        self.frames += int((~rejected).sum())
        self._cut(rejected & (self._step_count > 1))
        self._episode_reward[done] = 0.0
        self._step_count[done] = 0
        for i in np.flatnonzero(done):
            self._queues[i] = []

    def _cut(self, where: np.ndarray) -> None:
        if self.on_cut is not None:
            for i in np.flatnonzero(where):
                self.on_cut(int(i))

    def _start_all(self) -> None:
        observation, _ = self.envs.reset()
        self._observation = np.array(observation, np.float32)
        self._episode_reward = np.zeros(self.num_envs)
        self._step_count = np.zeros(self.num_envs, np.int64)
        self._queues = [[] for _ in range(self.num_envs)]

    def state_dict(self) -> dict[str, Any]:
        """Counters, observations, generators and the environments' own states (``None`` if one cannot be captured)."""
        left = [torch.stack(queue) if queue else None for queue in self._queues]
        envs = [env_state(env) for env in self.envs.envs] if isinstance(self.envs, SyncVectorEnv) else [None]
        steps = np.maximum(self._step_count, self._cut_due)  # the old episodes count as open until they are truncated
        return {
            "frames": self.frames,
            "observation": self.observation,
            "episode_reward": torch.from_numpy(self._episode_reward.copy()),
            "step_count": torch.from_numpy(steps),
            "generators": None if self.generators is None else [each.get_state() for each in self.generators],
            "envs": None if None in envs else envs,
            **({"queues": left} if any(self._queues) else {}),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        If the state of an environment could not be captured, for example in another process, all environments start new
        episodes and ``restarted`` is true. ``on_cut`` is then called at the next step for those that were in an
        episode, because the buffer is restored by then.

        Raises:
            O2OSpecError: if the state belongs to another number of environments or was saved with or without seeds, or
                is not of such a collector.
        """
        known: dict[str, Any] = {"frames": 0}
        known |= dict.fromkeys(("observation", "episode_reward", "step_count", "generators", "envs", "queues"))
        check_state(self, state_dict, known, optional=("queues",))
        saved, own = state_dict["generators"], self.generators
        if len(state_dict["step_count"]) != self.num_envs or (saved is None) != (own is None):
            raise O2OSpecError(
                f"the saved collector had {len(state_dict['step_count'])} environments and "
                f"{'no ' if saved is None else ''}seeds, this one has {self.num_envs} and "
                f"{'no ' if own is None else ''}seeds; build it like the saved one"
            )
        self.frames = state_dict["frames"]
        for generator, state in zip(own or [], saved or [], strict=True):
            generator.set_state(state)
        self.restarted = state_dict["envs"] is None
        self._cut_due = self.restarted & (state_dict["step_count"].numpy() > 0)
        if self.restarted:
            self._start_all()
            return
        for env, state in zip(self.envs.envs, state_dict["envs"], strict=True):  # type: ignore[attr-defined]
            restore_env_state(env, state)
        self._observation = state_dict["observation"].numpy().copy()
        self._episode_reward = state_dict["episode_reward"].numpy().copy()
        self._step_count = state_dict["step_count"].numpy().copy()
        queues = state_dict.get("queues", [None] * self.num_envs)
        self._queues = [[] if queue is None else list(queue) for queue in queues]

    #: Whether the last :meth:`load_state_dict` had to start new episodes.
    restarted: bool = False

    def shutdown(self) -> None:
        """Close the environments, as TorchRL's collectors do."""
        self.envs.close()


def _autoreset_mode(envs: VectorEnv) -> AutoresetMode:
    mode = envs.metadata.get("autoreset_mode")
    if mode not in (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED):
        raise O2OSpecError(
            f"got environments with autoreset mode {mode}, in which the step after an episode's end is not a "
            "transition, expected SAME_STEP or DISABLED; build them with "
            "autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP, as make_vector_env does"
        )
    return mode


def _require_finite(observation: np.ndarray, reward: np.ndarray) -> None:
    with np.errstate(over="ignore"):  # values beyond float32 become infinite
        parts = np.column_stack([observation.reshape(len(reward), -1), reward]).astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(parts).all(1))
    if len(bad):
        raise EnvFaultError(
            f"environments {bad.tolist()} returned an observation or a reward that is not finite; fix them, or build "
            "them with make_vector_env from GuardedEnv"
        )


def _guarded(envs: VectorEnv) -> np.ndarray:
    """Which environments are guarded; others may use the name of a guard's entry in their infos for something else."""
    if isinstance(envs, SyncVectorEnv):
        return np.array([env.has_wrapper_attr("max_rejected") for env in envs.envs])
    if isinstance(envs, AsyncVectorEnv):
        return np.array(envs.call("has_wrapper_attr", "max_rejected"), bool)
    return np.zeros(envs.num_envs, bool)


def _rejected(infos: Mapping[str, Any], done: np.ndarray) -> np.ndarray:
    """Which steps a guard rejected; a rejected step is always the last of its episode."""
    last = infos.get("final_info", infos)
    flag = last.get("rejected")
    return np.zeros_like(done) if flag is None else done & np.asarray(flag, bool) & last.get("_rejected", True)


def _column(value: np.ndarray) -> Tensor:
    tensor = torch.from_numpy(value)
    return tensor if tensor.ndim > 1 else tensor.unsqueeze(-1)
