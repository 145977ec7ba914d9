# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What a script starts with must pass its own checks."""

from __future__ import annotations

import pytest

from tests.scripts.running import ROOT, compose, script_of

STARTS = [
    (path.parent.parent.name, path.stem) for path in sorted((ROOT / "sota-implementations").glob("*/preset/*.yaml"))
]


@pytest.mark.parametrize(("name", "preset"), STARTS)
def test_a_script_accepts_its_own_presets(name: str, preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    script, begun = script_of(name), []
    monkeypatch.setattr(script, "train", begun.append)
    script.main(compose(name, f"preset={preset}"))
    assert len(begun) == 1, "no setting was refused"
