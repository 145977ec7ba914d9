# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from torchrl_o2o.errors import O2ODataError
from torchrl_o2o.reproduce import Claim, Comparison, Job, Result, read_results, write_results
from torchrl_o2o.reproduce.results import OUTCOME, collect
from torchrl_o2o.reproduce.running import missing_jobs, run_jobs

# Stands in for a training: writes a run's files, or fails if told so.
SCRIPT = """
import json, os, signal, sys
from pathlib import Path
words = dict(word.split("=", 1) for word in sys.argv[1:])
if words.get("x") == "bad":
    sys.exit("broken")
if words.get("x") == "stopped":
    sys.exit(143)  # as a script that saved itself after SIGTERM
if words.get("x") == "killed":
    os.kill(os.getpid(), signal.SIGTERM)
folder = Path(words["run_dir"])
(folder / "run.json").write_text(json.dumps({"config": {"seed": int(words["seed"])}, "commit": {"hash": "abc"}}))
(folder / "metrics.jsonl").write_text('{"step": 0, "m": 1.0}\\n{"step": 5, "m": ' + words["seed"] + '.5}\\n')
"""


def jobs(*overrides: str) -> list[Job]:
    return [Job("a", "t", seed, "rlpd", overrides) for seed in range(3)]


@pytest.fixture
def start(tmp_path: Path):
    script = tmp_path / "training.py"
    script.write_text(SCRIPT)
    started: list[list[str]] = []

    def begin(words, log):
        started.append(list(words[2:]))
        return subprocess.Popen([sys.executable, str(script), *words[2:]], stdout=log, stderr=subprocess.STDOUT)

    begin.started = started
    return begin


def claim() -> Claim:
    part = Comparison("a", None, "gain", "more", 1.0)
    return Claim("c", "p", "w", "s", "m", (0, 1, 2), "", "rlpd", (), {"t": ()}, {"a": ()}, (part,))


def test_finished_runs_are_not_repeated(tmp_path: Path, start) -> None:
    runs = tmp_path / "runs"
    ended = list(run_jobs(jobs(), runs, start=start, workers=2))
    assert sorted((job.seed, status) for job, status, _ in ended) == [(0, "finished"), (1, "finished"), (2, "finished")]
    assert str(ended[-1][2]).startswith("3 of 3 finished, about 0.0 h left")
    assert missing_jobs(jobs(), runs) == []
    assert {"resume=true", "num_threads=1"} < set(start.started[0])
    assert json.loads((runs / jobs()[0].key / OUTCOME).read_text())["status"] == "finished"


def test_one_failure_does_not_stop_the_others_and_is_tried_again(tmp_path: Path, start) -> None:
    mixed = [*jobs("x=bad")[:1], *jobs("x=good")]
    statuses = [status for _, status, _ in run_jobs(mixed, tmp_path, start=start)]
    assert sorted(statuses) == ["failed", "finished", "finished", "finished"]
    assert missing_jobs(mixed, tmp_path) == mixed[:1]
    assert "broken" in (tmp_path / mixed[0].key / "output.log").read_text()


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_a_run_that_a_signal_ended_is_stopped_and_has_not_failed(tmp_path: Path, start, how: str) -> None:
    one = jobs(f"x={how}")[:1]
    ((_, status, progress),) = run_jobs(one, tmp_path, start=start)
    assert (status, progress.failed) == ("stopped", 0)
    assert missing_jobs(one, tmp_path) == one


def test_nothing_starts_once_asked_to_stop(tmp_path: Path, start) -> None:
    assert list(run_jobs(jobs(), tmp_path, start=start, stopping=lambda: True)) == []
    assert start.started == []


def test_a_run_that_two_claims_share_is_done_once(tmp_path: Path) -> None:
    shared = [*jobs(), *(Job("other", "u", job.seed, job.script, job.overrides) for job in jobs())]
    assert missing_jobs(shared, tmp_path) == jobs()
    assert missing_jobs(shared, tmp_path, finished=[jobs()[1].key]) == [jobs()[0], jobs()[2]]


def test_results_come_from_folders_and_stay_when_those_are_gone(tmp_path: Path, start) -> None:
    list(run_jobs(jobs(), tmp_path / "runs", start=start))
    results = collect(claim(), tmp_path / "runs", [])
    assert [(run.seed, run.status, run.commit, run.scores[-1]) for run in results] == [
        (seed, "finished", "abc", seed + 0.5) for seed in range(3)
    ]
    write_results(tmp_path / "c.csv", results)
    kept = collect(claim(), tmp_path / "gone", read_results(tmp_path / "c.csv"))
    assert [run.scores.tolist() for run in kept] == [run.scores.tolist() for run in results]
    assert kept[0].command == "rlpd seed=0"


def test_a_finished_run_without_the_metric_counts_as_failed_and_stops_no_other(tmp_path: Path, start) -> None:
    list(run_jobs(jobs(), tmp_path, start=start))
    lacking = tmp_path / jobs()[1].key / "metrics.jsonl"
    text = lacking.read_text()
    lacking.write_text(text.replace('"m"', '"other"'))
    with pytest.warns(UserWarning, match=r"c: a finished run counts as failed, because .* has no metric 'm'"):
        results = collect(claim(), tmp_path, [])
    assert [run.status for run in results] == ["finished", "failed", "finished"]
    lacking.write_text(text)
    assert [run.status for run in collect(claim(), tmp_path, results)] == ["finished"] * 3, "once it is there"


def test_results_of_other_settings_do_not_count(tmp_path: Path) -> None:
    stale = Result("a", "t", 0, "rlpd-000", "finished", 1.0, "", "", "", np.zeros(1), np.zeros(1))
    assert collect(claim(), tmp_path, [stale]) == []


def test_another_claims_run_of_the_same_settings_counts(tmp_path: Path) -> None:
    own, other = (
        Result(name, name, 0, jobs()[0].key, status, 1.0, "", "", "", np.zeros(1), np.ones(1))
        for name, status in (("a", "failed"), ("other", "finished"))
    )
    for known in ([], [own]):
        (run,) = collect(claim(), tmp_path, known, shared=[other])
        assert (run.group, run.task, run.status, run.scores.tolist()) == ("a", "t", "finished", [1.0])
    failed = replace(other, status="failed")
    assert collect(claim(), tmp_path, [], shared=[failed]) == []


def test_nan_survives_the_file(tmp_path: Path) -> None:
    curve = (np.array([-5.0, 0.0, 1e6]), np.array([1.25, np.nan, -np.inf]))
    write_results(tmp_path / "c.csv", [Result("a", "t", 0, "k", "finished", 0.5, "x, y", "", 'a="b,c"', *curve)])
    (back,) = read_results(tmp_path / "c.csv")
    np.testing.assert_array_equal(back.steps, curve[0])
    np.testing.assert_array_equal(back.scores, curve[1])
    assert (back.machine, back.command) == ("x, y", 'a="b,c"')


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(O2ODataError, match=r"c\.csv with the columns"):
        read_results(path)
    write_results(path, [Result("a", "t", 0, "k", "finished", 0.5, "", "", "", np.zeros(1), np.zeros(1))])
    path.write_text(path.read_text().replace("0:0", "0;x"))
    with pytest.raises(O2ODataError, match="damaged row"):
        read_results(path)


def test_one_offline_phase_serves_all_groups(tmp_path: Path, start) -> None:
    groups = {"cold": ("x=cold",), "warm": ("x=warm",)}
    shared = replace(
        claim(), groups=groups, share_offline="warm", comparisons=(Comparison("warm", "cold", "gain", "more", 1.0),)
    )
    todo = list(shared.jobs())
    assert [job.group for job in todo[:2]] == ["warm", "cold"]
    assert {job.key for job in todo} == {job.key for job in replace(shared, share_offline=None).jobs()}, "same runs"
    statuses = [status for _, status, _ in run_jobs(todo, tmp_path, start=start, workers=4)]
    assert statuses == ["finished"] * 6
    for job in todo:
        (words,) = [words for words in start.started if f"run_dir={tmp_path / job.key}" in words]
        pretrained = [word for word in words if word.startswith("pretrained=")]
        assert pretrained == ([] if job.group == "warm" else [f"pretrained={tmp_path / job.offline_of / 'offline'}"])


def test_a_failed_offline_phase_is_not_started_from(tmp_path: Path, start) -> None:
    broken, other = Job("a", "t", 0, "rlpd", ("x=bad",)), Job("b", "t", 0, "rlpd", ("x=good",))
    other = replace(other, offline_of=broken.key)
    statuses = {job.group: status for job, status, _ in run_jobs([other, broken], tmp_path, start=start, workers=2)}
    assert statuses == {"a": "failed", "b": "finished"}
    assert not any("pretrained" in word for words in start.started for word in words)


def test_a_run_that_began_its_own_offline_phase_goes_on_with_it(tmp_path: Path, start) -> None:
    first = Job("a", "t", 0, "rlpd", ("x=good",))
    other = Job("b", "t", 0, "rlpd", ("x=better",), offline_of=first.key)
    (tmp_path / other.key / "offline").mkdir(parents=True)
    assert [status for _, status, _ in run_jobs([first, other], tmp_path, start=start)] == ["finished"] * 2
    assert not any("pretrained" in word for words in start.started for word in words)
