# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""examples/{awac,iql,td3_bc,rebrac,spot,brac,bear}.py: a few steps of both phases, evaluated at the hand-over."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.scripts.running import load_script
from torchrl_o2o.data import load_offline

pytestmark = pytest.mark.filterwarnings("ignore:.*gamma.*")

# A data set that the fixtures of this folder have made.
SHORT: dict[str, Any] = {
    "env": "Hopper-v5",
    "dataset": "o2o/hopper/linear-mix-v0",
    "offline_steps": 10,
    "total_frames": 10,
    "batch_size": 16,
    "hidden_sizes": (8, 8),
    "eval_every": 10,
    "eval_episodes": 1,
}
EXAMPLES = {"awac": {}, "iql": {"reward_shift": -1.0}, "td3_bc": {}, "spot": {"vae_steps": 3}, "rebrac": {}}
EXAMPLES |= {"brac": {"clone_steps": 3, "warm_start": 5, "learn_alpha": True}, "bear": {"warm_start": 5}}


def run(name: str, **settings: Any) -> Any:
    script = load_script(f"examples/{name}.py")
    return script.main(script.Config(**{**SHORT, **EXAMPLES[name], **settings}))


@pytest.mark.parametrize("name", EXAMPLES)
def test_both_phases_run_and_are_evaluated(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    loss = run(name)
    assert all(value.isfinite().all() for value in loss.parameters())
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert [re.match(r"step (-?\d+): return -?\d+\.\d, ", line).group(1) for line in lines] == ["0", "10"]


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name != "rebrac"])  # which has a buffer for each phase
def test_online_transitions_join_the_data(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    script = load_script(f"examples/{name}.py")
    sizes: list[int] = []

    class Watched(script.TensorDictReplayBuffer):
        def sample(self, *args: Any, **kwargs: Any) -> Any:
            sizes.append(len(self))
            return super().sample(*args, **kwargs)

    monkeypatch.setattr(script, "TensorDictReplayBuffer", Watched)
    script.main(script.Config(**{**SHORT, **EXAMPLES[name]}))
    rows = len(load_offline(SHORT["dataset"]))
    sizes = sizes[-20:]
    assert sizes == [rows] * 10 + [rows + k for k in range(1, 11)]


@pytest.mark.parametrize("name", EXAMPLES)
def test_equal_seeds_give_equal_networks(name: str) -> None:
    first, second, other = (run(name, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(value.equal(second[key]) for key, value in first.items())
    assert not all(value.equal(other[key]) for key, value in first.items())


def test_spot_cools_to_its_floor() -> None:
    assert run("spot", density_weight=0.5, cooling_floor=0.3).density_weight.item() == pytest.approx(0.15)


def test_the_data_keep_their_rewards_shifted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """IQL's reward transform reaches offline and online rows alike, once."""
    script = load_script("examples/iql.py")
    seen: list[Any] = []

    class Watched(script.TensorDictReplayBuffer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            seen.append(self)

    monkeypatch.setattr(script, "TensorDictReplayBuffer", Watched)
    rewards = []
    for shift in (0.0, -1.0):
        script.main(script.Config(**{**SHORT, "reward_shift": shift, "expectile": 0.5, "lr": 0.0}))
        rewards.append(seen[-1][:]["next", "reward"])
    assert (rewards[1] - rewards[0]).sub(-1.0).abs().max() < 1e-5
