# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import json
import subprocess
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.wrappers import FlattenObservation, NormalizeObservation
from torchrl.envs import GymWrapper

from torchrl_o2o.data import check_offline, load_offline
from torchrl_o2o.data.datasets.columns import ReadOptions
from torchrl_o2o.data.datasets.minari import check_dataset_id, read_minari
from torchrl_o2o.envs import make_gym_env
from torchrl_o2o.errors import O2ODataError, O2OSpecError

minari = pytest.importorskip("minari")
h5py = pytest.importorskip("h5py")

BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)
VECTOR = spaces.Box(-np.inf, np.inf, (3,), np.float64)


def write(
    root: Path,
    name: str,
    observations: Sequence[Any],
    *,
    space: spaces.Space = VECTOR,
    box: spaces.Box = BOX,
    spec: EnvSpec | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write a Minari data set with Minari itself; odd episodes end by a time limit, even ones in a terminal state."""
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    (root / name).mkdir(parents=True)
    storage = MinariStorage.new(root / name / "data", space, box, spec)
    storage.update_metadata({"dataset_id": name, "minari_version": minari.__version__, **(extra or {})})
    rng = np.random.default_rng(1)
    buffers = []
    for number, episode in enumerate(observations):
        steps = len(next(iter(episode.values())) if isinstance(episode, dict) else episode) - 1
        last = np.arange(steps) == steps - 1
        buffers.append(
            EpisodeBuffer(
                id=number,
                observations=episode,
                actions=rng.uniform(box.low, box.high, (steps, 2)).astype(np.float32),
                rewards=rng.standard_normal(steps),
                terminations=last & (number % 2 == 0),
                truncations=last & (number % 2 == 1),
            )
        )
    storage.update_episodes(buffers)
    return root / name


def vectors(*lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((length + 1, 3)) for length in lengths]


def test_round_trip_against_minaris_own_reader(dataset_root: Path) -> None:
    write(dataset_root, "toy/walk-v0", vectors(4, 7, 2))
    data = load_offline("toy/walk-v0")
    row = 0
    for number, episode in enumerate(minari.load_dataset("toy/walk-v0").iterate_episodes()):
        part = data[row : row + len(episode.rewards)]
        np.testing.assert_array_equal(part["observation"], episode.observations[:-1].astype(np.float32))
        np.testing.assert_array_equal(part["next", "observation"], episode.observations[1:].astype(np.float32))
        np.testing.assert_array_equal(part["action"], episode.actions)
        np.testing.assert_array_equal(part["next", "reward"][:, 0], episode.rewards.astype(np.float32))
        np.testing.assert_array_equal(part["next", "terminated"][:, 0], episode.terminations)
        np.testing.assert_array_equal(part["next", "truncated"][:, 0], episode.truncations)
        assert part["episode"].tolist() == [number] * len(part)
        row += len(part)
    assert row == len(data) == 13


def test_goal_observations_are_joined_in_the_stated_order(dataset_root: Path) -> None:
    space = spaces.Dict(dict.fromkeys(("achieved_goal", "desired_goal", "observation"), VECTOR))
    episode = {key: np.full((4, 3), value) for key, value in zip(sorted(space), (2.0, 3.0, 1.0))}
    for name, env_id, expected in (
        ("toy/goal-v0", "AntMaze_UMaze-v5", [1, 1, 1, 2, 2, 2, 3, 3, 3]),
        ("toy/maze-v0", "PointMaze_UMaze-v3", [1, 1, 1, 3, 3, 3]),
    ):
        folder = write(dataset_root, name, [episode], space=space, spec=EnvSpec(env_id, entry_point="x:Y"))
        raw = read_minari(folder, ReadOptions(min_episode_length=1))
        assert raw.data["observation"][0].tolist() == expected
        assert raw.meta.env_id == env_id
    chosen = read_minari(folder, ReadOptions(obs_keys=("desired_goal", "observation"), min_episode_length=1))
    assert chosen.data["next", "observation"][0].tolist() == [3, 3, 3, 1, 1, 1]
    with pytest.raises(
        O2ODataError, match=r"observes \['achieved_goal', 'desired_goal', 'observation'\], not \['pixels'"
    ):
        read_minari(folder, ReadOptions(obs_keys=("pixels",), min_episode_length=1))


def test_nested_observations_are_joined_in_alphabetical_order(dataset_root: Path) -> None:
    space = spaces.Dict({"observation": VECTOR, "achieved_goal": spaces.Dict({"a": VECTOR, "b": VECTOR})})
    episode = {
        "observation": np.full((3, 3), 1.0),
        "achieved_goal": {"b": np.full((3, 3), 3.0), "a": np.full((3, 3), 2.0)},
    }
    folder = write(dataset_root, "toy/kitchen-v0", [episode], space=space)
    data = read_minari(folder, ReadOptions(min_episode_length=1)).data
    assert data["observation"][0].tolist() == [1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_images_are_decoded_and_stay_bytes(dataset_root: Path) -> None:
    space = spaces.Box(0, 255, (16, 16, 3), np.uint8)
    images = np.repeat(np.arange(4, dtype=np.uint8)[:, None, None, None] * 60, 16 * 16 * 3).reshape(4, 16, 16, 3)
    folder = write(dataset_root, "toy/pixels-v0", [images], space=space)
    data = read_minari(folder, ReadOptions(min_episode_length=1)).data
    np.testing.assert_array_equal(data["next", "observation"], images[1:])  # flat colors survive JPEG


def test_actions_of_another_box_are_mapped(dataset_root: Path) -> None:
    box = spaces.Box(np.array([-0.4, 0.0], np.float32), np.array([0.4, 3.0], np.float32))
    folder = write(dataset_root, "toy/box-v0", vectors(50), box=box)
    stored = read_minari(folder, ReadOptions(min_episode_length=1)).data["action"]
    action = load_offline(folder)["action"]
    np.testing.assert_allclose(action[:, 0], stored[:, 0] / 0.4, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(action[:, 1], stored[:, 1] / 1.5 - 1, rtol=1e-5, atol=1e-6)
    assert action.abs().max() <= 1


def test_as_many_observations_as_actions(dataset_root: Path) -> None:
    """Minari's issue 199: the final observation is missing."""
    folder = write(dataset_root, "toy/short-v0", vectors(4, 5))
    with h5py.File(folder / "data" / "main_data.hdf5", "r+") as file:
        shortened = file["episode_1/observations"][:-1]
        del file["episode_1/observations"]
        file["episode_1/observations"] = shortened
    with pytest.warns(UserWarning, match="1 transitions have no next observation"):
        data = load_offline("toy/short-v0")
    assert len(data) == 4 + 4
    np.testing.assert_array_equal(data["next", "observation"][-1], shortened[-1].astype(np.float32))


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "no episode"])
def test_damaged_data_files_are_named(dataset_root: Path, damage: str) -> None:
    path = write(dataset_root, "toy/damaged-v0", vectors(4, 5)) / "data" / "main_data.hdf5"
    content = path.read_bytes()
    if damage == "no episode":
        with h5py.File(path, "r+") as file:
            del file["episode_1"]
    else:
        path.write_bytes({"truncated": content[: len(content) // 2], "garbage": b"x" * 999, "empty": b""}[damage])
    with pytest.raises(O2ODataError, match=rf"{path} is damaged.*download or record\s+it again"):
        load_offline("toy/damaged-v0")
    path.write_bytes(content)
    assert len(load_offline("toy/damaged-v0")) == 9  # the failure left nothing in the cache


def test_damaged_metadata(dataset_root: Path) -> None:
    path = write(dataset_root, "toy/meta-v0", vectors(4)) / "data" / "metadata.json"
    metadata = json.loads(path.read_text())
    for content, message in (
        ("{", "is damaged"),
        ("[]", "is damaged"),
        (json.dumps({**metadata, "data_format": "arrow"}), "in the form 'arrow'; only 'hdf5' is read"),
        (json.dumps({**metadata, "action_space": '{"type": "Discrete", "n": 3}'}), "expected a Box of one dimension"),
    ):
        path.write_text(content)
        with pytest.raises(O2ODataError, match=message):
            load_offline("toy/meta-v0")
    path.unlink()
    with pytest.raises(O2ODataError, match=r"metadata\.json is missing"):
        load_offline("toy/meta-v0")


@pytest.mark.parametrize("name", ["main_data.hdf5", "metadata.json"])
@pytest.mark.filterwarnings("ignore:toy")
def test_random_damage_is_found_or_harmless(dataset_root: Path, name: str) -> None:
    """150 damaged copies: each loads or raises the one error; no crash, no endless allocation."""
    path = write(dataset_root, "toy/fuzz-v0", vectors(4, 5)) / "data" / name
    content, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for number in range(150):
        damaged = bytearray(content[: rng.integers(len(content))] if number % 3 == 0 else content)
        for place in rng.integers(0, max(len(damaged), 1), 10 * (len(damaged) > 0)):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            load_offline("toy/fuzz-v0", cache=False)
        except O2ODataError:
            refused += 1
    assert refused > 75


def test_the_environment_in_the_metadata_is_never_built(dataset_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = EnvSpec("Evil-v0", entry_point="subprocess:getoutput", kwargs={"cmd": "touch /tmp/never"})
    write(dataset_root, "toy/evil-v0", vectors(4), spec=spec)
    monkeypatch.setattr(subprocess, "getoutput", lambda cmd: pytest.fail("ran code named in the metadata"))
    assert len(load_offline("toy/evil-v0")) == 4


@pytest.mark.parametrize("good", ["D4RL/door/human-v2", "mujoco/ant/expert-v0", "x-v12", "a_b.c/d-v1"])
def test_good_ids(good: str) -> None:
    assert check_dataset_id(good) == good


@pytest.mark.parametrize(
    "bad",
    [
        "../outside/x-v0", "a/../../x-v0", "/etc/x-v0", "a//x-v0", "a/..b/x-v0", "a/.hidden/x-v0", "./x-v0", "x", "x-v",
        "x-v0\n", "x-v0/", "a b-v0", "hf://org/x-v0", "~/x-v0", "a\\b-v0", "", "x-v0\x00",
    ],
)  # fmt: skip
def test_bad_ids(bad: str, dataset_root: Path) -> None:
    with pytest.raises(O2ODataError, match="is not a data set id"):
        load_offline(bad)


def test_metadata_become_the_description(dataset_root: Path) -> None:
    extra = {"ref_min_score": 1.5, "ref_max_score": 9.0, "algorithm_name": "walking"}
    spec = EnvSpec("Toy-v3", entry_point="x:Y", max_episode_steps=77)
    folder = write(dataset_root, "toy/meta-v0", vectors(4), spec=spec, extra=extra)
    meta = read_minari(folder, ReadOptions(min_episode_length=1)).meta
    assert (meta.id, meta.env_id, meta.max_episode_steps) == ("toy/meta-v0", "Toy-v3", 77)
    assert (meta.action_low, meta.action_high) == ((-1.0, -1.0), (1.0, 1.0))
    assert (meta.ref_min_score, meta.ref_max_score) == (1.5, 9.0)
    assert meta.provenance["algorithm_name"] == "walking"


@pytest.mark.filterwarnings("ignore:toy/limits-v0")
def test_what_the_loader_says_of_flags_can_be_said_to_it(dataset_root: Path) -> None:
    """All terminal states are at the time limit: the error asks what they are, and takes the answer."""
    spec = EnvSpec("Pendulum-v1", entry_point="none:None", max_episode_steps=4)
    write(dataset_root, "toy/limits-v0", vectors(4) * 5, spec=spec)
    path = dataset_root / "toy/limits-v0/data/main_data.hdf5"
    with h5py.File(path, "a") as file:
        for number in range(5):
            flags = np.arange(4) == 3
            file[f"episode_{number}/terminations"][:], file[f"episode_{number}/truncations"][:] = flags, ~flags & False
    with pytest.raises(O2ODataError, match=r"look like time limits stored as terminals. Pass names"):
        load_offline("toy/limits-v0")
    ends = []
    for role in ("terminals", "timeouts"):
        data = load_offline("toy/limits-v0", names={"terminations": role})
        ends.append([int(data["next", key].sum()) for key in ("terminated", "truncated")])
    assert ends == [[5, 0], [0, 5]]


def test_metadata_that_count_too_many_and_a_file_in_the_place_of_its_folder(dataset_root: Path) -> None:
    folder = write(dataset_root, "toy/many-v0", vectors(4, 4)) / "data"
    with pytest.raises(O2ODataError, match="is part of a Minari data set; expected its folder"):
        load_offline(folder / "main_data.hdf5")
    metadata = json.loads((folder / "metadata.json").read_text())
    (folder / "metadata.json").write_text(json.dumps({**metadata, "total_episodes": 9}))
    with pytest.raises(O2ODataError, match="is damaged: it holds 2 episodes and its metadata speak of 9"):
        load_offline("toy/many-v0")


@pytest.mark.parametrize(
    ("recorded", "evaluated", "said"),
    [
        (EnvSpec("Pendulum-v1", entry_point="none:None"), None, None),
        (EnvSpec("Pendulum-v1", entry_point="none:None", kwargs={"render_mode": "rgb_array"}), None, None),
        (EnvSpec("Pendulum-v1", entry_point="none:None", kwargs={"g": 9.81}), None, "in Pendulum-v1 with g=9.81, and"),
        (EnvSpec("Other-v1", entry_point="none:None"), None, "in Other-v1, and the environment is Pendulum-v1:"),
        (EnvSpec("Other-v1", entry_point="none:None"), EnvSpec("Pendulum-v1", entry_point="none:None"), None),
    ],
)
def test_the_environment_is_the_one_that_was_recorded(
    dataset_root: Path, recorded: EnvSpec, evaluated: EnvSpec | None, said: str | None
) -> None:
    """Mazes of one name have equal shapes; arguments and wrappers change rewards and ends."""
    extra = {} if evaluated is None else {"eval_env_spec": evaluated.to_json()}
    box = spaces.Box(-1.0, 1.0, (2,), np.float32)
    write(dataset_root, "toy/spec-v0", vectors(4, 4), spec=recorded, box=box, extra=extra)
    codes = [finding.message for finding in check_offline("toy/spec-v0", env="Pendulum-v1").findings]
    found = [message for message in codes if "were recorded in" in message]
    assert [said is not None and said in message for message in found] == [True] * (said is not None)


def test_wrappers_that_changed_what_was_recorded_are_named(dataset_root: Path) -> None:
    env = NormalizeObservation(gymnasium.make("Pendulum-v1"))
    write(dataset_root, "toy/wrapped-v0", vectors(4, 4), spec=env.spec)
    with pytest.warns(UserWarning, match="in Pendulum-v1 with the wrapper NormalizeObservation, and the"):
        load_offline("toy/wrapped-v0", env=OneMore(gymnasium.make("Pendulum-v1")))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_offline("toy/wrapped-v0", env=OneMore(env))
    assert not any("were recorded in" in str(each.message) for each in caught)


class OneMore(gymnasium.Wrapper):
    """An environment of two actions, as the toy sets have, in [-1, 1]."""

    action_space = BOX


class Goals(gymnasium.Env):
    """A place, a goal and what is reached, each of two numbers."""

    observation_space = spaces.Dict(dict.fromkeys(("a", "desired_goal", "observation"), spaces.Box(-9, 9, (2,))))
    action_space = BOX


gymnasium.register("Goals-v0", entry_point=Goals)


def test_entries_are_joined_as_the_environment_joins_them(dataset_root: Path) -> None:
    """Goals, and what was achieved of them, are equally wide: only their names tell them apart."""
    parts = [{key: np.random.rand(5, 2).astype(np.float32) for key in Goals.observation_space} for _ in range(2)]
    write(dataset_root, "toy/goals-v0", parts, space=Goals.observation_space)
    order = ("observation", "desired_goal")
    envs = {
        order: make_gym_env("Goals-v0", allow_modules=[__name__]),
        order[::-1]: make_gym_env("Goals-v0", allow_modules=[__name__], observation_keys=order[::-1]),
        ("a", *order[::-1]): FlattenObservation(gymnasium.make("Goals-v0")),
    }
    for joined, env in envs.items():
        assert len(load_offline("toy/goals-v0", env=env, obs_keys=joined)) == 8
        for other in (("observation", "a"), ("desired_goal", "a"), ("a", *order)):
            if len(other) == len(joined):
                with pytest.raises(O2ODataError, match="the data's observation joins"):
                    load_offline("toy/goals-v0", env=env, obs_keys=other)
    with pytest.raises(O2ODataError, match=r"joins \['observation', 'desired_goal'\], and Goals-v0's \['desired_goal'"):
        load_offline("toy/goals-v0", env=envs[order[::-1]])
    torchrl = GymWrapper(envs[order[::-1]])
    with pytest.raises(O2ODataError, match="the data's observation joins"):
        load_offline("toy/goals-v0", env=torchrl)


@pytest.mark.parametrize("name", ["observations", "actions", "rewards", "terminations", "truncations"])
def test_a_missing_array_and_wrong_options_are_no_damage(dataset_root: Path, name: str) -> None:
    path = write(dataset_root, "toy/lacks-v0", vectors(4, 4)) / "data" / "main_data.hdf5"
    with pytest.raises(O2OSpecError, match=r"^got names={'terminals': 'success'}, expected each to be one of"):
        load_offline("toy/lacks-v0", names={"terminals": "success"})
    with h5py.File(path, "a") as file:
        del file["episode_1"][name]
    with pytest.raises(O2ODataError, match=f"main_data.hdf5: /episode_1 has no {name}; it holds"):
        load_offline("toy/lacks-v0")
