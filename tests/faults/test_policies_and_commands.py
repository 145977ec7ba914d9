# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Numbered cases of the second list: policies that are more than parameters (A7), settings that run code (C27).

B15, signals to `o2o train` and `o2o demo`, is in `tests/scripts/test_demo_and_train.py`; B16, settings of later
phases, in `tests/scripts/phases.py` for every script.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase

from torchrl_o2o.collectors import FastActor, StepCollector
from torchrl_o2o.commands.cli import main
from torchrl_o2o.data.conventions import FittedConvention
from torchrl_o2o.data.transforms import AffineReward, ObservationStats
from torchrl_o2o.deploy import load_policy, read_policy, save_policy
from torchrl_o2o.envs import make_gym_env
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import make_deterministic_actor
from torchrl_o2o.scripts import check_config_dirs
from torchrl_o2o.trainers import evaluate


def proportional_controller(stats: ObservationStats | None) -> TensorDictModuleBase:
    """A policy for Pendulum-v1 in [-1, 1] that swings the pole up and holds it, on standardized observations if asked.

    It is read from the torques -8 sin - 2 velocity near the top, and from energy pumping elsewhere, by regression.
    """
    rng = np.random.default_rng(0)
    angle, speed = rng.uniform(-np.pi, np.pi, 40_000), rng.uniform(-8.0, 8.0, 40_000)
    energy = speed**2 / 6.0 + 5.0 * (np.cos(angle) - 1.0)
    near = (np.cos(angle) > 0.85) & (np.abs(speed) < 3.0)
    torque = np.where(near, -10.0 * np.sin(angle) - 2.5 * speed, -3.0 * np.sign(speed) * np.clip(energy + 0.3, -1, 1))
    seen = torch.tensor(np.stack([np.cos(angle), np.sin(angle), speed], 1), dtype=torch.float32)
    if stats is not None:
        seen = (seen - stats.mean) / stats.scale
    target = torch.tensor(np.clip(torque / 2.0, -0.98, 0.98)[:, None], dtype=torch.float32)
    torch.manual_seed(0)
    actor = make_deterministic_actor(3, 1, hidden_sizes=(64, 64))
    optim = torch.optim.Adam(actor.parameters(), lr=3e-3)
    for _ in range(600):
        rows = torch.randint(len(seen), (512,))
        loss = (actor(TensorDict({"observation": seen[rows]}, [512]))["action"] - target[rows]).square().mean()
        optim.zero_grad()
        loss.backward()
        optim.step()
    return actor


def native_return(act: Callable[[np.ndarray], np.ndarray]) -> float:
    """Mean return on gymnasium's own Pendulum-v1, whose actions are in [-2, 2]."""
    env, totals = gymnasium.make("Pendulum-v1"), []
    for seed in range(10):
        observation, _ = env.reset(seed=seed)
        total, over = 0.0, False
        while not over:
            observation, reward, terminated, truncated, _ = env.step(act(observation))
            total, over = total + float(reward), terminated or truncated
        totals.append(total)
    return float(np.mean(totals))


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a policy that solves Pendulum-v1, trained on standardized observations and unit actions."""
    stats = ObservationStats(torch.tensor([0.3, 0.1, 0.5]), torch.tensor([0.4, 0.5, 2.5]))
    folder = tmp_path_factory.mktemp("pendulum")
    save_policy(
        folder,
        proportional_controller(stats),
        convention=FittedConvention(AffineReward(), stats),
        env={"env_id": "Pendulum-v1"},
    )
    return folder


def test_case_a07_native_units_by_default(pendulum: Path) -> None:
    """FastActor on an environment with actions in [-2, 2] scored -741 instead of -147."""
    assert native_return(FastActor(load_policy(pendulum))) > -250
    assert native_return(FastActor(load_policy(pendulum, native_actions=False))) < -600


def test_case_a07_evaluation_reads_what_the_run_read(pendulum: Path) -> None:
    """evaluate(actor, "Pendulum-v1") ignored the run's observation statistics: -1307 instead of -122."""
    native = evaluate(load_policy(pendulum), "Pendulum-v1", seed=0).returns
    assert native.mean() > -250
    unit = evaluate(load_policy(pendulum, native_actions=False), "Pendulum-v1", seed=0).returns
    np.testing.assert_allclose(unit, native, rtol=1e-3)
    for policy in (load_policy(pendulum), load_policy(pendulum, native_actions=False)):
        plain = evaluate(policy, lambda: gymnasium.make("Pendulum-v1"), seed=0).returns
        np.testing.assert_allclose(plain, native, rtol=1e-3)
    bare = read_policy(pendulum).parts.assemble()
    assert evaluate(bare, "Pendulum-v1", seed=0).returns.mean() < -1000, "the statistics matter"


def test_case_a07_boxes_that_do_not_fit_are_refused(pendulum: Path) -> None:
    unit, native = load_policy(pendulum, native_actions=False), load_policy(pendulum)
    with pytest.raises(O2OSpecError, match=r"acts in \[-1.0\]..\[1.0\], the environment takes \[-2.0\]..\[2.0\]"):
        StepCollector(gymnasium.make("Pendulum-v1"), unit, total_frames=1)
    with pytest.raises(O2OSpecError, match=r"acts in \[-2.0\]..\[2.0\], the environment takes \[-1.0\]..\[1.0\]"):
        StepCollector(make_gym_env("Pendulum-v1"), native, total_frames=1)
    assert StepCollector(make_gym_env("Pendulum-v1"), unit, total_frames=1).frames == 0


FOREIGN = {
    "callbacks": ("task/mine.yaml", "env: {}\nhydra: {callbacks: {x: {_target_: os.mkdir, name: was_here}}}"),
    "a quoted key": ("task/mine.yaml", '"\\x68ydra": {callbacks: {x: {_target_: os.mkdir}}}'),
    "a dotted key": ("task/mine.yaml", "hydra.callbacks: {x: {_target_: os.mkdir}}"),
    "a second document": ("task/mine.yaml", "env: {}\n---\nhydra: {}"),
    "the package": ("task/mine.yaml", "# @package hydra.callbacks.x\n_target_: os.mkdir"),
    "a default's package": ("task/mine.yaml", "defaults:\n  - /domain@hydra.callbacks.x: maze\n"),
    "a default": ("mine.yaml", "defaults:\n  - rlpd\n  - override hydra/launcher: joblib\n"),
    "a group of its own": ("hydra/callbacks/mine.yaml", "x: {_target_: os.mkdir}"),
    "not YAML": ("task/mine.yaml", "a: [1"),
}


@pytest.mark.parametrize(
    "form",
    [
        "--config-dir={}",
        "--config-dir {}",
        "-cd {}",
        "--config-path={}",
        "-cp {}",
        "--config-d {}",
        "hydra.searchpath=[file://{}]",
    ],
)
@pytest.mark.parametrize("name", ["callbacks", "a group of its own"])
def test_case_c27_folders_of_settings_are_looked_at(
    name: str, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, *FOREIGN[name])
    assert main(["train", "rlpd", *form.format(tmp_path).split(), "task=mine"]) == 2
    assert "configures Hydra itself (hydra" in capsys.readouterr().err


@pytest.mark.parametrize("name", FOREIGN)
def test_case_c27_settings_files_that_configure_hydra_are_refused(name: str, tmp_path: Path) -> None:
    """Through hydra.callbacks, a task file from elsewhere would run code."""
    write(tmp_path, *FOREIGN[name])
    with pytest.raises(O2OSpecError, match=r"configures Hydra itself|cannot be read as YAML"):
        check_config_dirs(["--config-dir", str(tmp_path)])


def test_case_c27_other_settings_files_are_taken(tmp_path: Path) -> None:
    write(tmp_path, "task/mine.yaml", "# @package _global_\n# for Hydra\nenv: {env_id: Hopper-v5}\ntask_name: mine\n")
    check_config_dirs(["--config-dir", str(tmp_path), "task=mine"])


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
