# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Cases 1 to 14: data that are broken, look broken, or do not fit; found before the first gradient step."""

from __future__ import annotations

import multiprocessing
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import torchrl_o2o.data.datasets.cache as cache
from torchrl_o2o.data import BalancedSampler, audit, check_offline, load_offline, offline_online_storage
from torchrl_o2o.errors import O2ODataError
from torchrl_o2o.modules import make_actor

PROCESSES = multiprocessing.get_context("forkserver")
Arrays = dict[str, Any]


def arrays(steps: int = 40, length: int = 10, observations: int = 3, actions: int = 1) -> Arrays:
    """Flat arrays as in D4RL: every other episode ends in a terminal state, the others by a time limit."""
    rng = np.random.default_rng(0)
    observation = rng.standard_normal((steps + 1, observations)).astype(np.float32)
    last = np.arange(steps) % length == length - 1
    odd = np.arange(steps) // length % 2 == 1
    return {
        "observations": observation[:-1].copy(),
        "next_observations": observation[1:].copy(),
        "actions": rng.uniform(-1, 1, (steps, actions)).astype(np.float32),
        "rewards": rng.standard_normal(steps).astype(np.float32),
        "terminals": last & odd,
        "timeouts": last & ~odd,
    }


def load(source: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_offline(source, **options)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["observations", "actions", "rewards"])
def test_case_01_values_that_are_not_finite(name: str, value: float) -> None:
    source = arrays()
    source[name][23] = value
    with pytest.raises(
        O2ODataError, match=rf"1 transitions have a NaN or infinite .*{name[:-1]}, first at episode 2, step 3"
    ):
        load(source)
    with pytest.warns(UserWarning, match="1 transitions have a NaN or infinite"):
        data = load_offline(source, on_bad="drop")
    assert len(data) == 39
    assert all(data[key].isfinite().all() for key in ("observation", "action", ("next", "reward")))
    assert data["next", "truncated"][22].item(), "the episode ends before the gap"


def test_case_02_rewards_that_say_nothing_or_are_huge() -> None:
    source = arrays()
    source["rewards"][:] = 3.0
    with pytest.warns(UserWarning, match="every reward is 3"):
        load_offline(source)
    source["rewards"][7] = 2e6
    with pytest.warns(UserWarning, match=r"1 rewards are beyond 1e\+06 in size, first at episode 0, step 7"):
        load_offline(source)


def test_case_03_actions_outside_the_box() -> None:
    source = arrays()
    source["actions"][[12, 30]] = [[1.4], [-2.0]]
    with pytest.raises(O2ODataError, match=r"2 actions are outside the box \[-1, 1\], first at episode 1, step 2"):
        load(source)
    with pytest.warns(UserWarning, match=r"2 actions were outside .*policy: clip"):
        clipped = load_offline(source, actions="clip")["action"]
    with pytest.warns(UserWarning, match="policy: rescale"):
        rescaled = load_offline(source, actions="rescale")["action"]
    assert (clipped[12], clipped[30]) == (1.0, -1.0)
    torch.testing.assert_close(rescaled[12], torch.tensor([0.7]))
    actor = make_actor(3, 1)
    with torch.no_grad():
        log_prob = actor.get_dist(load(source, actions="clip").select("observation")).log_prob(clipped)
    assert log_prob.isfinite().all(), "actions on the faces of the box have a density"


def test_case_04_actions_of_another_environment() -> None:
    with pytest.raises(O2ODataError, match=r"action has the shape \[2\], Pendulum-v1's \[1\]"):
        load(arrays(actions=2), env="Pendulum-v1")
    report = audit(load(arrays()), env="Pendulum-v1", action_low=-2.0, action_high=2.0, on_bad="report")
    assert "action_bounds" in report.codes


def test_case_05_observations_of_another_environment() -> None:
    with pytest.raises(O2ODataError, match=r"observation has the shape \[5\], Pendulum-v1's \[3\]"):
        load(arrays(observations=5), env="Pendulum-v1")
    source = arrays()
    del source["observations"]
    with pytest.raises(O2ODataError, match=r"has no observations; it holds \['actions', 'next_observations'"):
        load(source)


def test_case_06_other_types_are_cast_once() -> None:
    source = {
        name: values.astype(np.float64) if values.dtype == np.float32 else values for name, values in arrays().items()
    }
    source["rewards"] = np.arange(40)  # integers
    data = load(source)
    assert {data[key].dtype for key in ("observation", "action", ("next", "reward"))} == {torch.float32}
    storage = offline_online_storage(data.exclude("episode"), 10)
    index, _ = BalancedSampler(len(data), 1.0).sample(storage, 8)
    assert storage.get(index)["observation"].dtype == torch.float32
    images = arrays()
    for name in ("observations", "next_observations"):
        images[name] = np.random.default_rng(0).integers(0, 255, (40, 4, 4, 3), dtype=np.uint8)
    assert load(images)["observation"].dtype == torch.uint8


def test_case_07_as_many_observations_as_actions() -> None:
    observations = np.arange(1.0, 7.0)[:, None] * np.ones(2)
    episode = {"observations": observations, "actions": np.zeros((6, 1)), "rewards": np.arange(6.0)}
    with pytest.warns(UserWarning, match="1 transitions have no next observation"):
        data = load_offline([episode])
    assert data["next", "observation"][:, 0].tolist() == [2, 3, 4, 5, 6]
    assert data["next", "truncated"].squeeze(-1).tolist() == [False] * 4 + [True]


def test_case_08_no_timeouts(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "maze.hdf5"
    with h5py.File(path, "w") as file:
        for name, values in arrays().items():
            if name not in ("timeouts", "next_observations"):
                file[name] = values
    with pytest.raises(O2ODataError, match=r"has no timeouts.*Pass max_episode_steps"):
        load(path)
    data = load(path, max_episode_steps=10)
    assert not data["next", "terminated"][:10].any()
    assert torch.bincount(data["episode"]).max() <= 10


def test_case_09_terminal_and_timeout_in_one_row() -> None:
    source = arrays()
    source["timeouts"] = source["timeouts"] | source["terminals"]
    data = load(source)
    assert data["next", "terminated"].nonzero()[:, 0].tolist() == [19, 39]
    assert data["next", "truncated"].nonzero()[:, 0].tolist() == [9, 29]


def test_case_10_unfinished_last_episode() -> None:
    source = {name: values[:34] for name, values in arrays().items()}
    data = load(source)
    assert len(data) == 34
    assert data["next", "truncated"][33].item()
    assert not data["next", "terminated"][33].item()


def test_case_11_nothing_or_hardly_anything() -> None:
    with pytest.raises(O2ODataError, match=r"no |empty"):
        load({name: values[:0] for name, values in arrays().items()})
    short = arrays(steps=23)
    short["timeouts"][[20, 21, 22]] = True  # three episodes of one step
    with pytest.warns(UserWarning, match="3 episodes .*skipped|3 .*short"):
        data = load_offline(short)
    assert len(data) == 20


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty"])
@pytest.mark.parametrize("suffix", [".hdf5", ".npz"])
def test_case_12_damaged_files(tmp_path: Path, suffix: str, damage: str) -> None:
    h5py = pytest.importorskip("h5py")
    path = tmp_path / f"data{suffix}"
    if suffix == ".npz":
        np.savez(path, **arrays())
    else:
        with h5py.File(path, "w") as file:
            for name, values in arrays().items():
                file[name] = values
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[: len(whole) // 2], "garbage": whole[::-1], "empty": b""}[damage])
    began = time.perf_counter()
    with pytest.raises(O2ODataError, match=rf"data\{suffix} is (damaged|not)"):
        load(path, cache_dir=tmp_path / "cache")
    assert time.perf_counter() - began < 1.0
    path.write_bytes(whole)
    assert len(load(path, cache_dir=tmp_path / "cache")) == 40, "nothing bad was kept"


def convert_and_die(folder: Path) -> None:
    def die(path: Path, content: bytes) -> None:
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)

    cache.write_durably = die  # all but the manifest is written
    half = cache.RawDataset(load(arrays(steps=20)), cache.SourceMeta("half"))
    cache.cached(folder / "cache", [folder / "source.json"], {}, lambda: half)


def test_case_13_killed_while_converting(tmp_path: Path) -> None:
    (tmp_path / "source.json").write_text("{}")
    process = PROCESSES.Process(target=convert_and_die, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -9
    assert [path.name.startswith(".") for path in (tmp_path / "cache").iterdir()] == [True], "no entry, only a stage"
    whole = cache.RawDataset(load(arrays()), cache.SourceMeta("whole"))
    again = cache.cached(tmp_path / "cache", [tmp_path / "source.json"], {}, lambda: whole)
    assert len(again.data) == 40
    assert not [path for path in (tmp_path / "cache").iterdir() if path.name.startswith(".")], "the stage is swept"


def test_case_14_columns_that_look_empty() -> None:
    source = arrays()
    source["observations"][:, 1] = source["next_observations"][:, 1] = 0.0
    with pytest.warns(
        UserWarning, match=r"1 of 3 columns of observation never change \(all zero, looks empty\): \[1\]"
    ):
        load_offline(source)
    zeros = {name: np.zeros_like(values) for name, values in arrays().items()} | {"timeouts": arrays()["timeouts"]}
    report = check_offline(zeros)
    assert {"constant_columns", "constant_reward"} <= set(report.codes)
