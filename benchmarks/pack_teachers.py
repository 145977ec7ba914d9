# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Put teachers into the package: the one command that writes `policies/teachers_f32.npz` and its record.

    python benchmarks/pack_teachers.py Hopper=runs/teachers/Hopper Walker2d=runs/teachers/Walker2d

The environments that are given replace their old teachers, the others stay. Of each, up to a dozen snapshots from weak
to strong are kept: those whose returns are nearest to evenly spaced levels between the first and the best. They are
measured again here, with the noise of training, in plain gymnasium environments. A teacher that was trained on the
first entries of the observation only (Ant without contact forces) gets weights of zero for the others. `_LOCOMOTION` in
`torchrl_o2o/data/datasets/recipes.py` names them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import gymnasium
import numpy as np
import torch

from torchrl_o2o.data.datasets.actors import load_actor
from torchrl_o2o.data.datasets.rollout import roll_out

POLICIES = Path(__file__).parents[1] / "torchrl_o2o" / "data" / "datasets" / "policies"
LAYERS = ("0.0.0", "0.0.2", "1.mean", "1.log_std")
LARGEST = 1_000_000


def chosen(snapshots: list[dict], number: int) -> list[dict]:
    """Snapshots up to the best one, nearest to evenly spaced returns, in the order of training."""
    returns = np.array([snapshot["return"] for snapshot in snapshots])
    best = int(returns.argmax())
    levels = np.linspace(returns[0], returns[best], number)
    return [snapshots[at] for at in sorted({int(np.abs(returns[: best + 1] - level).argmin()) for level in levels})]


def arrays(path: Path, width: int) -> dict[str, np.ndarray]:
    """An actor's layers as `load_actor` reads them, for observations of this width."""
    state = torch.load(path, weights_only=True)
    out = {}
    for number, layer in enumerate(LAYERS):
        out[f"w{number}"] = state[f"module.0.module.{layer}.weight"].numpy().astype(np.float32)
        out[f"b{number}"] = state[f"module.0.module.{layer}.bias"].numpy().astype(np.float32)
    out["w0"] = np.pad(out["w0"], ((0, 0), (0, width - out["w0"].shape[1])))
    return out


def measured(path: Path, group: str, env_id: str, episodes: int) -> float:
    """Mean return of whole episodes with the noise of training."""
    env = gymnasium.make(env_id)
    box = env.action_space
    assert isinstance(box, gymnasium.spaces.Box)
    actors = load_actor(path, group, box)
    trajectories = roll_out(env, actors, num_steps=1000 * episodes, seed=0)
    whole = [run.rewards.sum() for run in trajectories if run.terminations[-1] or len(run.rewards) == 1000]
    return float(np.mean(whole))


def main() -> None:
    """Pack, measure, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="ENVIRONMENT=RUN")
    parser.add_argument("--number", type=int, default=12, help="snapshots of each (default: 12)")
    parser.add_argument("--episodes", type=int, default=10, help="at least, to measure each snapshot (default: 10)")
    parser.add_argument("--out", type=Path, default=POLICIES, help="folder")
    arguments = parser.parse_args()
    target, noted = arguments.out / "teachers_f32.npz", arguments.out / "teachers.json"
    with np.load(target) as stored:
        file = dict(stored)
    record = json.loads(noted.read_text())
    for word in arguments.runs:
        env, _, folder = word.partition("=")
        file = {name: values for name, values in file.items() if not name.startswith(f"{env}/")}
        run = json.loads((Path(folder) / "run.json").read_text())
        found = sorted((Path(folder) / "snapshots").glob("*.json"))
        picked = chosen(
            [json.loads(path.read_text()) | {"path": path.with_suffix(".pt")} for path in found], arguments.number
        )
        space = gymnasium.make(f"{env}-v5").observation_space
        assert isinstance(space, gymnasium.spaces.Box)
        for number, snapshot in enumerate(picked):
            layers = arrays(snapshot["path"], space.shape[0])
            file |= {f"{env}/{number:02}/{name}": values for name, values in layers.items()}
        np.savez(target, **file)
        returns = [measured(target, f"{env}/{n:02}/", f"{env}-v5", arguments.episodes) for n in range(len(picked))]
        file |= {f"{env}/steps": np.array([s["step"] for s in picked]), f"{env}/returns": np.array(returns, np.float32)}
        keys = ("config", "commit", "versions")
        kept = [{"step": s["step"], "deterministic": round(s["return"], 1), "std": round(s["std"], 1)} for s in picked]
        for snapshot, value in zip(kept, returns):
            snapshot["with_noise"] = round(value, 1)
        record[env] = {"snapshots": kept, **{key: run[key] for key in keys}}
        record[env]["config"].pop("run_dir", None)
    np.savez_compressed(target, **file)
    if target.stat().st_size > LARGEST:
        raise SystemExit(f"{target} has {target.stat().st_size} bytes; at most {LARGEST} go into the package.")
    noted.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({env: entry["snapshots"] for env, entry in record.items()}, indent=1))


if __name__ == "__main__":
    main()
