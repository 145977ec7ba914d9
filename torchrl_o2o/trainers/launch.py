# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Build a script's phases from its configuration: the code that the scripts of `sota-implementations` share.

Each section of a configuration holds the keyword arguments of one constructor; the functions here name their sections.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Self, cast

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import TensorDictReplayBuffer

from torchrl_o2o.data.conventions import get_convention
from torchrl_o2o.data.load import load_offline
from torchrl_o2o.envs.guard import EnvFaultError
from torchrl_o2o.envs.make import make_gym_env, seed_everything
from torchrl_o2o.errors import O2OError, O2OSpecError
from torchrl_o2o.functional.diagnostics import NonFiniteError
from torchrl_o2o.provenance import plain_config
from torchrl_o2o.trainers.compiling import choose_route, product_dtype
from torchrl_o2o.trainers.handover import HandOver, MakeStorage
from torchrl_o2o.trainers.interrupt import resume_command
from torchrl_o2o.trainers.learner import Learner, MakeLearner
from torchrl_o2o.trainers.options import RunOptions
from torchrl_o2o.trainers.phases import Finetuning, Pretraining, check_finetuning
from torchrl_o2o.trainers.pipeline import Pretrained, hand_over
from torchrl_o2o.trainers.problem import Problem
from torchrl_o2o.trainers.session import Schedule
from torchrl_o2o.trainers.settings import (
    check_added,
    check_arguments,
    check_device,
    check_no_pretraining,
    check_settings,
    not_taken,
    overlay_convention,
    plain,
)

__all__ = [
    "ONLINE_ONLY",
    "GivenPretraining",
    "accept_actors",
    "accept_seeds",
    "fleet_settings",
    "launch",
    "load_problem",
    "offline_phase",
    "online_phase",
    "run_options",
]

#: Settings that may change when a run is resumed, because they do not affect the results; a device affects last bits.
NOT_COMPARED = ("resume", "run_dir", "recorder", "schedule", "env_guard", "actors", "fleet", "device", "num_threads")
#: Settings that the offline phase does not read, so that fine-tunings with other values can share a pre-training.
ONLINE_ONLY = ("online", "handover", "pretrained")

#: Arguments that the user cannot set of both phases, and of the online phase.
_OF_PHASES = ("problem", "learner", "options")
_OF_ONLINE = (*_OF_PHASES, "handover", "buffer", "make_storage", "objects", "fleet")


def load_problem(cfg: DictConfig, method: str) -> Problem:
    """Environment and data (sections ``env``, ``dataset``), under the method's convention for ``domain``.

    Args:
        cfg: the configuration; ``convention`` holds what differs from the table's row.
        method: a row of :data:`~torchrl_o2o.data.CONVENTIONS`.

    Returns:
        The problem.

    Raises:
        O2ODataError: if the data are broken or belong to another environment.
        O2OSpecError: if a setting or the environment is unknown.

    Examples:
        >>> import tempfile
        >>> from torchrl_o2o.envs import make_gym_env
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import probe_transitions
        >>> folder = tempfile.mkdtemp()
        >>> rows = probe_transitions(make_gym_env("Pendulum-v1", max_episode_steps=10), 40)
        >>> _ = rows.set("episode", torch.arange(40) // 10).memmap(folder)  # any file that load_offline reads
        >>> words = ["task=custom", "task_name=pendulum", "env.env_id=Pendulum-v1"]
        >>> words += [f"dataset.source=path:{folder}", "dataset.action_bounds=[-1, 1]"]
        >>> problem = load_problem(script_config("awac", words), "awac")
        >>> problem.dims, len(problem.offline)
        ((3, 1), 40)
    """
    check_arguments("env", cfg.env, make_gym_env)
    check_arguments("dataset", cfg.dataset, load_offline, own=("env",))
    convention = overlay_convention(get_convention(method, cfg.domain), cfg)
    return Problem.load(plain(cfg.env), plain(cfg.dataset), convention)


def run_options(cfg: DictConfig, folder: str | Path, *, without: tuple[str, ...] = ()) -> RunOptions:
    """Run options from ``seed``, ``resume`` and the sections ``schedule``, ``evaluation``, ``recorder``, ``env_guard``.

    Args:
        cfg: the configuration.
        folder: the run's folder.

    Keyword Args:
        without: entries of the configuration that are not this phase's. Defaults to none.

    Returns:
        The options, with the ``config`` that a resumed run must have.

    Raises:
        O2OSpecError: if a section has an unknown entry, or one that the script sets itself.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> cfg = script_config("awac", ["preset=cpu", "seed=3"])
        >>> options = run_options(cfg, "runs/awac", without=("online",))
        >>> options.seed, options.schedule.eval_every, "online" in options.config
        (3, 1000, False)
    """
    check_arguments("schedule", cfg.schedule, Schedule)
    compared = {key: value for key, value in plain_config(cfg).items() if key not in (*NOT_COMPARED, *without)}
    compared.get("evaluation", {}).pop("video", None)  # a resumed run may be filmed
    compared.get("online", {}).pop("scratch_dir", None)  # a resumed run needs a new folder
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


class GivenPretraining:
    """Replaces the offline phase in a run that starts from an earlier pre-training: it has no steps left.

    Args:
        pretrained: that pre-training.

    Examples:
        >>> import tempfile
        >>> from torchrl_o2o.data import Convention
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> from torchrl_o2o.trainers.algorithms import make_bc
        >>> rows = random_transitions(100, 3, 1)
        >>> problem = Problem({"env_id": "Pendulum-v1", "max_episode_steps": 9}, rows, Convention().fit(rows))
        >>> words = ["preset=cpu", "compile=false", "evaluation.num_episodes=1", f"run_dir={tempfile.mkdtemp()}/run"]
        >>> words += ["env.env_id=Pendulum-v1", "+env.max_episode_steps=9", "offline.num_steps=2"]
        >>> cfg = script_config("bc", words)
        >>> with offline_phase(cfg, problem, make_bc) as phase:
        ...     for _ in phase.steps():
        ...         phase.log(phase.learner.update(phase.sample()))
        >>> cfg.pretrained = str(phase.folder)
        >>> with offline_phase(cfg, problem, make_bc) as phase:
        ...     type(phase).__name__, list(phase.steps())
        ('GivenPretraining', [])
    """

    def __init__(self, pretrained: Pretrained) -> None:
        self.folder = pretrained.folder

    def __enter__(self) -> Self:
        """Nothing is opened."""
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is closed."""

    @property
    def learner(self) -> Learner:
        """Raises: there is nothing to train."""
        raise O2OSpecError(f"the pre-training in {self.folder} is finished; it has no steps left")

    @property
    def buffer(self) -> TensorDictReplayBuffer:
        """Raises: there is no data."""
        return self.learner.buffer  # type: ignore[attr-defined]

    def steps(self) -> Iterator[int]:
        """No steps."""
        return iter(())

    def sample(self) -> TensorDictBase:
        """Raises: there is no data."""
        return self.learner.sample()  # type: ignore[attr-defined]

    def log(self, metrics: Mapping[str, Tensor]) -> None:
        """Logs nothing."""


def offline_phase(
    cfg: DictConfig,
    problem: Problem,
    make_learner: MakeLearner,
    *,
    then: MakeLearner | None = None,
    online_only: tuple[str, ...] = (),
) -> Pretraining | GivenPretraining:
    """The offline phase in ``run_dir/offline`` (section ``offline``), or the one that ``pretrained`` names.

    Args:
        cfg: the configuration.
        problem: environment and data.
        make_learner: builds the offline learner from configuration and dimensions.

    Keyword Args:
        then: builds the online learner. It is built, handed over to, and checked with the online settings before the
            phase begins, so that mismatches raise before the training and not after it. Defaults to ``None``: no such
            check.
        online_only: further entries of the configuration that only the online phase reads.

    Returns:
        A context whose ``steps()`` are the remaining updates, and whose ``folder`` holds the result.

    Raises:
        O2OSpecError: if the given pre-training has another environment or convention, the hand-over would fail, or
            the sections ``offline`` and ``online`` have entries that their phases do not take.

    Examples:
        >>> import tempfile
        >>> from torchrl_o2o.data import Convention
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> from torchrl_o2o.trainers.algorithms import make_bc
        >>> rows = random_transitions(100, 3, 1)
        >>> problem = Problem({"env_id": "Pendulum-v1", "max_episode_steps": 9}, rows, Convention().fit(rows))
        >>> words = ["preset=cpu", "compile=false", "evaluation.num_episodes=1", f"run_dir={tempfile.mkdtemp()}/run"]
        >>> cfg = script_config("bc", [*words, "offline.num_steps=2"])
        >>> with offline_phase(cfg, problem, make_bc, then=make_bc) as phase:
        ...     for step in phase.steps():
        ...         phase.log(phase.learner.update(phase.sample()))
        >>> step, phase.folder.name
        (0, 'offline')
    """
    check_arguments("offline", cfg.offline, Pretraining, own=_OF_PHASES)
    check_arguments("online", cfg.online, Finetuning, own=_OF_ONLINE)
    if cfg.pretrained is not None:
        pretrained = Pretrained.read(cfg.pretrained)
        pretrained.check(problem)
        return GivenPretraining(pretrained)
    if then is not None:
        online, how = then(cfg, problem.dims), HandOver(**plain(cfg.handover))
        hand_over(make_learner(cfg, problem.dims), online, how)
        settings = {"handover": how, "fleet": fleet_settings(cfg), **plain(cfg.online)}
        check_finetuning(problem, online, run_options(cfg, cfg.run_dir), **settings)
    seed_everything(cfg.seed)
    options = run_options(cfg, Path(cfg.run_dir) / "offline", without=(*ONLINE_ONLY, *online_only))
    return Pretraining(problem, make_learner(cfg, problem.dims), options, **plain(cfg.offline))


def online_phase(
    cfg: DictConfig,
    problem: Problem,
    pretrained: str | Path | None,
    make_learner: MakeLearner,
    *,
    make_buffer: Callable[[Learner], TensorDictReplayBuffer] | None = None,
    make_storage: MakeStorage | None = None,
    objects: Mapping[str, Any] | None = None,
    fleet: Mapping[str, Any] | None = None,
) -> Finetuning:
    """Hand over (section ``handover``), and the online phase in ``run_dir`` (section ``online``).

    The seed is set again, so that fine-tuning right after pre-training equals fine-tuning from its folder.

    Args:
        cfg: the configuration.
        problem: environment and data.
        pretrained: folder of the pre-training to start from; ``None`` starts from scratch.
        make_learner: builds the online learner from configuration and dimensions.

    Keyword Args:
        make_buffer: builds a buffer that is used in place of the hand-over's. Defaults to ``None``.
        make_storage: makes the storage of the hand-over's buffer, see
            :func:`~torchrl_o2o.trainers.starting_buffer`. Defaults to ``None``.
        objects: further objects that change during training, by name. Defaults to none.
        fleet: result of :func:`fleet_settings`, for actors in other processes. Defaults to ``None``.

    Returns:
        A context whose ``steps()`` are the remaining environment steps.

    Raises:
        O2OSpecError: if something does not fit, or the configuration asks for actors and the script has no ``fleet``.

    Examples:
        >>> import tempfile
        >>> from torchrl_o2o.data import Convention
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> from torchrl_o2o.trainers.algorithms import make_rlpd
        >>> rows = random_transitions(100, 3, 1)
        >>> problem = Problem({"env_id": "Pendulum-v1", "max_episode_steps": 9}, rows, Convention().fit(rows))
        >>> words = ["preset=cpu", "compile=false", "evaluation.num_episodes=1", f"run_dir={tempfile.mkdtemp()}/run"]
        >>> words += ["online.total_frames=6", "online.batch_size=2", "online.init_random_frames=3"]
        >>> with online_phase(script_config("rlpd", words), problem, None, make_rlpd) as run:
        ...     for step, data in run.steps():
        ...         _ = run.buffer.extend(problem.convention.online(data).select(*run.learner.keys))
        ...         for _ in run.updates(step, data):
        ...             run.log(run.learner.update(run.sample()))
        >>> step, run.learner.calls
        (6, 3)
    """
    if fleet is None and fleet_settings(cfg) is not None:
        raise O2OSpecError(f"got actors={cfg.actors}, this script steps a single environment; leave it out")
    if pretrained is None:
        check_no_pretraining(cfg)
    source = None if pretrained is None else Pretrained.read(pretrained)
    seed_everything(cfg.seed)
    learner, how = make_learner(cfg, problem.dims), HandOver(**plain(cfg.handover))
    if source is not None:
        fresh = hand_over(source, learner, how)
        said = f"carried over from {source.folder}; {f'new: {fresh}' if fresh else 'no part is new'}"
        logging.getLogger(__name__).info(said)
    buffer = None if make_buffer is None else make_buffer(learner)
    options = run_options(cfg, cfg.run_dir)
    parts = {"handover": how, "buffer": buffer, "make_storage": make_storage, "objects": objects, "fleet": fleet}
    return Finetuning(problem, learner, options, **parts, **plain(cfg.online))


def accept_seeds() -> None:
    """Accept ``seeds=...`` on the command line, which the configuration of single runs does not have.

    Raises:
        SystemExit: with an error message if ``seed=...`` is given, because ``seeds`` replaces it.

    Examples:
        >>> from unittest.mock import patch
        >>> with patch("sys.argv", ["rlpd_seeds.py", "task=hopper", "seeds=[0,1]"]):
        ...     accept_seeds()  # Hydra adds only what begins with a plus
        ...     sys.argv[1:]
        ['task=hopper', '+seeds=[0,1]']
    """
    for word in sys.argv[1:]:
        name, _, seed = word.lstrip("+").partition("=")
        if name == "seed":
            _leave(O2OSpecError(f"got {word}, this script trains several seeds at once; pass seeds=[{seed}]"))
    _accept("seeds=")


def accept_actors() -> None:
    """Accept ``actors=...`` and ``fleet.slack=...`` on the command line, which the configuration does not have.

    Examples:
        >>> from unittest.mock import patch
        >>> with patch("sys.argv", ["rlpd.py", "task=hopper", "actors=4"]):
        ...     accept_actors()  # Hydra adds only what begins with a plus
        ...     sys.argv[1:]
        ['task=hopper', '+actors=4']
    """
    _accept("actors=", "fleet.")


def _accept(*beginnings: str) -> None:
    sys.argv[1:] = [f"+{word}" if word.startswith(beginnings) else word for word in sys.argv[1:]]


def fleet_settings(cfg: DictConfig) -> dict[str, Any] | None:
    """The settings of :func:`~torchrl_o2o.trainers.make_fleet` from ``actors`` and the section ``fleet``.

    Args:
        cfg: the configuration.

    Returns:
        The settings; ``None`` without ``actors``, if the run steps one environment itself.

    Raises:
        O2OSpecError: if there is a section ``fleet`` and no ``actors``.

    Examples:
        >>> from omegaconf import OmegaConf
        >>> fleet_settings(OmegaConf.create({"actors": 4, "fleet": {"slack": 5}}))
        {'num_actors': 4, 'slack': 5}
    """
    if "actors" in cfg:
        return {"num_actors": cfg.actors, **plain(cfg.get("fleet", OmegaConf.create()))}
    if "fleet" in cfg:
        raise O2OSpecError(f"got fleet={plain(cfg.fleet)} without actors; set their number, for example actors=4")
    return None


def launch(
    cfg: DictConfig,
    train: Callable[[DictConfig], None],
    *,
    optional: Sequence[str] = (),
) -> None:
    """Run a script's training; errors that the user can fix end it with a message and not with a traceback.

    These are data, settings, networks and checkpoints that do not fit, values that are not finite, and failing
    environments. In a sweep (``-m``) the message is printed and the error raised, so that Hydra's launcher continues
    with the other runs and reports the failure at the end.

    Args:
        cfg: the configuration; ``device``, ``num_threads``, ``matmul_route``, ``matmul_dtype`` and ``compile`` are
            read.
        train: the script's training function.

    Keyword Args:
        optional: settings that this script reads although its configuration lacks them, such as ``"seeds"``.

    Raises:
        SystemExit: with that message.
        O2OError: in a sweep, or a ``NonFiniteError`` or ``EnvFaultError``.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> cfg = script_config("awac", ["preset=cpu", "compile=false"])
        >>> launch(cfg, lambda cfg: print("trains", cfg.algorithm))
        trains awac
        >>> cfg.online.batch_size = 0
        >>> launch(cfg, lambda cfg: print("trains", cfg.algorithm))
        Traceback (most recent call last):
        SystemExit: O2OSpecError: got online.batch_size=0, expected a whole number of at least 1
    """
    logging.getLogger("torchrl").setLevel(logging.WARNING)
    try:
        check_added(cfg, _words(), _not_added_to(cfg), optional=optional)
        check_settings(cfg)
        check_device(cfg.get("device", "cpu"))
        torch.set_num_threads(cfg.num_threads)
        choose_route(cfg.matmul_route)
        product_dtype(cfg.matmul_dtype, compiled=cfg.compile)
        train(cfg)
    except (NonFiniteError, EnvFaultError) as error:
        _leave(error, f"\nOnce that is fixed, continue with:\n  {resume_command()}")
    except O2OError as error:
        _leave(error)
    except OmegaConfBaseException as error:  # a reference to an entry that is not there, for example
        reason = str(error).splitlines()[0]
        _leave(O2OSpecError(f"got settings that cannot be read: {reason} (in {' '.join(_words())}); correct that one"))
    except TypeError as error:
        if reason := not_taken(error, _words()):
            _leave(O2OSpecError(reason))
        raise


def _words() -> Sequence[str]:
    """The overrides of the configuration on the command line, as they were written: references are not followed."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return ()
    return cast(list[str], OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False))


def _not_added_to(cfg: DictConfig) -> DictConfig:
    """The configuration without the entries that the command line adds with ``+`` or ``++``."""
    kept = [word for word in _words() if not word.startswith("+")]
    if len(kept) == len(_words()):
        return cfg
    from hydra import compose
    from hydra.core.hydra_config import HydraConfig

    return compose(HydraConfig.get().job.config_name, kept)


def _leave(error: Exception, advice: str = "") -> NoReturn:
    """End the process with an error message; in a sweep, end only this run."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    sentence = f"{type(error).__name__}: {error}{advice}"
    if HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN:
        sys.stderr.write(f"{sentence}\n")
        raise error
    sys.exit(sentence)
