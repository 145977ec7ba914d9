# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torchrl.data import Bounded
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import ValueOperator

from torchrl_o2o.data.transforms import ObservationStats
from torchrl_o2o.deploy import save_policy
from torchrl_o2o.deploy.export import export_policy
from torchrl_o2o.errors import O2OCheckpointError, O2OSpecError
from torchrl_o2o.modules import make_actor, make_deterministic_actor, make_gaussian_actor

HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
BOX = Bounded(torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 0.5]), shape=(2,), dtype=torch.float32)
ACTORS = {
    "standard": lambda: make_actor(5, 2),
    "box": lambda: make_actor(5, BOX, unit_norm=True),
    "gaussian": lambda: make_gaussian_actor(5, BOX, mean="linear", dropout=0.5),
    "deterministic": lambda: make_deterministic_actor(5, BOX, dropout=0.5),
}


def expected(actor: TensorDictModuleBase, observation: torch.Tensor) -> torch.Tensor:
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        return actor.eval()(TensorDict({"observation": observation}, [len(observation)]))["action"]


@pytest.mark.parametrize("name", ACTORS)
def test_torch_export(name: str, tmp_path: Path) -> None:
    """For any batch size, in evaluation mode whatever the actor's, which stays."""
    torch.manual_seed(0)
    actor = ACTORS[name]().train()
    policy = torch.export.load(export_policy(actor, tmp_path / "policy.pt2")).module()
    assert actor.training
    for count in (1, 2, 7):
        observation = torch.randn(count, 5)
        torch.testing.assert_close(policy(observation), expected(actor, observation), rtol=0.0, atol=1e-6)


def test_runs_without_this_package(tmp_path: Path) -> None:
    torch.manual_seed(0)
    actor, observation = ACTORS["box"](), torch.randn(3, 5)
    stats = ObservationStats(torch.randn(5), torch.rand(5) + 0.5)
    export_policy(actor, tmp_path / "policy.pt2", stats=stats)
    torch.save(observation, tmp_path / "observation.pt")
    program = (
        "import sys, torch\n"
        "policy = torch.export.load('policy.pt2').module()\n"
        "torch.save(policy(torch.load('observation.pt')).detach(), 'action.pt')\n"
        "assert not any(name.split('.')[0] in ('torchrl_o2o', 'torchrl', 'tensordict') for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-I", "-c", program], cwd=tmp_path, check=True)
    action = torch.load(tmp_path / "action.pt")
    standardized = (observation - stats.mean) / stats.scale
    torch.testing.assert_close(action, expected(actor, standardized), rtol=0.0, atol=1e-6)


@pytest.mark.parametrize(
    ("actor_dtype", "stats_dtype"), [(torch.float32, torch.float64), (torch.float64, torch.float32)]
)
def test_statistics_of_another_type(actor_dtype: torch.dtype, stats_dtype: torch.dtype, tmp_path: Path) -> None:
    """Those of a data set in float64 ended in torch's error about two types of matrices."""
    torch.manual_seed(0)
    actor = make_actor(5, 2).to(actor_dtype)
    stats = ObservationStats(torch.randn(5, dtype=stats_dtype), torch.rand(5, dtype=stats_dtype) + 0.5)
    policy = torch.export.load(export_policy(actor, tmp_path / "policy.pt2", stats=stats)).module()
    observation = torch.randn(3, 5, dtype=actor_dtype)
    standardized = ((observation - stats.mean) / stats.scale).to(actor_dtype)
    torch.testing.assert_close(policy(observation), expected(actor, standardized), rtol=0.0, atol=1e-6)


@pytest.mark.skipif(not HAS_ONNX, reason="needs onnx, onnxscript and onnxruntime: pip install torchrl_o2o[onnx]")
@pytest.mark.parametrize("name", ACTORS)
def test_onnx(name: str, tmp_path: Path) -> None:
    import onnxruntime

    torch.manual_seed(0)
    actor = ACTORS[name]()
    stats = ObservationStats(torch.randn(5), torch.rand(5) + 0.5)
    session = onnxruntime.InferenceSession(export_policy(actor, tmp_path / "policy.onnx", format="onnx", stats=stats))
    for count in (1, 7):
        observation = torch.randn(count, 5)
        (action,) = session.run(["action"], {"observation": observation.numpy()})
        standardized = (observation - stats.mean) / stats.scale
        assert np.abs(action - expected(actor, standardized).numpy()).max() <= 1e-6


def test_onnx_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(O2OSpecError, match=r"needs onnx and onnxscript; .*pip install torchrl_o2o\[onnx\]"):
        export_policy(ACTORS["standard"](), tmp_path / "policy.onnx", format="onnx")


def test_a_policy_file_is_not_written_over(tmp_path: Path) -> None:
    """`o2o export RUN --out RUN/policy.pt` replaced the policy by its export."""
    actor = ACTORS["standard"]()
    run = save_policy(tmp_path, actor, action_box=([-1.0] * 2, [1.0] * 2))
    before = run.read_bytes()
    for format in ("torch_export", "onnx"):
        with pytest.raises(O2OSpecError, match=r"got policy.pt, expected another suffix than .pt"):
            export_policy(run, run, format=format)
    assert run.read_bytes() == before


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder.pt2").mkdir()
    with pytest.raises(O2OCheckpointError, match=r"cannot be written to .*folder.pt2 .*name a file in a writable"):
        export_policy(ACTORS["standard"](), tmp_path / "folder.pt2")
    file = export_policy(ACTORS["standard"](), tmp_path / "policy.pt2")
    before = file.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(O2OCheckpointError, match="No space left"):
        export_policy(ACTORS["standard"](), file)
    assert file.read_bytes() == before


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    value = ValueOperator(torch.nn.Linear(5, 1), in_keys=["observation"])
    with pytest.raises(O2OSpecError, match="expected an actor from make_actor"):
        export_policy(value, tmp_path / "policy.pt2")
    with pytest.raises(O2OSpecError, match="format='tflite'"):
        export_policy(ACTORS["standard"](), tmp_path / "policy", format="tflite")  # type: ignore[arg-type]
    with pytest.raises(O2OSpecError, match=r"policy.onnx for format='torch_export'.* or pass format='onnx'"):
        export_policy(ACTORS["standard"](), tmp_path / "policy.onnx")
    with pytest.raises(O2OSpecError, match=r"policy.pt2 for format='onnx'.* or pass format='torch_export'"):
        export_policy(ACTORS["standard"](), tmp_path / "policy.pt2", format="onnx")
    with pytest.raises(O2OSpecError, match=r"folder .*nowhere does not exist; make it first"):
        export_policy(ACTORS["standard"](), tmp_path / "nowhere" / "policy.pt2")
    with pytest.raises(O2OSpecError, match=r"statistics of the shapes \[1\] and \[1\], expected \[5\]"):
        export_policy(ACTORS["standard"](), tmp_path / "policy.pt2", stats=ObservationStats(*torch.ones(2, 1)))


def test_parameters_that_are_not_finite_are_not_exported(tmp_path: Path) -> None:
    """An exported program gave NaN to a robot, where `FastActor` raises."""
    actor = ACTORS["standard"]()
    next(iter(actor.parameters())).data[0] = float("nan")
    with pytest.raises(O2OSpecError, match=r"actor whose .*weight has NaN or infinite entries"):
        export_policy(actor, tmp_path / "policy.pt2")
    assert not list(tmp_path.iterdir())


def test_quantized_layers_are_not_exported(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch moves quantization to another package
        actor = torch.ao.quantization.quantize_dynamic(ACTORS["standard"](), {torch.nn.Linear})
    with pytest.raises(O2OSpecError, match=r"without parameters, .*export the actor first"):
        export_policy(actor, tmp_path / "policy.pt2")


def test_a_folder_is_no_name_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (".", "/", tmp_path):
        with pytest.raises(O2OCheckpointError, match=r"Is a directory.*name a file in a writable folder"):
            export_policy(ACTORS["standard"](), path)
