# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The generator of local data sets, which are like D4RL's and are stored as Minari data sets under ``o2o/``."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.data.datasets.actors import (
    EpisodeActors,
    gaussian_noise,
    linear_policy,
    load_actor,
    mixture,
    uniform_policy,
)
from torchrl_o2o.data.datasets.cache import dataset_root
from torchrl_o2o.data.datasets.functions import UNKNOWN, function_fingerprint
from torchrl_o2o.data.datasets.minari import read_metadata
from torchrl_o2o.data.datasets.optional import require
from torchrl_o2o.data.datasets.pointmaze import wander
from torchrl_o2o.data.datasets.recipes import LOCAL_DATASETS, Recipe
from torchrl_o2o.data.datasets.rollout import Rollout, roll_out
from torchrl_o2o.data.datasets.staging import staged_directory
from torchrl_o2o.durable import reserve
from torchrl_o2o.envs.make import mujoco_warnings, own_spec
from torchrl_o2o.envs.pixels import chase_dot
from torchrl_o2o.envs.scores import find_reference
from torchrl_o2o.envs.tasks import TASKS
from torchrl_o2o.errors import O2ODataError, O2OSpecError
from torchrl_o2o.provenance import package_versions

__all__ = ["check_same", "make_local_dataset", "store_trajectories", "teacher_groups"]

_POLICIES = Path(__file__).with_name("policies")
_ACTION_NOISE = 0.1
_BYTES_PER_EPISODE, _BYTES_PER_FILE = (
    30_000,
    1_000_000,
)  # for HDF5's groups and headers, which took at most 26 kB and 0.8 MB
_CLONED_NOISE = 0.5
_CHASE_NOISE = 0.7
Policy = str | Path | Callable[[np.ndarray], np.ndarray]


@checked_arguments
def make_local_dataset(
    name: str,
    *,
    seed: int = 0,
    num_steps: int | None = None,
    root: str | Path | None = None,
    policy: Policy | None = None,
) -> Path:
    """Make one of :data:`~torchrl_o2o.data.datasets.recipes.LOCAL_DATASETS`, unless it already exists.

    The result is a Minari data set in HDF5 form with T+1 observations per episode; its metadata hold the environment's
    spec, reference scores where known, and under ``"o2o"`` the task, seed, versions and the policy's hash. The same
    name, seed, length, policy and library versions give the same values. It is created by one rename: a killed call
    leaves nothing that a reader would find, and the next call starts over.

    Args:
        name: such as ``"o2o/halfcheetah/linear-mix-v0"``.
        seed: of the environment and the actors.
        num_steps: environment steps to simulate; ``None`` takes the recipe's.
        root: where to put it; ``None`` is Minari's data set folder.
        policy: for names that need one: an npz file (see :func:`~torchrl_o2o.data.datasets.actors.load_actor`), or a
            function of one observation [o] that returns an action [a] in the environment's own units. A function is
            identified by its code and the numbers, arrays and functions that it uses. One that uses anything else, or a
            callable object, cannot be compared with the function of an existing data set, so it only makes new ones.

    Returns:
        The data set's folder.

    Raises:
        O2ODataError: if the name is unknown, or a data set of that name exists that was made differently.
        O2OSpecError: if a policy is missing or superfluous, a number is out of range, or a library is not installed.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from torchrl_o2o.data.datasets.local import make_local_dataset
        >>> folder = make_local_dataset("o2o/hopper/random-v0", num_steps=100, root=Path(tempfile.mkdtemp()))
        >>> sorted(path.name for path in (folder / "data").iterdir())
        ['main_data.hdf5', 'metadata.json']
    """
    recipe = _recipe(name, policy)
    num_steps = recipe.num_steps if num_steps is None else num_steps
    if num_steps < 2 or seed < 0:
        raise O2OSpecError(f"num_steps={num_steps}, seed={seed}; expected at least 2 steps and a seed of at least 0.")
    made = {
        "generator": "torchrl_o2o",
        "recipe": recipe.kind,
        "task": recipe.env_id,
        "seed": seed,
        "num_steps": num_steps,
        "policy": _fingerprint(policy, recipe),
        "versions": package_versions(),
    }
    target = (dataset_root() if root is None else Path(root)) / name
    if target.exists():
        check_same(target, made)
        return target
    env = _make_env(recipe.env_id)
    trajectories = _collect(env, recipe, policy, num_steps, seed)
    store_trajectories(target, name, recipe.description, env, trajectories, made)
    env.close()
    return target


def _recipe(name: str, policy: Policy | None) -> Recipe:
    if name not in LOCAL_DATASETS:
        close = difflib.get_close_matches(name, LOCAL_DATASETS, n=3) or sorted(LOCAL_DATASETS)
        raise O2ODataError(f"{name!r} is not a local data set; expected one of {', '.join(close)}.")
    recipe = LOCAL_DATASETS[name]
    if recipe.needs_policy and policy is None:
        raise O2OSpecError(
            f"{name} is made from {recipe.description}; pass policy= (o2o data make {name} --policy FILE)."
        )
    if policy is not None and not recipe.needs_policy:
        raise O2OSpecError(f"{name} takes no policy: it is made from {recipe.description}.")
    return recipe


def _fingerprint(policy: Policy | None, recipe: Recipe) -> str | None:
    if callable(policy):
        return f"function {function_fingerprint(policy)}"
    if policy is None and not recipe.kind.startswith(("linear", "teacher")):
        return None
    path = Path(policy) if policy is not None else _POLICIES / recipe.actors[0]
    try:
        content = _teacher_content(path, recipe) if recipe.kind.startswith("teacher") else path.read_bytes()
        return f"{path.name} blake2b:{hashlib.blake2b(content, digest_size=16).hexdigest()}"
    except OSError as error:
        raise O2ODataError(f"cannot read the policy file {path} ({error}); give an npz file.") from error


def _teacher_of(recipe: Recipe) -> str:
    """The name of an environment's teacher in the file of all teachers."""
    return recipe.env_id.partition("-")[0]


def _teacher_content(path: Path, recipe: Recipe) -> bytes:
    """The arrays of one environment's teacher, so that other teachers in the file do not matter."""
    with np.load(path, allow_pickle=False) as file:
        names = sorted(name for name in file.files if name.startswith(f"{_teacher_of(recipe)}/"))
        return b"".join(name.encode() + file[name].tobytes() for name in names)


def check_same(target: Path, made: Mapping[str, Any]) -> None:
    """Check that an existing data set was made in the way in which it would be made now, except for versions.

    A policy without a hash (see :func:`~torchrl_o2o.data.datasets.functions.function_fingerprint`) never counts as the
    same.

    Args:
        target: its folder.
        made: the value that would be stored under ``"o2o"`` of its metadata.

    Raises:
        O2ODataError: if it was made differently.
    """
    stored = read_metadata(target / "data" / "metadata.json").get("o2o", {})
    keys = ("seed", "num_steps", "policy", "env", "noise")
    differing = [key for key in keys if stored.get(key) != made.get(key)]
    if not differing and str(made.get("policy")).endswith(UNKNOWN):
        raise O2ODataError(
            f"{target} was made by a policy whose code and values have no hash, {stored.get('policy')}, so it cannot "
            "be compared with this one; remove that folder, choose another root, or load the data set without this "
            "call."
        )
    if differing:
        was, wanted = ({key: described.get(key) for key in differing} for described in (stored, made))
        raise O2ODataError(f"{target} was made with {was}, not {wanted}; remove that folder or choose another root.")


def _make_env(env_id: str) -> gymnasium.Env:
    task = TASKS.get(env_id)
    own = own_spec(env_id)
    if own is not None:
        return gymnasium.make(own)
    registered = env_id if task is None else task.env_id
    if registered.startswith(("PointMaze", "AdroitHand")):
        gymnasium.register_envs(require("gymnasium_robotics", "robotics"))
    require("mujoco", "mujoco")
    with mujoco_warnings():
        if task is None:
            return gymnasium.make(registered)
        return gymnasium.make(registered, max_episode_steps=task.max_episode_steps, **task.kwargs)


def _collect(env: gymnasium.Env, recipe: Recipe, policy: Policy | None, num_steps: int, seed: int) -> list[Rollout]:
    if recipe.kind == "maze":
        return wander(env, num_steps=num_steps, seed=seed)
    shares = _actors(recipe, policy, env.action_space)
    trajectories = []
    for number, actors in enumerate(shares):
        steps = num_steps // len(shares) + (number < num_steps % len(shares))
        trajectories += roll_out(env, actors, num_steps=steps, seed=seed + number)
    return trajectories


def _actors(recipe: Recipe, policy: Policy | None, box: Any) -> list[EpisodeActors]:
    """The actors, each of which acts for an equal share of the steps."""
    if recipe.kind == "uniform":
        return [uniform_policy(box)]
    if recipe.kind == "chase":
        return [gaussian_noise(lambda rng: chase_dot, box, low=_CHASE_NOISE)]
    if recipe.kind.startswith("linear"):
        return [gaussian_noise(_linear_actors(recipe), box, low=_ACTION_NOISE)]
    if recipe.kind.startswith("teacher"):
        path = _POLICIES / recipe.actors[0]
        return [load_actor(path, group, box) for group in teacher_groups(path, recipe)]
    if callable(policy):
        shares: list[EpisodeActors] = [lambda rng: policy]
    else:
        shares = [load_actor(Path(policy or ""), group, box) for group in recipe.actors]
    if recipe.kind == "cloned":
        return [gaussian_noise(actors, box, low=0.0, high=_CLONED_NOISE) for actors in shares]
    return shares


def teacher_groups(path: Path, recipe: Recipe) -> list[str]:
    """Choose the snapshots of a packaged teacher that act in a data set, by their measured returns.

    Medium is the snapshot whose return is nearest to a third of the best; replay has every snapshot up to it.

    Args:
        path: npz file with the groups ``ENVIRONMENT/NUMBER/``, from the first snapshot on, and ``ENVIRONMENT/returns``.
        recipe: the recipe of a teacher's data set.

    Returns:
        Groups of arrays in the file, in the order in which they act.
    """
    env = _teacher_of(recipe)
    with np.load(path, allow_pickle=False) as file:
        returns = file[f"{env}/returns"]
    expert = int(np.argmax(returns))
    medium = int(np.argmin(np.abs(returns[: expert + 1] - returns[expert] / 3)))
    chosen = {
        "teacher-medium": [medium],
        "teacher-replay": list(range(medium + 1)),
        "teacher-medium-expert": [medium, expert],
        "teacher-expert": [expert],
    }[recipe.kind]
    return [f"{env}/{number:02}/" for number in chosen]


def _linear_actors(recipe: Recipe) -> EpisodeActors:
    with np.load(_POLICIES / recipe.actors[0], allow_pickle=False) as file:
        weights, means, scales = file["W"], file["mu"], file["sd"]
    policies = [linear_policy(*arrays) for arrays in zip(weights, means, scales)]
    if recipe.kind == "linear-mix":
        return mixture([lambda rng, act=act: act for act in policies])
    if recipe.kind == "linear-medium":
        return lambda rng: policies[len(policies) // 2 - 1]
    size = float(np.sqrt(np.mean(np.square(weights[-1]))))
    return lambda rng: linear_policy(rng.normal(scale=size, size=weights[0].shape), means[0], scales[0])


def _check_free_space(folder: Path, trajectories: Sequence[Rollout]) -> None:
    """Reserve the disk space first: HDF5 kills the interpreter if the disk becomes full while it writes."""
    size = int(1.1 * sum(map(_bytes_of, trajectories))) + _BYTES_PER_EPISODE * len(trajectories) + _BYTES_PER_FILE
    reserved = folder / "reserved"
    try:
        with reserved.open("wb") as file:
            file.truncate(size)
        reserve(reserved)
    except OSError as error:
        raise O2ODataError(
            f"{folder.parent} has no room for the data set's {size / 1e6:.0f} MB ({error.strerror}); make room, or "
            "give another folder"
        ) from error
    finally:
        reserved.unlink(missing_ok=True)


def _bytes_of(run: Rollout) -> int:
    observations = run.observations
    arrays = [*(observations.values() if isinstance(observations, dict) else [observations])]
    # For HDF5's chunks that images do not fill: at most 0.78 of an episode below 50 frames, 0.41 of a longer one.
    unfilled = sum((0.8 if len(each) < 50 else 0.42) * each.nbytes for each in arrays if each.ndim == 4)
    columns = (*arrays, run.actions, run.rewards, run.terminations, run.truncations)
    return sum(each.nbytes for each in columns) + int(unfilled)


def store_trajectories(
    target: Path,
    name: str,
    description: str,
    env: gymnasium.Env,
    trajectories: Sequence[Rollout],
    made: Mapping[str, Any],
) -> None:
    """Write a Minari data set; one rename creates it.

    Args:
        target: its folder.
        name: its id.
        description: how it was made.
        env: the environment, whose spaces and spec are stored.
        trajectories: the episodes.
        made: how it was made, for programs; its ``"task"`` selects the reference scores.

    Raises:
        O2ODataError: if the disk is full.
    """
    with staged_directory(target) as folder:
        _check_free_space(folder, trajectories)
        _store(folder / "data", name, description, env, trajectories, made)


def _recreated(env: gymnasium.Env) -> EnvSpec | None:
    """The spec that recreates the environment in gymnasium: with its time limit, without foreign wrappers."""
    spec = copy(env.unwrapped.spec)
    if spec is not None and env.spec is not None:
        spec.max_episode_steps = env.spec.max_episode_steps
    return spec


def _store(
    folder: Path,
    name: str,
    description: str,
    env: gymnasium.Env,
    trajectories: Sequence[Rollout],
    made: Mapping[str, Any],
) -> None:
    # As minari.create_dataset_from_buffers, which can only write to the final folder.
    minari = require("minari", "minari")
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    storage = MinariStorage.new(folder, env.observation_space, env.action_space, _recreated(env), "hdf5")
    reference = find_reference(made["task"])
    scores = {} if reference is None else {"ref_min_score": reference.random, "ref_max_score": reference.expert}
    storage.update_metadata(
        {
            "dataset_id": name,
            "algorithm_name": description,
            "description": f"Made by torchrl_o2o: {description}.",
            "author": {"torchrl_o2o"},
            "minari_version": minari.__version__,
            "o2o": made,
            **scores,
        }
    )
    storage.update_episodes(
        EpisodeBuffer(
            id=number,
            observations=episode.observations,
            actions=episode.actions,
            rewards=episode.rewards,
            terminations=episode.terminations,
            truncations=episode.truncations,
        )
        # Minari's annotations say lists; its storages write arrays.
        for number, episode in enumerate(cast("Sequence[Any]", trajectories))
    )
