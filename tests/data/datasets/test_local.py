# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from tests.shared_data import shared_file
from torchrl_o2o.data import describe_offline, load_offline, make_local_dataset
from torchrl_o2o.data.datasets import local
from torchrl_o2o.data.datasets.local import _POLICIES, _fingerprint, teacher_groups
from torchrl_o2o.data.datasets.recipes import _LOCOMOTION, LOCAL_DATASETS, Recipe
from torchrl_o2o.errors import O2ODataError, O2OSpecError

minari = pytest.importorskip("minari")
pytest.importorskip("mujoco")


def digest(folder: Path) -> str:
    data = load_offline(folder, cache=False, min_episode_length=1)
    return hashlib.sha256(b"".join(value.numpy().tobytes() for value in data.flatten_keys().values())).hexdigest()


def test_a_real_minari_data_set(dataset_root: Path) -> None:
    folder = make_local_dataset("o2o/hopper/linear-mix-v0", num_steps=500, seed=3)
    assert folder == dataset_root / "o2o/hopper/linear-mix-v0"
    data = minari.load_dataset("o2o/hopper/linear-mix-v0")
    assert data.total_steps == 500
    assert list(minari.list_local_datasets()) == ["o2o/hopper/linear-mix-v0"]
    assert (data.env_spec.id, data.env_spec.max_episode_steps) == ("Hopper-v5", 1000)
    metadata = json.loads((folder / "data" / "metadata.json").read_text())
    assert (metadata["ref_min_score"], metadata["ref_max_score"]) == (16.67, 4098.17)
    assert (metadata["o2o"]["seed"], metadata["o2o"]["num_steps"]) == (3, 500)
    assert metadata["o2o"]["policy"].startswith("hopper_linear_f32.npz blake2b:")
    assert metadata["o2o"]["versions"]["gymnasium"] == gymnasium.__version__


def test_stored_transitions_are_the_environments(dataset_root: Path) -> None:
    """Replay the first stored episode's actions in a fresh environment."""
    make_local_dataset("o2o/hopper/linear-medium-v0", num_steps=300, seed=5)
    data = load_offline("o2o/hopper/linear-medium-v0", env="Hopper-v5")
    env = gymnasium.make("Hopper-v5").unwrapped
    env.reset(seed=5)
    observation, _ = env.reset()
    for row in data[data["episode"] == 0]:
        np.testing.assert_array_equal(row["observation"], observation.astype(np.float32))
        observation, reward, terminated, _, _ = env.step(row["action"].numpy())
        np.testing.assert_array_equal(row["next", "observation"], observation.astype(np.float32))
        assert row["next", "reward"].item() == pytest.approx(reward, rel=1e-6)
        assert row["next", "terminated"].item() == terminated
    assert terminated


def test_seeds_decide_the_values(tmp_path: Path) -> None:
    made = [
        digest(make_local_dataset("o2o/hopper/random-v0", num_steps=200, seed=seed, root=tmp_path / str(number)))
        for number, seed in enumerate((0, 0, 1))
    ]
    assert made[0] == made[1] != made[2]


def test_made_once_and_never_silently_otherwise(tmp_path: Path) -> None:
    folder = make_local_dataset("o2o/hopper/random-v0", num_steps=100, root=tmp_path)
    before = (folder / "data" / "main_data.hdf5").stat().st_mtime_ns
    assert make_local_dataset("o2o/hopper/random-v0", num_steps=100, root=tmp_path) == folder
    assert (folder / "data" / "main_data.hdf5").stat().st_mtime_ns == before
    with pytest.raises(O2ODataError, match=r"was made with {'seed': 0}, not {'seed': 1}; remove that folder"):
        make_local_dataset("o2o/hopper/random-v0", num_steps=100, seed=1, root=tmp_path)


def test_killed_while_making_leaves_nothing_and_the_next_call_redoes_it(tmp_path: Path) -> None:
    script = f"""
    import time
    from pathlib import Path
    import torchrl_o2o.data.datasets.local as local
    store = local._store
    def slow(*arguments):
        store(*arguments)
        print("stored", flush=True)
        time.sleep(60)
    local._store = slow
    local.make_local_dataset("o2o/hopper/random-v0", num_steps=100, root=Path({str(tmp_path)!r}))
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert "stored" in process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (tmp_path / "o2o/hopper/random-v0").exists()
    folder = make_local_dataset("o2o/hopper/random-v0", num_steps=100, root=tmp_path)
    assert [path.name for path in folder.parent.iterdir()] == ["random-v0"]
    assert len(load_offline(folder, cache=False, min_episode_length=1)) == 100


def test_load_offline_makes_what_is_absent(dataset_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gymnasium_robotics")
    calls = []
    original = make_local_dataset

    def short(name: str) -> Path:
        calls.append(name)
        return original(name, num_steps=600)

    monkeypatch.setattr("torchrl_o2o.data.datasets.sources.make_local_dataset", short)
    for _ in range(2):
        data = load_offline("o2o/pointmaze/umaze-play-v0", env="o2o/PointMaze-UMaze-v0")
    assert calls == ["o2o/pointmaze/umaze-play-v0"]
    assert data["observation"].shape[-1] == 6
    assert describe_offline("o2o/pointmaze/umaze-play-v0").env_id == "o2o/PointMaze-UMaze-v0"


def test_names_and_policies_that_do_not_go_together(tmp_path: Path, dataset_root: Path) -> None:
    with pytest.raises(O2ODataError, match="is not a local data set; expected one of o2o/hopper/linear-mix-v0"):
        make_local_dataset("o2o/hopper/linear-mx-v0")
    with pytest.raises(O2OSpecError, match=r"made from a given expert actor, Hopper-v5; pass policy= \(o2o data make"):
        load_offline("o2o/hopper/expert-v0")
    with pytest.raises(O2OSpecError, match=r"random-v0 takes no policy: it is made from uniform actions"):
        make_local_dataset("o2o/hopper/random-v0", policy=tmp_path)
    with pytest.raises(O2OSpecError, match="num_steps=0, seed=-1; expected at least 2 steps"):
        make_local_dataset("o2o/hopper/random-v0", num_steps=0, seed=-1)
    with pytest.raises(O2ODataError, match=r"cannot read the policy file .*absent"):
        make_local_dataset("o2o/hopper/expert-v0", policy=tmp_path / "absent.npz")


def test_any_function_may_act(tmp_path: Path) -> None:
    def forward(observation: np.ndarray) -> np.ndarray:
        return np.array([0.25, -0.5, 0.0])

    folder = make_local_dataset("o2o/hopper/medium-v0", num_steps=50, root=tmp_path, policy=forward)
    with pytest.warns(UserWarning, match="3 of 3 columns of action never change"):
        data = load_offline(folder, cache=False)
    assert torch.equal(data["action"].unique(dim=0), torch.tensor([[0.25, -0.5, 0.0]]))
    assert "forward" in describe_offline(folder).provenance["o2o"]["policy"]


def test_another_function_of_one_name_is_another_policy(tmp_path: Path) -> None:
    def constant(value: float) -> Callable[[np.ndarray], np.ndarray]:
        return lambda observation: np.full(3, value)

    class Stateful:
        def __call__(self, observation: np.ndarray) -> np.ndarray:
            return np.zeros(3)

    def make(policy: Any, root: str) -> Path:
        return make_local_dataset("o2o/hopper/medium-v0", num_steps=20, root=tmp_path / root, policy=policy)

    assert make(constant(0.25), "plain") == make(constant(0.25), "plain")
    with pytest.raises(O2ODataError, match=r"was made with \{'policy': .*remove that folder"):
        make(constant(0.5), "plain")
    make(Stateful(), "stateful")
    with pytest.raises(O2ODataError, match=r"whose code and values have no hash, function .*Stateful"):
        make(Stateful(), "stateful")


def test_medium_expert_is_half_and_half(tmp_path: Path) -> None:
    actors = shared_file("zoo_actors_f16.npz")
    folder = make_local_dataset("o2o/halfcheetah/medium-expert-v0", num_steps=2000, root=tmp_path, policy=actors)
    rewards = load_offline(folder, cache=False)["next", "reward"].reshape(2, 1000).sum(1)
    assert 7000 < rewards[0] < 10500 < rewards[1]


def test_adroit_experts_succeed_and_their_noisy_copies_less(tmp_path: Path) -> None:
    pytest.importorskip("gymnasium_robotics")
    actors = shared_file("adroit_dapg_actors_f32.npz")
    returns = {}
    for kind in ("expert", "cloned"):
        folder = make_local_dataset(f"o2o/adroit/door/{kind}-v0", num_steps=1000, root=tmp_path, policy=actors)
        returns[kind] = describe_offline(folder).returns
    assert returns["expert"].min > 1000
    assert returns["cloned"].mean < returns["expert"].mean
    assert returns["cloned"].min == pytest.approx(-20.0)


@pytest.mark.slow
def test_linear_mix_has_the_stated_quality(tmp_path: Path) -> None:
    start = time.process_time()
    info = describe_offline(make_local_dataset("o2o/halfcheetah/linear-mix-v0", root=tmp_path))
    assert time.process_time() - start < 30
    assert (info.transitions, info.episodes) == (100_000, 100)
    assert 1400 < info.returns.mean < 1800
    assert info.returns.max > 5000
    assert info.returns.min < 0


def test_levels_are_chosen_by_the_measured_returns(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    np.savez(path, **{"Hopper/returns": np.array([0.0, 150.0, 310.0, 900.0, 300.0])})
    groups = {
        kind: teacher_groups(path, Recipe("Hopper-v5", kind, 10, ("t.npz",)))
        for kind in ("teacher-medium", "teacher-replay", "teacher-medium-expert", "teacher-expert")
    }
    assert groups == {
        "teacher-medium": ["Hopper/02/"],
        "teacher-replay": ["Hopper/00/", "Hopper/01/", "Hopper/02/"],
        "teacher-medium-expert": ["Hopper/02/", "Hopper/03/"],
        "teacher-expert": ["Hopper/03/"],
    }


def test_the_packaged_teachers_are_small_and_recorded() -> None:
    path = _POLICIES / "teachers_f32.npz"
    assert path.stat().st_size <= 1_000_000
    record = json.loads((_POLICIES / "teachers.json").read_text())
    with np.load(path) as file:
        assert set(record) == {key.partition("/")[0] for key in file.files} == set(_LOCOMOTION)
        assert {file[key].dtype for key in file.files if "/w" in key} == {np.dtype(np.float32)}
        for env, entry in record.items():
            steps = [snapshot["step"] for snapshot in entry["snapshots"]]
            assert steps == file[f"{env}/steps"].tolist() == sorted(steps)
            np.testing.assert_allclose(
                [snapshot["with_noise"] for snapshot in entry["snapshots"]], file[f"{env}/returns"], atol=0.06
            )


def test_another_environments_teacher_does_not_change_what_a_data_set_was_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = LOCAL_DATASETS["o2o/hopper/medium-v1"]
    before = _fingerprint(None, recipe)
    monkeypatch.setattr(local, "_POLICIES", tmp_path)
    with np.load(_POLICIES / "teachers_f32.npz") as file:
        arrays = dict(file)
    for added, same in (({"Walker2d/00/w0": np.ones(3)}, True), ({"Hopper/00/b3": np.ones(3)}, False)):
        np.savez(tmp_path / "teachers_f32.npz", **(arrays | added))
        assert (_fingerprint(None, recipe) == before) is same


def test_a_teachers_data_have_the_recorded_quality(tmp_path: Path) -> None:
    """Half an episode budget each: the first episode is the medium snapshot's, the second the expert's."""
    folder = make_local_dataset("o2o/halfcheetah/medium-expert-v1", num_steps=2000, root=tmp_path)
    rewards = load_offline(folder, cache=False)["next", "reward"].reshape(2, 1000).sum(1).numpy()
    path = _POLICIES / "teachers_f32.npz"
    numbers = [
        int(group.split("/")[1]) for group in teacher_groups(path, LOCAL_DATASETS["o2o/halfcheetah/medium-expert-v1"])
    ]
    with np.load(path) as file:
        expected = file["HalfCheetah/returns"][numbers]
    np.testing.assert_allclose(rewards, expected, rtol=0.25)
    assert rewards[0] < rewards[1] / 2
    metadata = json.loads((folder / "data" / "metadata.json").read_text())
    assert metadata["o2o"]["policy"].startswith("teachers_f32.npz blake2b:")
    with pytest.raises(O2OSpecError, match="takes no policy"):
        make_local_dataset("o2o/halfcheetah/expert-v1", root=tmp_path, policy=path)
