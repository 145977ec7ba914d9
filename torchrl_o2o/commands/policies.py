# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Arguments shared by the commands on policies: the policy and its environment."""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchrl_o2o.errors import O2OSpecError

if TYPE_CHECKING:
    from tensordict import NestedKey

    from torchrl_o2o.deploy import PolicyFile

__all__ = ["add_arguments", "env_arguments", "recording_policy"]


def add_arguments(parser: argparse.ArgumentParser, *, env: bool = True) -> None:
    """Add the arguments for the policy and its environment.

    Args:
        parser: of the command.

    Keyword Args:
        env: whether the command needs an environment. Defaults to ``True``.
    """
    parser.add_argument("policy", metavar="RUN", help="a run folder or its policy.pt")
    if env:
        parser.add_argument(
            "--env", metavar="ID", help="environment, without further settings (default: that of the policy's training)"
        )
        parser.add_argument(
            "--allow-modules",
            nargs="+",
            default=[],
            metavar="MODULE",
            help="trusted modules, whose environments may be built; a policy file cannot add any",
        )
        parser.add_argument("--seed", type=int, default=0, help="seed of the first episode (default: %(default)s)")


def env_arguments(policy: PolicyFile, arguments: argparse.Namespace) -> dict[str, Any]:
    """Arguments of :func:`~torchrl_o2o.envs.make_gym_env` for a policy's environment.

    Args:
        policy: the policy file.
        arguments: of :func:`add_arguments`.

    Raises:
        O2OSpecError: if neither the policy file nor the command line names an environment, or it cannot be built or has
            other sizes.

    Examples:
        >>> import tempfile
        >>> from torchrl_o2o.deploy import read_policy, save_policy
        >>> from torchrl_o2o.modules import make_actor
        >>> policy = read_policy(save_policy(tempfile.mkdtemp(), make_actor(3, 1), env="Pendulum-v1"))
        >>> env_arguments(policy, argparse.Namespace(env=None, allow_modules=[]))
        {'env_id': 'Pendulum-v1', 'allow_modules': []}
    """
    if arguments.env is None and policy.env is None:
        raise O2OSpecError(f"got {policy.path} without an environment; name one with --env")
    trained = dict(policy.env or {})
    known = trained if arguments.env is None else {"env_id": arguments.env}
    if arguments.env is not None and arguments.env == trained.get("env_id"):
        _tell_of_dropped({key: value for key, value in trained.items() if key not in ("env_id", "allow_modules")})
    known["allow_modules"] = arguments.allow_modules
    _check_fits(policy, known, "name another environment with --env")
    return known


def _tell_of_dropped(settings: Mapping[str, Any]) -> None:
    dropped = ", ".join(f"{key}={value!r}" for key, value in sorted(settings.items()) if value not in (None, {}, []))
    if dropped:
        print(
            f"o2o: --env leaves out the settings of the training's environment ({dropped}); leave --env out to keep "
            "them",
            file=sys.stderr,
        )


def recording_policy(path: Path, env: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of :func:`~torchrl_o2o.data.record_frames` for a policy that acts in an environment.

    A policy that was trained on rendered frames reads the recorded frames; any other reads the environment's own
    observations. If it was trained in this environment, settings that are not given are those of its training.

    Args:
        path: a run folder or a policy file.
        env: arguments of :func:`~torchrl_o2o.envs.make_gym_env`, with ``render_size``.

    Raises:
        O2OSpecError: if the policy's sizes do not fit the environment.
    """
    from torchrl_o2o.collectors import FastActor, FrameActor
    from torchrl_o2o.deploy import read_policy

    policy = read_policy(path)
    trained = dict(policy.env or {})
    known = {**env, **(trained if trained.get("env_id") == env["env_id"] else {}), **env}
    sees_frames = trained.get("render_size") is not None
    read = {**known, "num_stack": trained.get("num_stack", 3)} if sees_frames else _unrendered(known)
    _check_fits(policy, read, "record another environment, or frames of that --size")
    act = (FrameActor if policy.sees else FastActor)(policy.actor(native_actions=False))
    algorithm = policy.metadata.get("algorithm", "a policy")
    digest = hashlib.blake2b(policy.path.read_bytes(), digest_size=16).hexdigest()
    settings = {"act": act, "sees_frames": sees_frames, "policy": f"{algorithm} blake2b:{digest}"}
    return {"env": {key: value for key, value in known.items() if key != "num_stack"}, **settings}


def _unrendered(env: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in env.items() if key not in ("render_size", "shadows")}


def _check_fits(policy: PolicyFile, known: Mapping[str, Any], remedy: str) -> None:
    from gymnasium import spaces

    from torchrl_o2o.envs import make_gym_env

    env = make_gym_env(**known)
    space, actions = env.observation_space, env.action_space.shape[0]  # type: ignore[index]
    parts = dict(space.items()) if isinstance(space, spaces.Dict) else {"observation": space}
    shapes: dict[NestedKey, tuple[int, ...]] = {key: tuple(part.shape or ()) for key, part in parts.items()}
    env.close()
    one = len(policy.shapes) == 1 and not isinstance(space, spaces.Dict)  # under any name
    read = {"observation": policy.dims[:-1]} if one else policy.shapes
    if actions != policy.dims[-1] or any(shapes.get(key) != shape for key, shape in read.items()):
        raise O2OSpecError(
            f"got {policy.path} with {_shape(read)} observation entries and {policy.dims[-1]} action dimensions, "
            f"expected {_shape(shapes)} and {actions} as in {known['env_id']}; {remedy}"
        )


def _shape(shapes: Mapping[Any, tuple[int, ...]]) -> str:
    sizes = {key: "x".join(map(str, shape)) for key, shape in shapes.items()}
    return sizes["observation"] if list(sizes) == ["observation"] else str(sizes)
