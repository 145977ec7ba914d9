# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The state of a gymnasium environment in mid-episode, as tensors and plain values.

The state is collected by a walk through the wrappers and the environment, along attributes, slots, closures and bound
methods. It is a graph with one node for each object, so that shared references stay shared, and a view of an array
stays a view. It is restored in place, so that other references to an array or a list see the restored values. If the
walk finds something whose state it cannot capture completely (a socket, a foreign simulator, a class attribute that
methods assign), the environment cannot be captured, because it would be resumed wrongly.

A node is (kind, path where it was found, contents). In contents, a plain value is itself, and (i,) refers to node i.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from typing import Any

import gymnasium

from torchrl_o2o.envs.capturable import Uncapturable
from torchrl_o2o.envs.capture import Walk
from torchrl_o2o.envs.checks import layers_of
from torchrl_o2o.envs.restore import Restoring
from torchrl_o2o.errors import O2OCheckpointError

__all__ = ["env_state", "restore_env_state"]


def env_state(env: gymnasium.Env) -> dict[str, Any] | None:
    """Capture an environment, so that :func:`restore_env_state` continues in the middle of its episode.

    It supports MuJoCo environments of gymnasium and gymnasium_robotics; environments whose attributes are plain values,
    arrays and their views, containers, generators, and functions that close over such values (gymnasium's classic
    control); the generators of the environment and its spaces; and gymnasium's wrappers. It does not find state in
    module globals that methods change without assigning them.

    Args:
        env: the environment, with its wrappers.

    Returns:
        Tensors and plain values, which ``torch.load(weights_only=True)`` reads; or ``None``, with a warning that names
        the attribute, if the environment cannot be captured. The caller must then start a new episode on resumption.

    Examples:
        >>> env = gymnasium.make("Pendulum-v1")
        >>> _ = env.reset(seed=1)
        >>> state = env_state(env)
        >>> first, _, _, _, _ = env.step(env.action_space.sample())
        >>> restore_env_state(env, state)
        >>> again, _, _, _, _ = env.step(env.action_space.sample())
        >>> bool((first == again).all())
        True
    """
    walk = Walk()
    try:
        layers = [walk.value(layer, type(layer).__name__) for layer in layers_of(env)]
    except Uncapturable as error:
        warnings.warn(
            f"the state of {env} cannot be captured: {error}; a resumed run starts a new episode", stacklevel=2
        )
        return None
    return {"names": _layer_names(env), "layers": layers, "nodes": walk.nodes}


def restore_env_state(env: gymnasium.Env, state: Mapping[str, Any]) -> None:
    """Put an environment into a captured state.

    The observation is not part of the state. Save the current observation together with the state.

    Args:
        env: an environment built like the captured one; it need not have been reset.
        state: from :func:`env_state`.

    Raises:
        O2OCheckpointError: if the environment, its wrappers or their functions differ from the captured ones.

    Examples:
        >>> restore_env_state(gymnasium.make("Pendulum-v1"), env_state(gymnasium.make("Acrobot-v1")))
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OCheckpointError: the saved environment is ...AcrobotEnv..., this one ...PendulumEnv...
    """
    names = _layer_names(env)
    if state["names"] != names:
        raise O2OCheckpointError(
            f"the saved environment is {' of '.join(state['names'])}, this one {' of '.join(names)}, expected the "
            "same; build it like the saved one"
        )
    if "nodes" not in state:
        raise O2OCheckpointError(
            "got an environment's state of an older version of torchrl_o2o, expected this version's; resume with the "
            "older version"
        )
    restoring = Restoring(state["nodes"], _shared_by_the_process(env))
    pairs = list(zip(state["layers"], layers_of(env), strict=True))
    for layer, present in pairs:
        restoring.match(layer, present)
    restoring.restore_models()
    for layer, _ in pairs:
        restoring.value(layer)


def _layer_names(env: gymnasium.Env) -> list[str]:
    return [type(layer).__name__ for layer in layers_of(env)] + [
        env.spec.id if env.spec else "an unregistered environment"
    ]


def _shared_by_the_process(env: gymnasium.Env) -> set[int]:
    """Ids of objects that modules and classes own; restoring an environment must not write into them."""
    classes = {cls for layer in layers_of(env) for cls in type(layer).__mro__}
    modules = {sys.modules[cls.__module__] for cls in classes if cls.__module__ in sys.modules}
    return {id(value) for owner in (*classes, *modules) for value in vars(owner).values()}
