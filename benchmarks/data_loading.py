# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""How long a million transitions take to load, and how much memory: Minari (first and later times), D4RL's HDF5.

Run it from the repository's root: ``python benchmarks/data_loading.py``. Each figure is from its own process with one
thread; the memory is the peak over what importing the package takes.

``--small 10_000_000`` loads so many rows of observation 3 and action 1 from each form instead, and tells the peak
over what there was before, in units of the result's size, and the processor's seconds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage

ROWS, OBSERVATION, ACTION = 1_000_000, 17, 6
MEASURE = """
import resource, sys, time
from pathlib import Path
from torchrl_o2o.data import audit, load_offline
def memory(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
base, start = memory(), time.perf_counter()
data = load_offline(Path(sys.argv[1]))
loaded, peak = time.perf_counter(), memory()
audit(data)
audited = time.perf_counter() - loaded
print(f"{sys.argv[2]:40} {loaded - start:5.2f} s, {peak - base:4.0f} MiB; {audited:.2f} s of it for the audit")
"""


def _make_minari(folder: Path, episode_length: int) -> Path:
    folder.mkdir(parents=True)
    observation = spaces.Box(-np.inf, np.inf, (OBSERVATION,), np.float64)
    storage = MinariStorage.new(folder / "data", observation, spaces.Box(-1.0, 1.0, (ACTION,), np.float32))
    rng = np.random.default_rng(0)
    last = np.arange(episode_length) == episode_length - 1

    def episode(number: int) -> EpisodeBuffer:
        arrays: dict[str, Any] = {  # Minari's annotations say lists; its storages write arrays
            "observations": rng.standard_normal((episode_length + 1, OBSERVATION)),
            "actions": rng.uniform(-1, 1, (episode_length, ACTION)).astype(np.float32),
            "rewards": rng.standard_normal(episode_length),
            "terminations": np.zeros(episode_length, dtype=bool),
            "truncations": last,
        }
        return EpisodeBuffer(id=number, **arrays)

    storage.update_episodes(episode(number) for number in range(ROWS // episode_length))
    return folder


def _make_d4rl(path: Path) -> Path:
    rng = np.random.default_rng(0)
    observations = rng.standard_normal((ROWS, OBSERVATION)).astype(np.float32)
    arrays = {
        "observations": observations,
        "next_observations": np.roll(observations, -1, axis=0),
        "actions": rng.uniform(-1, 1, (ROWS, ACTION)).astype(np.float32),
        "rewards": rng.standard_normal(ROWS).astype(np.float32),
        "terminals": np.zeros(ROWS, dtype=bool),
        "timeouts": np.arange(ROWS) % 1000 == 999,
    }
    with h5py.File(path, "w") as file:
        for key, values in arrays.items():
            file.create_dataset(key, data=values, compression="gzip")
    return path


FORMS = ("float32", "float64", "without next observations", "npz", "hdf5", "TensorDict")


def _small_arrays(form: str, count: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    walk = rng.standard_normal((count + 1, 3), dtype=np.float32).cumsum(0) % 7
    arrays = {
        "observations": walk[:-1].copy(),
        "next_observations": walk[1:].copy(),
        "actions": rng.uniform(-1, 1, (count, 1)).astype(np.float32),
        "rewards": rng.standard_normal(count, dtype=np.float32),
        "terminals": np.zeros(count, dtype=bool),
        "timeouts": np.arange(count) % 1000 == 999,
    }
    if form == "without next observations":
        del arrays["next_observations"]
    if form == "float64":
        arrays = {key: value.astype(np.float64) if value.dtype.kind == "f" else value for key, value in arrays.items()}
    return arrays


def _write_small(form: str, count: int, folder: Path) -> None:
    if form == "npz":
        np.savez(folder / "small.npz", **_small_arrays(form, count))
    elif form == "hdf5":
        with h5py.File(folder / "small.hdf5", "w") as file:
            for key, values in _small_arrays(form, count).items():
                file.create_dataset(key, data=values)


def _memory(field: str) -> float:
    """A line of the process's status, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def _load_small(form: str, count: int, folder: Path) -> None:
    from torchrl_o2o.data import load_offline  # late: the parent process need not import it

    warnings.filterwarnings("ignore")
    source = folder / f"small.{form}" if form in ("npz", "hdf5") else _small_arrays(form, count)
    if form == "TensorDict":
        source = load_offline(source)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before, began = _memory("VmRSS"), time.process_time()
    data = load_offline(source)
    spent, peak = time.process_time() - began, _memory("VmHWM") - before
    size = sum(value.numel() * value.element_size() for _, value in data.items(True, True)) / 2**20
    print(f"{form:26} {size:5.0f} MiB, peak {peak:5.0f} MiB, {peak / size:.2f} times as much; {spent:.2f} s")


def _measure_small(count: int, form: str | None, folder: str | None) -> None:
    """Load from every form, each in a process of its own, of which this may be one."""
    if form is not None and folder is not None:
        _load_small(form, count, Path(folder))
        return
    with tempfile.TemporaryDirectory() as name:
        for each in FORMS:
            _write_small(each, count, Path(name))
            command = [sys.executable, __file__, "--small", str(count), "--form", each, "--folder", name]
            subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def _measure(source: Path, label: str, root: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MINARI_DATASETS_PATH": str(root)}
    subprocess.run([sys.executable, "-c", MEASURE, str(source), label], check=True, env=environment)


def main() -> None:
    """Make the sets in a temporary folder, load each and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=int, help="rows of observation 3 and action 1, from each form")
    parser.add_argument("--form", choices=FORMS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.small is not None:
        _measure_small(arguments.small, arguments.form, arguments.folder)
        return
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for length in (1000, 100):
            source = _make_minari(root / f"long/{length}-v0", length)
            _measure(source, f"Minari, episodes of {length}, first time", root)
            _measure(source, f"Minari, episodes of {length}, cached", root)
        _measure(_make_d4rl(root / "d4rl.hdf5"), "D4RL HDF5, gzip", root)


if __name__ == "__main__":
    main()
