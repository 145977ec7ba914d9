# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""examples/odt.py, sota-implementations/odt/odt.py: a few steps of both phases, where transformers is installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.scripts.phases import assert_equal, dying, newest, rows
from tests.scripts.running import TASKS, compose, load_script, script_of
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.trainers.algorithms import make_odt

SHORT: dict[str, Any] = {
    "dataset": "o2o/hopper/linear-mix-v0",
    "offline_updates": 2,
    "rollouts": 1,
    "updates_per_rollout": 2,
    "batch_size": 4,
    "context": 5,
    "width": 16,
    "layers": 1,
    "eval_every": 1,
    "eval_episodes": 1,
}


SMALL = (
    *("task=hopper", "preset=cpu", "transformer.n_embd=16", "transformer.n_layer=1", "context=5"),
    *("offline.num_steps=4", "offline.batch_size=4", "online.total_frames=40", "online.batch_size=4"),
    *("updates_per_rollout=2", "evaluation.num_episodes=1", "schedule.eval_every=20", "schedule.log_every=1"),
    *("schedule.checkpoint_every=20", "+env.max_episode_steps=10"),
)


def test_both_phases_run(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    script = load_script("examples/odt.py")
    loss = script.main(script.Config(**SHORT))
    assert all(value.isfinite().all() for value in loss.parameters())
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("rollout")]
    assert [line.split(":")[0] for line in lines] == ["rollout 0", "rollout 1"]


@pytest.mark.skipif(find_spec("transformers") is not None, reason="transformers is installed")
def test_what_is_missing_is_named() -> None:
    script = load_script("examples/odt.py")
    with pytest.raises(O2OSpecError, match=r"torchrl_o2o\[odt\]"):
        script.main(script.Config(**SHORT))
    with pytest.raises(O2OSpecError, match=r"torchrl_o2o\[odt\]"):
        script_of("odt").train(compose("odt", *SMALL))


def test_compiling_is_refused() -> None:
    with pytest.raises(O2OSpecError, match=r"got compile=true, .* ODT"):
        make_odt(compose("odt", *SMALL, "compile=true"), (3, 2))


@pytest.mark.parametrize("stop", [4, 24])
def test_resumed_equals_uninterrupted(tmp_path: Path, stop: int) -> None:
    """At the end of the offline phase, and after a rollout."""
    pytest.importorskip("transformers")
    train = lambda folder, *words: script_of("odt").train(compose("odt", *SMALL, f"run_dir={folder}", *words))  # noqa: E731
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(whole)
    with dying("online", stop):
        train(parts)
    train(parts, "resume=true")
    for name in ("loss", "optim", "alpha_optim", "warmup", "replay", "rollouts"):
        assert_equal(newest(whole, name), newest(parts, name), name)
    assert torch.equal(newest(whole, "rng")["torch"], newest(parts, "rng")["torch"])
    assert rows(whole) == rows(parts)
    assert [row["step"] for row in rows(whole) if "evaluation/return" in row] == [-4, 0, 20, 40]


@pytest.mark.parametrize("bad", ["evaluation.video=a.gif", "evaluation.num_envs=2"])
def test_what_a_policy_with_a_memory_cannot_have_is_refused(bad: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(O2OSpecError, match="reads its past"):
        script_of("odt").train(compose("odt", *SMALL, f"run_dir={tmp_path}", bad))


def test_published_settings_and_every_task_composes() -> None:
    """Zheng et al. 2022, appendix."""
    cfg = compose("odt")
    assert (cfg.context, cfg.acting_context, cfg.capacity, cfg.updates_per_rollout) == (20, 5, 1000, 300)
    assert (cfg.transformer.n_embd, cfg.transformer.n_layer, cfg.offline.num_steps, cfg.warmup_updates) == (
        512,
        4,
        5000,
        10000,
    )
    assert all(compose("odt", f"task={task}").algorithm == "odt" for task in TASKS)
