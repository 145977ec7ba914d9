# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""examples/aca.py and examples/cal_ql.py: offline, hand-over, online, for a few steps each."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.scripts.running import load_script

TINY: dict[str, Any] = {"batch_size": 16, "hidden_sizes": (8, 8), "eval_episodes": 1}


@pytest.mark.parametrize("align_critic", [True, False])
def test_aca(align_critic: bool, capsys: pytest.CaptureFixture[str]) -> None:
    script = load_script("examples/aca.py")
    cfg = script.Config(
        dataset="o2o/halfcheetah/linear-mix-v0",
        offline_steps=4,
        total_frames=24,
        horizon=0.02,
        num_top_episodes=1 if align_critic else 0,
        align_critic=align_critic,
        eval_every=24,
        **TINY,
    )
    loss = script.main(cfg)
    assert loss.interpolation == (0.5 if align_critic else 0.0), "k reached its floor, or never was"
    assert all(value.isfinite().all() for value in loss.parameters())
    steps = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if "return" in line]
    assert steps == [f"step {step}" for step in (0, 24)]


@pytest.mark.parametrize("calibrate", [True, False])
def test_cal_ql(calibrate: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    script = load_script("examples/cal_ql.py")
    batches: list[Any] = []
    original = script.update

    def spy(loss: Any, optim: Any, target_updater: Any, batch: Any) -> dict[str, float]:
        batches.append(batch.clone())
        return original(loss, optim, target_updater, batch)

    monkeypatch.setattr(script, "update", spy)
    monkeypatch.setattr(script, "make_gym_env", short_episodes(script.make_gym_env))
    cfg = script.Config(offline_steps=3, total_frames=25, num_actions=2, calibrate=calibrate, eval_every=25, **TINY)
    loss = script.main(cfg)
    assert loss.calibrate == calibrate
    assert len(batches) == 3 + 20, "one update per step of a finished trajectory, none for the unfinished one"
    online = batches[-1][1::2]
    assert (online["next", "reward"] == -5.0).all(), "the reward is transformed once"
    torch.testing.assert_close(online["mc_return"], torch.full_like(online["mc_return"], -500.0))
    assert "step 25: return" in capsys.readouterr().out


def short_episodes(make: Any) -> Any:
    import gymnasium

    return lambda env_id: gymnasium.wrappers.TimeLimit(make(env_id), 10)
