# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""How long a million transitions take to load, and how much memory: Minari (first and later times), D4RL's HDF5.

Run it from the repository's root: ``python benchmarks/data_loading.py``. Each figure is from its own process with one
thread; the memory is the peak over what importing the package takes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

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
    storage.update_episodes(
        EpisodeBuffer(
            id=number,
            observations=rng.standard_normal((episode_length + 1, OBSERVATION)),
            actions=rng.uniform(-1, 1, (episode_length, ACTION)).astype(np.float32),
            rewards=rng.standard_normal(episode_length),
            terminations=np.zeros(episode_length, dtype=bool),
            truncations=last,
        )
        for number in range(ROWS // episode_length)
    )
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


def _measure(source: Path, label: str, root: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MINARI_DATASETS_PATH": str(root)}
    subprocess.run([sys.executable, "-c", MEASURE, str(source), label], check=True, env=environment)


def main() -> None:
    """Make the sets in a temporary folder, load each and print the figures."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for length in (1000, 100):
            source = _make_minari(root / f"long/{length}-v0", length)
            _measure(source, f"Minari, episodes of {length}, first time", root)
            _measure(source, f"Minari, episodes of {length}, cached", root)
        _measure(_make_d4rl(root / "d4rl.hdf5"), "D4RL HDF5, gzip", root)


if __name__ == "__main__":
    main()
