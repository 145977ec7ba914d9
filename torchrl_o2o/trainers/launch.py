# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""From a script's configuration to its phases: what the scripts of `sota-implementations` share around their learners.

A configuration has the sections that are named beside each use here, each the keyword arguments of one constructor.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDictBase

from torchrl_o2o.data.conventions import Convention, get_convention
from torchrl_o2o.envs.guard import EnvFaultError
from torchrl_o2o.envs.make import seed_everything
from torchrl_o2o.errors import O2OError, O2OSpecError, check_option
from torchrl_o2o.functional.diagnostics import NonFiniteError
from torchrl_o2o.provenance import plain_config
from torchrl_o2o.scripts import find_script
from torchrl_o2o.trainers.handover import HandOver
from torchrl_o2o.trainers.interrupt import resume_command
from torchrl_o2o.trainers.pipeline import Learner, Pretrained, Problem, RunOptions, finetune, hand_over, pretrain
from torchrl_o2o.trainers.session import Schedule
from torchrl_o2o.updates.matmul import choose_matmul_route, set_matmul_route

__all__ = [
    "ONLINE_ONLY",
    "choose_route",
    "finetune_stage",
    "launch",
    "load_problem",
    "load_script",
    "plain",
    "pretrain_stage",
    "product_dtype",
    "run_options",
]

#: What may change between a run and its resumption, since it has no influence on the numbers.
NOT_COMPARED = ("resume", "run_dir", "recorder", "num_threads", "schedule", "env_guard")
#: What the offline phase does not read, so that one pre-training serves fine-tunings that differ in it.
ONLINE_ONLY = ("online", "handover", "pretrained")

MakeLearner = Callable[[DictConfig, tuple[int, int]], Learner]


def plain(section: DictConfig) -> dict[str, Any]:
    """A section as keyword arguments.

    Examples:
        >>> plain(OmegaConf.create({"lr": 3e-4}))
        {'lr': 0.0003}
    """
    return OmegaConf.to_container(section, resolve=True)  # type: ignore[return-value]


def load_script(name: str) -> ModuleType:
    """Import the script of another algorithm, to reuse its learner.

    Args:
        name: as in :func:`~torchrl_o2o.scripts.find_script`.

    Raises:
        O2OSpecError: if there is no such script.

    Examples:
        >>> load_script("rlpd").Learner.__name__
        'Learner'
    """
    key = f"o2o_sota_{name.replace('/', '_')}"
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, find_script(name))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[key] = module  # dataclasses look their own module up
        spec.loader.exec_module(module)
    return sys.modules[key]


def load_problem(cfg: DictConfig, method: str) -> Problem:
    """Environment and data (sections ``env``, ``dataset``), under the method's convention for ``domain``.

    Args:
        cfg: the configuration; ``convention`` may replace the table's row by arguments of
            :class:`~torchrl_o2o.data.Convention`.
        method: a row of :data:`~torchrl_o2o.data.CONVENTIONS`.
    """
    own = cfg.get("convention")
    convention = get_convention(method, cfg.domain) if own is None else Convention(**plain(own))
    return Problem.load(plain(cfg.env), plain(cfg.dataset), convention)


def run_options(cfg: DictConfig, folder: str | Path, *, without: tuple[str, ...] = ()) -> RunOptions:
    """Run options from ``seed``, ``resume`` and the sections ``schedule``, ``evaluation``, ``recorder``, ``env_guard``.

    Args:
        cfg: the configuration.
        folder: the run's folder.

    Keyword Args:
        without: entries of the configuration that are not this phase's.
    """
    compared = {key: value for key, value in plain_config(cfg).items() if key not in (*NOT_COMPARED, *without)}
    return RunOptions(
        folder,
        compared,
        seed=cfg.seed,
        schedule=Schedule(**plain(cfg.schedule)),
        resume=cfg.resume,
        evaluation=plain(cfg.evaluation),
        recorder=plain(cfg.recorder),
        env_guard=plain(cfg.env_guard),
    )


def pretrain_stage(
    cfg: DictConfig, problem: Problem, make_learner: MakeLearner, *, online_only: tuple[str, ...] = ()
) -> Pretrained:
    """The offline phase in ``run_dir/offline`` (section ``offline``), or the one that ``pretrained`` names.

    Args:
        cfg: the configuration.
        problem: environment and data.
        make_learner: builds the offline learner from configuration and dimensions.

    Keyword Args:
        online_only: further entries of the configuration that this phase does not read.

    Raises:
        O2OSpecError: if the pre-training named is of another environment or convention.
    """
    if cfg.pretrained is not None:
        pretrained = Pretrained.read(cfg.pretrained)
        pretrained.check(problem)
        return pretrained
    seed_everything(cfg.seed)
    options = run_options(cfg, Path(cfg.run_dir) / "offline", without=(*ONLINE_ONLY, *online_only))
    return pretrain(problem, make_learner(cfg, problem.dims), options, **plain(cfg.offline))


def finetune_stage(
    cfg: DictConfig,
    problem: Problem,
    pretrained: Pretrained,
    make_learner: MakeLearner,
    *,
    insert: Callable[[TensorDictBase], TensorDictBase] | None = None,
) -> None:
    """Hand over (section ``handover``) and fine-tune in ``run_dir`` (section ``online``).

    The seed is set anew, so that fine-tuning right after pre-training equals fine-tuning from its folder.

    Args:
        cfg: the configuration.
        problem: environment and data.
        pretrained: where to start from.
        make_learner: builds the online learner from configuration and dimensions.

    Keyword Args:
        insert: see :func:`~torchrl_o2o.trainers.finetune`.
    """
    seed_everything(cfg.seed)
    learner, how = make_learner(cfg, problem.dims), HandOver(**plain(cfg.handover))
    fresh = hand_over(pretrained, learner, how)
    logging.getLogger(__name__).info("from %s; starting afresh: %s", pretrained.folder, fresh)
    options = run_options(cfg, cfg.run_dir)
    finetune(problem, learner, options, handover=how, insert=insert, **plain(cfg.online))


def choose_route(name: str) -> None:
    """Pick the library that multiplies matrices on the CPU, see :mod:`torchrl_o2o.updates`.

    Args:
        name: ``"default"`` (torch's choice), ``"onednn"``, or ``"auto"``, which probes rate and error and says in the
            log what it took. A run that is to be resumed bit for bit names its route, since a probe may end otherwise
            the next time.

    Raises:
        O2OSpecError: if the name is unknown.

    Examples:
        >>> choose_route("default")
    """
    check_option("matmul_route", name, ("default", "onednn", "auto"))
    if name == "auto":
        choose_matmul_route()
    else:
        set_matmul_route("onednn" if name == "onednn" else "default")


def product_dtype(name: str, *, compiled: bool = True) -> torch.dtype | None:
    """What :func:`~torchrl_o2o.updates.compile_update` takes as ``matmul_dtype``.

    Args:
        name: ``"float32"`` or ``"bfloat16"``.
        compiled: whether the update is compiled at all. Defaults to ``True``.

    Returns:
        ``torch.bfloat16``, or ``None`` for float32.

    Raises:
        O2OSpecError: if the type is unknown, or bfloat16 is asked of an update that is not compiled.

    Examples:
        >>> product_dtype("bfloat16")
        torch.bfloat16
    """
    check_option("matmul_dtype", name, ("float32", "bfloat16"))
    if name == "float32":
        return None
    if not compiled:
        raise O2OSpecError("matmul_dtype=bfloat16 is for compiled updates; set compile=true or matmul_dtype=float32")
    return torch.bfloat16


def launch(cfg: DictConfig, train: Callable[[DictConfig], None]) -> None:
    """Run a script's training; what a user can mend ends with a sentence and not with a trace.

    That is data, settings, networks and checkpoints that do not fit, values that are not finite, and failing
    environments.

    Args:
        cfg: the configuration, of which ``num_threads``, ``matmul_route``, ``matmul_dtype`` and ``compile`` are read.
        train: the training.

    Raises:
        SystemExit: with that sentence.
    """
    torch.set_num_threads(cfg.num_threads)
    logging.getLogger("torchrl").setLevel(logging.WARNING)
    try:
        choose_route(cfg.matmul_route)
        product_dtype(cfg.matmul_dtype, compiled=cfg.compile)
        train(cfg)
    except (NonFiniteError, EnvFaultError) as error:
        sys.exit(f"{type(error).__name__}: {error}\nOnce that is mended, go on with:\n  {resume_command()}")
    except O2OError as error:
        sys.exit(f"{type(error).__name__}: {error}")
