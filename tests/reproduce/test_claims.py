# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import pytest

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.reproduce import Comparison, find_claims, load_claim
from torchrl_o2o.scripts import script_config


@pytest.mark.parametrize("name", find_claims())
def test_every_runs_settings_compose(name: str) -> None:
    """Hydra accepts the overrides of all groups on all tasks."""
    pytest.importorskip("hydra")
    claim = load_claim(name)
    for job in claim.jobs():
        if job.seed != claim.seeds[0]:
            continue
        words = [*job.overrides, "seed=7", "run_dir=x", "resume=true", "num_threads=1"]
        config = script_config(job.script, words)
        assert (config.seed, config.run_dir, config.resume) == (7, "x", True)


@pytest.mark.parametrize("name", find_claims())
def test_runs_of_a_claim_are_all_different(name: str) -> None:
    claim = load_claim(name)
    jobs = list(claim.jobs())
    assert len(jobs) == len(claim.tasks) * len(claim.groups) * len(claim.seeds)
    assert len({job.key for job in jobs}) == len(jobs)
    assert len(claim.seeds) >= 5


def test_the_first_task_is_answered_first() -> None:
    claim = load_claim("rlpd-locomotion")
    tasks = [job.task for job in claim.jobs()]
    assert tasks == sorted(tasks, key=list(claim.tasks).index)
    assert [job.group for job in claim.jobs()][:3] == list(claim.groups)


def test_a_group_may_take_another_script() -> None:
    scripts = {job.group: (job.script, job.overrides[-1]) for job in load_claim("off2on-handover").jobs()}
    assert scripts["off2on"][0] == "off2on"
    assert scripts["cql-sac"] == ("cql", "learner=sac")


def test_unknown_names_are_input_errors(tmp_path) -> None:
    with pytest.raises(O2OSpecError, match="rlpd-layer-norm"):
        load_claim("rlpd-layernorm")
    path = tmp_path / "mine.yaml"
    path.write_text("paper: x")
    with pytest.raises(O2OSpecError, match="expected exactly"):
        load_claim(path)
    path.write_text("{")
    with pytest.raises(O2OSpecError, match="YAML"):
        load_claim(path)


OWN = """
paper: p
where: w
statement: s
metric: m
settings: s
seeds: [0, 1]
script: rlpd
overrides: ["a=b"]
tasks: {hopper: ["task=hopper"]}
groups: {one: ["x=1"], two: ["x=2"]}
comparisons: [{group: one, than: two, statistic: final, rule: more, margin: 1}]
"""


@pytest.mark.parametrize(
    ("line", "instead", "said"),
    [
        ('overrides: ["a=b"]', "overrides: a=b", r"overrides is 'a=b'; expected a list of overrides"),
        ('overrides: ["a=b"]', "overrides:", "overrides is None; expected a list of overrides"),
        ('overrides: ["a=b"]', "overrides: [{a: b}]", "expected a list of overrides"),
        ('tasks: {hopper: ["task=hopper"]}', "tasks: {hopper: task=hopper}", r"tasks\.hopper is 'task=hopper'"),
        ('"x=1"]', "5]", r"groups\.one is \[5\]"),
        ('two: ["x=2"]', "two: x=2", r"groups\.two is 'x=2'"),
        ("seeds: [0, 1]", "seeds: 5", r"seeds is 5; expected a list, such as \[0, 1"),
        ("seeds: [0, 1]", "seeds: [-1]", "expected an integer, not negative"),
        ("seeds: [0, 1]", "seeds: [a]", "expected an integer, not negative"),
        ('"x=2"', '"x=1"', r"the same run for one on hopper, seed 0 and two on hopper, seed 0, .*expected groups"),
        ("seeds: [0, 1]", "seeds: [3, 3]", "the same run for .*seed 3, .* each seed once"),
    ],
)
def test_a_claim_of_ones_own_is_refused_in_words(tmp_path, line: str, instead: str, said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(OWN)
    assert len(list(load_claim(path).jobs())) == 4
    path.write_text(OWN.replace(line, instead))
    with pytest.raises(O2OSpecError, match=said):
        load_claim(path)


def test_comparisons_are_checked() -> None:
    with pytest.raises(O2OSpecError, match="margin"):
        Comparison("a", None, "gain", "more", 0.0)
    with pytest.raises(O2OSpecError, match="statistic"):
        Comparison("a", None, "best", "more", 1.0)
