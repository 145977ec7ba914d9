# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Actors for the local generator: uniform, linear, and multilayer perceptrons from npz files.

Shapes: o observation and a action dimensions. Actors map one observation [o] to one action [a] inside the box.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from gymnasium import spaces

from torchrl_o2o.data.datasets.flat import open_npz
from torchrl_o2o.errors import O2ODataError

__all__ = ["Act", "EpisodeActors", "gaussian_noise", "linear_policy", "load_actor", "mixture", "uniform_policy"]

Act = Callable[[np.ndarray], np.ndarray]
#: A function that is called with the random generator at the start of an episode and returns the episode's actor.
EpisodeActors = Callable[[np.random.Generator], Act]


def uniform_policy(box: spaces.Box) -> EpisodeActors:
    """Draw actions uniformly from the box.

    Examples:
        >>> import numpy as np
        >>> from gymnasium import spaces
        >>> from torchrl_o2o.data.datasets.actors import uniform_policy
        >>> uniform_policy(spaces.Box(-1, 1, (2,)))(np.random.default_rng(0))(np.zeros(3)).shape
        (2,)
    """
    return lambda rng: lambda observation: rng.uniform(box.low, box.high)


def gaussian_noise(actors: EpisodeActors, box: spaces.Box, *, low: float, high: float | None = None) -> EpisodeActors:
    """Add Gaussian noise to an actor and clip to the box.

    Args:
        actors: the actors.
        box: the action box.
        low: standard deviation in units of half the box's width, or, if ``high`` is given, its lower bound.
        high: upper bound; the standard deviation is then drawn uniformly for each episode.
    """
    half = (box.high - box.low) / 2

    def begin(rng: np.random.Generator) -> Act:
        act = actors(rng)
        scale = half * (low if high is None else rng.uniform(low, high))
        return lambda observation: np.clip(act(observation) + scale * rng.standard_normal(len(half)), box.low, box.high)

    return begin


def mixture(members: Sequence[EpisodeActors]) -> EpisodeActors:
    """Let one member act in each episode: all of them once in random order, then again in a new order.

    Examples:
        >>> import numpy as np
        >>> from torchrl_o2o.data.datasets.actors import mixture
        >>> members = [lambda rng, value=value: lambda observation: value for value in range(3)]
        >>> begin, rng = mixture(members), np.random.default_rng(0)
        >>> sorted(begin(rng)(None) for _ in range(3))
        [0, 1, 2]
    """
    waiting: list[int] = []

    def begin(rng: np.random.Generator) -> Act:
        if not waiting:
            waiting.extend(rng.permutation(len(members)).tolist())
        return members[waiting.pop()](rng)

    return begin


def linear_policy(weight: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> Act:
    """Act by ``W (observation - mean) / scale``, the policy of augmented random search (Mania et al. 2018).

    Args:
        weight: [a, o].
        mean: [o].
        scale: [o], standard deviations.

    Examples:
        >>> import numpy as np
        >>> from torchrl_o2o.data.datasets.actors import linear_policy
        >>> linear_policy(np.array([[2.0, 0.0]]), np.array([1.0, 0.0]), np.ones(2))(np.array([1.5, 9.0]))
        array([1.])
    """
    folded = np.asarray(weight, np.float64) / np.asarray(scale, np.float64)
    offset = folded @ np.asarray(mean, np.float64)
    return lambda observation: folded @ observation - offset


def load_actor(path: Path, prefix: str, box: spaces.Box) -> EpisodeActors:
    """Load an actor from an npz file.

    Three layouts are known: linear (``W``, ``mu``, ``sd``); ReLU layers ``w0, w1`` with a mean head ``w2`` and a
    log-standard-deviation head ``w3``, squashed by tanh and sampled (Stable-Baselines3's); tanh layers with
    ``in_shift``, ``in_scale``, ``out_shift`` and ``out_scale`` (hand_dapg's), acting by the mean.

    Args:
        path: the file.
        prefix: group of arrays in it, e.g. ``"tqc_Hopper/"``; arrays without a group are used if none has a group.
        box: the action box.

    Raises:
        O2ODataError: if the file or the group is missing or damaged, has none of these layouts, or holds numbers that
            are not finite.
    """
    arrays = _group(path, prefix)
    if {"W", "mu", "sd"} <= arrays.keys():
        act = linear_policy(arrays["W"], arrays["mu"], arrays["sd"])
        return lambda rng: lambda observation: np.clip(act(observation), box.low, box.high)
    if {"w0", "b0", "w1", "b1", "w2", "b2", "in_shift", "in_scale", "out_shift", "out_scale"} <= arrays.keys():
        return lambda rng: lambda observation: np.clip(_dapg_mean(arrays, observation), box.low, box.high)
    if {"w0", "b0", "w1", "b1", "w2", "b2", "w3", "b3"} <= arrays.keys():
        return lambda rng: lambda observation: _squashed_sample(arrays, observation, rng, box)
    raise O2ODataError(f"{path} holds {sorted(arrays)} for {prefix!r}; expected a linear policy (W, mu, sd) or layers.")


def _group(path: Path, prefix: str) -> dict[str, np.ndarray]:
    with open_npz(path, ()) as arrays:  # all arrays are read, and none is unpickled
        named = {key: np.asarray(value).astype(np.float64) for key, value in arrays.items()}
    bad = [key for key, values in named.items() if not np.isfinite(values).all()]
    if bad:
        raise O2ODataError(
            f"{path} has numbers that are not finite in {bad}; expected finite parameters. Train or export the actor "
            "again."
        )
    group = {key.removeprefix(prefix): values for key, values in named.items() if key.startswith(prefix)}
    if group or any("/" in key for key in named):
        if not group:
            known = sorted({key.partition("/")[0] for key in named})
            raise O2ODataError(f"{path} has no actor {prefix.rstrip('/')!r}; it has {known}.")
        return group
    return named


def _dapg_mean(arrays: Mapping[str, np.ndarray], observation: np.ndarray) -> np.ndarray:
    hidden = (observation - arrays["in_shift"]) / (arrays["in_scale"] + 1e-8)
    for layer in ("0", "1"):
        hidden = np.tanh(arrays["w" + layer] @ hidden + arrays["b" + layer])
    return (arrays["w2"] @ hidden + arrays["b2"]) * arrays["out_scale"] + arrays["out_shift"]


def _squashed_sample(
    arrays: Mapping[str, np.ndarray], observation: np.ndarray, rng: np.random.Generator, box: spaces.Box
) -> np.ndarray:
    hidden = observation
    for layer in ("0", "1"):
        hidden = np.maximum(arrays["w" + layer] @ hidden + arrays["b" + layer], 0.0)
    mean = arrays["w2"] @ hidden + arrays["b2"]
    std = np.exp(np.clip(arrays["w3"] @ hidden + arrays["b3"], -20.0, 2.0))
    unit = np.tanh(mean + std * rng.standard_normal(len(mean)))
    return box.low + (unit + 1) / 2 * (box.high - box.low)
