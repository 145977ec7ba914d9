# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import json

import numpy as np
import pytest

from tests.shared_data import shared_file
from torchrl_o2o.errors import O2ODataError, O2OSpecError
from torchrl_o2o.record.recorder import Recorder
from torchrl_o2o.record.report import load_peers, write_report

pytest.importorskip("matplotlib")
SCORE = "evaluation/normalized_score"
STEPS = (-100, 0, 50, 100, 1000)


def write_run(folder, scores, *, seed=0, steps=STEPS, metric=SCORE, **config):
    with Recorder(folder, config=config, seed=seed) as recorder:
        for step, score in zip(steps, scores, strict=True):
            recorder.log(step, {metric: float(score)})


def table(report, number=0):
    """Rows of a table as dictionaries."""
    lines = [line for line in report.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    heads = [index for index, line in enumerate(lines) if line.startswith("| task")]
    end = [*heads, len(lines)][number + 1]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[heads[number] : end]]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def test_the_table_by_hand(tmp_path):
    for seed, shift in enumerate((0.0, 1.0, 2.0, 40.0)):
        write_run(
            tmp_path / f"s{seed}", np.array([0, 50, 30, 40, 90]) + shift, seed=seed, algorithm="rlpd", task="door"
        )
    (row,) = table(write_report([tmp_path], tmp_path / "out", metric=SCORE))
    assert (row["task"], row["group"], row["seeds"], row["steps"]) == ("door", "rlpd", "4", "1,000")
    assert row["final score"] == "91.5 [90, 130]"
    assert (row["dip"], row["gain"]) == ("20", "40")
    # areas of 1 - score / 100: 50 * 0.6 + 50 * 0.65 + 900 * 0.35 over 1000 steps, less the shift of 1.5 / 100
    assert row["regret"] == f"{(30 + 32.5 + 315) / 1000 - 0.015:.3g}"


def test_what_a_curve_cannot_tell_is_left_open(tmp_path):
    write_run(tmp_path / "a", [1, 2], steps=(-50, 0), algorithm="offline")
    write_run(tmp_path / "b", [1, 2], steps=(50, 100), algorithm="online")
    write_run(tmp_path / "c", [1], steps=(0,), algorithm="single")
    offline, online, single = table(write_report([tmp_path], tmp_path / "out", metric=SCORE))
    assert (offline["dip"], offline["regret"], offline["gain"]) == ("–", "–", "–")
    assert (online["dip"], online["regret"], online["gain"]) == ("–", "0.985", "–")
    assert single["final score"] == "1"


def test_a_raw_return_has_no_regret(tmp_path):
    write_run(tmp_path / "a", [0, 500, 300, 400, 900], metric="evaluation/return", algorithm="rlpd")
    (row,) = table(write_report([tmp_path], tmp_path / "out"))
    assert (row["dip"], row["regret"], row["gain"]) == ("200", "–", "400")


def test_success_rates_have_a_regret(tmp_path):
    write_run(tmp_path / "a", [0, 0.5, 0.5, 0.5, 0.5], metric="evaluation/success", algorithm="rlpd")
    (row,) = table(write_report([tmp_path], tmp_path / "out", metric="evaluation/success"))
    assert row["regret"] == "0.5"


def test_where_results_come_from(tmp_path):
    write_run(tmp_path / "a", [1] * 5, algorithm="rlpd", task="x|y")
    (row,) = table(write_report([tmp_path], tmp_path / "out", metric=SCORE), number=1)
    assert row["task"] == "x\\|y"
    assert row["command of the first seed"].startswith("`")
    assert "torch " in row["versions"]
    assert "torchrl " in row["versions"]


def test_a_report_repeats_itself(tmp_path):
    for seed in range(5):
        write_run(tmp_path / f"r{seed}", np.random.default_rng(seed).normal(size=5), seed=seed, algorithm="rlpd")
    texts = [write_report([tmp_path], tmp_path / name, metric=SCORE).read_bytes() for name in ("a", "b")]
    assert texts[0] == texts[1]


def test_the_figure_is_written(tmp_path):
    for task in ("door", "pen", "hammer", "relocate"):
        write_run(tmp_path / task, [0, 50, 30, 40, 90], algorithm="rlpd", task=task)
    write_report([tmp_path], tmp_path / "out", metric=SCORE)
    assert (tmp_path / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def peers(tmp_path):
    path = tmp_path / "peers.npz"
    curves = {"offline": np.zeros((4, 2)), "online": np.arange(16.0).reshape(4, 4)}
    np.savez(path, **{f"{name}/door/{phase}": curves[phase] for name in ("IQL", "SPOT") for phase in curves})
    return path


def test_peers_are_spaced_over_their_phases(peers):
    curves = load_peers(peers, "door")
    assert list(curves) == ["IQL", "SPOT"]
    steps, scores = curves["IQL"]
    np.testing.assert_array_equal(steps, [-500_000, 0, 250_000, 500_000, 750_000, 1_000_000])
    np.testing.assert_array_equal(scores[1], [0, 0, 4, 5, 6, 7])
    assert load_peers(peers, "pen") == {}


def test_published_peers_are_read():
    curves = load_peers(shared_file("corl_finetune_scores.npz"), "antmaze-umaze-v2")
    assert set(curves) == {"SPOT", "AWAC", "CQL", "IQL", "Cal-QL", "ReBRAC"}
    steps, scores = curves["IQL"]
    assert steps[-1] == 1_000_000
    assert scores[:, -1].mean() == pytest.approx(96.5, abs=0.01)  # CORL's table
    assert scores[:, np.flatnonzero(steps <= 0)[-1]].mean() == pytest.approx(77.0, abs=0.01)


def test_peers_need_normalized_scores_and_a_known_task(tmp_path, peers):
    write_run(tmp_path / "a", [1] * 5, algorithm="rlpd", task="o2o/door")
    with pytest.raises(O2OSpecError, match="expected evaluation/normalized_score"):
        write_report([tmp_path], tmp_path / "out", metric="evaluation/return", peers=peers)
    with pytest.raises(O2OSpecError, match="peers_task"):
        write_report([tmp_path], tmp_path / "out", metric=SCORE, peers=peers)
    assert write_report([tmp_path], tmp_path / "out", metric=SCORE, peers=peers, peers_task="door").exists()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: b"",
        lambda content: b"not a zip file",
        lambda content: content[:20],
        lambda content: content[:-20],
        lambda content: content[: len(content) // 2],
        lambda content: content.replace(b"PK\x01\x02", b"PK\x01\x03"),  # the directory
        lambda content: content.replace(b"PK\x03\x04", b"PK\x03\x05"),  # an entry's beginning
        lambda content: content[:200] + b"garbage" + content[207:],
        lambda content: content[:60] + bytes(80) + content[140:],
    ],
)
def test_a_damaged_peers_file_is_refused(tmp_path, save, spoil):
    path = tmp_path / "bad.npz"
    rng = np.random.default_rng(0)
    save(path, **{"IQL/door/offline": rng.normal(size=(4, 20)), "IQL/door/online": rng.normal(size=(4, 20))})
    assert len(load_peers(path, "door")) == 1
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(O2ODataError, match="cannot read the peers"):
        load_peers(path, "door")


def test_each_single_byte_of_a_peers_file_may_be_damaged(tmp_path):
    """The scores are then as they were, or the file is refused."""
    path = tmp_path / "bad.npz"
    np.savez_compressed(path, **{"IQL/door/offline": np.eye(4, 3), "IQL/door/online": np.eye(4, 2)})
    content, (_, scores) = path.read_bytes(), load_peers(path, "door")["IQL"]
    for index in range(len(content)):
        path.write_bytes(content[:index] + bytes([content[index] ^ 0x55]) + content[index + 1 :])
        try:
            found = load_peers(path, "door")
        except O2ODataError:
            continue
        assert not found or np.array_equal(found["IQL"][1], scores), index


def test_other_files_and_arrays_of_peers_are_refused(tmp_path):
    with pytest.raises(O2ODataError, match=r"absent\.npz.*No such file"):
        load_peers(tmp_path / "absent.npz", "door")
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(O2ODataError, match=r"array\.npy \(it holds a single array without a name\)"):
        load_peers(tmp_path / "array.npy", "door")
    path, good = tmp_path / "peers.npz", np.zeros((4, 2))
    np.savez(path, **{"IQL/door/online": good})
    with pytest.raises(O2ODataError, match="it has no IQL/door/offline"):
        load_peers(path, "door")
    np.savez(path, **{"IQL/door/offline": np.array([{}]), "IQL/door/online": good})
    with pytest.raises(O2ODataError, match="cannot read the peers"):
        load_peers(path, "door")
    for other in (np.zeros(4), np.zeros((3, 2))):
        np.savez(path, **{"IQL/door/offline": other, "IQL/door/online": good})
        with pytest.raises(O2ODataError, match=r"IQL/door has the shapes .*, expected \[seeds, evaluations\]"):
            load_peers(path, "door")


def test_other_errors_of_reading_peers_are_not_hidden(monkeypatch, peers):
    def load(*_, **__):
        raise TypeError("a fault of the program")

    monkeypatch.setattr(np, "load", load)
    with pytest.raises(TypeError, match="a fault of the program"):
        load_peers(peers, "door")


def test_one_html_file_holds_the_report_and_its_figures(tmp_path):
    for seed in (0, 1):
        with Recorder(
            tmp_path / f"s{seed}", config={"algorithm": "<b>rlpd</b>", "task": "door"}, seed=seed
        ) as recorder:
            for step in (0, 100):
                recorder.log(step, {SCORE: 1.0, "train/qvalue": float(step), "train/offline_share": 0.5})
    out = tmp_path / "out"
    write_report([tmp_path], out, metric=SCORE)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert sorted(path.name for path in out.glob("*.png")) == ["curves.png", "training.png"]
    assert page.count("data:image/png;base64,") == 2
    assert ".png" not in page
    assert "<td>door</td>" in page
    assert "<b>rlpd" not in page  # labels are text, never HTML


def test_what_only_one_seed_logged_is_not_drawn(tmp_path):
    for seed in (0, 1):
        with Recorder(tmp_path / f"s{seed}", config={"algorithm": "rlpd", "task": "door"}, seed=seed) as recorder:
            recorder.log(0, {SCORE: 1.0} | ({"train/qvalue": 1.0} if seed else {}))
    write_report([tmp_path], tmp_path / "out", metric=SCORE)
    assert not (tmp_path / "out" / "training.png").exists()


def test_a_sweep_is_reported_while_it_runs(tmp_path):
    sweep = {"algorithm": "rlpd", "task": "door"}
    for seed in (0, 1):
        write_run(tmp_path / f"s{seed}", [0, 50, 30, 40, 90], seed=seed, **sweep)
    write_run(tmp_path / "s2", [0, 50], steps=(-100, 0), seed=2, **sweep)  # half a phase
    write_run(tmp_path / "s3", [], steps=(), seed=3, **sweep)  # before its first evaluation
    write_run(tmp_path / "s4", [], steps=(), seed=4, **sweep)
    (tmp_path / "s4" / "metrics.jsonl").unlink()  # before its first line
    with (tmp_path / "s1" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2000, "eva')  # in the middle of a line
    with pytest.warns(UserWarning, match="is skipped") as told:
        (row,) = table(write_report([tmp_path], tmp_path / "out", metric=SCORE))
    assert (row["seeds"], row["final score"]) == ("2 (+1 unfinished)", "90 [90, 90]")
    said = " ".join(str(warning.message) for warning in told)
    for words in (
        "s2 is unfinished, at step 0",
        "s3 has no metric",
        "s4 has no metrics yet",
        "in the middle of a line",
    ):
        assert words in said


@pytest.mark.parametrize(("score", "what"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
def test_scores_that_are_not_finite_are_told(tmp_path, score, what):
    write_run(tmp_path / "a", [1, 2, score, 3, 4], algorithm="rlpd", task="door")
    write_run(tmp_path / "b", [1, 2, 2, 3, 4], seed=1, algorithm="rlpd", task="door")
    report = write_report([tmp_path], tmp_path / "out", metric=SCORE)
    assert f"a measured {what} at step 50: all numbers computed from it are NaN." in report.read_text()
    assert table(report)[0]["regret"] == "nan"


def test_settings_and_commands_of_any_letters_keep_the_tables(tmp_path):
    for number, note in enumerate(("a\nb", "$x_{|`", "_c")):
        write_run(tmp_path / str(number), [1, 2, 3, 4, 5], algorithm="_rlpd", task="$door_{", note=note)
    record = json.loads((tmp_path / "0" / "run.json").read_text())
    changed = {"command": "a.py 'x\n`y`'", "commit": {}, "versions": {}}
    (tmp_path / "0" / "run.json").write_text(json.dumps(record | changed))
    record = json.loads((tmp_path / "1" / "run.json").read_text())
    record = {key: value for key, value in record.items() if key not in ("command", "versions", "commit")}
    (tmp_path / "1" / "run.json").write_text(json.dumps(record))
    report = write_report([tmp_path], tmp_path / "out", metric=SCORE)
    first, second, _ = table(report, 1)
    assert (first["command of the first seed"], first["commit"], first["versions"]) == ("``a.py 'x `y`'``", "–", "–")
    assert (second["command of the first seed"], second["versions"]) == ("–", "–")
    assert [row["final score"] for row in table(report)] == ["5", "5", "5"]
