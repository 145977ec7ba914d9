# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""benchmarks/memory.py: what became slower since the last run on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.scripts.running import load_script


def test_what_fell_by_more_than_a_tenth_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    memory, history = load_script("benchmarks/memory.py"), tmp_path / "history.jsonl"
    assert memory.remember("update", {"reference": 10.0, "ours": 2.0, "other": 5.0}, "reference", history) == []
    assert memory.remember("update", {"reference": 20.0, "ours": 4.2, "other": 10.0}, "reference", history) == []
    (line,) = memory.remember("update", {"reference": 10.0, "ours": 4.0, "other": 5.0}, "reference", history)
    assert line.startswith("ours is 2.50 times as fast as reference, and was 4.76 since ")
    assert f"slower: update: {line}" in capsys.readouterr().err
    rows = [json.loads(text) for text in history.read_text().splitlines()]
    assert rows[0]["ratios"] == {"ours": 5.0, "other": 2.0}
    assert rows[0]["machine"] == memory.machine()


def test_other_benchmarks_and_machines_are_not_compared(tmp_path: Path) -> None:
    memory, history = load_script("benchmarks/memory.py"), tmp_path / "history.jsonl"
    memory.remember("update", {"reference": 10.0, "ours": 1.0}, "reference", history)
    history.write_text(history.read_text().replace(json.dumps(memory.machine()), '"another"'))
    assert memory.remember("update", {"reference": 10.0, "ours": 9.0}, "reference", history) == []
    assert memory.remember("sampling", {"reference": 10.0, "ours": 9.0}, "reference", history) == []
