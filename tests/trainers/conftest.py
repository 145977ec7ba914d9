# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import pytest
import torch

from tests.trainers.probe import ENV
from torchrl_o2o.data import Convention, make_local_dataset
from torchrl_o2o.testing import ContextualTargetEnv, probe_transitions
from torchrl_o2o.trainers.problem import Problem


@pytest.fixture(scope="module")
def linear_medium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """``o2o/halfcheetah/linear-medium-v0`` of 2000 steps, alone in Minari's folder."""
    root = tmp_path_factory.mktemp("minari")
    make_local_dataset("o2o/halfcheetah/linear-medium-v0", num_steps=2_000, root=root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(root))
        yield


@pytest.fixture
def problem(monkeypatch: pytest.MonkeyPatch) -> Problem:
    def make_probe(env_id: str, **_: Any) -> gymnasium.Env:
        assert env_id == ENV
        return gymnasium.wrappers.TimeLimit(ContextualTargetEnv(), 5)

    for module in ("trainers.problem", "deploy.policy"):
        monkeypatch.setattr(f"torchrl_o2o.{module}.make_gym_env", make_probe)
    data = probe_transitions(ContextualTargetEnv(), 500)
    data["episode"] = torch.arange(500)
    fitted = Convention(reward_shift=-1.0).fit(data)
    return Problem({"env_id": ENV}, fitted.data(data), fitted)
