# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""examples/awr.py, sota-implementations/awr/awr.py: a few steps of both phases, exact resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.scripts.phases import PhasesContract, newest
from tests.scripts.running import compose, load_script
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.trainers.algorithms import check_awr

SHORT: dict[str, Any] = {
    "env": "Hopper-v5",
    "dataset": "o2o/hopper/linear-mix-v0",
    "offline_iterations": 1,
    "online_iterations": 1,
    "frames_per_iteration": 10,
    "critic_steps": 2,
    "actor_steps": 2,
    "batch_size": 16,
    "hidden_sizes": (8,),
    "eval_every": 1,
    "eval_episodes": 1,
}


def test_both_phases_run_and_the_width_stays(capsys: pytest.CaptureFixture[str]) -> None:
    script = load_script("examples/awr.py")
    loss = script.main(script.Config(**SHORT))
    assert all(value.isfinite().all() for value in loss.parameters())
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("iteration")]
    assert [line.split(":")[0] for line in lines] == ["iteration 0", "iteration 1"]
    widths = [value for name, value in loss.state_dict().items() if name.endswith("log_std")]
    assert [value.exp().mean().item() for value in widths] == pytest.approx([0.4])


class TestAWR(PhasesContract):
    script = "awr"
    words = ("value.hidden_sizes=[16]", "value_steps=2", "actor_steps=3", "frames_per_iteration=6", "batch_size=16")
    optims = ("actor", "value")

    def test_the_width_stays_and_both_regressions_move(self, tmp_path: Path) -> None:
        self.train(tmp_path, "actor_std=0.3")
        start, end = newest(tmp_path / "offline", "loss"), newest(tmp_path, "loss")
        widths = [value for name, value in end.items() if name.endswith("log_std")]
        assert [value.exp().mean().item() for value in widths] == pytest.approx([0.3])
        for network in ("actor_network_params", "value_network_params"):
            names = [name for name in end if name.startswith(network) and name.endswith("weight")]
            assert names
            assert not any(torch.equal(start[name], end[name]) for name in names)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("actor_steps=0", "actor_steps"),
        ("actor_std=-1", "half-widths"),
        ("compile=true", "SGD"),
        ("handover.data=top", "whole episodes"),
        ("+online.online_capacity=10", "in their order"),
    ],
)
def test_settings_that_do_not_fit(words: str, said: str) -> None:
    with pytest.raises(O2OSpecError, match=said):
        check_awr(compose("awr", words))


def test_published_settings() -> None:
    """Peng et al. 2019, and their code."""
    cfg = compose("awr")
    assert (cfg.value_steps, cfg.actor_steps, cfg.batch_size, cfg.frames_per_iteration) == (200, 1000, 256, 2048)
    assert (cfg.loss.temperature, cfg.loss.lmbda, cfg.loss.weight_clip, cfg.value_estimator.gamma) == (
        1.0,
        0.95,
        20,
        0.99,
    )
    assert (cfg.value_optim.lr, cfg.actor_optim.lr, cfg.actor_optim.momentum) == (1e-2, 5e-5, 0.9)
