# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Check settings of a configuration and convert its sections to arguments, for scripts and learner constructors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from inspect import signature
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torchrl.modules import AdditiveGaussianModule
from torchrl.objectives import OnlineDTLoss

from torchrl_o2o.arguments import check_values
from torchrl_o2o.data.conventions import Convention
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.trainers.handover import HandOver

__all__ = [
    "check_added",
    "check_device",
    "check_no_pretraining",
    "check_settings",
    "not_taken",
    "overlay_convention",
    "plain",
]

#: The smallest allowed value of integer settings, if the configuration has them.
_LEAST = {
    "seed": 0,
    "num_threads": 1,
    "utd_ratio": 1,
    "num_agents": 1,
    "update_every": 1,
    "phases.every": 1,
    "schedule.eval_every": 1,
    "schedule.log_every": 1,
    "schedule.checkpoint_every": 1,
    "evaluation.num_episodes": 0,
    "evaluation.num_envs": 1,
    "env_guard.max_rebuilds": 0,
    "env_guard.max_rejected": 0,
    "offline.num_steps": 0,
    "offline.batch_size": 1,
    "online.total_frames": 1,
    "online.batch_size": 1,
    "online.init_random_frames": 0,
    "online.online_capacity": 1,
    "online.capacity": 1,
    "online.frames_per_epoch": 1,
    "online.first_epoch_factor": 1,
    # of single methods
    "bc_steps": 0,
    "vae_steps": 0,
    "clone_steps": 0,
    "warm_start": 0,
    "best_of": 0,
    "density_updates": 0,
    "priority_from": 0,
    "pool_multiplier": 1,
    "sac.utd_ratio": 1,
    "updates_per_rollout": 0,
    "warmup_updates": 1,
    "context": 1,
    "acting_context": 1,
    "capacity": 1,
    "n_step": 1,
    "num_stack": 1,
}
#: Those of them that may be ``null``.
_MAY_BE_NULL = ("online.online_capacity", "pool_multiplier")
_SWITCHES = ("resume", "compile", "recorder.tensorboard", "ghost_steps", "decoupled_weight_decay", "weigh_penalty")
_SECTIONS = (
    "env",
    "dataset",
    "offline",
    "online",
    "handover",
    "schedule",
    "evaluation",
    "recorder",
    "env_guard",
    "optim",
)
#: Python's error messages for a missing and for an unknown argument.
_MISSING = re.compile(r"(?P<function>\S+)\(\) missing \d+ required [a-z -]*arguments?: (?P<arguments>.*)")
_UNEXPECTED = re.compile(r"(?P<function>[\w.]+)\(\) got an unexpected keyword argument '(?P<argument>\w+)'")
#: Settings that must be from 0 to 1 in any section; no method has a learning rate above 1.
_SHARES = ("lr", "actor_lr", "qvalue_lr", "tau", "gamma", "gamma_online", "cooling_floor")
#: Settings that must be finite and not negative in any section.
_SIZES = ("sigma_init", "sigma_end", "weight_decay", "actor_weight_decay", "critic_weight_decay")
#: Arguments of TorchRL's constructors of which the first must not exceed the second, in any section that has one.
_ORDERED = ((AdditiveGaussianModule, "sigma_end", "sigma_init"), (OnlineDTLoss, "min_alpha", "max_alpha"))

#: Settings of optimizers, in sections whose names end in ``optim``, that must not be negative.
_NOT_NEGATIVE = ("eps", "momentum", "dampening")
#: Those that no update can use: it descends, and no gradient passes through it.
_NOT_OF_UPDATES = ("maximize", "differentiable")
#: Those that are true or false, and may be null.
_OPTIM_SWITCHES = ("fused", "foreach", "capturable", "amsgrad", "maximize", "nesterov", "differentiable")


def plain(section: DictConfig) -> dict[str, Any]:
    """Convert a section to keyword arguments.

    Args:
        section: of a configuration; references to other entries are replaced.

    Returns:
        The keyword arguments.

    Raises:
        O2OSpecError: if it is no section, as ``null``.

    Examples:
        >>> plain(OmegaConf.create({"lr": 3e-4}))
        {'lr': 0.0003}
    """
    if not OmegaConf.is_config(section):
        raise O2OSpecError(
            f"got {section} in the place of a section of settings, expected its settings; give each as "
            "SECTION.NAME=VALUE"
        )
    return OmegaConf.to_container(section, resolve=True)  # type: ignore[return-value]


def overlay_convention(row: Convention, cfg: DictConfig) -> Convention:
    """A row of the table of conventions, with the configuration's entries in place of the row's.

    Args:
        row: of :data:`~torchrl_o2o.data.CONVENTIONS`.
        cfg: its entry ``convention`` holds arguments of :class:`~torchrl_o2o.data.Convention`; if it is ``null`` or
            missing, the row is returned unchanged.

    Raises:
        O2OSpecError: if ``convention`` is no section.

    Examples:
        >>> row = Convention(reward_shift=-1.0, normalize_observations=True)
        >>> overlay_convention(row, OmegaConf.create({"convention": {"normalize_observations": False}})).reward_shift
        -1.0
    """
    own = cfg.get("convention")
    if own is None:
        return row
    if not OmegaConf.is_dict(own):
        raise O2OSpecError(f"got convention={own}, expected a section; give its settings, as convention.NAME=VALUE")
    return replace(row, **plain(cfg.convention))


def check_settings(cfg: DictConfig) -> None:
    """Raise for settings that no phase of a run could use, before the first phase begins.

    Args:
        cfg: the configuration of a script. With a section ``offline`` it may have ``online.total_frames=0``, for the
            offline phase alone.

    Raises:
        O2OSpecError: if there is one; the message names the setting, its value and the expected one.

    Examples:
        >>> check_settings(OmegaConf.create({"seed": 0, "online": {"total_frames": -5}}))
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OSpecError: got online.total_frames=-5, expected a whole number of at least 1
    """
    if missing := [name for name, value in _leaves(OmegaConf.to_container(cfg, resolve=False)) if value == "???"]:
        raise O2OSpecError(f"got no value of {', '.join(missing)}; give each as name=value on the command line")
    for name in set(_SECTIONS) & set(cfg):
        if not OmegaConf.is_dict(cfg[name]):
            raise O2OSpecError(f"got {name}={cfg[name]}, expected a section; give its settings, as {name}.NAME=VALUE")
    for name, least in (_LEAST | ({"online.total_frames": 0} if "offline" in cfg else {})).items():
        value = OmegaConf.select(cfg, name, default=least)
        if value is None and name in _MAY_BE_NULL:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise O2OSpecError(
                f"got {name}={value}, expected a whole number of at least {least}{_no_text(name, value)}"
            )
    pretrained = OmegaConf.select(cfg, "pretrained")
    if pretrained is not None and OmegaConf.select(cfg, "online.total_frames") == 0:
        raise O2OSpecError(f"got pretrained={pretrained} and online.total_frames=0, which leave no step; leave one out")
    for name in _SWITCHES:
        switch = OmegaConf.select(cfg, name, default=True)
        if not isinstance(switch, bool):
            raise O2OSpecError(f"got {name}={switch}, expected true or false")
    folder = OmegaConf.select(cfg, "run_dir", default="runs")
    if not isinstance(folder, str) or not folder.strip():
        raise O2OSpecError(f"got run_dir={folder}, expected a folder for the run")
    timeout = OmegaConf.select(cfg, "env_guard.timeout")
    if timeout is not None and not (isinstance(timeout, int | float) and timeout > 0):
        raise O2OSpecError(f"got env_guard.timeout={timeout}, expected seconds, or null for none")
    if "handover" in cfg:
        check_handover(plain(cfg.handover))
    check_ranges(cfg)


def check_device(device: Any) -> None:
    """Raise for a device that this machine does not have.

    Args:
        device: a name, such as ``"cuda:1"``.

    Raises:
        O2OSpecError: if it is no device, or not available here.

    Examples:
        >>> check_device("cpu")
        >>> check_device("gpu")
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OSpecError: got device=gpu, expected cpu, or an accelerator such as cuda or cuda:1
    """
    try:
        found = torch.device(device) if isinstance(device, str) else None
    except RuntimeError:
        found = None
    if found is None or found.type == "meta":
        raise O2OSpecError(f"got device={device}, expected cpu, or an accelerator such as cuda or cuda:1")
    if found.type == "cpu":
        return
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    count = torch.accelerator.device_count() if here is not None and here.type == found.type else 0
    if (found.index or 0) >= count:
        raise O2OSpecError(
            f"got device={device}, but torch {torch.__version__} finds {count} devices of that kind, expected one that "
            "it finds; install a build of torch for it, or set device=cpu"
        )


def check_added(cfg: DictConfig, words: Sequence[str], base: DictConfig, *, optional: Sequence[str] = ()) -> None:
    """Raise for settings that the command line adds outside of all sections, because nothing reads them.

    Args:
        cfg: the configuration of a script.
        words: of the command line, those that change the configuration.
        base: the configuration without the words that add to it, ``+name=...`` and ``++name=...``.

    Keyword Args:
        optional: settings that the script reads although its configuration lacks them. Defaults to none.

    Raises:
        O2OSpecError: naming the first.

    Examples:
        >>> check_added(OmegaConf.create({"seed": 0, "lr": 1.0}), ["++lr=1.0"], OmegaConf.create({"seed": 0}))
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OSpecError: got ++lr, expected a setting of this script: seed
    """
    known = sorted(map(str, base))
    for word in sorted(word for word in words if word.startswith("+")):
        plus, top = word[: word.rfind("+") + 1], word.lstrip("+").partition("=")[0].partition(".")[0]
        # A word that is not in the configuration selects a config group of the user's own folder.
        if top in cfg and top not in (*known, *optional):
            close = get_close_matches(top, known)
            expected = f"did you mean {' or '.join(close)}?" if close else ", ".join(known)
            raise O2OSpecError(f"got {plus}{top}, expected a setting of this script: {expected}")


def not_taken(error: TypeError, words: Sequence[str]) -> str | None:
    """If an error is about an unknown or missing argument, explain which setting of the command line caused it.

    Args:
        error: raised while a script built something.
        words: of the command line, those that change the configuration.

    Returns:
        A sentence, or ``None``.

    Examples:
        >>> not_taken(TypeError("Loss.__init__() got an unexpected keyword argument 'bta'"), ["+loss.bta=1"])
        'got loss.bta, which is not an argument of Loss; leave it out, or find the right name in the documentation of
        Loss'
    """
    if missing := _MISSING.search(str(error)):
        removed = [word for word in words if word[:1] == "~" and f"'{_last_name(word)}'" in missing["arguments"]]
        taker = missing["function"].removesuffix(".__init__")
        return f"got {removed[0]}, but {taker} needs {_last_name(removed[0])}; leave that word out" if removed else None
    found = _UNEXPECTED.search(str(error))
    names = [word.lstrip("+").partition("=")[0] for word in words]
    guilty = [name for name in names if found and _last_name(name) == found["argument"]]
    if found is None or not guilty:
        return None
    taker = found["function"].removesuffix(".__init__")
    return (
        f"got {guilty[0]}, which is not an argument of {taker}; leave it out, or find the right name in the "
        f"documentation of {taker}"
    )


def _last_name(word: str) -> str:
    """The last name in a word of the command line: ``b`` of ``~a.b=1``."""
    return word.lstrip("+~").partition("=")[0].rpartition(".")[2]


def check_arguments(
    name: str, settings: Mapping[str, Any], function: Callable[..., Any], *, own: Sequence[str] = ()
) -> None:
    """Raise for entries of a section that its function does not take, by name or type, or that the script sets itself.

    Args:
        name: the name of the section.
        settings: the section.
        function: the function that gets the section as arguments.

    Keyword Args:
        own: arguments that the script sets itself. Defaults to none.

    Raises:
        O2OSpecError: naming the first such entry, and the known ones.

    Examples:
        >>> check_arguments("online", {"frames": 5}, lambda total_frames: None)
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OSpecError: got online.frames, expected one of total_frames
    """
    if taken := sorted(set(settings) & set(own)):
        raise O2OSpecError(f"got {name}.{taken[0]}, which the script sets itself; leave it out")
    known = [key for key in signature(function).parameters if key not in ("self", "cls", *own)]
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise O2OSpecError(f"got {name}.{unknown[0]}, expected one of {', '.join(known)}")
    values = plain(settings) if isinstance(settings, DictConfig) else settings
    check_values(function, values, section=name)


def check_ranges(cfg: DictConfig) -> None:
    """Raise for learning rates, target-network rates, discounts and optimizers' settings that no method could use.

    Args:
        cfg: the configuration. References are resolved only for these settings.

    Raises:
        O2OSpecError: naming the setting.

    Examples:
        >>> check_ranges(OmegaConf.create({"optim": {"lr": -1.0}}))
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OSpecError: got optim.lr=-1.0, expected a number from 0 to 1
    """
    for name, _ in _leaves(OmegaConf.to_container(cfg, resolve=False)):
        section, _, last = name.rpartition(".")
        optimizes = section.rpartition(".")[2].endswith("optim")
        if last in _SHARES:
            value = OmegaConf.select(cfg, name)
            if not _is_number(value) or not 0 <= value <= 1:
                raise O2OSpecError(f"got {name}={value}, expected a number from 0 to 1{_no_text(name, value)}")
        elif last == "target_entropy_per_dim":
            value = OmegaConf.select(cfg, name)
            if not _is_number(value) or not abs(value) < float("inf"):
                raise O2OSpecError(f"got {name}={value}, expected a finite number{_no_text(name, value)}")
        elif optimizes and last in _OPTIM_SWITCHES:
            value = OmegaConf.select(cfg, name)
            if not (value is None or isinstance(value, bool)):
                raise O2OSpecError(f"got {name}={value}, expected true or false")
            if value and last in _NOT_OF_UPDATES:
                raise O2OSpecError(
                    f"got {name}=true, expected false, because an update descends, and no gradient passes through it; "
                    "leave it out"
                )
            if value and last == "foreach" and OmegaConf.select(cfg, f"{section}.fused"):
                raise O2OSpecError(
                    f"got {name}=true and {section}.fused=true, expected only one of both; set {section}.fused=false"
                )
        elif (optimizes and last in _NOT_NEGATIVE) or last in _SIZES:
            value = OmegaConf.select(cfg, name)
            if not _is_number(value) or not 0 <= value < float("inf"):
                raise O2OSpecError(f"got {name}={value}, expected a finite number of at least 0{_no_text(name, value)}")
        elif optimizes and last == "betas":
            betas = plain(OmegaConf.create({last: OmegaConf.select(cfg, name)}))[last]
            if not isinstance(betas, list) or len(betas) != 2 or not all(_is_number(b) and 0 <= b < 1 for b in betas):
                raise O2OSpecError(f"got {name}={betas}, expected two numbers of at least 0 and below 1")
        _check_order(cfg, section, last)


def _check_order(cfg: DictConfig, section: str, last: str) -> None:
    """Raise if a setting and its partner in the same section, or the partner's default, are in the wrong order."""
    for constructor, low, high in _ORDERED:
        if last not in (low, high):
            continue
        names = [f"{section}.{each}".lstrip(".") for each in (low, high)]
        defaults = [signature(constructor).parameters[each].default for each in (low, high)]
        least, most = (OmegaConf.select(cfg, name, default=own) for name, own in zip(names, defaults, strict=True))
        if _is_number(least) and _is_number(most) and least > most:
            raise O2OSpecError(
                f"got {names[0]}={least} and {names[1]}={most}, expected {low} of at most {high}; lower {names[0]} or "
                f"raise {names[1]} (the defaults of {constructor.__name__} are {defaults[0]} and {defaults[1]})"
            )


def _no_text(name: str, value: Any) -> str:
    """What to add to an error about a text of digits, which looks like the number that it should be."""
    try:
        float(value if isinstance(value, str) else "")
    except ValueError:
        return ""
    decoded = f"'{name}=\"${{oc.decode:${{oc.env:NAME}}}}\"'"
    return f" and not the text {value!r}; write it without quotes, and that of an environment variable as {decoded}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All settings by their dotted names; ``"???"`` marks a value that the user must set."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def check_no_pretraining(cfg: DictConfig) -> None:
    """Raise if ``pretrained=`` is given to a method without an offline phase.

    Args:
        cfg: the configuration of a script.

    Raises:
        O2OSpecError: if it names a pre-training.

    Examples:
        >>> check_no_pretraining(OmegaConf.create({"pretrained": None}))
    """
    if cfg.get("pretrained") is not None:
        raise O2OSpecError(
            f"got pretrained={cfg.pretrained}, expected null, because this method has no offline phase that a "
            "pre-training could replace; leave pretrained out"
        )


def check_handover(settings: dict[str, Any]) -> None:
    """Raise for arguments that :class:`~torchrl_o2o.trainers.HandOver` does not take.

    Args:
        settings: the section ``handover``.

    Raises:
        O2OSpecError: naming the setting.
    """
    known = [each.name for each in fields(HandOver)]
    unknown = sorted(settings.keys() - set(known))
    if unknown:
        raise O2OSpecError(f"got handover.{unknown[0]}, expected one of {known}")
    HandOver(**settings)
