# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import random
import sys

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torchrl.envs.utils import check_env_specs

from torchrl_o2o.envs.make import make_env, make_gym_env, seed_everything
from torchrl_o2o.envs.outputs import EnvFaultError
from torchrl_o2o.errors import O2OSpecError


class Probe(gymnasium.Env):
    """Reports the action that reached it; every observation entry is constant and tells its name."""

    def __init__(self, low=-1.0, high=1.0, size=2, observation=None, action=None, lifetime=1_000_000):
        entry = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.observation_space = entry if observation is None else observation
        self.action_space = spaces.Box(low, high, (size,), np.float32) if action is None else action
        self.lifetime = lifetime

    def _observe(self):
        if isinstance(self.observation_space, spaces.Dict):
            values = {"observation": 1.0, "achieved_goal": 2.0, "desired_goal": 3.0, "other": 4.0}
            return {key: np.full(box.shape, values[key]) for key, box in self.observation_space.spaces.items()}
        return np.full(2, 1.0 / 3.0)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.age = 0
        return self._observe(), {}

    def step(self, action):
        self.age += 1
        return self._observe(), float(np.sum(action)), self.age >= self.lifetime, False, {"action": np.array(action)}


def goal_space(*keys):
    return spaces.Dict({key: spaces.Box(-np.inf, np.inf, (1 + i,), np.float64) for i, key in enumerate(keys)})


@pytest.fixture
def probe():
    """Registers the probe for a test; its module is not on the allow-list, so a test names it."""
    gymnasium.register("o2otest/Probe-v0", entry_point=Probe, max_episode_steps=5)

    def build(**kwargs):
        return make_gym_env("o2otest/Probe-v0", env_kwargs=kwargs, allow_modules=(Probe.__module__,))

    yield build
    del gymnasium.registry["o2otest/Probe-v0"]


def test_observations_are_float32(probe):
    env = probe()
    observation, _ = env.reset()
    stepped = env.step(env.action_space.sample())[0]
    assert env.observation_space.dtype == observation.dtype == stepped.dtype == np.float32
    np.testing.assert_array_equal(observation, np.full(2, 1 / 3, np.float32))


@pytest.mark.parametrize(
    ("action", "executed"),
    [([-1.0, 1.0], [-3.0, 5.0]), ([0.0, 0.0], [1.0, 1.0]), ([0.5, -0.5], [3.0, -1.0]), ([9.0, -9.0], [5.0, -3.0])],
)
def test_actions_are_clipped_and_rescaled(probe, action, executed):
    env = probe(low=-3.0, high=5.0)
    assert env.action_space == spaces.Box(-1.0, 1.0, (2,), np.float32)
    env.reset()
    info = env.step(np.array(action, np.float32))[-1]
    np.testing.assert_allclose(info["action"], executed, rtol=1e-6)
    assert info["action"].dtype == np.float32


def test_actions_of_a_unit_box_pass_unchanged(probe):
    env = probe()
    env.reset()
    action = np.array([0.1, -0.7], np.float32)
    np.testing.assert_array_equal(env.step(action)[-1]["action"], action)


def test_a_float64_action_space_becomes_float32(probe):
    env = probe(action=spaces.Box(-2.0, 2.0, (2,), np.float64))
    assert env.action_space.dtype == np.float32


@pytest.mark.parametrize(
    ("space_keys", "keys", "expected"),
    [
        (("observation", "achieved_goal", "desired_goal"), None, [1, 2, 2, 3, 3, 3]),
        (("desired_goal", "observation"), None, [1, 1, 3]),  # stated order, not the space's
        (("observation", "desired_goal", "other"), None, [1, 3, 3]),
        (("observation", "other"), ("other", "observation"), [4, 4, 1]),
    ],
)
def test_goal_observations_are_concatenated_in_order(probe, space_keys, keys, expected):
    space = goal_space(*space_keys)
    env = make_gym_env(
        "o2otest/Probe-v0",
        observation_keys=keys,
        env_kwargs={"observation": space},
        allow_modules=(Probe.__module__,),
    )
    observation, _ = env.reset()
    assert observation.dtype == np.float32
    np.testing.assert_array_equal(observation, expected)
    assert observation in env.observation_space


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"low": -np.inf, "high": np.inf}, "finite bounds"),
        ({"low": -1.0, "high": np.inf}, "finite bounds"),
        ({"action": spaces.Discrete(3)}, "has discrete actions, Discrete\\(3\\); .*continuous actions only"),
        ({"action": spaces.Tuple([spaces.Discrete(3)])}, "expected a Box"),
        ({"action": spaces.Box(-1.0, 1.0, (2, 2))}, "one dimension. .* gymnasium.wrappers.TransformAction"),
        ({"observation": spaces.Discrete(3)}, "expected a Box of one dimension. .* gymnasium.wrappers.FlattenObserv"),
        ({"observation": spaces.Box(0, 255, (8, 8, 3), np.float32)}, "expected uint8 images"),
        ({"observation": spaces.Box(0, 255, (8, 8), np.uint8)}, "one dimension"),
        ({"observation": goal_space("other")}, "observes \\['other'\\], not .*desired_goal.*; pass observation_keys"),
        ({"observation": spaces.Dict({"observation": spaces.Discrete(2)})}, "observation\\['observation'\\]"),
    ],
)
def test_spaces_that_do_not_fit_are_refused(probe, kwargs, message):
    with pytest.raises(O2OSpecError, match=message):
        probe(**kwargs)


def test_observation_keys_that_do_not_fit_are_refused():
    with pytest.raises(O2OSpecError, match="leave them out"):
        make_gym_env("Pendulum-v1", observation_keys=("observation",))


def test_an_unknown_id_names_close_matches():
    with pytest.raises(O2OSpecError, match="HalfCheetah-v5"):
        make_gym_env("HalfCheetah5")
    with pytest.raises(O2OSpecError, match="o2o/PointMaze-Medium-v0"):
        make_gym_env("o2o/PointMaze-medium-v0")


def test_an_id_that_a_module_of_the_user_registers_has_to_name_it():
    with pytest.raises(O2OSpecError, match=r"name the module as well: 'my_module:MyArm-v0'"):
        make_gym_env("MyArm-v0")


def _needs_mujoco(**kwargs):
    raise gymnasium.error.DependencyNotInstalled("MuJoCo is not installed")


def test_a_missing_dependency_names_the_extra():
    gymnasium.register("o2otest/Needy-v0", entry_point=_needs_mujoco)
    try:
        with pytest.raises(O2OSpecError, match=r"MuJoCo is not installed.*torchrl_o2o\[mujoco\]"):
            make_gym_env("o2otest/Needy-v0", allow_modules=(_needs_mujoco.__module__,))
    finally:
        del gymnasium.registry["o2otest/Needy-v0"]


def test_without_the_robotics_package_an_unknown_id_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(O2OSpecError, match=r"torchrl_o2o\[robotics\]"):
        make_gym_env("NoSuchMaze-v1")


def test_code_from_elsewhere_is_refused(probe):
    with pytest.raises(O2OSpecError, match="allow_modules"):
        make_gym_env("o2otest/Probe-v0")
    gymnasium.register("o2otest/Shell-v0", entry_point="subprocess:getoutput", kwargs={"cmd": "true"})
    try:
        with pytest.raises(O2OSpecError, match="'subprocess'"):
            make_gym_env("o2otest/Shell-v0")
    finally:
        del gymnasium.registry["o2otest/Shell-v0"]


def test_a_wrapper_from_elsewhere_is_refused():
    spec = gymnasium.spec("Pendulum-v1")
    wrapper = gymnasium.envs.registration.WrapperSpec("Odd", "subprocess:Popen", {})
    gymnasium.register("o2otest/Wrapped-v0", entry_point=spec.entry_point, additional_wrappers=(wrapper,))
    try:
        with pytest.raises(O2OSpecError, match="'subprocess'"):
            make_gym_env("o2otest/Wrapped-v0")
    finally:
        del gymnasium.registry["o2otest/Wrapped-v0"]


def test_an_id_imports_only_allowed_modules(tmp_path, monkeypatch):
    (tmp_path / "o2o_probe_module.py").write_text(
        "import gymnasium\ngymnasium.register('FromModule-v0', 'gymnasium.envs.classic_control.pendulum:PendulumEnv')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(O2OSpecError, match="o2o_probe_module"):
        make_gym_env("o2o_probe_module:FromModule-v0")
    assert "o2o_probe_module" not in sys.modules
    env = make_gym_env("o2o_probe_module:FromModule-v0", allow_modules=("o2o_probe_module",))
    assert env.action_space.shape == (1,)
    del gymnasium.registry["FromModule-v0"], sys.modules["o2o_probe_module"]


def test_an_allowed_prefix_is_not_an_allowed_module():
    with pytest.raises(O2OSpecError, match="gymnasium_evil"):
        make_gym_env("gymnasium_evil:Env-v0")


def test_seeded_environments_repeat_themselves():
    def run(seed):
        env = make_gym_env("Pendulum-v1", seed=seed)
        first, _ = env.reset()
        steps = [env.step(env.action_space.sample())[0] for _ in range(5)]
        return np.stack([first, *steps])

    np.testing.assert_array_equal(run(3), run(3))
    assert np.abs(run(3) - run(4)).max() > 1e-3


def test_a_time_limit_truncates_and_an_ending_terminates(probe):
    def last(**kwargs):
        env = probe(**kwargs)
        env.reset()
        flags = [env.step(env.action_space.sample())[2:4] for _ in range(5 if "lifetime" not in kwargs else 3)]
        assert not any(any(pair) for pair in flags[:-1])
        return flags[-1]

    assert last() == (False, True)
    assert last(lifetime=3) == (True, False)


def test_max_episode_steps_replaces_the_registered_limit():
    env = make_gym_env("Pendulum-v1", max_episode_steps=7)
    env.reset()
    lengths = [env.step(env.action_space.sample())[3] for _ in range(7)]
    assert lengths == [False] * 6 + [True]


def test_make_env_follows_torchrl_and_ted():
    env = make_env("Pendulum-v1", seed=0, max_episode_steps=4)
    check_env_specs(env)
    rollout = env.rollout(10)
    assert rollout.shape == (4,)
    assert rollout["observation"].dtype == rollout["action"].dtype == rollout["next", "reward"].dtype == torch.float32
    assert rollout["next", "reward"].shape == (4, 1)
    assert rollout["next", "truncated"].squeeze(-1).tolist() == [False, False, False, True]
    assert not rollout["next", "terminated"].any()
    torch.testing.assert_close(rollout["next", "done"], rollout["next", "truncated"])
    torch.testing.assert_close(rollout["observation"][1:], rollout["next", "observation"][:-1])


def test_make_env_is_reproducible():
    def rollout():
        seed_everything(11)
        env = make_env("Pendulum-v1", seed=5)
        return torch.cat([env.rollout(3)["observation"], env.rollout(3)["observation"]])

    assert torch.equal(rollout(), rollout())


def test_a_terminal_state_is_not_a_truncation_in_torchrl():
    pytest.importorskip("mujoco")
    seed_everything(0)
    last = make_env("Hopper-v5", seed=0).rollout(1000)["next"][-1]  # a random hopper falls
    assert last["terminated"].item()
    assert not last["truncated"].item()
    assert last["done"].item()


def test_mujoco_observations_match_the_plain_environment():
    pytest.importorskip("mujoco")
    ours, plain = make_gym_env("HalfCheetah-v5"), gymnasium.make("HalfCheetah-v5")
    ours.reset(seed=0)
    plain.reset(seed=0)
    action = np.linspace(-0.9, 0.9, 6, dtype=np.float32)
    got, reward, *_ = ours.step(action)
    expected, expected_reward, *_ = plain.step(action)
    np.testing.assert_array_equal(got, expected.astype(np.float32))
    assert reward == expected_reward


def test_own_tasks_are_flat_sparse_and_end_at_the_goal():
    pytest.importorskip("gymnasium_robotics")
    env = make_gym_env("o2o/PointMaze-UMaze-v0", seed=0)
    observation, _ = env.reset(seed=1)
    maze = env.unwrapped
    assert observation.shape == (6,)
    assert env.spec.max_episode_steps == 300
    np.testing.assert_allclose(observation[-2:], maze.goal, rtol=1e-6)
    assert env.step(np.zeros(2, np.float32))[1:4] == (0.0, False, False)
    maze.goal = observation[:2].astype(np.float64)  # moves the goal under the ball
    _, reward, terminated, truncated, info = env.step(np.zeros(2, np.float32))
    assert (reward, terminated, truncated, info["success"]) == (1.0, True, False, True)


def test_own_tasks_take_further_arguments():
    pytest.importorskip("gymnasium_robotics")
    env = make_gym_env("o2o/PointMaze-UMaze-v0", max_episode_steps=2, env_kwargs={"reward_type": "dense"})
    env.reset(seed=0)
    assert 0.0 < env.step(np.zeros(2, np.float32))[1] < 1.0
    assert env.step(np.zeros(2, np.float32))[3]


def test_seed_everything_covers_the_three_libraries():
    def draw():
        seed_everything(123)
        return random.random(), np.random.rand(), torch.rand(()).item()

    assert draw() == draw()
    with pytest.raises(O2OSpecError, match="seed"):
        seed_everything(-1)


@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.uint8])
def test_whole_numbers_are_the_nearest(probe, dtype):
    env = probe(action=spaces.Box(0, 10, (2,), dtype))
    env.reset()
    got = [env.step(np.full(2, value, np.float32))[-1]["action"] for value in (-1.0, -0.5, 0.0, 0.72, 1.0, 3.0)]
    assert [action[0] for action in got] == [0, 2, 5, 9, 10, 10]
    assert {action.dtype for action in got} == {np.dtype(dtype)}
    with pytest.raises(O2OSpecError, match="got the action"):
        env.step(np.full(2, np.nan, np.float32))


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.int32])
def test_edges_of_integer_boxes_that_no_float_has_are_reached(probe, dtype):
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    env = probe(action=spaces.Box(low, high, (2,), dtype))
    env.reset()
    got = [env.step(np.full(2, value, np.float32))[-1]["action"] for value in (-1.0, 1.0, 0.5)]
    assert [action.tolist() for action in got[:2]] == [[low] * 2, [high] * 2]
    assert abs(int(got[2][0]) / (high // 4 * 3 + low // 4) - 1.0) < 1e-6
    assert {action.dtype for action in got} == {np.dtype(dtype)}


def test_a_dimension_with_one_value_keeps_it(probe):
    env = probe(action=spaces.Box(np.array([-1.0, 3.0], np.float32), np.array([1.0, 3.0], np.float32)))
    env.reset()
    for value in (-1.0, 0.3, 1.0):
        assert env.step(np.full(2, value, np.float32))[-1]["action"].tolist() == [np.float32(value), 3.0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rescaled_actions_stay_in_uneven_boxes(probe, dtype):
    rng = np.random.default_rng(0)
    for _ in range(100):
        low = rng.normal(size=2).astype(dtype)
        box = spaces.Box(low, (low + rng.exponential(size=2)).astype(dtype), dtype=dtype)
        env = probe(action=box)
        env.reset()
        ends = [env.step(np.full(2, value, np.float32))[-1]["action"] for value in (-1.0, 1.0, 0.0)]
        assert all(action in box for action in ends)
        np.testing.assert_allclose(ends[0], box.low, rtol=1e-15, atol=1e-15)
        np.testing.assert_allclose(ends[1], box.high, rtol=1e-15, atol=1e-15)
        np.testing.assert_allclose(ends[2], (box.low + box.high) / 2, rtol=1e-6, atol=1e-6)


def test_an_action_of_another_shape_is_refused_where_it_would_be_broadcast(probe):
    env = probe(action=spaces.Box(-2.0, 2.0, (2,), np.float32))
    env.reset()
    with pytest.raises(O2OSpecError, match=r"got an action of shape \[1\], expected \[2\]"):
        env.step(np.array([0.5], np.float32))


def test_observations_are_copies(probe):
    own = np.zeros(2, np.float32)
    env = probe(observation=spaces.Box(-np.inf, np.inf, (2,), np.float32))
    env.unwrapped._observe = lambda: own
    first = env.reset()[0]
    own += 1.0
    second = env.step(np.zeros(2, np.float32))[0]
    own += 1.0
    assert first.tolist() + second.tolist() == [0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("seed", [np.int64(7), np.uint8(7), np.array(7)])
def test_numpys_integers_are_seeds(seed):
    expected = make_gym_env("Pendulum-v1", seed=7).reset()[0]
    np.testing.assert_array_equal(make_gym_env("Pendulum-v1", seed=seed).reset()[0], expected)
    first = make_env("Pendulum-v1", seed=seed).reset()["observation"]
    assert torch.equal(first, make_env("Pendulum-v1", seed=7).reset()["observation"])
    seed_everything(seed)
    drawn = torch.rand(())
    seed_everything(7)
    assert torch.equal(drawn, torch.rand(()))


@pytest.mark.parametrize("seed", [1.0, "7", True, -1, np.array([7, 8])])
def test_other_seeds_are_refused(seed):
    for call in (seed_everything, lambda seed: make_gym_env("Pendulum-v1", seed=seed)):
        with pytest.raises(O2OSpecError, match="expected an integer"):
            call(seed)


def test_an_argument_that_an_environment_does_not_take_is_named() -> None:
    with pytest.raises(O2OSpecError, match=r"Pendulum-v1 does not take env_kwargs=\{'gravity': 9.8\}"):
        make_gym_env("Pendulum-v1", env_kwargs={"gravity": 9.8})
    with pytest.raises(O2OSpecError, match="max_episode_steps in env_kwargs, expected it as a separate argument"):
        make_gym_env("Pendulum-v1", env_kwargs={"max_episode_steps": 10})


@pytest.mark.parametrize("limit", [0, -1])
def test_a_time_limit_is_at_least_one_step(limit: int) -> None:
    """Gymnasium takes -1 for none, without which an evaluation never ends."""
    with pytest.raises(O2OSpecError, match=f"max_episode_steps={limit}, expected at least 1"):
        make_gym_env("Pendulum-v1", max_episode_steps=limit)


def test_a_seed_that_torch_cannot_take_is_named() -> None:
    with pytest.raises(O2OSpecError, match=r"below 2\*\*63"):
        make_gym_env("Pendulum-v1", seed=2**63)


def test_torchrls_collectors_get_nothing_that_is_not_finite() -> None:
    class Broken(gymnasium.Env):
        observation_space = action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

        def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple:
            return np.zeros(1, np.float32), {}

        def step(self, action: np.ndarray) -> tuple:
            return np.full(1, np.nan, np.float32), 0.0, False, False, {}

    gymnasium.register("Broken-v0", entry_point=Broken)
    env = make_env("Broken-v0", allow_modules=(__name__,))
    with pytest.raises(EnvFaultError, match="step returned an observation that is not finite"):
        env.rollout(2)
