# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""One learner with actors in other processes: a bounded queue of transitions, and counters."""

from __future__ import annotations

import queue
import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import Iterator
from types import TracebackType
from typing import Any, cast

import torch
from tensordict import TensorDict, TensorDictBase, cat
from torch import Tensor

import torchrl_o2o
from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.collectors.actors import Actors, TransitionStream
from torchrl_o2o.collectors.received_rows import POLICY_VERSION, not_finite, version_of
from torchrl_o2o.data.interventions import INTERVENED
from torchrl_o2o.data.keys import STEPS, TRANSITION, cut_off_, has_steps
from torchrl_o2o.data.writers import row_differences
from torchrl_o2o.envs.outputs import EnvFaultError
from torchrl_o2o.errors import O2OSpecError, check_count, check_state

__all__ = ["Fleet"]

_HEARTBEAT = 1.0


class Fleet:
    r"""Collect from asynchronous actors, and limit the number of updates per transition.

    It is a collector for :meth:`torchrl_o2o.trainers.Session.online`. One thread per actor puts its transitions into a
    bounded queue. The iteration takes transitions out, checks and yields them. While none arrive, it yields an empty
    batch each second, so that the run can answer signals.

    **Updates.** Let T be the number of transitions passed to :meth:`updates`, and U the number of updates. After every
    call

    .. math:: -slack \le T - U \le slack,

    and U is never more than ``slack`` ahead of T. Within the bound, the learner updates when the queue is empty, and
    takes transitions otherwise. At the bound, the faster side waits: the learner for a transition, or the actors for
    space in the queue.

    **Staleness** of a transition is the number of policies published between the one that acted and its arrival.
    Transitions with more than ``max_staleness`` are not delivered.

    **Some rows are not delivered**, and are counted by reason in :attr:`refused`: rows of another version of this
    package, rows over several steps, and rows of other entries, shapes or types (all three end that actor permanently,
    because its later rows would be the same); rows that are not finite; rows of a policy that was never published; rows
    that are too old; and rows rejected by a :class:`~torchrl_o2o.envs.GuardedEnv`. Each reason is a warning the first
    time.

    **An actor that dies** is restarted with a new episode, at most ``max_restarts`` times in a row without a
    transition; after that it stays off. Delivered rows are kept exactly once. The last row of an interrupted episode is
    marked truncated; to recognize it, the fleet holds each row until the next one of its actor arrives. Rows that are
    held when the fleet is shut down or saved end their episodes: they are marked truncated and come first when it is
    iterated again or resumed.

    Args:
        actors: starts actors and publishes weights.
        like: transitions [N] with the entries, shapes and types of the actors' transitions, such as the offline data.
            They must have :data:`~torchrl_o2o.data.INTERVENED` if the actors deliver it, for example all NaN.

    Keyword Args:
        num_actors: number of actors. Defaults to 1.
        total_frames: total number of transitions to deliver.
        init_random_frames: actors act at random until this number was delivered; random transitions that are still in
            the queue then are delivered in addition. Defaults to 0.
        queue_size: number of batches in the queue. Defaults to 16.
        slack: s above, in updates. Defaults to 10.
        max_staleness: largest staleness, in published policies; ``None`` (default) is no bound.
        max_restarts: number of restarts in a row of an actor that delivers nothing. Defaults to 3.

    Raises:
        O2OSpecError: if a number is out of range, the actors write to a replay service, or they deliver interventions,
            which ``like`` lacks.
        EnvFaultError: while iterating, if no actor is left.

    Examples:
        >>> from functools import partial
        >>> from torchrl_o2o.collectors import ProcessActors
        >>> from torchrl_o2o.envs import make_gym_env
        >>> from torchrl_o2o.modules import make_actor
        >>> from torchrl_o2o.testing import random_transitions
        >>> actors = ProcessActors(partial(make_gym_env, "Pendulum-v1"), make_actor(3, 1))
        >>> fleet = Fleet(actors, random_transitions(4, 3, 1), num_actors=2, total_frames=100, slack=1)
        >>> list(fleet.updates(3))  # the queue is empty, so there is one more update than transitions
        [2, 1, 0, -1]
    """

    @checked_arguments
    def __init__(
        self,
        actors: Actors,
        like: TensorDictBase,
        *,
        num_actors: int = 1,
        total_frames: int,
        init_random_frames: int = 0,
        queue_size: int = 16,
        slack: int = 10,
        max_staleness: int | None = None,
        max_restarts: int = 3,
    ) -> None:
        if getattr(actors, "replay_buffer", None) is not None:
            raise O2OSpecError(
                "got actors that write to a replay service, expected actors that deliver transitions; leave their "
                "replay_buffer out, or start them yourself and sample from the service"
            )
        if getattr(actors, "intervened", False) and like.get(INTERVENED, None) is None:
            raise O2OSpecError(
                f"got actors with intervened=True and transitions without {INTERVENED}, expected the entry, because "
                "what the transitions lack is not delivered; set it to NaN: "
                "offline['next', 'intervened'] = torch.full_like(offline['action'], torch.nan)"
            )
        self.actors = actors
        self.num_actors = check_count("num_actors", num_actors, least=1)
        self.total_frames = check_count("total_frames", total_frames, least=1)
        self.init_random_frames = check_count("init_random_frames", init_random_frames)
        self.slack = check_count("slack", slack)
        self.max_staleness = None if max_staleness is None else check_count("max_staleness", max_staleness)
        self.max_restarts = check_count("max_restarts", max_restarts)
        self._like = _template(like)
        self.frames = 0  #: transitions delivered
        self.version = 0  #: policies published
        self.owed = 0  #: T - U
        self.restarts = 0  #: times an actor was restarted
        self.waited = 0.0  #: seconds the learner waited for transitions
        self.refused: Counter[str] = Counter()  #: rows not delivered, by reason
        self._ages: deque[int] = deque(maxlen=1000)
        self._queue: queue.Queue[tuple[int, TensorDictBase | Exception]] = queue.Queue(
            check_count("queue_size", queue_size, least=1)
        )
        self._held: dict[int, TensorDictBase] = {}
        self._cut_due: list[TensorDictBase] = []  # last rows of truncated episodes that are not delivered yet
        self._given_up: dict[int, str] = {}
        self._warned: set[tuple[int, str]] = set()
        #: Starts of each actor in the whole run. Each start has its own random stream.
        self._starts = [0] * self.num_actors
        self._threads: list[threading.Thread] = []
        self._sources: dict[int, TransitionStream] = {}
        self._stop = threading.Event()

    def __enter__(self) -> Fleet:
        """Enter the context; the actors start when the iteration begins."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the actors."""
        self.shutdown()

    def __iter__(self) -> Iterator[TensorDict]:
        """Deliver the remaining transitions [n]; n = 0 if none came for a second."""
        self._publish()
        self._start()
        while self.frames < self.total_frames:
            data = self._deliver(self._cut_due or self._next())[: self.total_frames - self.frames]
            self._cut_due = []
            before, self.frames = self.frames, self.frames + len(data)
            if before < self.init_random_frames <= self.frames:
                self._publish()
            yield data

    def updates(self, transitions: int) -> Iterator[int]:
        """Iterate over the updates that are due or allowed after new transitions.

        Before the first transition there are none, because a batch would have offline rows only.

        Args:
            transitions: number of transitions that were stored since the last call.

        Yields:
            T - U, including this update.
        """
        self.owed += transitions
        ahead = self.slack if self.frames or transitions else 0
        while self.owed > self.slack or (self.owed > -ahead and self._queue.empty()):
            self.owed -= 1
            yield self.owed

    def publish(self) -> None:
        """Publish the learner's current policy to the actors, as a new version."""
        self.version += 1
        self._publish()

    def _publish(self) -> None:
        self.actors.publish(self.version, random=self.frames < self.init_random_frames)

    def metrics(self) -> dict[str, Tensor]:
        """Metrics to log with an update: ``staleness`` and ``staleness_max`` of the last 1000 that arrived, ``waiting``
        batches, and ``owed``."""
        ages = torch.tensor(list(self._ages) or [0], dtype=torch.float32)
        return {
            "staleness": ages.mean(),
            "staleness_max": ages.max(),
            "waiting": torch.tensor(float(self._queue.qsize())),
            "owed": torch.tensor(float(self.owed)),
        }

    def state_dict(self) -> dict[str, Any]:
        """The counters, how often each actor was started, and rows that wait to be their episodes' last.

        Not what is on its way, which nobody has seen yet.
        """
        counters = {name: getattr(self, name) for name in ("frames", "version", "owed", "restarts")}
        state = {**counters, "refused": dict(self.refused), "starts": list(self._starts)}
        if last := [*self._cut_due, *(cut_off_(row.clone()) for row in self._held.values())]:
            state["last_rows"] = self._deliver(last).to_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned; the actors start new episodes, with new random numbers."""
        known = {**self.state_dict(), **dict.fromkeys(("owed", "refused", "starts", "last_rows"))}
        check_state(self, state_dict, known, optional=("starts", "last_rows"))
        for name in ("frames", "version", "owed", "restarts"):
            setattr(self, name, state_dict[name])
        self.refused = Counter(state_dict["refused"])
        before = state_dict.get("starts", [])
        self._starts = [*before[: self.num_actors], *[0] * (self.num_actors - len(before))]
        last = state_dict.get("last_rows")
        self._cut_due = [] if last is None else list(TensorDict(last, [len(last["action"])]).split(1))

    def shutdown(self) -> None:
        """End the actors, as TorchRL's collectors do. They start again if the fleet is iterated again."""
        self._stop.set()
        for source in list(self._sources.values()):
            _close(source)
        for thread in self._threads:
            thread.join(timeout=30.0)
        self._cut_due += [cut_off_(row) for row in self._held.values()]
        self._threads, self._held = [], {}
        while not self._queue.empty():  # rows still in transit
            self._queue.get()

    # The actors' threads.

    def _start(self) -> None:
        if self._threads:
            return
        self._stop.clear()
        self._threads = [
            threading.Thread(target=self._feed, args=(number,), name=f"actor {number}", daemon=True)
            for number in range(self.num_actors)
        ]
        for thread in self._threads:
            thread.start()

    def _feed(self, number: int) -> None:
        """Put an actor's transitions into the queue, and restart the actor if it dies."""
        failures = 0
        while failures <= self.max_restarts and self._wants(number):
            delivered, attempt = False, self._starts[number]
            self._starts[number] += 1
            try:
                source = self._sources[number] = self.actors.start(number, attempt)
                for data in source:
                    delivered = True
                    if not self._put(number, data):
                        return
                raise RuntimeError("it delivers nothing more")
            except Exception as error:  # whatever error ended the actor
                failures = 1 if delivered else failures + 1
                self._put(number, error)
            finally:
                if (source := self._sources.pop(number, None)) is not None:
                    _close(source)
        self._put(number, O2OSpecError(f"it died {failures} times in a row without a transition"))

    def _wants(self, number: int) -> bool:
        return not self._stop.is_set() and number not in self._given_up

    def _put(self, number: int, item: TensorDictBase | Exception) -> bool:
        """Wait until the queue has space; ``False`` if the actor is no longer needed."""
        while self._wants(number):
            try:
                self._queue.put((number, item), timeout=0.2)
            except queue.Full:
                continue
            return True
        return False

    # The learner's thread.

    def _deliver(self, rows: list[TensorDictBase]) -> TensorDict:
        """The rows to be delivered, shape [n]."""
        return cat([self._like[:0], *(row.select(*self._keys) for row in rows)])

    def _next(self) -> list[TensorDictBase]:
        """The rows that can be delivered after the next item of the queue; nothing if none arrived within a second."""
        began = time.monotonic()
        try:
            number, item = self._queue.get(timeout=_HEARTBEAT)
        except queue.Empty:
            self._check_alive()
            return []
        finally:
            self.waited += time.monotonic() - began
        if number in self._given_up:
            return []
        return self._cut_off(number, item) if isinstance(item, Exception) else self._accept(number, item)

    @property
    def _keys(self) -> list[Any]:
        return list(self._like.keys(include_nested=True, leaves_only=True))

    def _check_alive(self) -> None:
        if len(self._given_up) == self.num_actors:
            raise EnvFaultError(
                f"no actor is left: {self._given_up}; fix the actors, and resume from the last checkpoint"
            )

    def _cut_off(self, number: int, error: Exception) -> list[TensorDictBase]:
        """Truncate the episode of an actor that has died."""
        last = self._held.pop(number, None)
        if isinstance(error, O2OSpecError):
            self._give_up(number, str(error).partition("\n\nWorker traceback")[0])  # TorchRL appends the traceback
        else:
            self.restarts += 1
            warnings.warn(f"actor {number} has died and is started again: {error}", stacklevel=4)
        return [] if last is None else [cut_off_(last)]

    def _give_up(self, number: int, reason: str) -> None:
        self._given_up[number] = reason
        warnings.warn(f"actor {number} is given up: {reason}", stacklevel=5)

    def _accept(self, number: int, data: TensorDictBase) -> list[TensorDictBase]:
        """Rows of an actor that can be delivered now. The last row waits for the next, unless it ends an episode."""
        if not data.batch_size.numel():
            return []
        data = data.reshape(-1)
        if (fault := self._unlike(data)) is not None:
            self._refuse(number, *fault, rows=len(data))
            last = self._held.pop(number, None)
            self._give_up(number, fault[1])
            return [] if last is None else [cut_off_(last)]
        delivered: list[TensorDictBase] = []
        for row in data.split(1):
            last = self._held.pop(number, None)
            if (fault := self._faulty(row)) is not None:
                self._refuse(number, *fault)
                delivered += [] if last is None else [cut_off_(last)]
                continue
            delivered += [] if last is None else [last]
            self._ages.append(self.version - int(row[POLICY_VERSION]))
            if row["next", "done"].any():
                delivered.append(row)
            else:
                self._held[number] = row
        return delivered

    def _refuse(self, number: int, reason: str, sentence: str, *, rows: int = 1) -> None:
        self.refused[reason] += rows
        if (number, reason) not in self._warned:
            self._warned.add((number, reason))
            warnings.warn(f"actor {number}: {sentence}; it is left out", stacklevel=5)

    def _unlike(self, data: TensorDictBase) -> tuple[str, str] | None:
        """A fault that every further row of that actor would also have."""
        own, theirs = torchrl_o2o.__version__, version_of(data) or "unknown"
        if theirs != own:
            return "version", (
                f"its torchrl_o2o is {theirs}, expected {own}, the learner's; install the same version everywhere"
            )
        if has_steps(data):
            return "steps", (
                f"its transitions have {STEPS!r}, expected single steps; sum them in the learner's process"
            )
        found = row_differences(data.select(*self._keys, strict=False), self._like[0], 1)
        if found:
            return "shape", f"its transitions do not fit those stored: {'; '.join(found)}; give it the learner's task"
        return None

    def _faulty(self, row: TensorDictBase) -> tuple[str, str] | None:
        """The fault of one row, if it has one."""
        if (rejected := row.get(("next", "rejected"), None)) is not None and rejected.any():
            return "guard", "its environment failed, and its guard rejected the step"
        if (key := not_finite(row, TRANSITION)) is not None:
            return "not finite", f"{key!r} of a transition is not finite; put its environment into a GuardedEnv"
        age = self.version - int(row[POLICY_VERSION])
        if age < 0:
            return "unknown policy", (
                f"it acted by policy {self.version - age}, expected at most {self.version}, the learner's newest"
            )
        if self.max_staleness is not None and age > self.max_staleness:
            return "stale", f"its policy was {age} versions old, expected at most {self.max_staleness} (max_staleness)"
        return None


def _template(like: TensorDictBase) -> TensorDict:
    """One row with a transition's entries and the running return and length that a session logs."""
    first = cast(TensorDictBase, like[:1])  # TensorDict's annotation does not say what indexing returns
    row = TensorDict(first.select(*TRANSITION).to_dict(), [1])
    if first.get(INTERVENED, None) is not None:
        row[INTERVENED] = first.get(INTERVENED).clone()
    row["next", "episode_reward"], row["next", "step_count"] = torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.int64)
    return row


def _close(source: TransitionStream) -> None:
    threads = torch.get_num_threads()
    try:
        source.shutdown(timeout=5.0)
    except Exception as error:  # the process has already ended
        warnings.warn(f"an actor could not be closed: {error}", stacklevel=2)
    finally:
        torch.set_num_threads(threads)  # TorchRL has set the learner's threads to the actor's number
