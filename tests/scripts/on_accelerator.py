# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Train scripts on the CPU and on the pretended accelerator, and compare what they logged.

    python -m tests.scripts.on_accelerator FOLDER SCRIPT...

Prints a line of JSON for each script: its name, and what went wrong, if anything.
"""

from __future__ import annotations

import json
import math
import sys
import traceback
import warnings
from pathlib import Path

from tests import accelerator
from tests.scripts.phases import rows
from tests.scripts.running import compose, script_of
from torchrl_o2o.trainers import launch

SMALL = (
    *("preset=cpu", "compile=false", "online.total_frames=12", "online.batch_size=8", "evaluation.num_episodes=1"),
    *("schedule.eval_every=6", "schedule.log_every=1"),
)
STATES = ("task=halfcheetah", "+env.max_episode_steps=8", "actor.hidden_sizes=[16]")
NETWORKS = (*STATES, "qvalue.hidden_sizes=[16]")
OFFLINE = ("offline.num_steps=3", "offline.batch_size=8")
PIXELS = (
    *("task=dotreach", "dataset.source=null", "offline_fraction=0.0", "encoder.features=[4,4]"),
    *("actor.hidden_sizes=[8]", "qvalue.hidden_sizes=[8]"),
)
#: Name of a run, of which the first word is the script's, and its words. What a script does beside its update (scores,
#: labels, encoders) has to happen in the few steps.
RUNS: dict[str, tuple[str, ...]] = {
    "rlpd": (*NETWORKS, "utd_ratio=2", "online.init_random_frames=4", "offline.num_steps=3"),
    "a3rl": (*NETWORKS, "online.init_random_frames=4", "density_ratio.hidden_sizes=[16]", "pool_multiplier=1"),
    "awac": (*NETWORKS, *OFFLINE, "bc_steps=2"),
    "iql": (*NETWORKS, *OFFLINE),
    "cql": (*NETWORKS, *OFFLINE),
    "td3_bc": (*NETWORKS, *OFFLINE),
    "rebrac": (*NETWORKS, *OFFLINE),
    "spot": (*NETWORKS, *OFFLINE, "vae_steps=2"),
    "bc": (*STATES, *OFFLINE),
    "aca": (*NETWORKS, *OFFLINE),
    "samg": (*NETWORKS, *OFFLINE, "encoder.num_steps=3"),
    "pex": (*NETWORKS, *OFFLINE),
    "wsrl": (*NETWORKS, *OFFLINE, "handover.warmup_steps=4"),
    "qc": (*STATES[:2], *OFFLINE),
    "behavior_regularized": (*NETWORKS, *OFFLINE, "clone_steps=2"),
    "behavior_regularized bear": (*NETWORKS, *OFFLINE, "method=bear"),
    "off2on": (*NETWORKS, *OFFLINE, "num_agents=2", "online.frames_per_epoch=6", "online.first_epoch_factor=1"),
    "sope": (*NETWORKS, "online.init_random_frames=4"),
    "awr": (*STATES[:2], *OFFLINE, "batch_size=8", "value_steps=2", "actor_steps=2", "frames_per_iteration=6"),
    "rlpd_pixels": (*PIXELS, "online.init_random_frames=4"),
    "drqv2": (*PIXELS, "online.init_random_frames=4", "offline.num_steps=0"),
}


#: Runs that are also read on the other device.
RESUMED = ("rlpd", "a3rl", "off2on")


def numbers(folder: Path) -> dict[str, list[dict[str, float]]]:
    """What a run and its phases logged."""
    return {
        str(path.parent.relative_to(folder)): [dict(row) for row in rows(path.parent)]
        for path in sorted(folder.rglob("metrics.jsonl"))
    }


def difference(one: dict[str, list[dict[str, float]]], other: dict[str, list[dict[str, float]]]) -> str | None:
    """The first number that differs between two runs."""
    if one.keys() != other.keys():
        return f"phases {sorted(one)} and {sorted(other)}"
    for phase, logged in one.items():
        if [sorted(row) for row in logged] != [sorted(row) for row in other[phase]]:
            return f"the entries of {phase} differ"
        for first, second in zip(logged, other[phase], strict=True):
            for name, value in first.items():
                if name.startswith(("evaluation", "handover")):  # rounding grows in an episode
                    continue
                if not math.isclose(value, second[name], rel_tol=1e-3, abs_tol=1e-4) and not math.isnan(value):
                    return f"{phase}, step {first['step']}: {name} is {value} and {second[name]}"
    return None


def train(run: str, folder: Path, *words: str) -> None:
    script = run.split()[0]
    launch(compose(script, *SMALL, *RUNS[run], f"run_dir={folder}", *words), script_of(script).train)


def main(folder: Path, runs: list[str]) -> None:
    warnings.simplefilter("ignore")
    accelerator.register()  # before the first gradient, because autograd counts the devices once
    for run in runs:
        own, wrong = folder / run.replace(" ", "_"), None
        try:
            train(run, own / "cpu")
            train(run, own / "accel", f"device={accelerator.NAME}")
            wrong = difference(numbers(own / "cpu"), numbers(own / "accel"))
            if run in RESUMED:
                train(run, own / "cpu", f"device={accelerator.NAME}", "resume=true")
                train(run, own / "accel", "resume=true")
        except (Exception, SystemExit):
            wrong = traceback.format_exc(limit=-6)
        sys.stdout.write(json.dumps([run, wrong]) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or list(RUNS))
