# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Case 29 and its kin: attacks through ids, metadata, pickles, configurations and checkpoints, tried and refused."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from tests.scripts.running import ROOT, compose, script_of
from torchrl_o2o.checkpoint import Checkpointer, load_objects
from torchrl_o2o.checkpoint.manifest import digest, read_manifest, write_manifest
from torchrl_o2o.data import load_offline
from torchrl_o2o.envs.make import make_gym_env
from torchrl_o2o.errors import O2OCheckpointError, O2ODataError, O2OSpecError
from torchrl_o2o.provenance import git_commit
from torchrl_o2o.record.files import read_run
from torchrl_o2o.record.recorder import Recorder
from torchrl_o2o.trainers import run_options

PACKAGE = ROOT / "torchrl_o2o"
SOURCES = [*PACKAGE.rglob("*.py"), *(ROOT / "sota-implementations").rglob("*.py"), *(ROOT / "examples").glob("*.py")]


class Payload:
    """Unpickling it touches a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """A file that exists once an attack has succeeded."""
    return tmp_path / "pwned"


def test_the_payload_works_where_nothing_stops_it(mark: Path) -> None:
    pickle.loads(pickle.dumps(Payload(mark)))
    assert mark.exists()


# Ids


@pytest.mark.parametrize(
    "dataset_id",
    [
        "../outside/x-v0",
        "/etc/passwd",
        "a/../../x-v0",
        "./x-v0",
        "x-v0/../y",
        "a//b-v0",
        "x",
        "~/x-v0",
        "a\\b-v0",
        "x-v0\n",
    ],
)
def test_case_29_data_set_ids_stay_below_their_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset_id: str
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    outside = tmp_path / "outside" / "x-v0"
    outside.mkdir(parents=True)
    with pytest.raises(O2ODataError, match="is not a data set id"):
        load_offline(dataset_id)


@pytest.mark.parametrize("env_id", ["os:system-v0", "subprocess:getoutput", "antigravity:x-v0"])
def test_environment_ids_import_nothing(env_id: str) -> None:
    with pytest.raises(O2OSpecError, match=r"would run code of the module"):
        make_gym_env(env_id)


def test_registered_entry_points_outside_the_allow_list_are_not_called(mark: Path) -> None:
    gymnasium.register("Attack-v0", entry_point="subprocess:getoutput", kwargs={"cmd": f"touch {mark}"})
    try:
        with pytest.raises(O2OSpecError, match="would run code of the module 'subprocess'"):
            make_gym_env("Attack-v0")
    finally:
        del gymnasium.registry["Attack-v0"]
    assert not mark.exists()


# Metadata


def test_entry_points_in_metadata_are_never_called(tmp_path: Path, mark: Path) -> None:
    h5py = pytest.importorskip("h5py")
    folder = tmp_path / "evil-v0" / "data"
    folder.mkdir(parents=True)
    spec = {"id": "Evil-v0", "entry_point": "subprocess:getoutput", "kwargs": {"cmd": f"touch {mark}"}}
    metadata = {"data_format": "hdf5", "total_episodes": 1, "dataset_id": "evil-v0", "env_spec": json.dumps(spec)}
    (folder / "metadata.json").write_text(json.dumps(metadata))
    rng = np.random.default_rng(0)
    with h5py.File(folder / "main_data.hdf5", "w") as file:
        group = file.create_group("episode_0")
        group["observations"] = rng.standard_normal((6, 3))
        group["actions"], group["rewards"] = rng.uniform(-1, 1, (5, 2)), rng.standard_normal(5)
        group["terminations"] = group["truncations"] = np.zeros(5, bool)
    assert len(load_offline(tmp_path / "evil-v0", cache=False)) == 5
    assert not mark.exists()
    with pytest.raises(O2OSpecError, match="not registered"):
        make_gym_env(spec["id"])


# Pickles


@pytest.mark.parametrize("suffix", [".pickle", ".npz"])
def test_case_29_pickles_in_data_files(tmp_path: Path, mark: Path, suffix: str) -> None:
    path = tmp_path / f"demos{suffix}"
    if suffix == ".pickle":
        path.write_bytes(pickle.dumps([{"observations": Payload(mark)}]))
    else:
        np.savez(path, observations=np.array([Payload(mark)], dtype=object))
    with pytest.raises(
        O2ODataError, match=r"is refused: it refers to .*system|not a readable npz file of plain arrays"
    ):
        load_offline(path, cache_dir=tmp_path / "cache")
    assert not mark.exists()


def test_hdf5_objects_are_not_unpickled(tmp_path: Path, mark: Path) -> None:
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "data.hdf5"
    with h5py.File(path, "w") as file:
        for name in ("observations", "actions", "rewards", "terminals", "timeouts"):
            file[name] = np.void(pickle.dumps(Payload(mark)))
    with pytest.raises(O2ODataError):
        load_offline(path)
    assert not mark.exists()


# Checkpoints


def forged(folder: Path, data: bytes) -> None:
    """A checkpoint whose object holds the given bytes, with hashes and manifest to match."""
    Checkpointer(folder, objects={"net": {"step": 1}}).save(1)
    (folder / "step-1" / "net.pt").write_bytes(data)
    body = read_manifest(folder / "step-1")
    body["files"]["net.pt"] = {"bytes": len(data), "blake2b": digest(data)}
    write_manifest(folder / "step-1", body)


def as_torch_file(payload: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(payload, stream)
    return stream.getvalue()


@pytest.mark.parametrize("form", ["torch", "bare pickle", "swapped pickle"])
def test_case_29_checkpoints_with_code_in_them(tmp_path: Path, mark: Path, form: str) -> None:
    data = as_torch_file({"weights": torch.zeros(2), "extra": Payload(mark)})
    if form == "bare pickle":
        data = pickle.dumps({"extra": Payload(mark)})
    if form == "swapped pickle":
        stream = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(as_torch_file({"step": 1}))) as old, zipfile.ZipFile(stream, "w") as new:
            for name in old.namelist():
                content = pickle.dumps(Payload(mark)) if name.endswith("data.pkl") else old.read(name)
                new.writestr(name, content)
        data = stream.getvalue()
    forged(tmp_path / "run", data)
    for read in (
        lambda: Checkpointer(tmp_path / "run", objects={"net": {}}).restore(),
        lambda: load_objects(tmp_path / "run", {"net": {}}),
    ):
        with pytest.raises(O2OCheckpointError, match="would run code"):
            read()
    assert not mark.exists()


def test_manifests_name_files_of_their_own_folder_only(tmp_path: Path) -> None:
    secret = tmp_path / "secret.pt"
    secret.write_bytes(as_torch_file({"key": 1}))
    Checkpointer(tmp_path / "run", objects={"net": {}}).save(1)
    entry = {"bytes": secret.stat().st_size, "blake2b": digest(secret.read_bytes())}
    body = read_manifest(tmp_path / "run" / "step-1")
    for harm in (
        {"files": body["files"] | {"../../secret.pt": entry}},
        {"files": body["files"] | {str(secret): entry}},
        {"buffer": {"regions": [], "segments": [{"file": "../../secret.pt", "region": "online"} | entry]}},
    ):
        write_manifest(tmp_path / "run" / "step-1", body | harm)
        with (
            pytest.warns(UserWarning, match=r"secret\.pt.*expected a file of the checkpoint's folder"),
            pytest.raises(O2OCheckpointError, match="every checkpoint"),
        ):
            load_objects(tmp_path / "run", {"net": {}})


# Configurations


def test_stored_configurations_are_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: Path) -> None:
    """Interpolations and targets in a stored configuration stay the words they are."""
    monkeypatch.setenv("O2O_TEST_SECRET", "hunter2")
    config = {"name": "${oc.env:O2O_TEST_SECRET}", "net": {"_target_": "os.system", "command": f"touch {mark}"}}
    Recorder(tmp_path / "run", config=config).close()
    assert read_run(tmp_path / "run")["config"] == config
    Checkpointer(tmp_path / "c", objects={}, config=config).save(1)
    assert Checkpointer(tmp_path / "c", objects={}, config=config).restore() == 1
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"hunter2" not in written
    assert not mark.exists()


def test_environment_variables_in_a_configuration_stay_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("O2O_TEST_SECRET", "hunter2")
    words = {"key": "${oc.env:O2O_TEST_SECRET}", "twice": "${key}", "path": "${seed}/${oc.env:O2O_TEST_SECRET,x}"}
    config = OmegaConf.create({"seed": 3, "nested": [words | {"twice": "a"}], **words})
    Recorder(tmp_path, config=config).close()
    stored = read_run(tmp_path)["config"]
    assert stored["twice"] == stored["key"] == "${oc.env:O2O_TEST_SECRET}"
    assert stored["path"] == stored["nested"][0]["path"] == "3/${oc.env:O2O_TEST_SECRET,x}"
    assert "hunter2" not in (tmp_path / "run.json").read_text()
    Recorder(tmp_path / "part", config=config.nested[0]).close()
    assert read_run(tmp_path / "part")["config"] == stored["nested"][0]
    cfg = compose("rlpd", "task_name=${oc.env:O2O_TEST_SECRET}")
    assert "hunter2" not in json.dumps(run_options(cfg, tmp_path).config)


LEAKS = {
    "plain": "${oc.env:O2O_TEST_SECRET}",
    "spaces": "${ oc.env : O2O_TEST_SECRET }",
    "default": "${oc.env:O2O_TEST_SECRET,none}",
    "within a text": "key-${oc.env:O2O_TEST_SECRET}-",
    "nested name": "${oc.env:${name}}",
    "nested resolver": "${${resolver}:O2O_TEST_SECRET}",
    "decoded": "${oc.decode:'\\${oc.env:O2O_TEST_SECRET}'}",
    "decoded variable": "${oc.decode:${oc.env:O2O_TEST_SECRET}}",
    "created": "${oc.create:{a:${oc.env:O2O_TEST_SECRET}}}",
    "selected": "${oc.select:secret}",
    "values": "${oc.dict.values:section}",
    "reference": "${secret}",
    "escaped": "\\${oc.env:O2O_TEST_SECRET}",
    "own resolver": "${leak:}",
}


@pytest.mark.parametrize("leak", LEAKS)
@pytest.mark.parametrize("place", ["top", "nested", "list", "key", "in a plain dict", "part"])
def test_case_c25_no_resolver_is_called_for_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leak: str, place: str
) -> None:
    monkeypatch.setenv("O2O_TEST_SECRET", "hunter2")
    OmegaConf.register_new_resolver("leak", lambda: os.environ["O2O_TEST_SECRET"], replace=True)
    text, words = LEAKS[leak], {"name": "O2O_TEST_SECRET", "resolver": "oc.env", "secret": "${oc.env:O2O_TEST_SECRET}"}
    own = {
        "nested": {"a": {"b": text}},
        "list": [[text]],
        "key": {text: 1},
        "part": {"a": {"b": text}},
    }.get(place, text)
    config: Any = OmegaConf.create({**words, "section": {"s": "${secret}"}, "own": own})
    if place == "in a plain dict":
        config = {"outer": [config]}
    elif place == "part":
        config = config.own
    Recorder(tmp_path / "run", config=config).close()
    Checkpointer(tmp_path / "c", objects={}, config=config).save(1)
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"hunter2" not in written


def test_case_c25_references_to_keys_are_replaced(tmp_path: Path) -> None:
    words = {
        "a": {"b": [1, {"c": 2.5}]},
        "x": "${a.b[1].c}",
        "y": "${a.b.0}",
        "z": "n-${x}",
        "w": "${a.b}",
        "v": "${no}",
    }
    relative = {"near": {"p": 7, "q": "${.p}", "r": "${..x}", "s": {"t": "${..p}"}}}
    cycle = {"left": "${right}", "right": "${left}"}
    Recorder(tmp_path, config=OmegaConf.create({**words, **relative, **cycle})).close()
    stored = read_run(tmp_path)["config"]
    assert [stored[key] for key in "xyzwv"] == [2.5, 1, "n-2.5", [1, {"c": 2.5}], "${no}"]
    assert stored["near"] == {"p": 7, "q": 7, "r": 2.5, "s": {"t": 7}}
    assert stored["left"] in ("${left}", "${right}")


GIT_HARMS = {
    "core.fsmonitor": [],
    "core.hooksPath": [],
    "filter.evil.clean": [],
    "filter.evil.process": [],
    "core.pager": [],
    "diff.external": [],
}


@pytest.mark.parametrize("setting", GIT_HARMS)
def test_case_c27_a_checkouts_configuration_runs_nothing(tmp_path: Path, mark: Path, setting: str) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    script = tmp_path / "evil"
    script.write_text(f"#!/bin/sh\ntouch {mark}\ncat\n")
    script.chmod(0o755)
    (tmp_path / "train.py").write_text("1")
    for words in (["init", "-q"], ["add", "train.py"], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *words], check=True)
    (tmp_path / "hooks").mkdir()
    for name in ("post-index-change", "pre-commit"):
        shutil.copy(script, tmp_path / "hooks" / name)
    (tmp_path / ".gitattributes").write_text("* filter=evil\n")
    value = str(tmp_path / "hooks") if setting == "core.hooksPath" else str(script)
    subprocess.run([*git, "config", setting, value], check=True)
    (tmp_path / "train.py").write_text("2")
    assert git_commit(tmp_path)["dirty"]
    (tmp_path / "train.py").write_text("1")
    assert not git_commit(tmp_path)["dirty"]
    assert not mark.exists()


@pytest.mark.parametrize("target", ["os.system", "torch.load", "torch.hub.load", "torch.nn.Linear"])
def test_case_29_targets_in_a_configuration_are_not_called(tmp_path: Path, mark: Path, target: str) -> None:
    """The script builds from its own names; a `_target_` is an argument that no constructor takes."""
    cfg = compose("rlpd", f"+actor._target_={target}", f"+actor.command='touch {mark}'", f"run_dir={tmp_path / 'run'}")
    with pytest.raises(TypeError, match="_target_"):
        script_of("rlpd").train(cfg)
    assert not mark.exists()
    assert not (tmp_path / "run").exists()


# Secrets


def test_environment_variables_are_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "f00dfeed" * 5)
    with Recorder(tmp_path, config={"seed": 1}) as recorder:
        recorder.log(1, {"train/loss": 1.0})
        Checkpointer(tmp_path / "checkpoints", objects={"recorder": recorder}).save(1)
    assert all(b"f00dfeed" not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


# What the source may not contain


def calls(path: Path) -> list[tuple[str, set[str]]]:
    """Names of the called functions with their keyword arguments."""
    found = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return [
        (ast.unparse(node.func), {f"{key.arg}={ast.unparse(key.value)}" for key in node.keywords}) for node in found
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_call_that_runs_what_a_file_says(path: Path) -> None:
    for name, keywords in calls(path):
        if name == "torch.load":
            assert "weights_only=True" in keywords
        assert "allow_pickle=True" not in keywords
        assert "shell=True" not in keywords
        assert name not in {"eval", "exec", "pickle.load", "pickle.loads", "os.system", "yaml.load", "torch.hub.load"}
        assert not name.endswith(("instantiate", "recover_environment"))
        assert name not in {"np.load", "numpy.load"} or "allow_pickle=False" in keywords
