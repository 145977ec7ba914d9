# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The policy file ``policy.pt``: everything needed to act, in one format for all algorithms.

It contains the actor's structure and parameters, the keys that it reads and writes, the reward and observation
convention of its training, the environment's action box in native units, the environment's arguments, and versions.
Reading it runs only this package's code.

Shapes: ``o`` observation entries, ``A`` action dimensions.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.modules import Actor, ProbabilisticActor

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.checkpoint.manifest import dump, load
from torchrl_o2o.checkpoint.rng import restore_rng_state, rng_state
from torchrl_o2o.data.conventions import FittedConvention
from torchrl_o2o.deploy.architecture import (
    ActorParts,
    build_network,
    describe_network,
    observation_shape,
    observation_shapes,
    take_apart,
)
from torchrl_o2o.durable import read_file, replace_durably
from torchrl_o2o.envs.make import make_gym_env
from torchrl_o2o.envs.units import native_action_space
from torchrl_o2o.errors import O2OCheckpointError, O2OSpecError
from torchrl_o2o.modules.units import Standardize, ToBox, refuse_standardized_again
from torchrl_o2o.provenance import package_versions, plain_config

__all__ = ["POLICY_FILE", "PolicyFile", "load_policy", "policy_saver", "read_policy", "save_policy"]

#: The name of the policy file in a run folder.
POLICY_FILE = "policy.pt"
_FORMAT = "torchrl_o2o policy"
_EDITION = 2

Edge = Sequence[float] | np.ndarray | Tensor


@dataclass(frozen=True)
class PolicyFile:
    """The contents of a policy file.

    Args:
        path: the file.
        parts: the actor as it was trained, in its own units.
        convention: the changes of rewards and observations in training, or ``None``.
        low: lower edge of the environment's native action box, shape [A], repeated for each action of a chunk.
        high: upper edge, shape [A].
        env: arguments of :func:`~torchrl_o2o.envs.make_gym_env`; ``None`` for another environment.
        metadata: values added by the writer, such as the algorithm's name.
        versions: of the packages that wrote it.

    Examples:
        >>> import tempfile
        >>> from torchrl_o2o.modules import make_actor
        >>> file = save_policy(tempfile.mkdtemp(), make_actor(3, 1, hidden_sizes=(8,)), env="Pendulum-v1")
        >>> policy = read_policy(file)
        >>> policy.dims, policy.low, policy.high
        ((3, 1), tensor([-2.]), tensor([2.]))
        >>> policy.actor().spec["action"].space.high  # in the environment's own units
        tensor([2.])
    """

    path: Path
    parts: ActorParts
    convention: FittedConvention | None
    low: Tensor
    high: Tensor
    env: Mapping[str, Any] | None
    metadata: Mapping[str, Any]
    versions: Mapping[str, Any]

    @property
    def dims(self) -> tuple[int, ...]:
        """Number of observation entries, or shape of the first stacked frames, and then number of action dimensions."""
        return *(observation_shape(self.parts.net) or (0,)), len(self.low) // self.parts.horizon

    @property
    def shapes(self) -> dict[NestedKey, tuple[int, ...]]:
        """Shapes of the entries read, by name: ``"observation"``, or images and vectors."""
        return dict(zip(self.parts.in_keys, observation_shapes(self.parts.net), strict=True))

    @property
    def sees(self) -> bool:
        """Whether the policy reads images."""
        return len(self.dims) == 4

    def actor(self, *, native_actions: bool = True) -> Actor | ProbabilisticActor:
        """The actor in evaluation mode; it reads observations as the environment returns them.

        Keyword Args:
            native_actions: whether actions are in the environment's own units. Otherwise they are in the units of
                training, [-1, 1] for environments of :func:`~torchrl_o2o.envs.make_gym_env`. Defaults to ``True``.
        """
        parts = _standardized(self.parts, self.convention)
        if native_actions and not _same_box(parts, self.low, self.high):
            parts = _native(parts, self.low, self.high)
        return parts.assemble().eval()


@checked_arguments
def save_policy(
    path: str | Path,
    actor: TensorDictModuleBase,
    *,
    convention: FittedConvention | None = None,
    env: str | Mapping[str, Any] | None = None,
    action_box: tuple[Edge, Edge] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write a policy file. A reader sees the old or the new file, even after a crash.

    Args:
        path: a run folder, which gets a ``policy.pt``, or the name of a file that ends in ``.pt``.
        actor: an actor of :func:`~torchrl_o2o.modules.make_actor`,
            :func:`~torchrl_o2o.modules.make_gaussian_actor`, :func:`~torchrl_o2o.modules.make_deterministic_actor`,
            :func:`~torchrl_o2o.modules.make_one_step_actor`, :func:`~torchrl_o2o.modules.average_actors`,
            :func:`~torchrl_o2o.modules.make_pixel_actor`, :meth:`~torchrl_o2o.objectives.BestOfNLoss.make_actor`,
            :meth:`~torchrl_o2o.objectives.PEXLoss.make_actor`, :meth:`~torchrl_o2o.objectives.BestAction.make_actor` or
            :func:`load_policy`, or an encoder followed by :func:`~torchrl_o2o.modules.make_latent_actor`. Its actions
            may be chunks (:func:`~torchrl_o2o.modules.act_in_chunks`). It may be on any device and must not add
            exploration noise.

    Keyword Args:
        convention: the changes of rewards and observations in training. Defaults to ``None``, no changes.
        env: the id of the environment in which the actor was trained, or the arguments of
            :func:`~torchrl_o2o.envs.make_gym_env`; actions are then in [-1, 1]. ``None`` (default) for another
            environment.
        action_box: the environment's native action box, lower and upper edge, each [A]. ``None`` (default) builds
            ``env`` once to read it.
        metadata: plain values to store, such as ``{"algorithm": "rlpd", "seed": 0}``. Defaults to none.

    Returns:
        The file.

    Raises:
        O2OSpecError: if the actor is another one, neither ``env`` nor ``action_box`` is given, or sizes or boxes do not
            fit.
        O2OCheckpointError: if the file cannot be written, or ``metadata`` contains a value that is not plain.

    Examples:
        >>> import tempfile
        >>> from torchrl_o2o.collectors import FastActor
        >>> from torchrl_o2o.modules import make_actor
        >>> folder = tempfile.mkdtemp()
        >>> save_policy(folder, make_actor(3, 1, hidden_sizes=(8,)), env="Pendulum-v1").name
        'policy.pt'
        >>> FastActor(load_policy(folder))(np.ones(3)).shape
        (1,)
    """
    return policy_saver(actor, convention=convention, env=env, action_box=action_box, metadata=metadata)(path)


@checked_arguments
def policy_saver(
    actor: TensorDictModuleBase,
    *,
    convention: FittedConvention | None = None,
    env: str | Mapping[str, Any] | None = None,
    action_box: tuple[Edge, Edge] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Callable[[str | Path], Path]:
    """:func:`save_policy` for repeated saves: ``on_save`` of :class:`~torchrl_o2o.trainers.Session`.

    Errors are raised here, before the run begins, and the environment is built only once.

    Args:
        actor: as in :func:`save_policy`; every call writes the current parameters.

    Keyword Args:
        convention: as in :func:`save_policy`.
        env: as in :func:`save_policy`.
        action_box: as in :func:`save_policy`.
        metadata: as in :func:`save_policy`.

    Returns:
        A function of a run folder or a file's name that writes the policy and returns the file.

    Raises:
        O2OSpecError: as :func:`save_policy`.
        O2OCheckpointError: if ``metadata`` contains a value that is not plain.

    Examples:
        >>> import tempfile
        >>> from torchrl_o2o.modules import make_actor
        >>> save = policy_saver(make_actor(3, 1, hidden_sizes=(8,)), env="Pendulum-v1")
        >>> save(tempfile.mkdtemp()).name
        'policy.pt'
    """
    parts, arguments = take_apart(actor), _env_arguments(env)
    low, high = (edge.repeat(parts.horizon) for edge in _native_box(arguments, action_box, parts))
    stats = None if convention is None else convention.observation
    refuse_standardized_again(actor, stats, "pass replace(convention, observation=None), of dataclasses")
    if stats is not None and isinstance(parts.observation_key, list):
        raise O2OSpecError(
            f"got a convention that standardizes observations and an actor that reads {parts.observation_key}, "
            "expected one vector observation; standardize the vectors in the environment"
        )
    _check_sizes(parts, low, high, None if stats is None else stats.mean)
    fixed = {
        "format": _FORMAT,
        "edition": _EDITION,
        "versions": package_versions(),
        "network": describe_network(parts.net),
        "distribution": parts.distribution,
        "keys": (parts.observation_key, parts.action_key),
        "horizon": parts.horizon,
        "actor_box": (parts.low, parts.high),
        "action_box": (low, high),
        "convention": None if convention is None else convention.state_dict(),
        "env": arguments,
        "metadata": dict(metadata or {}),
    }
    dump("policy", fixed)  # raises for metadata that are not plain

    def save(path: str | Path) -> Path:
        now = take_apart(actor)  # the actor may have moved to another device
        parameters = {name: value.detach().cpu() for name, value in now.net.state_dict().items()}
        settings = {name: _on_cpu(value) for name, value in now.settings.items()}
        data = dump("policy", {**fixed, "parameters": parameters, "settings": settings})
        file = _file_to_write(Path(path))
        try:
            replace_durably(file, data)
        except OSError as error:
            raise O2OCheckpointError(
                f"the policy cannot be written to {file} ({error}); make room on the disk"
            ) from error
        return file

    return save


@checked_arguments
def load_policy(path: str | Path, *, native_actions: bool = True) -> Actor | ProbabilisticActor:
    """Read an actor that can act in its environment, for any algorithm.

    The result is a TorchRL actor in evaluation mode that reads observations as the environment returns them; its first
    layer applies the statistics of its training data. :func:`~torchrl_o2o.trainers.evaluate`,
    :class:`~torchrl_o2o.collectors.FastActor` and :func:`~torchrl_o2o.deploy.export_policy` accept it directly. A
    policy from pixels reads stacked frames; :class:`~torchrl_o2o.collectors.FrameActor` stacks single ones for it.

    Args:
        path: a run folder or a policy file.

    Keyword Args:
        native_actions: ``True`` (default) returns actions in the environment's own units; ``False`` returns actions in
            the units of training, [-1, 1], for environments of :func:`~torchrl_o2o.envs.make_gym_env` and collectors.

    Returns:
        The actor.

    Raises:
        O2OCheckpointError: if the file is missing, damaged, in the format of the first edition, or not a file of this
            package.

    Examples:
        >>> import tempfile
        >>> from torchrl_o2o.modules import make_actor
        >>> folder = tempfile.mkdtemp()
        >>> file = save_policy(folder, make_actor(3, 1, hidden_sizes=(8,)), env="Pendulum-v1")
        >>> load_policy(folder).spec["action"].space.high
        tensor([2.])
        >>> load_policy(folder, native_actions=False).spec["action"].space.high
        tensor([1.])
    """
    return read_policy(path).actor(native_actions=native_actions)


@checked_arguments
def read_policy(path: str | Path) -> PolicyFile:
    """Read the contents of a policy file.

    Args:
        path: a run folder or a policy file.

    Returns:
        The policy's parts and the values recorded with them; reading runs none of them.

    Raises:
        O2OCheckpointError: as :func:`load_policy`.

    Examples:
        >>> import tempfile
        >>> from torchrl_o2o.modules import make_actor
        >>> file = save_policy(tempfile.mkdtemp(), make_actor(3, 1), env="Pendulum-v1", metadata={"seed": 3})
        >>> policy = read_policy(file)
        >>> policy.env, policy.metadata
        ({'env_id': 'Pendulum-v1'}, {'seed': 3})
    """
    path = Path(path)
    file = path / POLICY_FILE if path.is_dir() else path
    state = _content(file)
    try:
        net = build_network(state["network"], state["parameters"])
        box, horizon = state["actor_box"], state.get("horizon", 1)
        made = net, state["distribution"], state["settings"]
        parts = ActorParts(*made, *state["keys"], *box, horizon=horizon)
        convention = state["convention"]
        fitted = None if convention is None else FittedConvention.from_state_dict(convention)
        env = None if state["env"] is None else dict(state["env"])
        (low, high), metadata = state["action_box"], dict(state["metadata"])
        policy = PolicyFile(file, parts, fitted, low, high, env, metadata, dict(state["versions"]))
        policy.actor()
    except O2OCheckpointError as error:
        raise O2OCheckpointError(f"{file} is damaged, or of a later version: {error}") from error
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        raise O2OCheckpointError(f"{file} is damaged, or of a later version ({error!r})") from error
    return policy


def _content(file: Path) -> dict[str, Any]:
    """Read the plain values of a file and check that it is a policy file of this edition."""
    try:
        data = read_file(file)
    except FileNotFoundError as error:
        raise O2OCheckpointError(
            f"got {file}, which does not exist; expected a run folder or a file of torchrl_o2o.deploy.save_policy, "
            "which every run writes with its checkpoints. Only runs of ODT do not: the actor in a policy file gets "
            "observations alone, and ODT's policy also reads its past actions and rewards; resume the run and act by "
            "ReturnConditionedRollouts"
        ) from error
    except OSError as error:
        raise O2OCheckpointError(f"{file} cannot be read ({error})") from error
    state = _plain_values(file, data)
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise O2OCheckpointError(f"{file} is not a policy of torchrl_o2o; {_old_format(state)}")
    if state.get("edition") != _EDITION:
        raise O2OCheckpointError(
            f"got {file} of edition {state.get('edition')}, expected {_EDITION} in this version; update torchrl_o2o"
        )
    return state


def _plain_values(file: Path, data: bytes) -> Any:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            # torch writes checksums and does not read them; after set_crc32_options(False) it writes zeros
            spoiled = archive.testzip() if stored and any(entry.CRC for entry in entries) else None
        if spoiled is not None:
            raise O2OCheckpointError(f"the checksum of its entry {spoiled} does not fit; copy the file again")
        if not stored:  # torch does not compress, so a file that unpacks to more than its size is not from torch
            raise O2OCheckpointError("it is compressed")
        return load(data)
    except Exception as error:  # torch raises many kinds of errors on foreign files
        reason = str(error).partition("\n")[0]
        raise O2OCheckpointError(f"{file} is not a policy of torchrl_o2o, or is damaged ({reason})") from error


def _old_format(state: Any) -> str:
    first = isinstance(state, dict) and ("actor" in state or all(isinstance(value, Tensor) for value in state.values()))
    if not first:
        return "name a run folder or a file of torchrl_o2o.deploy.save_policy"
    part = '["actor"]' if "actor" in state else ""
    return (
        "it may be a file of the first edition, which contains only parameters. Build the actor as its run did, "
        f"load it with actor.load_state_dict(torch.load(path, weights_only=True){part}), and write it with "
        "torchrl_o2o.deploy.save_policy"
    )


def _file_to_write(path: Path) -> Path:
    if path.is_dir():
        return path / POLICY_FILE
    if path.suffix != ".pt":
        raise O2OCheckpointError(f"got {path}, expected an existing folder, or the name of a file that ends in .pt")
    if not path.parent.is_dir():
        raise O2OCheckpointError(f"got {path}, whose folder {path.parent} does not exist; make it first")
    return path


def _env_arguments(env: str | Mapping[str, Any] | None) -> dict[str, Any] | None:
    if env is None:
        return None
    return {"env_id": env} if isinstance(env, str) else plain_config(env)


def _native_box(
    env: Mapping[str, Any] | None, action_box: tuple[Edge, Edge] | None, parts: ActorParts
) -> tuple[Tensor, Tensor]:
    """The environment's native action box, in the actor's dtype; raises if its observations do not fit."""
    if action_box is not None:
        low, high = action_box
    elif env is None:
        raise O2OSpecError(
            "got neither env nor action_box, expected one of them, because the environment's action bounds are part "
            "of the policy"
        )
    else:
        random_state = rng_state()  # building some environments draws random numbers, which must not affect the run
        built = make_gym_env(**env)
        space, observed = native_action_space(built), built.observation_space.shape
        built.close()
        restore_rng_state(random_state)
        read = observation_shape(parts.net)
        if not isinstance(parts.observation_key, list) and None not in (read, observed) and read != observed:
            raise O2OSpecError(
                f"got {env['env_id']} with observations of shape {list(observed or ())}, expected "
                f"{list(read or ())}, which the actor reads; name the environment, and the arguments of make_gym_env, "
                "of its training"
            )
        low, high = space.low, space.high
    low, high = (torch.as_tensor(edge, dtype=parts.low.dtype).cpu().clone() for edge in (low, high))
    return low, high


def _check_sizes(parts: ActorParts, low: Tensor, high: Tensor, mean: Tensor | None) -> None:
    for edge in (low, high):
        if edge.shape != parts.low.shape:
            raise O2OSpecError(f"got an actor with {len(parts.low)} action dimensions, expected {edge.numel()}")
    if not (low.isfinite() & high.isfinite() & (low <= high)).all():
        raise O2OSpecError(
            f"got the action box {low.tolist()}..{high.tolist()}, expected finite edges, low not above high; "
            f"pass (low, high) as the environment's action space has them"
        )
    if not _same_box(parts, low, high) and (parts.low.min() < -1.0 or parts.high.max() > 1.0):
        raise O2OSpecError(
            f"got an actor with actions in {parts.low.tolist()}..{parts.high.tolist()}, expected [-1, 1] or the "
            f"environment's {low.tolist()}..{high.tolist()}"
        )
    shape = observation_shape(parts.net)
    if shape is not None and mean is not None and mean.shape != shape:
        raise O2OSpecError(
            f"got a convention with statistics of shape {tuple(mean.shape)}, expected "
            f"{'x'.join(map(str, shape))} observation entries, which the actor reads"
        )


def _on_cpu(value: Any) -> Any:
    return value.detach().cpu() if isinstance(value, Tensor) else value


def _standardized(parts: ActorParts, convention: FittedConvention | None) -> ActorParts:
    """The actor with standardization as its first layer, so that it reads raw observations."""
    stats = None if convention is None else convention.observation
    if stats is None:
        return parts
    dtype = next(parts.net.parameters()).dtype
    return replace(parts, net=nn.Sequential(Standardize(stats.mean.to(dtype), stats.scale.to(dtype)), parts.net))


def _same_box(parts: ActorParts, low: Tensor, high: Tensor) -> bool:
    return torch.equal(parts.low, low) and torch.equal(parts.high, high)


def _native(parts: ActorParts, low: Tensor, high: Tensor) -> ActorParts:
    """The actor with its actions scaled from [-1, 1] to the native box."""
    to_box = ToBox(low, high)
    edges = {"low": _edge(parts.low, to_box, low, high), "high": _edge(parts.high, to_box, low, high)}
    if parts.distribution == "TanhNormal":  # its distribution maps samples into a given box
        return replace(parts, settings={**parts.settings, **edges}, **edges)
    settings = {} if parts.distribution is None else {**parts.settings, **edges}
    return replace(parts, net=nn.Sequential(parts.net, to_box), settings=settings, **edges)


def _edge(edge: Tensor, to_box: ToBox, low: Tensor, high: Tensor) -> Tensor:
    """An edge of the actor's box in native units; exact where it coincides with the native box's edge."""
    mapped = to_box.middle + to_box.half_width * edge
    return torch.where(edge == -1.0, low, torch.where(edge == 1.0, high, mapped))
