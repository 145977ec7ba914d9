# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Cases a04 to a06, a14, c23, c26 and d: files of other projects, logs that are broken but load, hostile files."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from torchrl_o2o.commands.cli import main
from torchrl_o2o.data import check_offline, describe_offline, load_offline
from torchrl_o2o.data.env_match import EnvFacts, match_units
from torchrl_o2o.errors import O2ODataError, O2OSpecError

Arrays = dict[str, Any]
LIMIT = 20


def walk(episodes: int = 12, length: int = LIMIT, *, following: bool = True) -> Arrays:
    """Slow walks from far-apart starts, each cut by its time limit; an episode's last observation is in no row."""
    rng = np.random.default_rng(0)
    starts = 20 * rng.standard_normal((episodes, 1, 3))
    path = (starts + np.cumsum(rng.uniform(0.1, 1, (episodes, length + 1, 3)), 1)).astype(np.float32)
    steps = episodes * length
    arrays = {
        "observations": path[:, :-1].reshape(steps, 3),
        "actions": rng.uniform(-1, 1, (steps, 1)).astype(np.float32),
        "rewards": rng.standard_normal(steps).astype(np.float32),
        "terminals": np.zeros(steps, bool),
        "timeouts": np.arange(steps) % length == length - 1,
    }
    return arrays | ({"next_observations": path[:, 1:].reshape(steps, 3)} if following else {})


def load(source: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_offline(source, **options)


def without(arrays: Arrays, *names: str) -> Arrays:
    return {name: values for name, values in arrays.items() if name not in names}


def saved(form: str, arrays: Arrays, folder: Path) -> Any:
    """The same arrays as a source of another kind."""
    if form == "dictionary":
        return arrays
    path = folder / f"log.{form}"
    if form == "npz":
        np.savez(path, **arrays)
    elif form == "hdf5":
        with pytest.importorskip("h5py").File(path, "w") as file:
            for name, values in arrays.items():
                file[name] = values
    else:
        columns = {f"{name}_{i}": v for name, values in arrays.items() for i, v in enumerate(np.atleast_2d(values.T))}
        rows = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values()))]
        path.write_text("\n".join(rows))
    return path


def as_episodes(arrays: Arrays, length: int = LIMIT) -> list[Arrays]:
    parts = {name: np.split(values, len(values) // length) for name, values in arrays.items()}
    return [dict(zip(parts, values)) for values in zip(*parts.values())]


FORMS = ["dictionary", "npz", "hdf5", "csv"]


# A4: arrays that a file has and nobody reads


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["terminations", "terminated", "is_terminal", "masks"])
def test_case_a04_terminals_by_any_name(tmp_path: Path, form: str, name: str) -> None:
    arrays = walk()
    flags = np.arange(len(arrays["actions"])) % 60 == 59
    source = without(arrays, "terminals") | {name: ~flags if name == "masks" else flags}
    data = load(saved(form, source, tmp_path))
    assert data["next", "terminated"].squeeze(-1).numpy().tolist() == flags.tolist()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["episode_starts", "is_first", "dones_float", "traj_ids", "episode_ids"])
def test_case_a04_ends_by_any_name(tmp_path: Path, form: str, name: str) -> None:
    arrays = walk(following=False)
    row = np.arange(len(arrays["actions"]))
    marks = {"dones_float": row % LIMIT == LIMIT - 1, "traj_ids": row // LIMIT, "episode_ids": row // LIMIT + 5}
    source = without(arrays, "timeouts") | {name: marks.get(name, row % LIMIT == 0)}
    data = load(saved(form, source, tmp_path))
    assert np.bincount(data["episode"]).tolist() == [LIMIT - 1] * 12


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["dones", "done", "dones_float", "discounts", "is_last", "TimeLimit.truncated"])
def test_case_a04_what_could_be_an_end_is_an_error_until_it_is_said(tmp_path: Path, form: str, name: str) -> None:
    arrays = walk()
    odd = np.arange(len(arrays["actions"])) % 60 == 31
    source = saved(form, arrays | {name: odd}, tmp_path)
    with pytest.raises(O2ODataError, match=rf"{name} is not read, but it could mark .*differs in row 31 .*names="):
        load(source)
    assert load(source, names={name: "ignore"})["next", "terminated"].sum() == 0
    said = load(saved(form, without(arrays, "terminals") | {name: odd}, tmp_path), names={name: "terminals"})
    assert said["next", "terminated"].squeeze(-1).nonzero().squeeze(-1).tolist() == odd.nonzero()[0].tolist()


def test_case_a04_what_says_the_same_is_no_news() -> None:
    arrays = walk()
    ends = arrays["timeouts"]
    row = np.arange(len(ends))
    same = {
        "dones": ends, "masks": np.ones(len(ends)), "episode_starts": np.roll(ends, 1), "traj_ids": row // LIMIT,
        "episode_step": row % LIMIT, "infos": {"TimeLimit.truncated": ends, "qpos": np.zeros((len(ends), 4))},
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_offline(arrays | same)
    for name in ("dones", "masks"):
        with pytest.raises(O2ODataError, match=f"{name} is not read"):
            load(arrays | {name: np.roll(ends, 3)})


def test_case_a04_dones_are_split_at_the_time_limit() -> None:
    arrays = without(walk(), "terminals", "timeouts")
    row = np.arange(len(arrays["actions"]))
    dones = np.isin(row, [4, 24, 44, *range(64, 240, 20)])  # one episode of 5 steps, then all at their limit of 20
    arrays["next_observations"] = np.concatenate([arrays["observations"][1:], arrays["observations"][:1]])
    with pytest.raises(O2ODataError, match="dones is not read"):
        load(arrays | {"dones": dones, "episode": np.cumsum(dones) - dones})
    with pytest.raises(O2ODataError, match=r"declares an array as 'dones'.*pass max_episode_steps"):
        load(arrays | {"dones": dones}, names={"dones": "dones"})
    data = load({**arrays, "dones": dones, "observations": np.cumsum(arrays["actions"], 0), "next_observations":
                 np.cumsum(arrays["actions"], 0)}, names={"dones": "dones"}, max_episode_steps=20)  # fmt: skip
    assert data["next", "terminated"].squeeze(-1).nonzero().squeeze(-1).tolist() == [4]
    assert int(data["next", "truncated"].sum()) == 12


def test_case_a04_dones_of_episodes() -> None:
    episodes = as_episodes(without(walk(), "terminals", "timeouts"))
    for episode in episodes:
        episode["dones"] = np.arange(LIMIT) == LIMIT - 1
    with pytest.raises(O2ODataError, match=r"episode 0: dones is not read.*differs in row 19"):
        load(episodes)
    assert load(episodes, names={"dones": "ends"})["next", "terminated"].sum() == 0
    assert load(episodes, names={"dones": "dones"}, max_episode_steps=LIMIT)["next", "truncated"].sum() == 12
    assert load(episodes, names={"dones": "dones"}, max_episode_steps=30)["next", "terminated"].sum() == 12


def test_case_a04_other_arrays_are_named_in_a_warning() -> None:
    extra = {
        "success": np.zeros(240),
        "qpos": np.zeros((240, 7)),
        "weights": np.zeros(3),
        "infos": {"x": np.zeros(240)},
    }
    with pytest.warns(UserWarning, match="success, qpos: arrays with one row per step that are not read"):
        load_offline(walk() | extra)


def test_case_a04_nothing_says_what_is_terminal() -> None:
    arrays = without(walk(), "terminals")
    assert "no_terminals" not in check_offline(arrays).codes, "all are cut at the same step"
    arrays["timeouts"] = np.isin(np.arange(240), [19, 25, 60, 90, 239])
    with pytest.warns(UserWarning, match="no array marks terminal rows: all 5 episodes count as cut"):
        load_offline(arrays)
    episodes = [{name: values[: 9 + number] for name, values in arrays.items()} for number in range(3)]
    assert "no_terminals" in check_offline(episodes).codes


def test_case_a04_names_that_are_not_understood() -> None:
    with pytest.raises(O2OSpecError, match=r"names=\{'dones': 'end'\}, expected each to be one of observations, "):
        load(walk(), names={"dones": "end"})
    with pytest.raises(O2ODataError, match="has no dones, which names refers to"):
        load(walk(), names={"dones": "ends"})
    states = {"states" if name == "observations" else name: values for name, values in walk().items()}
    assert len(load(states, names={"states": "observations"})) == 240


# A5: logs that are broken but load


def test_case_a05_timeouts_that_are_all_false() -> None:
    arrays = walk(following=False)
    arrays["timeouts"][:] = False
    with pytest.warns(UserWarning, match="no row is at a time limit: timeouts are all False"):
        load_offline(arrays)
    data = load(arrays, max_episode_steps=LIMIT)
    assert np.bincount(data["episode"]).tolist() == [LIMIT - 1] * 12
    arrays = walk(2, 250, following=False) | {"timeouts": np.zeros(500, bool)}
    with pytest.raises(
        O2ODataError, match="1 episodes are longer than the time limit of 200 steps, first at episode 0"
    ):
        load(arrays, env="Pendulum-v1", action_bounds=(-2, 2))


def test_case_a05_episodes_beyond_a_stated_limit() -> None:
    arrays = walk()
    arrays["timeouts"][19] = False
    with pytest.raises(O2ODataError, match=r"longer than the time limit of 20 steps, first at episode 0, step 20"):
        load(arrays, max_episode_steps=LIMIT)


@pytest.mark.parametrize("form", ["flat", "episodes"])
def test_case_a05_time_limits_stored_as_terminals(form: str) -> None:
    arrays = walk()
    arrays["terminals"], arrays["timeouts"] = arrays["timeouts"], arrays["terminals"]
    source = arrays if form == "flat" else as_episodes(arrays)
    with pytest.raises(
        O2ODataError, match=r"all 12 terminal states are exactly at the time limit .* episode 0, step 19"
    ):
        load(source, max_episode_steps=LIMIT)
    with pytest.warns(UserWarning, match="all 12 terminal states come after exactly 20 steps"):
        load_offline(source)
    said = without(arrays, "timeouts") if form == "flat" else [without(e, "timeouts") for e in source]
    data = load(said, max_episode_steps=LIMIT, names={"terminals": "timeouts"})
    assert (int(data["next", "terminated"].sum()), int(data["next", "truncated"].sum())) == (0, 12)
    data = load(source, max_episode_steps=LIMIT, names={"terminals": "terminals"})
    assert int(data["next", "terminated"].sum()) == 12


def test_case_a05_one_column_stored_as_both() -> None:
    arrays = walk()
    arrays["terminals"] = arrays["timeouts"]
    with pytest.raises(O2ODataError, match="look like time limits stored as terminals"):
        load(arrays, max_episode_steps=LIMIT)


def test_case_a05_next_observations_of_the_next_episode() -> None:
    arrays = walk()
    arrays["next_observations"][:-1] = arrays["observations"][1:]
    with pytest.raises(O2ODataError, match=r"11 episodes end with a next observation that is the next episode's first, "
                       "first at episode 0, step 19: .* after a reset"):  # fmt: skip
        load(arrays)
    arrays["terminals"], arrays["timeouts"] = arrays["timeouts"], arrays["terminals"]
    assert len(load(arrays)) == 240, "nothing bootstraps from what follows a terminal row"
    continuing = walk(1, 240)  # a log that is cut but never reset may well say the same
    continuing["timeouts"] = np.arange(240) % LIMIT == LIMIT - 1
    assert len(load(continuing)) == 240


def test_case_a05_next_observations_of_resets_that_are_alike() -> None:
    arrays = walk(5, 100)
    path = np.random.default_rng(2).standard_normal((5, 101, 3)).astype(np.float32)  # as wild as any jump
    path[:, 0] = 0.01 * path[:, 0]
    arrays["observations"], arrays["next_observations"] = path[:, :-1].reshape(-1, 3), path[:, 1:].reshape(-1, 3)
    assert len(load(arrays)) == 500
    arrays["next_observations"][:-1] = arrays["observations"][1:]
    with pytest.raises(O2ODataError, match="4 episodes end with a next observation that is the next episode's first"):
        load(arrays)


def test_case_a05_shuffled_rows() -> None:
    arrays = walk()
    order = np.random.default_rng(1).permutation(240)
    shuffled = {name: values[order] for name, values in arrays.items()}
    with pytest.raises(
        O2ODataError, match=r"continue in another row than the next, first at episode 0, step 0: the rows"
    ):
        load(shuffled)
    single = load(shuffled | {"episode": np.arange(240)}, min_episode_length=1)
    assert len(single) == 240
    numbered = {**shuffled, "episode": (np.arange(240) // LIMIT)[order]}
    with pytest.raises(O2ODataError, match=r"row \d+ ends episode \d+, which has rows after it: the rows are shuffled"):
        load(numbered)
    with pytest.raises(O2ODataError, match=r"episode \d+ appears again in row \d+, and nothing shows"):
        load(without(numbered, "timeouts"))
    with pytest.raises(O2ODataError, match=r"row \d+ ends episode \d+"):
        load(without(numbered, "next_observations"))


def test_case_a05_rows_without_any_order_are_told() -> None:
    arrays = {name: values[np.random.default_rng(1).permutation(240)] for name, values in walk(following=False).items()}
    with pytest.raises(O2ODataError, match=r"look shuffled: .* time limits come after .* \(in rows \d+, \d+, "):
        load(arrays, min_episode_length=1)
    assert "unordered" in check_offline(arrays | {"timeouts": np.arange(240) % LIMIT == LIMIT - 1}).codes
    assert not {"unordered", "shuffled"} & set(check_offline(walk(following=False)).codes)


def pendulum(steps: int = 2_400, **columns: Any) -> dict[str, np.ndarray]:
    """A pendulum that swings freely, in episodes of 200 rows, without next observations."""
    time, draw = np.arange(steps) % 200 * 0.05, np.random.default_rng(0)
    angle = np.cos(2 * time + np.repeat(draw.uniform(0, 6, steps // 200), 200))
    speed = np.gradient(angle) / 0.05 + draw.normal(0, 0.1, steps)
    arrays = {
        "observations": np.stack([np.cos(angle), np.sin(angle), speed], 1).astype(np.float32),
        "actions": draw.uniform(-1, 1, (steps, 1)).astype(np.float32),
        "rewards": draw.normal(size=steps).astype(np.float32),
        "terminals": draw.random(steps) < 0.01,
        "timeouts": np.arange(steps) % 200 == 199,
    }
    return arrays | columns


def test_case_a05_shuffled_rows_of_an_environment_that_moves_in_time() -> None:
    """Episodes that end by themselves, as Hopper's: their lengths say nothing, but no entry continues."""
    arrays, order = pendulum(timeouts=np.zeros(2_400, bool)), np.random.default_rng(1).permutation(2_400)
    shuffled = {name: values[order] for name, values in arrays.items()}
    said: dict[str, Any] = {"action_bounds": (-1, 1), "max_episode_steps": 100_000, "min_episode_length": 1}
    assert len(load(arrays, env="Pendulum-v1", **said)) > 2_000
    with pytest.raises(O2ODataError, match="the rows are shuffled: no entry of the observation continues"):
        load(shuffled, env="Pendulum-v1", **said)
    assert check_offline(shuffled, **said).codes[0] == "no_entry_goes_on", "a warning where nothing is known"
    noise = pendulum(observations=np.random.default_rng(2).normal(size=(2_400, 3)).astype(np.float32))
    noise["observations"][:, 0] = pendulum()["observations"][:, 0]
    assert "shuffled" not in check_offline(noise, env="Pendulum-v1", **said).codes, "one entry continues: that is order"


def test_case_a05_timeouts_all_false_beside_next_observations() -> None:
    arrays = walk(2, 250) | {"timeouts": np.zeros(500, bool)}
    said: dict[str, Any] = {"env": "Pendulum-v1", "action_bounds": (-2, 2)}
    with pytest.raises(O2ODataError, match="longer than the time limit of 200 steps, first at episode 0, step 200"):
        load(arrays, **said)
    assert np.bincount(load(arrays, **said, max_episode_steps=250)["episode"]).tolist() == [250, 250]
    assert len(load(arrays, **said, max_episode_steps=10_000)) == 500, "there is no limit: so said"
    short = walk(4, 100) | {"terminals": np.arange(400) % 100 == 99, "timeouts": np.zeros(400, bool)}
    told = {finding.code for finding in check_offline(short, **said).findings if finding.severity != "note"}
    assert not {"no_timeouts", "beyond_limit"} & told, "they all end by themselves"


@pytest.mark.parametrize(("lengths", "told"), [((200, 120, 120), True), ((150, 200, 120), False)])
def test_case_a05_a_single_terminal_at_the_limit(lengths: tuple[int, ...], told: bool) -> None:
    steps = sum(lengths)
    arrays = {name: values[:steps] for name, values in walk(3, 200).items() if name != "timeouts"}
    arrays["terminals"] = np.arange(steps) == lengths[0] - 1
    arrays["episode"] = np.repeat(np.arange(3), lengths)
    said: dict[str, Any] = {"env": "Pendulum-v1", "action_bounds": (-2, 2)}
    report = check_offline(arrays, **said)
    assert ("terminals_at_limit" in report.codes, report.ok) == (told, True), report
    assert "terminals_at_limit" not in check_offline(arrays, **said, names={"terminals": "terminals"}).codes


def test_terminals_after_equal_lengths_are_reported_once_where_no_limit_is_known() -> None:
    arrays = {name: values for name, values in walk(4, 200).items() if name != "timeouts"}
    arrays |= {"terminals": np.arange(800) % 200 == 199, "episode": np.repeat(np.arange(4), 200)}
    assert check_offline(arrays, action_bounds=(-2, 2)).codes.count("terminals_alike") == 1


def test_case_a05_actions_clipped_to_a_smaller_box() -> None:
    """An own box of [-0.4, 0.4], as Humanoid's."""
    edge, one = torch.full((2,), 0.4), torch.ones(2)
    facts = EnvFacts("Humanoid", (3,), (2,), -one, one, -edge, edge, None)
    draw = np.random.default_rng(0).normal(0, 0.4, (200, 2)).astype(np.float32)
    native = torch.from_numpy(draw).clamp(-edge, edge)

    def severity(action: torch.Tensor) -> list[str]:
        return [finding.severity for finding in match_units(TensorDict({"action": action}, [200]), facts)]

    assert severity(native) == ["error"]
    assert severity((2.5 * native).clamp(-1, 1)) == ["warning"], "shares of the box"
    assert severity(0.9 * native) == ["error"], "none at the edges: either"


@pytest.mark.parametrize("following", [True, False])
@pytest.mark.parametrize("flags", [True, False])
def test_case_a05_interleaved_rows_are_grouped(following: bool, flags: bool) -> None:
    arrays = walk(following=following)
    arrays["episode"] = np.arange(240) // LIMIT
    if not flags:
        del arrays["timeouts"]
    expected = load(arrays)
    order = np.arange(240).reshape(3, 4, LIMIT).transpose(0, 2, 1).reshape(-1)  # four environments at once
    mixed = load({name: values[order] for name, values in arrays.items()})
    assert (mixed == expected).all()


def test_case_a05_episode_numbers_that_come_again() -> None:
    """Files put together: the numbers begin anew, and nothing of one file continues in the other."""
    arrays = walk() | {"episode": np.tile(np.arange(120) // LIMIT, 2)}
    assert np.bincount(load(arrays)["episode"]).tolist() == [LIMIT] * 12
    with pytest.raises(O2ODataError, match="episode 0 appears again in row 120, and nothing shows"):
        load(without(arrays, "timeouts"))
    with pytest.raises(O2ODataError, match="episode 0 appears again in row 120, and nothing shows"):
        load(without(arrays, "timeouts", "next_observations"))


def test_case_a05_actions_in_native_units() -> None:
    arrays = walk()
    told = r"from row 0 on and Pendulum-v1's own box is \[-2, 2\].*pass action_bounds=\(low, high\)"
    with pytest.raises(O2ODataError, match=told):
        load_offline(arrays, env="Pendulum-v1")
    with pytest.warns(UserWarning, match=told):  # transitions in TED are as this package's environments take them
        load_offline(load(arrays), env="Pendulum-v1")
    for bounds in ((-1, 1), (-2, 2)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            load_offline(arrays, env="Pendulum-v1", action_bounds=bounds)


def test_case_a05_minari_metadata_that_count_too_few(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    folder = tmp_path / "walk-v0" / "data"
    folder.mkdir(parents=True)
    (folder / "metadata.json").write_text(json.dumps({"data_format": "hdf5", "total_episodes": 2}))
    with h5py.File(folder / "main_data.hdf5", "w") as file:
        for number, episode in enumerate(as_episodes(walk(3, following=False))):
            group = file.create_group(f"episode_{number}")
            group["observations"] = np.concatenate([episode["observations"], np.zeros((1, 3))])
            group["actions"], group["rewards"] = episode["actions"], episode["rewards"]
            group["terminations"], group["truncations"] = episode["terminals"], episode["timeouts"]
            group["weights"] = np.zeros(LIMIT)
    with pytest.raises(O2ODataError, match="holds 3 episodes and its metadata speak of 2: from episode_2 on"):
        load(tmp_path / "walk-v0", cache=False)
    (folder / "metadata.json").write_text(json.dumps({"data_format": "hdf5", "total_episodes": 3}))
    load(tmp_path / "walk-v0", cache=False, names={"weights": "ignore"})
    with pytest.warns(UserWarning, match="weights: arrays of each episode that are not read"):
        load_offline(tmp_path / "walk-v0", cache=False)


@pytest.mark.parametrize(
    "harm",
    [
        '{"data_format": "hdf5", "total_episodes": Infinity}',
        '{"data_format": "hdf5", "total_episodes": 1, "env_spec": {"max_episode_steps": "x"}}',
        '{"data_format": "hdf5", "total_episodes": 1, "env_spec": "{\\"max_episode_steps\\": -3}"}',
        '{"data_format": "hdf5", "total_episodes": 1, "x": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"data_format": "hdf5", "total_episodes": 1000000000000}',
    ],
    ids=["infinite", "no limit", "negative limit", "deep", "too many"],
)
def test_case_a05_minari_metadata_that_are_none(tmp_path: Path, harm: str) -> None:
    folder = encoded_images(tmp_path, [b"", b""]) / "data"
    (folder / "metadata.json").write_text(harm)
    with pytest.raises(O2ODataError, match=r"is damaged|image 0 is no JPEG"):
        load(tmp_path / "x-v0", cache=False)


def test_case_a05_a_large_loss_of_rows() -> None:
    arrays = walk()
    arrays["timeouts"] = np.arange(240) % 4 < 3
    with pytest.raises(O2ODataError, match=r"122 of 240 rows are lost, because their episodes are too short"):
        load(arrays)
    assert len(load(arrays, min_episode_length=1)) == 240
    assert len(load(walk(), min_episode_length=20)) == 240


# A6, A14: casts and sums


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", [np.nan, 0.3, -1.0, 2.0])
@pytest.mark.parametrize("name", ["terminals", "timeouts", "masks"])
def test_case_a06_flags_are_0_or_1(tmp_path: Path, form: str, name: str, value: float) -> None:
    arrays = without(walk(), "terminals") if name == "masks" else walk()
    flags = np.ones(240) if name == "masks" else arrays[name].astype(float)
    flags[33] = value
    source = saved(form, arrays | {name: flags}, tmp_path)
    with pytest.raises(O2ODataError, match=rf"{name} of .* holds {value} in row 33; expected 0 or 1"):
        load(source)


def test_case_a06_episode_numbers_are_numbers() -> None:
    number = (np.arange(240) // LIMIT).astype(float)
    number[7] = np.nan
    with pytest.raises(O2ODataError, match="holds nan in row 7; expected the number of each row's episode"):
        load(walk() | {"episode": number})
    assert load(walk() | {"episode": np.repeat([f"run {i}" for i in range(12)], LIMIT)})["episode"].max() == 11


@pytest.mark.parametrize("form", ["flat", "episodes", "pickle"])
def test_case_a14_returns_are_of_all_rows(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    arrays = walk(following=False)
    source: Any = arrays if form == "flat" else as_episodes(arrays)
    if form == "pickle":
        (tmp_path / "log.pkl").write_bytes(pickle.dumps(source))
        source = tmp_path / "log.pkl"
    expected = arrays["rewards"].reshape(12, LIMIT).sum(1, dtype=np.float64)
    for _ in range(2):  # read, and from the cache
        found = describe_offline(source).returns
        assert (found.min, found.max) == pytest.approx((expected.min(), expected.max()), rel=1e-6)


# C23: pickles


def pickled(*code: bytes) -> bytes:
    return b"\x80\x02" + b"".join(code) + b"."


def an_array(dtype: bytes, shape: bytes = b"K\x05\x85", raw: bytes = b"\x00" * 40) -> bytes:
    """`[{"observations": <array>, "actions": ..., "rewards": ...}]` with a dtype of the attacker's."""
    built = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R(K\x01"
        + shape + dtype + b"\x89C" + bytes([len(raw)]) + raw + b"tb"
    )  # fmt: skip
    return pickled(b"](}(", *(text(n) + built for n in COLUMNS), b"ue")


def text(word: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(word)) + word


def a_dtype(code: bytes, state: bytes = b"") -> bytes:
    return b"cnumpy\ndtype\n" + text(code) + b"\x89\x88\x87R" + state


COLUMNS = (b"observations", b"actions", b"rewards")
PLAIN = a_dtype(b"f8")
ONE = b"G?\xf0" + bytes(6)
DEEP = b"]" + b"\x85" * 300_000  # a tuple of 300,000 levels: hashing it overflows the stack
FORGED: dict[str, bytes] = {
    "object dtype": an_array(a_dtype(b"O")),
    "object dtype over numbers": an_array(a_dtype(b"O8"), raw=b"\x01" * 40),
    "void of forged size": an_array(a_dtype(b"V8", b"(K\x03X\x01\x00\x00\x00|NNNJ\xff\xff\xff\x7fK\x01K\x00tb")),
    "text of forged size": an_array(a_dtype(b"U2", b"(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\x7fK\x04K\x08tb")),
    "numbers of forged size": an_array(a_dtype(b"f8", b"(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\x7fK\x01K?tb")),
    "forged subarray": an_array(a_dtype(b"V8", b"(K\x04X\x01\x00\x00\x00|X\x01\x00\x00\x00xNNK\x08K\x01K\x1btb")),
    "forged fields": an_array(a_dtype(b"V8", b"(K\x03X\x01\x00\x00\x00|N\x8c\x01xK\x01tb")),
    "byte order": an_array(a_dtype(b"f8", b"(K\x03X\x01\x00\x00\x00zNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb")),
    "dates": an_array(a_dtype(b"M8")),
    "dtype that is a number": an_array(b"K\x07"),
    "dtype of a tuple": an_array(b"cnumpy\ndtype\n" + DEEP + b"\x85R"),
    "no state": pickled(b"](}(X\x0c\x00\x00\x00observationscnumpy\nndarray\n)Rue"),
    "shape beyond the bytes": an_array(PLAIN, b"J\xff\xff\xff\x7f\x85"),
    "negative shape": an_array(PLAIN, b"J\xfb\xff\xff\xff\x85"),
    "huge shape": an_array(PLAIN, b"\x8a\x09" + b"\xff" * 8 + b"\x00\x85"),
    "shape of a list in itself": an_array(PLAIN, b"]q\x63h\x63a"),
    "memo index of 2**31": pickled(b"]r\xff\xff\xff\x7f"),
    "bytes of 2**40": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"x.",
    "deep tuple as a key": pickled(b"}", DEEP, b"K\x01s"),
    "deep list": pickled(b"]" * 300_000 + b"a" * 299_999),
    "list in itself": pickled(b"]q\x01h\x01a"),
    "one episode 20,000 times": pickled(b"](}q\x01(", *(text(n) + b"(" + ONE * 999 + b"l" for n in COLUMNS),
                                        b"u" + b"h\x01" * 20_000 + b"e"),
    "another's function": pickled(b"](cos\nsystem\nX\x0a\x00\x00\x00touch pwned\x85Re"),
    "build on a function": pickled(b"c_codecs\nencode\n}X\x01\x00\x00\x00aK\x01sb"),
    "instance": pickled(b"](cos\nsystem\nX\x04\x00\x00\x00true", b"o"),
    "old-style instance": pickled(b"((X\x0b\x00\x00\x00touch pwnedios\nsystem\n"),
    "extension": pickled(b"\x82\x01"),
    "persistent id": pickled(b"Pevil\n"),
    "new object": pickled(b"cnumpy\nndarray\n)\x81"),
    "no stack": pickled(b"00000"),
    "no mark": pickled(b"K\x01t"),
}  # fmt: skip
_CHILD = """
import os, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from torchrl_o2o.data import load_offline
from torchrl_o2o.errors import O2ODataError
for path in sorted(Path(sys.argv[1]).glob("*.pickle")):
    pid = os.fork()
    if not pid:
        try:
            load_offline(path, cache=False)
            said = "loaded"
        except O2ODataError as error:
            said = "refused " + str(error)
        except BaseException as error:
            said = f"raw {error!r}"
        print(path.stem, said.replace("\\n", " "), flush=True)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    if status:
        print(path.stem, f"crashed {status}", flush=True)
"""


def test_case_c23_forged_pickles(tmp_path: Path) -> None:
    """No crash (each is read in a process of its own), no foreign code, no raw error."""
    (tmp_path / "good.pickle").write_bytes(an_array(PLAIN))
    for number, content in enumerate(FORGED.values()):
        (tmp_path / f"{number:02d}.pickle").write_bytes(content)
    child = subprocess.run(
        [sys.executable, "-c", _CHILD, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    said = dict(line.split(" ", 1) for line in child.stdout.splitlines())
    assert len(FORGED) >= 24
    assert said.pop("good") == "loaded"
    results = {name: said[f"{number:02d}"] for number, name in enumerate(FORGED)}
    # Of a dtype only the code is believed, so that forged sizes of plain numbers do no harm.
    assert results.pop("numbers of forged size") == "loaded"
    assert {name: result for name, result in results.items() if not result.startswith("refused")} == {}
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("order", ["C", "F"])
def test_case_c23_honest_pickles_of_any_protocol(tmp_path: Path, protocol: int, order: str) -> None:
    episodes = as_episodes(walk())
    for number, episode in enumerate(episodes):
        episode["observations"] = np.array(episode["observations"], ">f8", order=order)
        episode["terminals"], episode["timeouts"] = np.bool_(number % 2), False
        episode["rewards"] = episode["rewards"].tolist()
    path = tmp_path / "log.pkl"
    path.write_bytes(pickle.dumps(episodes, protocol=protocol))
    data, expected = load(path, cache=False), load(episodes)
    assert (data == expected).all()
    assert data["next", "terminated"].squeeze(-1).nonzero().squeeze(-1).tolist() == list(range(39, 240, 40))


def test_case_c23_pickles_cut_or_changed(tmp_path: Path) -> None:
    content = pickle.dumps(as_episodes(walk(3)), protocol=4)
    rng, path = np.random.default_rng(0), tmp_path / "log.pkl"
    for number in range(150):
        damaged = bytearray(content[: rng.integers(len(content))] if number % 3 == 0 else content)
        for place in rng.integers(0, max(len(damaged), 1), 20 * (len(damaged) > 0)):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        with contextlib.suppress(O2ODataError):
            load(path, cache=False)


def test_case_c23_what_nobody_needs_is_not_looked_at(tmp_path: Path) -> None:
    episodes = [episode | {"tags": np.array(["a", None], object), "note": "x"} for episode in as_episodes(walk())]
    (tmp_path / "log.pkl").write_bytes(pickle.dumps(episodes))
    assert len(load(tmp_path / "log.pkl", cache=False)) == 240


# C26: files that show other files, or grow


def hdf5(path: Path, arrays: Arrays) -> Any:
    file = pytest.importorskip("h5py").File(path, "w")
    for name, values in arrays.items():
        file[name] = values
    return file


@pytest.mark.parametrize("name", ["observations", "terminals", "infos/qpos"])
@pytest.mark.parametrize("way", ["external storage", "external link", "soft link", "chain", "linked group", "virtual"])
def test_case_c26_hdf5_shows_its_own_bytes_only(tmp_path: Path, way: str, name: str) -> None:
    h5py = pytest.importorskip("h5py")
    secret, arrays = tmp_path / "secret", walk()
    target = arrays[name] if name in arrays else np.zeros((240, 2), np.float32)
    with hdf5(tmp_path / "other.h5", {"x": target, "g/x": target}):
        pass
    secret.write_bytes(b"hunter2" * 1000)
    path = tmp_path / "log.hdf5"
    with hdf5(path, without(arrays, name)) as file:
        if way == "external storage":
            file.create_dataset(name, target.shape, target.dtype, external=[(str(secret), 0, h5py.h5f.UNLIMITED)])
        elif way == "external link":
            file[name] = h5py.ExternalLink("other.h5", "/x")
        elif way == "soft link":
            file["there"] = h5py.ExternalLink("other.h5", "/x")
            file[name] = h5py.SoftLink("/there")
        elif way == "chain":
            file["a"], file["b"] = h5py.SoftLink("/b"), h5py.ExternalLink("other.h5", "/x")
            file[name] = h5py.SoftLink("/a")
        elif way == "linked group":
            file["there"] = h5py.ExternalLink("other.h5", "/g")
            file[name] = h5py.SoftLink("/there/x")
        else:
            layout = h5py.VirtualLayout(target.shape, target.dtype)
            layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", target.shape)
            file.create_virtual_dataset(name, layout)
    if name in arrays or "link" in way or way == "chain":
        with pytest.raises(O2ODataError, match=r"leads out of the file|stores its values in other files"):
            load(path)
    else:
        assert len(load(path)) == 240, "who does not need it does not read it"


def test_case_c26_links_within_the_file_are_followed(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with hdf5(tmp_path / "log.hdf5", walk()) as file:
        file["raw/x"] = file["observations"][()]
        del file["observations"]
        file["observations"] = h5py.SoftLink("/raw/x")
    assert len(load(tmp_path / "log.hdf5")) == 240
    with h5py.File(tmp_path / "log.hdf5", "a") as file:
        del file["observations"]
        file["observations"] = h5py.SoftLink("/observations")
    with pytest.raises(O2ODataError, match="leads to further links, more than 8 or without end"):
        load(tmp_path / "log.hdf5")


def member(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], dtype: str = "<f8") -> None:
    """An array of zeros in an archive, written without holding it."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
        block = bytes(1 << 24)
        for _ in range(0, size, len(block)):
            file.write(block[: min(size, len(block))])


def archive(path: Path, arrays: Arrays) -> zipfile.ZipFile:
    out = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9)
    for name, values in arrays.items():
        stream = io.BytesIO()
        np.save(stream, values)
        out.writestr(f"{name}.npy", stream.getvalue())
    return out


def test_case_c26_arrays_that_nobody_needs_stay_packed(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    with archive(tmp_path / "log.npz", walk()) as out:
        member(out, "pixels", (240, 1 << 20))  # 2 GB out of 2 MB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (tmp_path / "log.npz").stat().st_size < 5e6
    with pytest.warns(UserWarning, match="pixels: arrays with one row per step that are not read"):
        load_offline(tmp_path / "log.npz")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


@pytest.mark.parametrize("shape", [(1 << 28,), pytest.param((240, 1 << 20), marks=pytest.mark.slow)])
def test_case_c26_arrays_that_grow_beyond_reason(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with archive(tmp_path / "log.npz", without(walk(), "observations", "next_observations")) as out:
        member(out, "observations", shape)
    with pytest.raises(
        O2ODataError, match=r"differ in length: \{'observation': 268435456|numbers do not compress so well"
    ):
        load(tmp_path / "log.npz")


@pytest.mark.parametrize("harm", ["bzip2", "claims more", "objects", "not an array", "many"])
def test_case_c26_npz_members_that_are_none(tmp_path: Path, harm: str) -> None:
    path, rest = tmp_path / "log.npz", without(walk(), "observations")
    with archive(path, rest) as out:
        if harm == "bzip2":
            out.writestr("observations.npy", npy(walk()["observations"]), zipfile.ZIP_BZIP2)
        elif harm == "claims more":
            out.writestr("observations.npy", npy(walk()["observations"])[:-100])
        elif harm == "objects":
            out.writestr("observations.npy", npy(np.array([None] * 240)))
        elif harm == "not an array":
            out.writestr("observations.npy", b"x" * 99)
        else:
            for number in range(10_001):
                out.writestr(f"a{number}.npy", b"")
    with pytest.raises(
        O2ODataError, match=r"log\.npz.*(not packed as numpy|declares 2880 bytes|not a readable npz file)"
    ):
        load(path)


def npy(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def encoded_images(folder: Path, images: list[bytes]) -> Path:
    h5py = pytest.importorskip("h5py")
    (folder / "x-v0" / "data").mkdir(parents=True)
    (folder / "x-v0/data/metadata.json").write_text(json.dumps({"data_format": "hdf5", "total_episodes": 1}))
    with h5py.File(folder / "x-v0/data/main_data.hdf5", "w") as file:
        group, steps = file.create_group("episode_0"), len(images) - 1
        pixels = group.create_dataset("observations", (len(images),), h5py.vlen_dtype(np.uint8))
        for number, image in enumerate(images):
            pixels[number] = np.frombuffer(image, np.uint8)
        group["actions"], group["rewards"] = np.linspace(-1, 1, steps)[:, None], np.arange(1.0 * steps)
        group["terminations"] = group["truncations"] = np.zeros(steps, bool)
    return folder / "x-v0"


@pytest.mark.parametrize(
    ("form", "size", "said"),
    [
        ("JPEG", (16, 16), None),
        ("PNG", (16, 16), None),
        ("GIF", (16, 16), "is not a JPEG or PNG"),
        ("TIFF", (16, 16), "is not a JPEG or PNG"),
        ("PPM", (16, 16), "is not a JPEG or PNG"),
        ("PNG", (4000, 4000), "has 4000 x 4000 pixels"),
    ],
)
def test_case_c26_images_of_few_formats_and_sizes(
    tmp_path: Path, form: str, size: tuple[int, int], said: str | None
) -> None:
    image = pytest.importorskip("PIL.Image")
    contents = []
    for shade in range(4):
        stream = io.BytesIO()
        image.new("RGB", size, (60 * shade,) * 3).save(stream, form)
        contents.append(stream.getvalue())
    folder = encoded_images(tmp_path, contents)
    if said is None:
        assert load(folder, cache=False)["next", "observation"].shape == (3, 16, 16, 3)
    else:
        with pytest.raises(O2ODataError, match=f"image 0 {said}"):
            load(folder, cache=False)


# D: data of your own


def test_case_d_arrays_never_written(tmp_path: Path) -> None:
    with hdf5(tmp_path / "log.hdf5", without(walk(), "terminals")) as file:
        file.create_dataset("terminals", (240,), bool)
    assert len(load(tmp_path / "log.hdf5")) == 240
    with hdf5(tmp_path / "large.hdf5", without(walk(), "observations")) as file:
        file.create_dataset("observations", (240, 1 << 28), "f4")
    with pytest.raises(O2ODataError, match="declares 257698037760 bytes"):
        load(tmp_path / "large.hdf5")


def robomimic(path: Path) -> Path:
    with hdf5(path, {}) as file:
        for number, episode in enumerate(as_episodes(walk())):
            demo = file.create_group(f"data/demo_{number}")
            demo["obs/joints"], demo["obs/eef"] = episode["observations"], episode["observations"][:, :1]
            demo["next_obs/joints"], demo["next_obs/eef"] = episode["next_observations"], episode["observations"][:, :1]
            demo["actions"], demo["rewards"] = episode["actions"], episode["rewards"]
            demo["dones"], demo["states"] = episode["timeouts"], np.zeros((LIMIT, 9))
    return path


def test_case_d_robomimics_layout(tmp_path: Path) -> None:
    path = robomimic(tmp_path / "demo.hdf5")
    with pytest.raises(O2ODataError, match=r"data/demo_0.*observes \['eef', 'joints'\].*pass obs_keys"):
        load(path)
    with pytest.raises(O2ODataError, match="dones is not read"):
        load(path, obs_keys=["joints"])
    with pytest.warns(UserWarning, match="states: arrays with one row per step that are not read"):
        data = load_offline(path, obs_keys=["joints", "eef"], names={"dones": "ends"})
    np.testing.assert_array_equal(data["observation"][:, :3], walk()["observations"])
    np.testing.assert_array_equal(data["next", "observation"][:, :3], walk()["next_observations"])
    assert np.bincount(data["episode"]).tolist() == [LIMIT] * 12


def test_case_d_other_layouts_are_told_by_their_names(tmp_path: Path) -> None:
    with hdf5(tmp_path / "log.hdf5", {"trajectories/obs": np.zeros(3)}):
        pass
    with pytest.raises(O2ODataError, match=r"has no observations, actions, rewards; it holds \['trajectories'\]"):
        load(tmp_path / "log.hdf5")


@pytest.mark.parametrize("name", ["infos", "episode_infos"])
def test_case_d_an_extra_object_array(tmp_path: Path, name: str) -> None:
    np.savez(tmp_path / "log.npz", **walk(), **{name: np.array([{}] * 240)})
    assert len(load(tmp_path / "log.npz")) == 240


def test_case_d_one_flag_for_a_whole_path() -> None:
    episodes = as_episodes(without(walk(), "terminals", "timeouts"))
    for number, episode in enumerate(episodes):
        episode["terminated"] = bool(number % 3 == 0)
    data = load(episodes)
    assert data["next", "terminated"].squeeze(-1).nonzero().squeeze(-1).tolist() == [19, 79, 139, 199]


def test_case_d_dictionary_observations() -> None:
    arrays = walk()
    parts = {
        name: {"a": arrays[name][:, :2], "b": {"c": arrays[name][:, 2]}}
        for name in ("observations", "next_observations")
    }
    assert (load(arrays | parts, obs_keys=("a", "b")) == load(arrays)).all()
    episodes = [
        {**episode, "observations": {"x": np.concatenate([episode["observations"], episode["next_observations"][-1:]])}}
        for episode in as_episodes(arrays)
    ]
    assert (
        load([without(episode, "next_observations") for episode in episodes], obs_keys=("x",)) == load(arrays)
    ).all()
    with pytest.raises(O2ODataError, match=r"episode 0, observations observes \['x'\], not \['y'\]"):
        load(episodes, obs_keys=("y",))
    with pytest.raises(O2OSpecError, match=r"obs_keys='x'; expected a list of keys"):
        load(episodes, obs_keys="x")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1: it is empty"),
        ("obs_0,rewards\n1,2\n1\n", "line 3: 1 cells for 2 names"),
        ("obs_0,rewards\n1,x\n", "line 2: could not convert"),
        ("obs_0,obs_2,actions_0,rewards\n1,2,3,4\n", r"the columns of 'obs' have the numbers \[0, 2\]"),
        ("obs_0,obs_0\n1,2\n", "two columns named 'obs_0'"),
        ("obs_0,acts_0,reward\n1,2,3\n", "has no timeouts"),
    ],
)
def test_case_d_tables_that_are_none(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(O2ODataError, match=said):
        load(tmp_path / "log.csv")


def test_case_d_a_name_is_no_match_of_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    monkeypatch.setattr(minari, "download_dataset", lambda name: (_ for _ in ()).throw(ConnectionError("no network")))
    with pytest.raises(O2ODataError, match="Close matches: ") as caught:
        load("D4RL/door/human-v2")
    assert "D4RL/door/human-v2" not in str(caught.value).split("Close matches: ")[1].split(".")[0]


def test_case_d_the_command_takes_the_loaders_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = walk(2)
    arrays = without(arrays, "terminals") | {"done": arrays["timeouts"], "actions": 2 * arrays["actions"]}
    sources = [f"path:{tmp_path / name}.npz" for name in ("one", "two")]
    for source in sources:
        np.savez(source.removeprefix("path:"), **arrays)
    assert main(["data", "check", source]) == 2
    assert "done is not read" in capsys.readouterr().err
    assert main(["data", "check", source, "--names", "done=ends"]) == 1
    said = ["--names", "done=ends", "--min-episode-length", "5", "--max-episode-steps", "20"]
    assert main(["data", "check", source, *said, "--action-bounds", "-2", "2"]) == 0
    assert main(["data", "check", source, *said, "--action-bounds", "[-2]", "[2]"]) == 0
    assert main(["data", "check", source, *said, "--actions", "clip"]) == 0
    assert main(["data", "show", source, *said]) == 0
    for wrong in (["--action-bounds", "a", "b"], ["--names", "done"]):
        with pytest.raises(SystemExit):
            main(["data", "check", source, *wrong])
    pytest.importorskip("sklearn")
    assert main(["data", "coverage", *sources, *said, "--action-bounds", "-2", "2", "--clusters", "5"]) == 0


# Whatever comes


HOSTILE: dict[str, Callable[[], Any]] = {
    "number": lambda: 3,
    "nothing": dict,
    "no rows": lambda: {name: values[:0] for name, values in walk().items()},
    "no episodes": list,
    "episodes of numbers": lambda: [1, 2],
    "episodes of None": lambda: [None],
    "empty episode": lambda: [{name: values[:0] for name, values in walk().items()}],
    "keys that are numbers": lambda: {1: np.zeros(3), 2: np.zeros(3)},
    "keys of two kinds": lambda: walk() | {1: np.zeros(240)},
    "ragged lists": lambda: walk() | {"observations": [[1.0], [1.0, 2.0]] * 120},
    "text": lambda: walk() | {"actions": np.array(["a"] * 240)},
    "text in a list": lambda: walk() | {"rewards": ["a"] * 240},
    "objects": lambda: walk() | {"rewards": np.array([None] * 240)},
    "complex numbers": lambda: walk() | {"rewards": np.zeros(240, complex)},
    "dates": lambda: walk() | {"rewards": np.zeros(240, "M8[s]")},
    "records": lambda: walk() | {"rewards": np.zeros(240, [("a", "f4")])},
    "a class": lambda: walk() | {"rewards": dict},
    "a generator": lambda: walk() | {"rewards": (i for i in range(240))},
    "one value": lambda: walk() | {"rewards": 1.0},
    "flags of text": lambda: walk() | {"terminals": np.array(["False"] * 240)},
    "flags of objects": lambda: walk() | {"terminals": np.array([None] * 240)},
    "flags of two columns": lambda: walk() | {"terminals": np.zeros((240, 2))},
    "too few flags": lambda: walk() | {"terminals": np.zeros(239)},
    "too few rewards": lambda: walk() | {"rewards": np.zeros(3)},
    "next observations of another width": lambda: walk() | {"next_observations": np.zeros((240, 4))},
    "episode of records": lambda: walk() | {"episode": np.zeros(240, [("a", "f4")])},
    "episode of infinities": lambda: walk() | {"episode": np.full(240, np.inf)},
    "observations of nothing": lambda: walk() | {"observations": {}},
    "observations of two lengths": lambda: walk() | {"observations": {"observation": np.zeros((240, 1)), "desired_goal":
                                                                      np.zeros((3, 1))}},
    "actions of no dimension": lambda: walk() | {"actions": np.zeros((240, 0))},
    "rewards beyond everything": lambda: walk() | {"rewards": np.full(240, 1e300)},
    "huge integers": lambda: walk() | {"rewards": [10**400] * 240},
    "scalar observations of an episode": lambda: [walk() | {"observations": 1.0}],
    "a flag of two values": lambda: [walk() | {"terminals": [True, False]}],
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_case_d_hostile_arrays_get_sentences(name: str) -> None:
    if name == "keys of two kinds":  # nobody needs the other
        assert len(load(HOSTILE[name]())) == 240
        return
    with pytest.raises((O2ODataError, O2OSpecError)) as caught:
        load(HOSTILE[name]())
    assert len(str(caught.value)) > 20


HOSTILE_ARGUMENTS: dict[str, list[Any]] = {
    "action_bounds": ["ab", ("a", "b"), (None, 1), (-1,), 3, (-1, 1, 2), ([[-1]], [[1]]), (1, -1), (np.nan, 1),
                      ([-1, -1], [1, 1]), (-np.inf, np.inf)],
    "max_episode_steps": [True, 0, -3, 1.5, np.nan, np.inf, "20", [20], 10**30],
    "min_episode_length": [True, 0, -3, 1.5, np.nan, np.inf, "20", [20], 10**30],
    "obs_keys": [[], ["a", "a"], [1], "obs", [None]],
    "names": [{1: "terminals"}, {"terminals": 3}, {"nothing": "terminals"}, {"rewards": "ignore"}, "terminals",
              [("terminals", "terminals")], {"terminals": "timeouts", "timeouts": "timeouts"}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in HOSTILE_ARGUMENTS.items() for value in values]
)
def test_case_d_hostile_arguments_get_sentences(name: str, value: Any) -> None:
    with pytest.raises((O2ODataError, O2OSpecError)) as caught:
        load(walk(), **{name: value})
    assert len(str(caught.value)) > 20


@pytest.mark.parametrize("value", [20, 20.0, np.int64(20), np.float64(20)])
def test_case_d_whole_numbers_of_any_kind_are_lengths(value: Any) -> None:
    data = load(without(walk(), "timeouts"), max_episode_steps=value, min_episode_length=value)
    assert np.bincount(data["episode"]).tolist() == [LIMIT] * 12


@pytest.mark.parametrize("name", ["observations", "rewards", "terminals"])
def test_case_d_masked_entries_are_no_numbers(name: str) -> None:
    values = walk()[name]
    mask = np.zeros(values.shape, bool)
    assert (load(walk() | {name: np.ma.array(values, mask=mask)}) == load(walk())).all()
    mask[7] = True
    with pytest.raises(O2ODataError, match=f"{name} of .* is masked in row 7"):
        load(walk() | {name: np.ma.array(values, mask=mask)})


@pytest.mark.parametrize("suffix", [".npz", ".hdf5", ".csv", ".pickle"])
def test_case_d_pipes_and_devices_are_not_waited_for(tmp_path: Path, suffix: str) -> None:
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"device{suffix}").symlink_to("/dev/zero")
    for name in ("pipe", "device"):
        with pytest.raises(O2ODataError, match="is not a regular file"):
            load(tmp_path / f"{name}{suffix}")


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.astype(values.dtype.newbyteorder(">")),
        np.asfortranarray,
        lambda values: np.repeat(values, 2, 0)[::2],
        lambda values: np.flip(np.flip(values, 0).copy(), 0),
        lambda values: values.tolist(),
        np.ma.array,
    ],
    ids=["big endian", "fortran", "strided", "backward", "lists", "masked array"],
)
def test_case_d_how_arrays_lie_in_memory_does_not_matter(change: Callable[[np.ndarray], Any]) -> None:
    arrays = {name: change(values) for name, values in walk().items()}
    assert (load(arrays) == load(walk())).all()


def test_case_d_actions_are_vectors() -> None:
    with pytest.raises(O2ODataError, match=r"actions of .* have the shape \[240, 2, 3\]; expected one vector per row"):
        load(walk() | {"actions": np.zeros((240, 2, 3))})


LONG = walk(60)
CUT = LONG["timeouts"]
SHUFFLED = np.random.default_rng(1).permutation(1200)
NUMBERED = without(LONG, "timeouts", "next_observations") | {"episode": np.arange(1200) // LIMIT}
#: What a recorder did wrong -> its rows, and what is told of them: an error, or a warning in small examples.
MISRECORDED = {
    "the row's own observation": (LONG | {"next_observations": LONG["observations"]}, "have their own observation as"),
    "zeros at time limits": (
        LONG | {"next_observations": np.where(CUT[:, None], 0, LONG["next_observations"])},
        "a next observation of zeros",
    ),
    "room never filled": (
        {name: np.concatenate([values, np.zeros_like(values)[:900], np.zeros_like(values)[:900]])
         for name, values in LONG.items()}, "1799 of 3000 rows are zero throughout.*first at episode 60, step 0",
    ),
    "shuffled within episodes": ({name: values[SHUFFLED] for name, values in NUMBERED.items()}, "rows are shuffled"),
    "terminations beside terminals": (LONG | {"terminations": np.ones(1200)}, "terminations is not read.* in row 0"),
    "step types": (LONG | {"step_type": np.where(np.roll(CUT, 3), 2, 1)}, "step_type is not read.* in row 2"),
    "nothing": (LONG | {"timeouts": None}, "timeouts of the dictionary is None"),
}  # fmt: skip


@pytest.mark.parametrize("kind", MISRECORDED)
def test_case_a05_what_recorders_do_wrong(kind: str) -> None:
    arrays, told = MISRECORDED[kind]
    with pytest.raises(O2ODataError, match=told):
        load(arrays)


def test_case_a05_what_only_looks_misrecorded() -> None:
    step_types = np.where(CUT, 2, np.where(np.roll(CUT, 1), 0, 1))
    assert (load(LONG | {"step_type": step_types, "not_done": ~CUT}) == load(LONG)).all()
    workers = np.random.default_rng(1).permutation(np.arange(1200) // 200)  # six environments take turns at random
    order = np.argsort(np.argsort(workers, kind="stable"))
    turns = load({name: values[order] for name, values in NUMBERED.items()})
    for key in ("observation", ("next", "observation")):
        assert (turns[key].sort(0).values == load(NUMBERED)[key].sort(0).values).all()
    small = walk()
    with pytest.warns(UserWarning, match="have their own observation"):
        load_offline(small | {"next_observations": small["observations"]})


def test_case_a05_episodes_that_say_less_than_others() -> None:
    episode = {"observations": np.random.rand(6, 3), "actions": np.zeros((5, 1)), "rewards": np.arange(5.0)}
    with pytest.warns(UserWarning, match="1 of 2 episodes, first episode 1, do not mark terminal rows"):
        assert load_offline([episode | {"terminals": True}, episode])["next", "terminated"].sum() == 1


def test_case_d_transitions_of_collectors() -> None:
    data = load(LONG)
    wanted = data.clone()
    data["observation"].requires_grad_()
    assert (load(data) == wanted).all()
    data = wanted.clone().exclude("episode").set(("next", "truncated"), torch.zeros(1200, 1, dtype=torch.bool))
    data.set("collector", TensorDict({"traj_ids": wanted["episode"] + 7}, [1200]))
    assert (load(data)["next", "truncated"] == wanted["next", "truncated"]).all()
    for source, told in (
        (data.view(60, 20), r"batch size \(60, 20\); expected \[N\]"),
        ([data], r"is a TensorDict; .* join them to one by torch\.cat"),
        (data.to("meta"), "on the device meta"),
    ):
        with pytest.raises(O2ODataError, match=told):
            load(source)


def test_case_d_tables_of_spreadsheets(tmp_path: Path) -> None:
    arrays = walk()
    text = saved("csv", arrays, tmp_path).read_text()
    for name, content in (("mark", "\ufeff" + text), ("empty", text.replace("\n", "\r\n\r\n") + "\r\n")):
        path = tmp_path / f"{name}.csv"
        path.write_bytes(content.encode())
        assert (load(path) == load(tmp_path / "log.csv")).all()
    (tmp_path / "semicolons.csv").write_text(text.replace(",", ";"))
    with pytest.raises(O2ODataError, match=r"line 2: .*with commas between them"):
        load(tmp_path / "semicolons.csv")
