# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Evaluate a policy: new environments, deterministic actions, each episode with its own seed.

The statistics of evaluations are in :mod:`torchrl_o2o.envs` and :mod:`torchrl_o2o.record`, which need only numpy.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_o2o._moved import old_names
from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.collectors.single import kind_of, refuse_collected, refuse_standardized_twice
from torchrl_o2o.envs.checks import check_apart, warn_of_running_statistics
from torchrl_o2o.envs.guard import GuardedEnv
from torchrl_o2o.envs.make import make_gym_env
from torchrl_o2o.envs.outputs import EnvFaultError
from torchrl_o2o.envs.scores import Reference, find_reference, get_reference, normalized_score
from torchrl_o2o.envs.success import reported, verdict
from torchrl_o2o.envs.units import match_actions
from torchrl_o2o.envs.video import check_video, drawing_arguments, drawing_env, film_episode, write_video
from torchrl_o2o.errors import O2OError, O2OSpecError, check_seed
from torchrl_o2o.modules.chunks import chunk_length
from torchrl_o2o.modules.input_checks import raise_mismatch
from torchrl_o2o.modules.modes import in_mode
from torchrl_o2o.modules.units import declared_box
from torchrl_o2o.record import curves

__all__ = ["MOVED_STATISTICS", "EvaluationResult", "evaluate"]

# An episode of at least this number of steps may be endless; the longest usual tasks have 1000.
_LONG = 10_000


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """One entry per episode, in the order of the episodes' seeds.

    Args:
        returns: ``[n]`` float64, undiscounted sums of the environment's own reward.
        lengths: ``[n]`` int64, steps.
        success: ``[n]`` bool, whether the goal was reached at any time; ``None`` where the environment has no goal. If
            a flag was neither true nor false and no other one was true, it is NaN and the array is float64.
        normalized_score: ``[n]`` float64 (:func:`~torchrl_o2o.envs.normalized_score`); ``None`` without a reference.
        videos: files by their content: ``"best"``, ``"median"``, ``"worst"``. Defaults to none.

    Examples:
        >>> result = EvaluationResult(np.array([1.0, 3.0]), np.array([10, 20]), success=np.array([False, True]))
        >>> print(result)
        return 2.0, success 0.50
    """

    returns: np.ndarray
    lengths: np.ndarray
    success: np.ndarray | None = None
    normalized_score: np.ndarray | None = None
    videos: Mapping[str, Path] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """Average over the episodes, under the names that runs log.

        Returns:
            ``evaluation/return``, ``evaluation/return_std`` (population), ``evaluation/length`` and, where known,
            ``evaluation/success`` (a rate) and ``evaluation/normalized_score``.

        Examples:
            >>> import numpy as np
            >>> from torchrl_o2o.trainers import EvaluationResult
            >>> EvaluationResult(returns=np.array([1.0, 3.0]), lengths=np.array([10, 20])).metrics()
            {'evaluation/return': 2.0, 'evaluation/return_std': 1.0, 'evaluation/length': 15.0}
        """
        metrics = {
            "evaluation/return": float(self.returns.mean()),
            "evaluation/return_std": float(self.returns.std()),
            "evaluation/length": float(self.lengths.mean()),
        }
        if self.success is not None:
            metrics["evaluation/success"] = float(self.success.mean())
        if self.normalized_score is not None:
            metrics["evaluation/normalized_score"] = float(self.normalized_score.mean())
        return metrics

    def __str__(self) -> str:
        """One line for people: the mean return and, where known, success and normalized score."""
        words = [f"return {self.returns.mean():.1f}"]
        if self.success is not None:
            words.append(f"success {self.success.mean():.2f}")
        if self.normalized_score is not None:
            words.append(f"normalized score {self.normalized_score.mean():.1f}")
        return ", ".join(words)


@checked_arguments
def evaluate(
    actor: TensorDictModuleBase,
    env: str | Callable[[], gymnasium.Env],
    *,
    num_episodes: int = 10,
    seed: int,
    num_envs: int = 10,
    reference: str | Reference | None = None,
    max_retries: int = 3,
    timeout: float | None = None,
    video: str | Path | None = None,
) -> EvaluationResult:
    """Run a policy deterministically for a number of episodes.

    A policy that is random under every exploration type, such as a flow policy, draws from ``seed``, and so do
    environments that use the global generators of Python, numpy or torch. A policy that chooses several actions at once
    (:func:`~torchrl_o2o.modules.act_in_chunks`) is called again after the last action of a chunk.

    Episode ``k`` starts from ``reset(seed=seed + k)`` for any ``num_envs``. Environments with a running episode are
    stepped in lockstep with one call of the policy. The number of episodes is fixed in advance and all run to their
    end, so short episodes are not over-represented. The global random states and the training modes of the policy's
    modules are restored.

    :class:`gymnasium.vector.SyncVectorEnv` is not used, because it restarts episodes without these seeds and steps
    environments that have no episode left. Results are reproducible for equal arguments. Another ``num_envs`` changes
    the batch of the policy call and so the last bits of its actions.

    Every environment is guarded (:class:`~torchrl_o2o.envs.GuardedEnv`). If one raises, or returns malformed or
    infinite values, a warning is given, the environment is rebuilt if it raised, and its episode runs again from its
    own seed. Failed attempts do not count.

    With ``video`` the best, the median and the worst episode, by return, are run once more from their seeds with the
    same actions, and rendered. The result is that of the first run. A warning is given if an episode does not repeat,
    or its video cannot be written.

    Args:
        actor: reads ``observation`` and writes ``action``. Its actions are in ``[-1, 1]`` for environments of this
            package, or in the environment's own units if its spec says so, as for policies of
            :func:`~torchrl_o2o.deploy.load_policy`. A policy that was trained on standardized observations needs an
            environment that standardizes them, unless it comes from ``load_policy``. Observations of real numbers are
            converted to the dtype of its parameters.
        env: an id for :func:`~torchrl_o2o.envs.make_gym_env`, or a function that builds a gymnasium environment with a
            flat observation, stacked frames, or both by name. It needs a time limit, because otherwise an episode may
            not end; a warning is given after 10 000 steps.
        num_episodes: at least 1. The papers use 10, and 100 for AntMaze and Adroit.
        seed: seed of the first episode.
        num_envs: largest number of environments that are stepped in lockstep.
        reference: for the normalized score, a task name or a reference; ``None`` takes that of ``env`` if it has one.
        max_retries: largest number of failures in all. Defaults to 3.
        timeout: time limit of a step or a reset, in seconds. Defaults to ``None``, no limit.
        video: ``"runs/policy.gif"`` or ``".mp4"``: written to ``policy-best.gif``, ``policy-median.gif`` and
            ``policy-worst.gif``. A function ``env`` must build its environment with ``render_mode="rgb_array"``.
            Defaults to ``None``, no video.

    Returns:
        Returns, lengths, success and normalized score per episode, and the videos.

    Raises:
        O2OSpecError: if ``num_episodes`` or ``num_envs`` is below 1, the environment cannot be built or has discrete
            actions, ``env`` returns no gymnasium environment, a vectorized one or the one of a collector, the policy's
            actions do not fit it, both standardize observations, ``reference`` is an unknown task, or a video is
            requested and the environment does not render or ``video`` has another suffix.
        EnvFaultError: if the environment fails more often than ``max_retries``, or hangs.

    Examples:
        >>> import torch
        >>> from tensordict.nn import TensorDictModule
        >>> from torchrl_o2o.trainers import evaluate
        >>> actor = TensorDictModule(torch.nn.Linear(3, 1), in_keys=["observation"], out_keys=["action"])
        >>> result = evaluate(actor, "Pendulum-v1", num_episodes=3, seed=0)
        >>> result.returns.shape, result.lengths.tolist(), result.success is None
        ((3,), [200, 200, 200], True)
    """
    if num_episodes < 1 or num_envs < 1:
        raise O2OSpecError(f"got num_episodes={num_episodes} and num_envs={num_envs}, expected at least 1 for both")
    seed = check_seed(seed)
    if reference is None and isinstance(env, str):
        reference = find_reference(env)
    elif isinstance(reference, str):
        reference = get_reference(reference)  # an unknown name raises before the episodes are run
    make = _maker(env, drawing=video is not None) if isinstance(env, str) else partial(_own, env, actor)
    box = declared_box(actor)
    build = make if box is None else lambda: match_actions(make(), *box)
    with _undisturbed(actor, seed):
        stage = None if video is None else _stage(build, check_video(video), env)
        episodes = _run_episodes(actor, _Guards(build, max_retries, timeout), num_episodes, seed, num_envs)
        videos = {} if stage is None else _film(episodes, *stage)
    returns = np.array([episode.total for episode in episodes], dtype=np.float64)
    return EvaluationResult(
        returns,
        np.array([episode.length for episode in episodes], dtype=np.int64),
        _successes([episode.success for episode in episodes]),
        None if reference is None else normalized_score(returns, reference),
        videos,
    )


def _maker(env_id: str, *, drawing: bool) -> Callable[[], gymnasium.Env]:
    arguments: dict[str, Any] = {"env_id": env_id}
    return partial(make_gym_env, **(drawing_arguments(arguments) if drawing else arguments))


def _own(make: Callable[[], gymnasium.Env], actor: TensorDictModuleBase) -> gymnasium.Env:
    """Build an environment; raise if it is not one, is already in use, or standardizes like the actor."""
    env = make()
    if not isinstance(env, gymnasium.Env):
        raise O2OSpecError(
            f"env() gave {type(env).__name__}, expected one gymnasium environment; build it with make_gym_env, and set "
            "num_envs to step several in lockstep"
        )
    refuse_collected(env)
    refuse_standardized_twice(env, actor)
    return env


class _Guards:
    """Builds guarded environments, and counts their failures."""

    def __init__(self, build: Callable[[], gymnasium.Env], max_retries: int, timeout: float | None) -> None:
        self._build, self._max_retries, self._timeout = build, max_retries, timeout
        self._failures = 0

    def __call__(self) -> GuardedEnv:
        """Build one; the first construction may also fail."""
        while True:
            try:
                return GuardedEnv(self._build, max_rebuilds=self._max_retries, timeout=self._timeout)
            except O2OError:
                raise
            except Exception as error:  # an environment's code can raise any exception
                self.failed(f"the evaluation's environment could not be built ({error!r})", error)

    def failed(self, what: str, cause: Exception | None = None) -> None:
        """Count a failure, and warn that it is tried again."""
        self._failures += 1
        if self._failures > self._max_retries:
            raise EnvFaultError(
                f"{what}, after {self._max_retries} other failures (max_retries); fix the environment and resume from "
                "the last checkpoint"
            ) from cause
        warnings.warn(f"{what}: tried again (failure {self._failures} of {self._max_retries})", stacklevel=4)


@dataclass
class _Episode:
    """An episode in progress; ``success`` is ``None`` until the environment reports it."""

    env: GuardedEnv
    seed: int
    observation: np.ndarray = field(init=False, repr=False)
    total: float = field(init=False)
    length: int = field(init=False)
    success: float | None = field(init=False)
    done: bool = field(init=False)
    queue: list[np.ndarray] = field(init=False, repr=False)
    actions: list[np.ndarray] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Start, or start again, from the episode's own seed."""
        self.observation, _ = self.env.reset(seed=self.seed)
        self.total, self.length, self.success, self.done = 0.0, 0, None, False
        self.queue = []  # the remaining actions of a chunk
        self.actions = []  # the actions taken so far

    def step(self, guards: _Guards) -> None:
        action = self.queue.pop(0)
        self.actions.append(action.copy())
        self.observation, reward, terminated, truncated, info = self.env.step(action)
        if info["rejected"]:
            guards.failed(
                f"step {self.length + 1} of the evaluation's episode with seed {self.seed}: {self.env.last_fault}"
            )
            return self.begin()
        self.total += float(reward)
        self.length += 1
        self.done = terminated or truncated
        if self.length == _LONG and not self.done:
            warnings.warn(
                f"an episode of the evaluation continues after {_LONG} steps; without a time limit it may never end: "
                "build the environment with max_episode_steps=..., or wrap it in gymnasium.wrappers.TimeLimit",
                stacklevel=2,
            )
        reached = reported(info)
        if reached is None and _has_goal(self.env):
            reached = terminated
        if reached is not None:
            self.success = _join(self.success, verdict(reached))
        return None


def _join(before: float | None, now: float) -> float:
    """Success at any time so far; NaN if it is unknown."""
    if before is None or before == 1.0 or now == 1.0:
        return now if before is None else 1.0
    return before + now


def _successes(flags: list[float | None]) -> np.ndarray | None:
    if all(flag is None for flag in flags):
        return None
    values = np.array([0.0 if flag is None else flag for flag in flags])
    return values if np.isnan(values).any() else values.astype(bool)


def _has_goal(env: gymnasium.Env) -> bool:
    space = env.unwrapped.observation_space
    return isinstance(space, spaces.Dict) and "desired_goal" in space.spaces


def _run_episodes(
    actor: TensorDictModuleBase, guards: _Guards, num_episodes: int, seed: int, num_envs: int
) -> list[_Episode]:
    envs: list[GuardedEnv] = []
    try:
        envs.extend(guards() for _ in range(min(num_envs, num_episodes)))
        check_apart(envs)
        warn_of_running_statistics(envs[0])
        episodes = [_Episode(env, seed + k) for k, env in enumerate(envs)]
        active = list(episodes)
        while active:
            if waiting := [episode for episode in active if not episode.queue]:
                for episode, action in zip(waiting, _act(actor, waiting), strict=True):
                    episode.queue = np.split(action, chunk_length(actor))
            for episode in active:
                episode.step(guards)
            for slot, episode in enumerate(active):
                if episode.done and len(episodes) < num_episodes:
                    active[slot] = _Episode(episode.env, seed + len(episodes))
                    episodes.append(active[slot])
            active = [episode for episode in active if not episode.done]
    finally:
        for env in envs:
            with suppress(Exception):  # the episodes are complete, or another error is being raised
                env.close()
    return episodes


def _stage(build: Callable[[], gymnasium.Env], path: Path, env: str | Callable) -> tuple[gymnasium.Env, Path]:
    """A rendering environment, and the path of its videos."""
    return drawing_env(build, env if isinstance(env, str) else "the environment"), path


def _film(episodes: Sequence[_Episode], env: gymnasium.Env, path: Path) -> dict[str, Path]:
    """Film the best, median and worst episode; if this fails, the evaluation is kept."""
    ranked = sorted(episodes, key=lambda episode: episode.total)
    shown = {"best": ranked[-1], "median": ranked[(len(ranked) - 1) // 2], "worst": ranked[0]}
    videos: dict[str, Path] = {}
    try:
        for name, episode in shown.items():
            videos[name] = write_video(path.with_stem(f"{path.stem}-{name}"), *_film_again(episode, env))
    except Exception as error:  # errors of the renderer, the encoder or the disk
        warnings.warn(f"a video beside {path} cannot be made ({type(error).__name__}: {error})", stacklevel=3)
    finally:
        env.close()
    return videos


def _film_again(episode: _Episode, env: gymnasium.Env) -> tuple[Sequence[np.ndarray], float]:
    actions = iter(episode.actions)
    film = film_episode(env, lambda _: next(actions), seed=episode.seed, max_steps=episode.length)
    if not math.isclose(film.total, episode.total, rel_tol=1e-6, abs_tol=1e-6):
        warnings.warn(
            f"THE VIDEO SHOWS ANOTHER EPISODE: return {film.total:g}, evaluated {episode.total:g}; the environment "
            f"does not repeat from the seed {episode.seed}",
            stacklevel=4,
        )
    return film.frames, film.fps


def _act(actor: TensorDictModuleBase, episodes: list[_Episode]) -> np.ndarray:
    device, dtype = kind_of(actor)
    seen = [each if isinstance(each, dict) else {"observation": each} for each in (one.observation for one in episodes)]
    rows = {key: torch.from_numpy(np.stack([each[key] for each in seen])) for key in seen[0]}
    images = {key for key, part in rows.items() if part.dtype == torch.uint8 and part.ndim > 2}
    rows = {key: part if key in images else part.to(dtype) for key, part in rows.items()}
    data = TensorDict(rows, [len(episodes)]).to(device)
    try:
        action = actor(data)["action"]
    except (RuntimeError, KeyError) as error:
        raise_mismatch(actor, {key: data[key] for key in rows}, error)
    if action.ndim != 2 or len(action) != len(episodes):
        raise O2OSpecError(
            f"the policy gave actions {tuple(action.shape)} for {len(episodes)} observations, expected [n, A]"
        )
    if not action.isfinite().all():
        raise O2OSpecError(
            f"the policy gave the actions {action.tolist()}, expected finite numbers; its parameters are not finite: "
            "return to the last checkpoint with finite losses"
        )
    return action.to("cpu", torch.float64 if action.dtype == torch.float64 else torch.float32).numpy()


@contextmanager
def _undisturbed(actor: TensorDictModuleBase, seed: int) -> Iterator[None]:
    """Deterministic actions, no gradients, evaluation mode; restores all modes and global random states afterwards."""
    cuda = {parameter.device for parameter in actor.parameters() if parameter.is_cuda}
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with (
            in_mode(actor, training=False),
            torch.random.fork_rng(devices=list(cuda)),
            torch.no_grad(),
            set_exploration_type(ExplorationType.DETERMINISTIC),
        ):
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002  # third-party environments draw from the global generators
            torch.default_generator.manual_seed(seed)
            for device in cuda:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002


#: The first edition also exported these statistics from here.
MOVED_STATISTICS = {
    "dip": curves.dip,
    "gain": curves.gain,
    "handover_score": curves.handover_score,
    "iqm": curves.iqm,
    "normalized_score": normalized_score,
    "regret": curves.regret,
    "stratified_bootstrap_interval": curves.stratified_bootstrap_interval,
}
__getattr__ = old_names(__name__, MOVED_STATISTICS)
