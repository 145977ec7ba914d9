# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import numpy as np
import pytest

from torchrl_o2o.commands.cli import main
from torchrl_o2o.reproduce import Result, find_claims, load_claim, write_results


def folders(tmp_path):
    return ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]


def test_list_names_every_claim(tmp_path, capsys):
    assert main(["reproduce", "list", *folders(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in find_claims())
    assert not list(tmp_path.iterdir())


def test_show_writes_the_page_and_the_figure(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    claim = load_claim("rlpd-sparse")
    curve = np.array([0.0, 100.0])
    results = [
        Result(job.group, job.task, job.seed, job.key, "finished", 0.5, "", "", "", curve, curve / 100 * ahead)
        for job in claim.jobs()
        for ahead in [1.0 if job.group == "rlpd" else 0.1]
    ]
    write_results(tmp_path / "results" / "rlpd-sparse.csv", results)
    words = ["--figures", str(tmp_path), "--page", str(tmp_path / "results.md")]
    assert main(["reproduce", "show", "rlpd-sparse", *words, *folders(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "## rlpd-sparse: holds" in printed
    two = 2 * len(claim.seeds)
    assert f"| rlpd - sacfd | final | 0.9 [0.9, 0.9] | > 0, >= 0.1 | {two} of {two} | holds |" in printed
    assert (tmp_path / "rlpd-sparse.png").read_bytes()[1:4] == b"PNG"
    page = (tmp_path / "results.md").read_text()
    runs = len(results)
    assert f"| [rlpd-sparse](#rlpd-sparse-holds) | holds | {runs} of {runs} | {runs / 2:.2f} |" in page
    assert "![Learning curves of rlpd-sparse](rlpd-sparse.png)" in page


def test_parts_divide_the_missing_runs(tmp_path, capsys):
    lines = []
    for part in (["--part", "1/2"], ["--part", "2/2"], []):
        main(["reproduce", "run", "rlpd-sparse", "--dry-run", *part, *folders(tmp_path)])
        lines.append(capsys.readouterr().out.splitlines())
    assert sorted(lines[0] + lines[1]) == sorted(lines[2])
    assert len(lines[2]) == len(list(load_claim("rlpd-sparse").jobs()))
    assert min(map(len, lines)) > 0


def test_a_run_that_another_claim_finished_is_not_missing(tmp_path, capsys):
    symmetric, locomotion = load_claim("rlpd-symmetric"), load_claim("rlpd-locomotion")
    keys = {job.key for job in symmetric.jobs()}
    finished = [
        Result(job.group, job.task, job.seed, job.key, "finished", 0.5, "", "", "", np.zeros(1), np.zeros(1))
        for job in locomotion.jobs()
    ]
    shared = {result.key for result in finished} & keys
    assert shared
    write_results(tmp_path / "results" / "rlpd-locomotion.csv", finished)
    main(["reproduce", "run", "rlpd-symmetric", "--dry-run", *folders(tmp_path)])
    assert len(capsys.readouterr().out.splitlines()) == len(keys - shared)


def test_wrong_input_is_told(tmp_path, capsys):
    assert main(["reproduce", "run", "rlpd-sparse", "--part", "3/2", "--dry-run", *folders(tmp_path)]) == 2
    assert main(["reproduce", "show", "nothing", *folders(tmp_path)]) == 2
    printed = capsys.readouterr().err
    assert "expected K/N" in printed
    assert "got the unknown claim 'nothing'" in printed
