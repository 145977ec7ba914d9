# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""`o2o data`: list, make, show, check and compare offline data sets."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torchrl_o2o.commands.parsers import add_command
from torchrl_o2o.errors import O2OSpecError

__all__ = ["actions", "add_actions", "add_reading", "reading", "register"]

_RECORDING = ("size", "action_repeat", "shadows", "noise", "allow_modules")
_SAME = " (default: as for the run's own data set)"
_SOURCE = "a data set's name, or path:FILE (.hdf5, .npz, .csv, .pickle, or a Minari folder)"


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the parser of `o2o data`.

    Args:
        subparsers: of the `o2o` parser.
    """
    parser = add_command(subparsers, "data", "list, make, show, check and compare offline data sets")
    subcommands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = add_command(subcommands, "list", "list data sets that can be made, and those on this machine")
    listing.set_defaults(run=_list)
    _register_make(add_command(subcommands, "make", "make one of this package's data sets, or record frames"))
    show = add_command(subcommands, "show", "summarize a data set")
    _add_source(show)
    show.add_argument("--plot", metavar="FILE.png", help="plot returns, lengths and rewards")
    show.add_argument("--json", action="store_true", help="print JSON")
    show.set_defaults(run=_show)
    check = add_command(subcommands, "check", "audit a data set; exits with status 1 if it has errors")
    _add_source(check)
    add_actions(check)
    check.add_argument("--env", metavar="ID", help="an environment that the data should fit")
    check.add_argument(
        "--allow-modules",
        nargs="+",
        default=[],
        metavar="MODULE",
        help="trusted modules, whose environments may be built",
    )
    check.add_argument("--json", action="store_true", help="print JSON")
    check.set_defaults(run=_check)
    _register_coverage(
        add_command(subcommands, "coverage", "compare data sets by the clusters of their union that they cover")
    )


def _register_make(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="for example o2o/halfcheetah/linear-mix-v0; a new name with --env")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    parser.add_argument("--steps", type=int, metavar="N", help="environment steps (default: the recipe's)")
    parser.add_argument("--root", type=Path, metavar="DIR", help="where to write it (default: Minari's folder)")
    parser.add_argument(
        "--policy",
        type=Path,
        metavar="FILE",
        help="the policy that acts: .npz for names that need one, a run with --env",
    )
    frames = parser.add_argument_group("recording rendered frames")
    frames.add_argument("--env", metavar="ID", help="the environment, for example dm_control/walker-walk-v0")
    frames.add_argument("--size", type=int, metavar="PIXELS", help="height and width of the frames (default: 64)")
    frames.add_argument("--action-repeat", type=int, metavar="N", help="steps per action (default: the policy's, or 1)")
    frames.add_argument("--shadows", action="store_true", help="render MuJoCo's shadows, reflections and anti-aliasing")
    frames.add_argument(
        "--noise", type=float, metavar="STD", help="standard deviation of noise on the policy's actions (default: 0)"
    )
    frames.add_argument(
        "--allow-modules", nargs="+", metavar="MODULE", help="trusted modules, whose environments may be built"
    )
    parser.set_defaults(run=_make)


def _register_coverage(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sources", metavar="SOURCE", nargs="+", help=f"two or more, each {_SOURCE}")
    add_reading(parser)
    add_actions(parser)
    parser.add_argument(
        "--clusters", type=int, default=50, metavar="K", help="number of clusters (default: %(default)s)"
    )
    parser.add_argument(
        "--rows", type=int, default=1_000, metavar="N", help="rows sampled from each data set (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    parser.add_argument("--plot", metavar="FILE.png", help="plot the t-SNE embedding")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_coverage)


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help=_SOURCE)
    add_reading(parser)


def add_reading(parser: argparse.ArgumentParser, *, of_run: bool = False) -> None:
    """Add the options of every command that reads data, named as the arguments of `load_offline`.

    Args:
        parser: of the command.

    Keyword Args:
        of_run: whether options that are not given are ``None``, so that the settings of the run's own data set apply.
            Defaults to ``False``.
    """
    same = _SAME if of_run else ""
    parser.add_argument(
        "--max-episode-steps", type=int, metavar="T", help=f"time limit of an episode, for files without timeouts{same}"
    )
    parser.add_argument(
        "--min-episode-length",
        type=int,
        default=None if of_run else 2,
        metavar="T",
        help=f"shorter episodes are skipped{same or ' (default: %(default)s)'}",
    )
    parser.add_argument(
        "--obs-keys", nargs="+", metavar="KEY", help=f"entries of a dictionary observation to use, in order{same}"
    )
    parser.add_argument(
        "--names",
        nargs="+",
        type=_name,
        metavar="ARRAY=WHAT",
        help=f"meaning of arrays with other names: terminals, timeouts, dones, ends, masks, ..., ignore{same}",
    )


def add_actions(parser: argparse.ArgumentParser, *, of_run: bool = False) -> None:
    """Add the options for the units of actions.

    Args:
        parser: of the command.

    Keyword Args:
        of_run: as in :func:`add_reading`. Defaults to ``False``.
    """
    same = _SAME if of_run else ""
    parser.add_argument(
        "--action-bounds",
        nargs=2,
        type=_bound,
        metavar=("LOW", "HIGH"),
        help=f"bounds of the recorded actions: two numbers, or lists with one per entry: '[-1, 0]'{same}",
    )
    parser.add_argument(
        "--actions",
        choices=("error", "clip", "rescale"),
        default=None if of_run else "error",
        help=f"what to do with actions outside the bounds{same or ' (default: %(default)s)'}",
    )


def _name(text: str) -> tuple[str, str]:
    array, separator, what = text.rpartition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r}; expected ARRAY=WHAT, such as dones=terminals")
    return array, what


def _bound(text: str) -> float | list[float]:
    values = json.loads(text)
    return [float(value) for value in values] if isinstance(values, list) else float(values)


def reading(arguments: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `load_offline` from the options of :func:`add_reading`.

    Args:
        arguments: the parsed arguments.
    """
    return {
        "max_episode_steps": arguments.max_episode_steps,
        "min_episode_length": arguments.min_episode_length,
        "obs_keys": arguments.obs_keys,
        "names": dict(arguments.names or ()),
    }


def actions(arguments: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `load_offline` from the options of :func:`add_actions`.

    Args:
        arguments: the parsed arguments.
    """
    bounds = arguments.action_bounds
    return {"action_bounds": None if bounds is None else tuple(bounds), "actions": arguments.actions}


def _list(arguments: argparse.Namespace) -> int:
    from torchrl_o2o.data.datasets.cache import dataset_root
    from torchrl_o2o.data.datasets.recipes import LOCAL_DATASETS
    from torchrl_o2o.data.datasets.sources import local_minari_ids

    present = local_minari_ids()
    print("Made here (* needs --policy):")
    for name, recipe in LOCAL_DATASETS.items():
        print(f"  {name:40} {'*' if recipe.needs_policy else ' '} {recipe.description}")
    print(f"On this machine, in {dataset_root()}:")
    for name in present or ["(none)"]:
        print(f"  {name}")
    return 0


def _make(arguments: argparse.Namespace) -> int:
    from torchrl_o2o.data.datasets.local import make_local_dataset
    from torchrl_o2o.data.datasets.ogbench_make import make_ogbench

    if arguments.env is not None:
        return _record(arguments)
    options = [name for name in _RECORDING if getattr(arguments, name)]
    if options:
        raise O2OSpecError(f"got --{options[0].replace('_', '-')} without --env, expected the environment to record")
    if arguments.name.startswith("ogbench/"):
        if arguments.policy is not None:
            raise O2OSpecError(f"got --policy for {arguments.name}, which needs none; leave it out")
        file = make_ogbench(arguments.name, seed=arguments.seed, num_steps=arguments.steps, root=arguments.root)
        print(f"{arguments.name} is in {file}; load it as path:{file}")
        return 0
    folder = make_local_dataset(
        arguments.name, seed=arguments.seed, num_steps=arguments.steps, root=arguments.root, policy=arguments.policy
    )
    print(f"{arguments.name} is in {folder}")
    return 0


def _record(arguments: argparse.Namespace) -> int:
    from torchrl_o2o.commands.policies import recording_policy
    from torchrl_o2o.data import record_frames

    asked = {"action_repeat": arguments.action_repeat, "allow_modules": arguments.allow_modules}
    env = {"env_id": arguments.env, "render_size": 64 if arguments.size is None else arguments.size}
    env |= {key: value for key, value in asked.items() if value is not None}
    env |= {"shadows": True} if arguments.shadows else {}
    settings: dict[str, Any] = {"env": env}
    if arguments.policy is not None:
        settings = recording_policy(arguments.policy, env)
    numbers = {"seed": arguments.seed, "num_steps": arguments.steps, "noise": arguments.noise, "root": arguments.root}
    given = {key: value for key, value in numbers.items() if value is not None}
    folder = record_frames(arguments.name, **settings, **given)
    words = " ".join(f"+env.{key}={value}" for key, value in settings["env"].items() if key != "env_id")
    print(f"{arguments.name} is in {folder}")
    print(f"train on it with dataset.source={arguments.name} env.env_id={arguments.env} {words}")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from torchrl_o2o.data import describe_offline

    _check_plot(arguments)
    info = describe_offline(arguments.source, **reading(arguments))
    values = asdict(info)
    if arguments.json:
        print(_json(values))
    else:
        for key, value in values.items():
            print(f"{key:18} {_shown(value)}")
    if arguments.plot:
        from torchrl_o2o.data.figure import plot_offline

        path = plot_offline(arguments.source, arguments.plot, **reading(arguments))
        print(f"drawn to {path}")
    return 0


def _check_plot(arguments: argparse.Namespace) -> None:
    """Raise for a picture that cannot be written before anything is computed."""
    from torchrl_o2o.pictures import check_picture

    if arguments.plot:
        check_picture(arguments.plot)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items()) or "-"
    if isinstance(value, tuple | list):
        shown = ", ".join(_shown(item) for item in value[:8])
        return f"{shown}, ..." if len(value) > 8 else shown or "-"
    return f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)


def _check(arguments: argparse.Namespace) -> int:
    from torchrl_o2o.data import check_offline

    env = _joined_alike(arguments) if arguments.env is not None and arguments.allow_modules else arguments.env
    report = check_offline(arguments.source, env=env, **reading(arguments), **actions(arguments))
    print(_json(report.to_dict()) if arguments.json else report)
    return 0 if report.ok else 1


def _joined_alike(arguments: argparse.Namespace) -> Any:
    """The environment, whose observation has the entries that are read from the data."""
    from torchrl_o2o.envs.make import make_gym_env, observes_dictionary

    known: dict[str, Any] = {"allow_modules": arguments.allow_modules}
    if arguments.obs_keys is not None and observes_dictionary(arguments.env, **known):
        known["observation_keys"] = arguments.obs_keys
    return make_gym_env(arguments.env, **known)


def _coverage(arguments: argparse.Namespace) -> int:
    from torchrl_o2o.data import load_offline
    from torchrl_o2o.data.coverage import coverage, plot_coverage

    _check_plot(arguments)
    data = {source: load_offline(source, **reading(arguments), **actions(arguments)) for source in arguments.sources}
    found = coverage(data, num_clusters=arguments.clusters, rows_per_source=arguments.rows, seed=arguments.seed)
    if arguments.json:
        print(_json(found.covered))
    else:
        print(f"Of {arguments.clusters} clusters of the union, by {arguments.rows} rows of each:")
        for source, share in found.covered.items():
            print(f"  {source:40} {share:4.0%}")
    if arguments.plot:
        print(f"drawn to {plot_coverage(found, arguments.plot)}")
    return 0


def _json(values: Mapping[str, Any]) -> str:
    """JSON with NaN and infinity as strings, because JSON lacks them."""
    from torchrl_o2o.provenance import plain_config

    return json.dumps(plain_config(values), indent=2, allow_nan=False)
