# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""State that hides: what has two names, views, closures, slots and bound methods continues exactly, or is refused."""

from __future__ import annotations

import functools
import io
import itertools
import os
import random
import subprocess
import sys
from collections import deque

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from torchrl_o2o.envs.snapshot import env_state, restore_env_state
from torchrl_o2o.errors import O2OCheckpointError

START = np.zeros(2)
COUNT = 0
TABLE = [1.0, 2.0, 3.0]


class Base(gymnasium.Env):
    """Begins at random numbers; a subclass keeps and reads its state in its own way."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.begin(self.np_random.normal(size=4))
        return self.seen(), {}

    def step(self, action):
        self.go(float(action[0]))
        return self.seen(), 0.0, False, False, {}

    def begin(self, start): ...

    def go(self, push): ...

    def seen(self): ...


class Views(Base):
    def __init__(self):
        self.position = np.zeros(4)[:2]  # the owner has no name of its own
        self.velocity = self.position.base[2:]
        self.every_other = self.position.base[::2]
        self.matrix = np.zeros((2, 2), order="F")
        self.turned = self.matrix.T

    def begin(self, start):
        self.position.base[:] = start
        self.matrix[:] = 0.0

    def go(self, push):
        self.velocity += push
        self.position += 0.1 * self.position.base[2:]
        self.every_other *= 0.9
        self.matrix[0] += self.position
        self.turned[1] += 1.0

    def seen(self):
        return self.position + self.every_other + self.matrix.sum(0) + self.turned[0]


class ViewsOfReset(Views):
    """Makes its views in every reset, so that a fresh one has others or none."""

    def __init__(self):
        super().__init__()
        del self.velocity, self.every_other

    def begin(self, start):
        self.position = start[:2]
        self.velocity, self.every_other = start[2:], start[::2]
        self.matrix = np.zeros((2, 2), order="F")
        self.turned = self.matrix.T


class Swapped(Base):
    """Two buffers that change places, and a view of the first one."""

    def __init__(self):
        self.front, self.back = np.zeros(2), np.zeros(2)
        self.first = self.front[:1]

    def begin(self, start):
        self.front[:], self.back[:] = start[:2], start[2:]

    def go(self, push):
        self.back[:] = self.front + push
        self.front, self.back = self.back, self.front
        self.first += 0.5

    def seen(self):
        return self.front + 2.0 * self.back + self.first


class TwoNames(Base):
    def __init__(self):
        self.log = self.alias = [0.0]
        self.table = {"log": self.log, "last": deque([self.log], maxlen=2)}
        self.pair = (self.log, np.zeros(2))
        self.sums = self.pair[1]
        self.log_of_itself: list = []

    def begin(self, start):
        self.log[:] = start.tolist()
        self.log_of_itself[:] = [self.log_of_itself, 1.0]

    def go(self, push):
        self.alias.append(push)
        self.table["last"].append(self.table["log"])
        self.pair[1][0] += sum(self.table["last"][0])
        self.log_of_itself[0][1] += 1.0

    def seen(self):
        return self.sums + len(self.log) + self.log_of_itself[1]


def counter():
    count, seen = 0.0, np.zeros(2)

    def add(push):
        nonlocal count
        count += 1.0 + push
        seen[0] += count

    return add, lambda: seen + count


class Closures(Base):
    """Two functions share what they close over."""

    def __init__(self):
        self.add, self.read = counter()

    def begin(self, start):
        self.add(start[0])

    def go(self, push):
        self.add(push)

    def seen(self):
        return self.read()


class Slots(Base):
    __slots__ = ("__hidden", "count", "never")

    def begin(self, start):
        self.__hidden, self.count = start[:2], 0

    def go(self, push):
        self.__hidden += push
        self.count += 1

    def seen(self):
        return self.__hidden * self.count


class Methods(Base):
    """What is called next is state, and so is whose method it is."""

    def __init__(self):
        self.log = []
        self.push, self.act = self.log.append, self.walk
        self.scale = functools.partial(self.scaled, [2.0])

    def begin(self, start):
        self.log.clear()
        self.act = self.walk

    def go(self, push):
        self.push(push)
        self.scale.args[0][0] += 0.5
        self.act()

    def walk(self):
        self.act = self.run if len(self.log) > 2 else self.walk

    def run(self):
        self.push(10.0)

    def scaled(self, factor):
        return factor[0] * sum(self.log)

    def seen(self):
        return np.full(2, self.scale())


class Generators(Base):
    def __init__(self):
        self.old, self.python, self.torch = np.random.RandomState(0), random.Random(0), torch.Generator()
        self.same = self.python
        self.space = spaces.Dict({"a": spaces.Box(-1.0, 1.0, (2,)), "b": spaces.Tuple([spaces.Discrete(5)])})

    def begin(self, start):
        self.drawn = start[:2]

    def go(self, push):
        sample = self.space.sample()
        self.drawn = sample["a"] + sample["b"][0] + self.old.rand(2) + self.python.random() + self.same.random()
        self.drawn = self.drawn + torch.rand(2, generator=self.torch).numpy()

    def seen(self):
        return self.drawn


class Borrowed(Base):
    """Begins with an array that belongs to the module."""

    def __init__(self):
        self.state, self.table = START, TABLE

    def begin(self, start):
        self.state = START + start[:2]

    def go(self, push):
        self.state = self.state + push

    def seen(self):
        return self.state * self.table[1]


class Comes(Base):
    """Attributes that come and go, and arrays that grow."""

    def __init__(self):
        self.history = np.zeros((0, 2))

    def begin(self, start):
        self.history = start.reshape(2, 2)
        self.__dict__.pop("cache", None)

    def go(self, push):
        self.history = np.concatenate([self.history, self.history[-1:] + push])
        if len(self.history) % 4 == 0:
            self.cache = push
        elif hasattr(self, "cache"):
            del self.cache

    def seen(self):
        return self.history.sum(0) + (100.0 if hasattr(self, "cache") else 0.0)


class Window(Base):
    def __init__(self):
        self.memory = np.zeros(8)
        self.windows = np.lib.stride_tricks.sliding_window_view(self.memory, 2, writeable=True)

    def begin(self, start):
        self.memory[:4] = start

    def go(self, push):
        self.windows[0] += push
        self.memory[1:] = self.memory[:-1].copy()

    def seen(self):
        return self.windows[3].copy()


CAPTURED = [Views, ViewsOfReset, Swapped, TwoNames, Closures, Slots, Methods, Generators, Borrowed, Comes, Window]


def through_file(state):
    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=True)


def trace(env, pushes):
    return np.array([env.step(np.array([push], np.float32))[0].copy() for push in pushes])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("fresh", ["new", "reset", "used"])
@pytest.mark.parametrize("steps", [0, 1, 2, 5])
@pytest.mark.parametrize("cls", CAPTURED)
def test_it_goes_on_as_if_nothing_had_been(cls, steps, fresh):
    pushes = np.random.default_rng(0).uniform(-1, 1, 12)
    env, other = cls(), cls()
    env.reset(seed=0)
    trace(env, pushes[:steps])
    state = env_state(env)
    assert state is not None
    if fresh != "new":
        other.reset(seed=9)
    if fresh == "used":
        trace(other, pushes[::-1][:7])
    restore_env_state(other, through_file(state))
    pairs = [(trace(env, [push]), trace(other, [push])) for push in pushes]  # in turns: neither may reach the other
    np.testing.assert_array_equal(*map(np.concatenate, zip(*pairs, strict=True)))
    np.testing.assert_array_equal(env.reset()[0], other.reset()[0])
    np.testing.assert_array_equal(trace(env, pushes), trace(other, pushes))
    assert START.tolist() == [0.0, 0.0]
    assert TABLE == [1.0, 2.0, 3.0]


def test_arrays_and_lists_are_restored_in_place():
    """So that whoever else holds them sees it."""
    env, other = Views(), TwoNames()
    held = env.position, env.position.base, other.log, other.table
    for each in (env, other):
        each.reset(seed=0)
        state = env_state(each)
        trace(each, [0.5, 0.5])
        restore_env_state(each, state)
    assert (env.position is held[0], other.log is held[2], other.table is held[3]) == (True, True, True)
    assert env.velocity.base is held[1]


def test_a_state_is_no_view_of_the_environment():
    env = Views()
    env.reset(seed=0)
    state = env_state(env)
    before = through_file(state)
    trace(env, [1.0] * 3)
    restore_env_state(env, before)
    expected = trace(env, [1.0] * 3)
    restore_env_state(env, state)
    np.testing.assert_array_equal(trace(env, [1.0] * 3), expected)


class ClassCount(Base):
    count = 0

    def go(self, push):
        type(self).count += 1


class ClassList(Base):
    log: list = []

    def go(self, push):
        self.log.append(push)


class ClassArray(Base):
    state = np.zeros(2)

    def go(self, push):
        self.state[:] += push


class ClassSpace(Base):
    choice = spaces.Discrete(100)

    def go(self, push):
        self.seen_last = self.choice.sample()


class Global(Base):
    def go(self, push):
        global COUNT
        COUNT += 1


def around():
    count, log = 0, []

    class Assigns(Base):
        def go(self, push):
            nonlocal count
            count += 1

    class Reads(Base):
        def go(self, push):
            log.append(push)

    return Assigns, Reads


class Default(Base):
    def go(self, push, log=[]):  # noqa: B006
        log.append(push)


class CountsOnItself(Base):
    def go(self, push):
        CountsOnItself.go.calls = push

    go.calls = 0.0


class Noise:
    def __init__(self):
        self.level = 0.0

    def __call__(self):
        self.level += 1.0
        return self.level


def remembering(log=[]):  # noqa: B006
    return log


def holds(name, make):
    return type(f"Holds{name}", (Base,), {"__init__": lambda self: setattr(self, name, make())})


ASSIGNS, READS = around()
REFUSED = [
    (ClassCount, "the class attribute ClassCount.count is assigned by the class's methods"),
    (ClassList, "the class attribute ClassList.log is a list, .*make it a tuple"),
    (ClassArray, "the class attribute ClassArray.state is a ndarray"),
    (ClassSpace, "the class attribute ClassSpace.choice is sampled by"),
    (Global, "Global.go assigns the global COUNT"),
    (ASSIGNS, "Assigns.go assigns the variable count of the function around its class"),
    (READS, "Reads.go reads the variable log of the function around its class"),
    (Default, "Default.go is a function with defaults that can change"),
    (CountsOnItself, "CountsOnItself.go is a function with attributes"),
    (holds("callable", Noise), "Holdscallable.callable is a .*Noise"),
    (holds("helper", lambda: [Noise()]), "Holdshelper.helper is a .*Noise"),
    (holds("counter", itertools.count), r"Holdscounter.counter is a itertools.count"),
    (holds("next", lambda: itertools.count().__next__), "Holdsnext.next is a"),
    (holds("iterator", lambda: iter([1.0, 2.0])), "Holdsiterator.iterator is a builtins.list_iterator"),
    (holds("stream", lambda: (each for each in "ab")), "Holdsstream.stream is a builtins.generator"),
    (holds("function", lambda: remembering), "Holdsfunction.function is a function with defaults that can change"),
    (
        holds("memory", lambda: np.frombuffer(memoryview(bytearray(16)))),
        "Holdsmemory.memory is a view of memory that is not numpy's",
    ),
    (holds("objects", lambda: np.array([object()])), "Holdsobjects.objects is an array of object"),
    (holds("masked", lambda: np.ma.zeros(2)), "Holdsmasked.masked is a numpy.*MaskedArray"),
    (holds("numbers", lambda: {1, 2}), "Holdsnumbers.numbers is a builtins.set"),
    (holds("cached", lambda: functools.lru_cache(abs)), "Holdscached.cached is a functools"),
]


@pytest.mark.parametrize(("cls", "said"), REFUSED, ids=[cls.__name__ for cls, _ in REFUSED])
def test_what_nobody_can_vouch_for_is_refused_and_named(cls, said):
    env = cls()
    env.reset(seed=0)
    env.step(np.ones(1, np.float32))
    with pytest.warns(UserWarning, match=rf"cannot be captured: {said}.*; a resumed run starts a new episode"):
        assert env_state(env) is None


class Constants(Base):
    """What cannot change, or is hidden by the instance's own, stands in no one's way."""

    count, NAMES, limits, table = 0, ["a", "b"], (1.0, 2.0), np.zeros(2)
    table.flags.writeable = False

    def begin(self, start):
        self.count = 0

    def go(self, push):
        self.count += 1

    def seen(self):
        return np.full(2, float(self.count))

    @property
    def half(self):
        return self.count / 2

    @staticmethod
    def name(suffix="a"):
        return suffix


def test_constants_of_a_class_are_no_state():
    env = Constants()
    env.reset(seed=0)
    trace(env, [0.0, 0.0])
    other = Constants()
    restore_env_state(other, env_state(env))
    assert other.count == 2


def test_another_function_is_another_environment():
    env, other = holds("call", lambda: lambda: 1.0)(), holds("call", lambda: lambda: 1.0 + 1.0j)()
    with pytest.raises(O2OCheckpointError, match=r"has the function .* at Holdscall\.call, which is missing here"):
        restore_env_state(other, env_state(env))


IN_ANOTHER_PROCESS = """
import sys, torch, gymnasium
from torchrl_o2o.data.conventions import AffineReward, FittedConvention, ObservationStats
from torchrl_o2o.envs.make import make_gym_env
from torchrl_o2o.envs.snapshot import env_state, restore_env_state
stats = ObservationStats(torch.tensor([0.5, 0.0, 1.0]), torch.tensor([2.0, 1.0, 3.0]))
env = FittedConvention(AffineReward(), stats).env(make_gym_env("Pendulum-v1", seed=int(sys.argv[1])))
env = gymnasium.wrappers.TransformReward(env, lambda reward: reward if reward in {-1.0, -2.0} else 2.0 * reward)
env = gymnasium.wrappers.TransformReward(env, lambda reward: reward if str(reward) in {"a", "b", "c"} else reward)
env.reset()
if sys.argv[1] == "0":
    torch.save(env_state(env), sys.argv[2])
else:
    restore_env_state(env, torch.load(sys.argv[2], weights_only=True))
print([env.step(env.action_space.low * 0.3)[:2] for _ in range(5)])
"""


def test_a_state_serves_another_process(tmp_path):
    """Names of functions hold there too, whatever the order of Python's hashes."""
    said = [
        subprocess.run(
            [sys.executable, "-c", IN_ANOTHER_PROCESS, seed, tmp_path / "state.pt"],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    ]
    assert said[0] == said[1]


def test_a_state_of_the_first_edition_is_refused():
    env = Views()
    state = env_state(env)
    del state["nodes"]
    with pytest.raises(O2OCheckpointError, match="older version"):
        restore_env_state(env, state)
