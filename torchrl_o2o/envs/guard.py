# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Guards against environments that raise, return infinite values, or hang."""

from __future__ import annotations

import queue
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.envs.checks import check_spaces
from torchrl_o2o.envs.outputs import (
    EnvFaultError,
    MalformedReturn,
    Step,
    blank,
    copied,
    find_fault,
    read_reset,
    read_step,
)
from torchrl_o2o.errors import O2OError, O2OSpecError, check_seed

__all__ = ["EnvFaultError", "GuardedEnv"]

#: Errors of the caller, which rebuilding does not fix.
_NOT_THE_ENVIRONMENTS = (O2OError, ResetNeeded)


class GuardedEnv(gymnasium.Wrapper):
    """Keep a run alive through a limited number of an environment's faults, and pass on only valid data.

    - If ``step`` or ``reset`` raises, or returns values of another form, shape or dtype, the environment is closed and
      rebuilt, at most ``max_rebuilds`` times in the whole run.
    - If an observation or a reward is NaN or infinite in float32, it is rejected and the episode ends, at most
      ``max_rejected`` times in a row.
    - If ``step`` or ``reset`` takes longer than ``timeout`` seconds, an error is raised at once.
    - Errors of the caller (a seed that is not an integer, an action of another shape or that is not finite, a step
      before a reset) are raised and do not count as faults.

    It passes on copies with the observation space's dtype, and converts a reward in an array of one entry to a float.

    For a failed step, ``step`` returns the observation before it, reward 0, ``truncated=True`` and ``info["rejected"] =
    True`` (False in every other step). Do not learn from this transition.
    :class:`~torchrl_o2o.collectors.StepCollector` leaves it out and marks the previous one as truncated. With TorchRL's
    collectors, read the entry with ``env.set_info_dict_reader(...)`` and leave out the rows where it is set. Each fault
    is counted and gives a warning.

    After a rebuild, the environment is seeded from its last seed and the number of rebuilds, so a run with reproducible
    faults stays reproducible. The counters are part of the environment's state in a checkpoint.

    Args:
        make_env: builds the environment, whose observations and actions must be a ``Box`` of real numbers; it is called
            again for each rebuild.

    Keyword Args:
        max_rebuilds: largest number of rebuilds in all. Defaults to 3.
        max_rejected: largest number of rejected steps in a row. Defaults to 10.
        timeout: time limit of a step or a reset, in seconds. They then run in a separate thread, which costs about 20
            us each and does not work for environments that render into a window. Defaults to ``None``, no limit.

    Raises:
        O2OSpecError: if a limit is out of range, the observations are not a ``Box`` or the actions are discrete.

    Examples:
        >>> env = GuardedEnv(lambda: gymnasium.make("Pendulum-v1"), max_rebuilds=2)
        >>> _, info = env.reset(seed=0)
        >>> _, _, _, truncated, info = env.step(env.action_space.sample())
        >>> truncated, bool(info["rejected"]), env.num_rebuilt, env.num_rejected
        (False, False, 0, 0)
    """

    @checked_arguments
    def __init__(
        self,
        make_env: Callable[[], gymnasium.Env],
        *,
        max_rebuilds: int = 3,
        max_rejected: int = 10,
        timeout: float | None = None,
    ) -> None:
        if max_rebuilds < 0 or max_rejected < 0 or (timeout is not None and not timeout > 0):
            raise O2OSpecError(
                f"got max_rebuilds={max_rebuilds}, max_rejected={max_rejected}, timeout={timeout}, expected "
                "max_rebuilds >= 0, max_rejected >= 0, and timeout > 0 or None"
            )
        super().__init__(make_env())
        self._space = check_spaces(self.env)
        self._action_shape = self.env.action_space.shape
        self.max_rebuilds, self.max_rejected = max_rebuilds, max_rejected
        self.num_rebuilt = 0  #: number of rebuilds of the environment
        self.num_rejected = 0  #: number of steps and resets with values that were not finite
        self.last_fault = ""  #: description of the last fault
        self._rejected_in_a_row = 0
        self._make_env = make_env
        self._call = _call if timeout is None else _Watchdog(timeout)
        self._seed: int | None = None
        self._reseed = False
        self._observation = blank(self._space)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode, with as many attempts as the limits allow.

        Args:
            seed: as in gymnasium.
            options: as in gymnasium.

        Raises:
            EnvFaultError: if a limit is exceeded. O2OSpecError: if the seed is not an integer.
        """
        if seed is not None:
            self._seed = seed = check_seed(seed)
            self._reseed = False
        while True:
            if self._reseed:
                seed, self._reseed = self._seed_of_rebuild(), False
            try:
                observation, info = self._call(partial(self._reset_env, seed=seed, options=options))
            except _NOT_THE_ENVIRONMENTS:
                raise
            except Exception as error:  # whatever an environment's code raises
                self._rebuild("reset", error)
                continue
            fault = find_fault(observation)
            if fault is None:
                self._observation = observation
                return copied(observation), {**info, "rejected": np.False_}
            seed = None  # because the same seed would give the same numbers
            self._reject(f"reset returned {fault}")

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step the environment; a failed step is returned as truncated and rejected.

        Args:
            action: as the environment takes it.

        Raises:
            EnvFaultError: if a limit is passed.
            O2OSpecError: if the action has another shape than the environment's, or is not finite.
        """
        action = self._own_action(action)
        try:
            observation, reward, terminated, truncated, info = self._call(self._step_env, action)
        except _NOT_THE_ENVIRONMENTS:
            raise
        except Exception as error:  # whatever an environment's code raises
            self._rebuild("step", error)
            return self._stand_in()
        fault = find_fault(observation, reward)
        if fault is not None:
            self._reject(f"step returned {fault}")
            return self._stand_in()
        self._rejected_in_a_row = 0
        self._observation = observation
        info["rejected"] = np.False_
        return copied(observation), reward, terminated, truncated, info

    # Read within the guarded call, so that errors of numpy about a wrong return are faults, too.
    def _reset_env(self, **settings: Any) -> tuple[Any, dict[str, Any]]:
        return read_reset(self.env.reset(**settings), self._space)

    def _step_env(self, action: np.ndarray) -> Step:
        return read_step(self.env.step(action), self._space)

    def _own_action(self, action: Any) -> np.ndarray:
        own = np.array(action)  # because an environment may change its argument in place
        if own.shape != self._action_shape or own.dtype.kind not in "biuf" or find_fault(own) is not None:
            raise O2OSpecError(
                f"got the action {action!r} of shape {own.shape}, expected finite numbers of shape "
                f"{self._action_shape}; correct the caller, because this is not a fault of the environment"
            )
        return own

    def _stand_in(self) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return copied(self._observation), 0.0, False, True, {"rejected": np.True_}  # numpy's, as TorchRL reads infos

    def _reject(self, what: str) -> None:
        self.num_rejected, self.last_fault = self.num_rejected + 1, what
        self._rejected_in_a_row += 1
        if self._rejected_in_a_row > self.max_rejected:
            raise EnvFaultError(
                f"{what}, {self._rejected_in_a_row} times in a row (max_rejected={self.max_rejected}); fix the "
                "environment and resume from the last checkpoint"
            )
        warnings.warn(f"{what}: it is rejected and the episode ends ({self.num_rejected} so far)", stacklevel=3)

    def _rebuild(self, where: str, error: Exception) -> None:
        what = str(error) if isinstance(error, MalformedReturn) else f"the environment's {where} raised {error!r}"
        self.num_rebuilt, self.last_fault = self.num_rebuilt + 1, what
        if self.num_rebuilt > self.max_rebuilds:
            raise EnvFaultError(
                f"{what}, after {self.max_rebuilds} rebuilds (max_rebuilds); fix the environment and resume from the "
                "last checkpoint"
            ) from error
        warnings.warn(
            f"{what}: the episode ends and the environment is rebuilt "
            f"(rebuild {self.num_rebuilt} of {self.max_rebuilds})",
            stacklevel=3,
        )
        with suppress(Exception):  # a broken environment may not be able to close
            self._call(self.env.close)
        try:
            self.env = self._make_env()
        except O2OError:
            raise
        except Exception as again:  # counts as another fault
            self._rebuild("constructor", again)
        self._reseed = True

    def _seed_of_rebuild(self) -> int | None:
        if self._seed is None:
            return None
        return int(np.random.SeedSequence([self._seed, self.num_rebuilt]).generate_state(1)[0])


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


class _Watchdog:
    """Calls functions in a separate thread and stops waiting for one that takes too long.

    A thread cannot be ended from outside, so a hung one stays until the process ends.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._requests: queue.SimpleQueue[Any] | None = None
        self._replies: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        if self._requests is None:
            self._requests, self._replies = queue.SimpleQueue(), queue.SimpleQueue()
            threading.Thread(target=_serve, args=(self._requests, self._replies), daemon=True).start()
        self._requests.put((function, arguments))
        try:
            value, error = self._replies.get(timeout=self._timeout)
        except queue.Empty:
            self._requests = None
            raise EnvFaultError(
                f"the environment has not answered for {self._timeout:g} s (timeout); fix it, or allow more time, and "
                "resume from the last checkpoint"
            ) from None
        if error is not None:
            raise error
        return value


def _serve(requests: queue.SimpleQueue[Any], replies: queue.SimpleQueue[Any]) -> None:
    while True:
        function, arguments = requests.get()
        try:
            replies.put((function(*arguments), None))
        except BaseException as error:  # raised again where it was asked for
            replies.put((None, error))
