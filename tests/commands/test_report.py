# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import argparse
import os
import subprocess
import sys

import pytest

from torchrl_o2o.commands.report import register
from torchrl_o2o.errors import O2ODataError
from torchrl_o2o.record.recorder import Recorder


def run_report(*words):
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers())
    arguments = parser.parse_args(["report", *map(str, words)])
    return arguments.run(arguments)


def write_runs(folder):
    for seed in (0, 1):
        config = {"algorithm": "rlpd", "out": f"runs/{seed}"}
        with Recorder(folder / str(seed), config=config, seed=seed) as recorder:
            for step, score in ((0, 10.0), (100, 20.0 + seed)):
                recorder.log(step, {"evaluation/return": score, "evaluation/success": 1.0})


def test_report_prints_and_writes(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    write_runs(tmp_path / "runs")
    out = tmp_path / "out"
    assert run_report(tmp_path / "runs", "--out", out, "--ignore", "out") == 0
    printed = capsys.readouterr().out
    assert "| rlpd | 2 | 100 | 20.5 [20, 21] |" in printed
    assert str(out / "report.md") in printed
    assert sorted(path.name for path in out.iterdir()) == ["curves.png", "report.html", "report.md"]


def test_the_metric_can_be_chosen(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    write_runs(tmp_path / "runs")
    run_report(tmp_path / "runs", "--out", tmp_path, "--ignore", "out", "--metric", "evaluation/success")
    assert "# evaluation/success" in capsys.readouterr().out


def test_a_folder_without_runs_is_an_input_error(tmp_path):
    with pytest.raises(O2ODataError, match="without a run"):
        run_report(tmp_path, "--out", tmp_path)


def test_a_terminal_that_lacks_a_letter_gets_its_code(tmp_path):
    pytest.importorskip("matplotlib")
    write_runs(tmp_path / "läufe")
    command = [sys.executable, "-m", "torchrl_o2o.commands.cli", "report", str(tmp_path / "läufe"), "--ignore", "out"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "blätter")], env=environment, capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert b"bl\\xe4tter" in done.stdout


def test_registering_imports_nothing_heavy():
    code = (
        "import sys, torchrl_o2o.commands.report\n"
        "heavy = {'torch', 'numpy', 'gymnasium', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
