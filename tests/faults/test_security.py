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
import zipfile
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from tests.scripts.running import ROOT, compose, load_script
from torchrl_o2o.checkpoint import Checkpointer, load_objects
from torchrl_o2o.checkpoint.manifest import digest, read_manifest, write_manifest
from torchrl_o2o.data import load_offline
from torchrl_o2o.envs.make import make_gym_env
from torchrl_o2o.errors import O2OCheckpointError, O2ODataError, O2OSpecError
from torchrl_o2o.record.recorder import Recorder, read_run

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
    with pytest.raises(O2ODataError, match=r"is refused: it asks for .*system|not a readable npz file of plain arrays"):
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
    with pytest.raises(O2OSpecError, match="pass the whole configuration"):
        Recorder(tmp_path / "part", config=config.nested[0])
    script = load_script("sota-implementations/rlpd/rlpd.py")
    cfg = compose("rlpd", "task_name=${oc.env:O2O_TEST_SECRET}")
    assert "hunter2" not in json.dumps(script.compared(cfg))


@pytest.mark.parametrize("target", ["os.system", "torch.load", "torch.hub.load", "torch.nn.Linear"])
def test_case_29_targets_in_a_configuration_are_not_called(tmp_path: Path, mark: Path, target: str) -> None:
    """The script builds from its own names; a `_target_` is an argument that no constructor takes."""
    script = load_script("sota-implementations/rlpd/rlpd.py")
    cfg = compose("rlpd", f"+actor._target_={target}", f"+actor.command='touch {mark}'", f"run_dir={tmp_path / 'run'}")
    with pytest.raises(TypeError, match="_target_"):
        script.make_run(cfg)
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
