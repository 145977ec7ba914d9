# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""examples/odt.py: a few updates of both phases, where transformers is installed."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest

from tests.scripts.running import load_script
from torchrl_o2o.errors import O2OSpecError

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
