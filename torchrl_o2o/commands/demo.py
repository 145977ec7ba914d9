# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""`o2o demo`: RLPD on recorded data and SAC from scratch, with the same environment steps, in a few minutes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from torchrl_o2o.commands.parsers import add_command

__all__ = ["register"]

_SETTINGS = {
    "halfcheetah": ("task=halfcheetah", "data=linear-mix-v0"),
    "pointmaze": (
        "task=pointmaze-medium",
        "utd_ratio=5",
        "online.total_frames=7_500",
        "schedule.eval_every=1_500",
        "evaluation.num_episodes=20",
        "evaluation.num_envs=20",
    ),
}
_DATASETS = {"halfcheetah": "o2o/halfcheetah/linear-mix-v0", "pointmaze": "o2o/pointmaze/medium-play-v0"}

_FILMED_STEPS = 150  # of each of three episodes


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the parser of `o2o demo`.

    Args:
        subparsers: of the `o2o` parser.
    """
    parser = add_command(subparsers, "demo", "train RLPD on a local data set and SAC without data, in a few minutes")
    parser.add_argument(
        "task", nargs="?", default="halfcheetah", choices=sorted(_SETTINGS), help="task (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), metavar="DIR", help="folder of both runs (default: %(default)s)"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting for both runs")
    parser.set_defaults(run=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    from torchrl_o2o.commands.demo_summary import fresh_folder, summarize
    from torchrl_o2o.data import load_offline
    from torchrl_o2o.errors import O2OSpecError, check_compiler

    out = fresh_folder(arguments.out / arguments.task)
    print(f"data: {_DATASETS[arguments.task]} (made here if absent)", flush=True)
    data = load_offline(_DATASETS[arguments.task])
    print(f"      {len(data)} transitions; training RLPD, and SAC without data, into {out}", flush=True)
    words = [*_SETTINGS[arguments.task], "preset=cpu", f"seed={arguments.seed}"]
    try:
        check_compiler()
    except O2OSpecError:
        print("      torch finds no C++ compiler: the updates are not compiled, which takes longer", flush=True)
        words.append("compile=false")
    status = _train_both(out, [*words, *arguments.set])
    if status == 0:
        print(summarize(out, _DATASETS[arguments.task]))
        print(_film(out))
    return status


def _film(out: Path) -> str:
    """Write videos of RLPD's policy, if this machine can render."""
    from torchrl_o2o.deploy import read_policy
    from torchrl_o2o.envs import drawing_arguments, make_gym_env
    from torchrl_o2o.errors import O2OSpecError
    from torchrl_o2o.trainers import evaluate

    policy = read_policy(out / "rlpd")
    env = drawing_arguments({**(policy.env or {}), "max_episode_steps": _FILMED_STEPS})
    actor, video = policy.actor(native_actions=False), out / "rlpd.gif"
    try:
        made = evaluate(actor, lambda: make_gym_env(**env), num_episodes=3, seed=0, video=video)
    except O2OSpecError as error:
        return f"no video: {error}"
    return "\n".join(f"{name + ':':<8}{file}" for name, file in made.videos.items())


def _train_both(out: Path, words: list[str]) -> int:
    """Train the two runs in two processes of one thread each; RLPD shows its progress, SAC writes a log."""
    from torchrl_o2o.commands.children import Children
    from torchrl_o2o.scripts import script_command

    with (out / "sac.log").open("w") as log, Children() as children:
        command = script_command("rlpd", [*words, "algorithm=sac", f"run_dir={out / 'sac'}"])
        sac = children.start(command, log=log)
        command = script_command("rlpd", [*words, "algorithm=rlpd", f"run_dir={out / 'rlpd'}"])
        status = children.wait(children.start(command))
        if status == 0:
            print("waiting for SAC", flush=True)
        if status == 0 or children.received is not None:
            status = children.wait(sac) or status
        if children.received is not None:
            print(f"stopped by {children.received.name}; both runs are saved in {out}", file=sys.stderr)
        elif sac.returncode:
            print(f"SAC failed; see {out / 'sac.log'}", file=sys.stderr)
        return status
