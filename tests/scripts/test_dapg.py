# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""examples/dapg.py: a few iterations, and its steps against the authors' numbers in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from tests import golden_vectors as golden
from tests.scripts.running import load_script
from torchrl_o2o.functional import dapg_weights

CASES = ("dapg/update_A", "dapg/update_B")


def fill(policy: Any, tree: golden.Tree) -> None:
    golden.fill(policy.net, {key: value for key, value in tree.items() if key != "log_std"})
    policy.log_std.data.copy_(tree["log_std"])


def expected(policy: Any, tree: golden.Tree) -> Tensor:
    """Golden arrays in the order of the policy's parameters."""
    layers = [part for pair in golden.golden_layers(tree) for part in pair]
    return torch.cat([part.reshape(-1) for part in (tree["log_std"], *layers)])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("case", CASES)
def test_golden_updates(case: str) -> None:
    script, tree = load_script("examples/dapg.py"), golden.load(case)
    demos = TensorDict({name: tree[f"demo/{name}"] for name in ("observation", "action")}, [11])
    policy = script.Policy(demos["observation"], demos["action"], (16, 16))
    for name in ("in_shift", "in_scale", "out_shift", "out_scale"):
        getattr(policy, name).copy_(tree[f"transform/{name}"])
    fill(policy, golden.sub(tree, "policy"))
    assert next(iter(dict(policy.named_parameters()))) == "log_std"
    hp = {name: golden.hp(tree, name) for name in ("damping", "min_log_std", "lam_0", "lam_1")}
    cfg = script.Config(step_size=golden.hp(tree, "normalized_step_size"), **hp)
    for index in range(int(golden.hp(tree, "n_updates"))):
        step = golden.sub(tree, f"step{index}")
        rows = TensorDict({name: step[name] for name in ("observation", "action")}, [len(step["advantage"])])
        weights = dapg_weights(step["advantage"], len(demos), index, lam_0=cfg.lam_0, lam_1=cfg.lam_1)
        golden.assert_close(weights[0], step["out/weight_policy"], "weights of the policy's rows")
        golden.assert_close(weights[1], step["out/weight_demo"], "weights of the demonstrations")
        gradient = script.dapg_gradient(policy, rows, demos, weights)
        golden.assert_close(gradient, expected(policy, golden.sub(step, "out/dapg_gradient")), "gradient")
        iterations = int(golden.hp(tree, "cg_iters"))
        direction = script.natural_step(policy, rows["observation"], gradient, cfg, iterations)
        golden.assert_close(direction, expected(policy, golden.sub(step, "out/npg_direction")), "direction", 1e-6)
        size = (cfg.step_size / (gradient @ direction)).sqrt()
        golden.assert_close(size, step["out/step_size"], "step size", 1e-6)
        after = golden.sub(step, "out/policy_after")
        golden.assert_close(parameters_to_vector(policy.parameters()), expected(policy, after), "policy", 1e-6)
        fill(policy, after)  # each step starts from the stored parameters


def test_a_few_iterations(capsys: pytest.CaptureFixture[str]) -> None:
    script = load_script("examples/dapg.py")
    short = {"iterations": 1, "episodes_per_iteration": 1, "clone_epochs": 1, "num_demos": 1, "eval_every": 1}
    settings = {"env": "Hopper-v5", "dataset": "o2o/hopper/linear-mix-v0", "eval_episodes": 1, **short}
    policy = script.main(script.Config(**settings))
    assert all(value.isfinite().all() for value in policy.parameters())
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("iteration")]
    assert [line.split(":")[0] for line in lines] == ["iteration 0", "iteration 1"]
