# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import subprocess
import sys

import pytest

from torchrl_o2o.commands import reproduce
from torchrl_o2o.commands.cli import main


@pytest.mark.skipif(sys.platform == "win32", reason="Windows reports a reader that left in another way")
def test_a_reader_that_leaves_early_ends_a_command_without_a_message() -> None:
    command = [sys.executable, "-m", "torchrl_o2o.commands.cli", "reproduce", "list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()  # as `| head -0` does
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_another_broken_pipe_is_reported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(arguments: object) -> int:
        raise BrokenPipeError("the environment's process has ended")

    monkeypatch.setattr(reproduce, "_list", broken)
    assert main(["reproduce", "list"]) == 2
    assert "the environment's process has ended" in capsys.readouterr().err
