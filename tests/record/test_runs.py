# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from torchrl_o2o.errors import O2OCheckpointError, O2ODataError, O2OSpecError
from torchrl_o2o.record.recorder import Recorder
from torchrl_o2o.record.runs import find_runs, group_runs, load_run

METRIC = "evaluation/return"


def write_run(folder, *, seed=0, points=((0, 1.0), (100, 2.0)), **config):
    with Recorder(folder, config=config, seed=seed) as recorder:
        for step, score in points:
            recorder.log(step, {METRIC: score, "evaluation/length": 10.0})
            recorder.log(step, {"train/loss_qvalue": 0.5})
    return folder


def rename_script(folder, command):
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"command": command}))


def groups_of(tmp_path, **kwargs):
    return group_runs([load_run(folder) for folder in find_runs([tmp_path])], **kwargs)


def test_a_run_is_its_evaluations(tmp_path):
    write_run(tmp_path, seed=3, points=((-10, 1.0), (0, 2.0), (5, 3.0)), task="Hopper-v5", loss={"gamma": 0.9})
    run = load_run(tmp_path)
    assert (run.seed, run.task, dict(run.config)) == (3, "Hopper-v5", {"task": "Hopper-v5", "loss.gamma": 0.9})
    np.testing.assert_array_equal(run.steps, [-10, 0, 5])
    np.testing.assert_array_equal(run.scores, [1.0, 2.0, 3.0])


def test_of_equal_steps_the_last_row_counts(tmp_path):
    write_run(tmp_path, points=((0, 1.0), (0, 4.0), (9, 2.0)))
    np.testing.assert_array_equal(load_run(tmp_path).scores, [4.0, 2.0])


def test_a_torn_last_line_is_left_out_with_a_warning(tmp_path):
    write_run(tmp_path)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 200, "evaluation/ret')
    with pytest.warns(UserWarning, match="middle of a line"):
        run = load_run(tmp_path)
    np.testing.assert_array_equal(run.steps, [0, 100])


def test_a_damaged_line_elsewhere_is_an_error(tmp_path):
    write_run(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "evalu\n{"step": 1}\n')
    with pytest.raises(O2OCheckpointError, match="line 1"):
        load_run(tmp_path)


def test_a_missing_metric_names_those_that_are_there(tmp_path):
    write_run(tmp_path)
    with pytest.raises(O2ODataError, match=r"it has evaluation/length, evaluation/return"):
        load_run(tmp_path, "evaluation/success")


def test_a_run_without_evaluations_or_seed_is_refused(tmp_path):
    write_run(tmp_path / "empty", points=())
    with pytest.raises(O2ODataError, match="no evaluations"):
        load_run(tmp_path / "empty")
    Recorder(tmp_path / "unseeded", config={}).close()
    with pytest.raises(O2ODataError, match="seed"):
        load_run(tmp_path / "unseeded")


def test_find_runs_looks_below_and_refuses_empty_folders(tmp_path):
    for name in ("b", "a/x"):
        write_run(tmp_path / name)
    assert find_runs([tmp_path, tmp_path / "b"]) == [tmp_path / "a/x", tmp_path / "b"]
    assert find_runs([tmp_path / "b"]) == [tmp_path / "b"]
    (tmp_path / "c").mkdir()
    with pytest.raises(O2ODataError, match="without a run"):
        find_runs([tmp_path / "c"])


def test_groups_differ_in_more_than_the_seed(tmp_path):
    for seed in (2, 0, 1):
        write_run(tmp_path / f"a{seed}", seed=seed, algorithm="rlpd", loss={"gamma": 0.9}, points=((0, seed), (1, 5.0)))
        write_run(tmp_path / f"b{seed}", seed=seed, algorithm="rlpd", loss={"gamma": 0.99})
        write_run(tmp_path / f"c{seed}", seed=seed, algorithm="awac")
    groups = groups_of(tmp_path)
    assert [group.label for group in groups] == ["rlpd loss.gamma=0.9", "rlpd loss.gamma=0.99", "awac"]
    assert [run.seed for run in groups[0].runs] == [0, 1, 2]
    np.testing.assert_array_equal(groups[0].scores, [[0.0, 5.0], [1.0, 5.0], [2.0, 5.0]])


def test_labels_tell_apart_within_a_task_only(tmp_path):
    write_run(tmp_path / "a", algorithm="rlpd", task="door", steps=10)
    write_run(tmp_path / "b", algorithm="rlpd", task="pen", steps=20)
    assert [(group.task, group.label) for group in groups_of(tmp_path)] == [("door", "rlpd"), ("pen", "rlpd")]


def test_without_an_algorithm_the_script_names_the_group(tmp_path):
    for name in ("rlpd", "awac"):
        rename_script(write_run(tmp_path / name, gamma=0.9), f"'examples/with space/{name}.py' gamma=0.9 seed=0")
    assert [group.label for group in groups_of(tmp_path)] == ["awac", "rlpd"]


def test_ignored_entries_do_not_split(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / str(seed), seed=seed, algorithm="rlpd", log={"dir": f"somewhere/{seed}"})
    assert len(groups_of(tmp_path)) == 2
    (group,) = groups_of(tmp_path, ignore=("log.dir",))
    assert (group.label, len(group.runs)) == ("rlpd", 2)


def test_the_same_seed_twice_is_refused(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / name, algorithm="rlpd")
    with pytest.raises(O2ODataError, match="seed 0; leave one out"):
        groups_of(tmp_path)


def test_runs_are_cut_to_their_common_steps(tmp_path):
    write_run(tmp_path / "a", seed=0, points=((0, 1.0), (50, 7.0), (100, 2.0), (200, 3.0)))
    write_run(tmp_path / "b", seed=1, points=((0, 4.0), (100, 5.0)))
    with pytest.warns(UserWarning, match="cut at step 100"):
        (group,) = groups_of(tmp_path)
    np.testing.assert_array_equal(group.steps, [0, 100])
    np.testing.assert_array_equal(group.scores, [[1.0, 2.0], [4.0, 5.0]])


def test_runs_without_a_common_step_are_refused(tmp_path):
    write_run(tmp_path / "a", seed=0, points=((0, 1.0),))
    write_run(tmp_path / "b", seed=1, points=((1, 1.0),))
    with pytest.raises(O2ODataError, match="without a common evaluation step"):
        groups_of(tmp_path)


def test_a_run_within_a_run_is_its_offline_phase(tmp_path):
    write_run(tmp_path / "run", points=((0, 5.0), (100, 2.0)))
    write_run(tmp_path / "run" / "offline", points=((-10, 1.0), (0, 5.0)))
    assert find_runs([tmp_path]) == [(tmp_path / "run").resolve()]
    assert find_runs([tmp_path / "run" / "offline"]) == [(tmp_path / "run" / "offline").resolve()]
    run = load_run(tmp_path / "run")
    np.testing.assert_array_equal(run.steps, [-10, 0, 100])
    np.testing.assert_array_equal(run.scores, [1.0, 5.0, 2.0])


def test_seeds_that_started_from_folders_of_their_own_are_one_group(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / str(seed), seed=seed, pretrained=f"runs/seed{seed}/offline")
    assert [len(group.runs) for group in groups_of(tmp_path)] == [2]


def test_one_entry_that_tells_groups_apart_is_label_enough(tmp_path):
    for learner, bound in (("aca", 0.25), ("sac", None), ("cql", None)):
        write_run(tmp_path / learner, algorithm="aca", learner=learner, max_grad_norm=bound)
    labels = [group.label for group in groups_of(tmp_path)]
    assert labels == ["aca learner=aca", "aca learner=cql", "aca learner=sac"]


def test_a_setting_that_is_null_is_none(tmp_path):
    """A later version has a setting more; left null, its runs are those of the earlier version."""
    write_run(tmp_path / "a", seed=0, algorithm="rlpd")
    write_run(tmp_path / "b", seed=1, algorithm="rlpd", evaluation={"video": None})
    (group,) = group_runs([load_run(tmp_path / name) for name in "ab"])
    assert [run.seed for run in group.runs] == [0, 1]


def test_folders_are_a_list(tmp_path: Path) -> None:
    """A text is a sequence too: of its letters, among them a slash, which is the whole disk."""
    for given in (str(tmp_path), tmp_path, []):
        with pytest.raises(O2OSpecError, match="expected a list of at least one folder"):
            find_runs(given)  # pyright: ignore[reportArgumentType]


def test_links_to_runs_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "runs/seed-0").mkdir(parents=True)
    (tmp_path / "runs/seed-0/run.json").write_text("{}")
    (tmp_path / "chosen").mkdir()
    (tmp_path / "chosen/best").symlink_to(tmp_path / "runs/seed-0")
    (tmp_path / "chosen/around").symlink_to(tmp_path)
    assert find_runs([tmp_path / "chosen"]) == [tmp_path / "runs/seed-0"]


def test_equal_numbers_of_two_types_are_one_setting(tmp_path):
    """``lr=1`` on a command line is a whole number, ``1.0`` in a file is none."""
    write_run(tmp_path / "a", seed=0, lr=1, widths=[8, 8.0])
    write_run(tmp_path / "b", seed=1, lr=1.0, widths=[8.0, 8])
    write_run(tmp_path / "c", seed=0, lr=1.5, widths=[8, 8])
    assert [len(group.runs) for group in groups_of(tmp_path)] == [2, 1]


@pytest.mark.parametrize("seed", [None, [0, 1], 0.5, True])
def test_a_seed_is_a_whole_number(tmp_path, seed):
    with Recorder(tmp_path / "a", config={"seed": seed}) as recorder:
        recorder.log(0, {"evaluation/return": 1.0})
    with pytest.raises(O2ODataError, match=r"config.seed=.*, expected a whole number"):
        load_run(tmp_path / "a")


def test_evaluations_that_a_seed_lacks_are_told(tmp_path):
    write_run(tmp_path / "a", seed=0, points=((0, 1.0), (50, 2.0), (100, 3.0)))
    write_run(tmp_path / "b", seed=1, points=((50, 2.0), (100, 3.0)))
    with pytest.warns(UserWarning, match=r"^1 evaluations of .* are left out, the first at step 0, .*b does not$"):
        (group,) = groups_of(tmp_path)
    assert group.steps.tolist() == [50, 100]


def test_entries_that_are_null_name_nothing(tmp_path):
    write_run(tmp_path, task=None, env_id="Hopper-v5", algorithm=None)
    rename_script(tmp_path, "rlpd.py seed=0")
    run = load_run(tmp_path)
    assert (run.name, run.task) == ("rlpd", "Hopper-v5")
