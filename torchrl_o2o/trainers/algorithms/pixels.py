# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Learners from pixels, and their runs.

RLPD (Ball et al. 2023), DrQ-v2 (Yarats et al. 2021), DrQ-v2+BC, BC and DrQ-v2+CQL (Lu et al. 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import torch
from omegaconf import DictConfig
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch.optim import Adam
from torchrl.data import TensorDictReplayBuffer
from torchrl.modules import AdditiveGaussianModule
from torchrl.objectives import SoftUpdate

from torchrl_o2o.collectors import StepCollector
from torchrl_o2o.data import (
    BalancedSampler,
    EpisodeRows,
    OnlineWriter,
    PixelData,
    RandomShift,
    load_offline,
    load_vd4rl,
    n_step,
    stack_rows,
)
from torchrl_o2o.deploy import policy_saver
from torchrl_o2o.envs import GuardedEnv, drawing_arguments, make_gym_env, seed_everything
from torchrl_o2o.errors import O2ODataError, O2OSpecError, check_option
from torchrl_o2o.modules import (
    ConservativePenalty,
    Temperature,
    encoder_width,
    make_bottleneck,
    make_latent_actor,
    make_pixel_actor,
    make_pixel_encoder,
    make_qvalue_ensemble,
)
from torchrl_o2o.objectives import DrQV2BCLoss, DrQV2CQLLoss, DrQV2Loss, PixelSACLoss
from torchrl_o2o.trainers.compiling import compiled
from torchrl_o2o.trainers.launch import run_options
from torchrl_o2o.trainers.learner import Learner, on_device
from torchrl_o2o.trainers.settings import check_no_pretraining, plain
from torchrl_o2o.updates import Copy, Descend, Joint, MoveTargets, Repeat, Update

__all__ = ["PixelRun", "load_pixels", "make_drqv2", "make_rlpd_pixels"]

#: Builds a learner from configuration, shape of the stacked frames and action dimension.
MakePixelLearner = Callable[[DictConfig, tuple[int, ...], int], Learner]


def load_pixels(cfg: DictConfig, shape: tuple[int, ...]) -> PixelData:
    """Load the data set of a configuration: V-D4RL's files, or a name for :func:`~torchrl_o2o.data.load_offline`.

    Args:
        cfg: ``dataset.source`` (``None``: no data), ``num_stack`` and ``mixed_episodes``; ``n_step`` and
            ``value_estimator.gamma`` where rows are sums over several steps.
        shape: of the stacked frames, (channels, height, width).

    Returns:
        Rows, and their frames.

    Raises:
        O2ODataError: if it is neither, or damaged.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> cfg = script_config("rlpd_pixels", ["dataset.source=null"])  # online without data
        >>> data = load_pixels(cfg, (9, 16, 16))
        >>> len(data), data.frames["observation"].shape
        (0, torch.Size([0, 3, 16, 16]))
    """
    source = cfg.dataset.source
    if source is None:
        frame = torch.zeros(0, shape[0] // cfg.num_stack, *shape[1:], dtype=torch.uint8)
        return PixelData(TensorDict({}, [0]), {"observation": frame})
    if Path(source).exists():
        data = load_vd4rl(source, num_stack=cfg.num_stack, mixed_episodes=cfg.mixed_episodes)
    else:
        data = stack_rows(load_offline(source), num_stack=cfg.num_stack)
    steps = cfg.get("n_step", 1)
    return data if steps == 1 else replace(data, rows=n_step(data.rows, n=steps, gamma=cfg.value_estimator.gamma))


@on_device
def make_rlpd_pixels(cfg: DictConfig, shape: tuple[int, ...], action_dim: int) -> Learner:
    """Build RLPD's networks, loss and update from pixels.

    The critics' convolutions are copied to the actor first; then a step of the critics and of their targets on each
    minibatch; then, on the last, a step of the actor and of the temperature.

    Source: Ball et al. 2023, arXiv:2302.02948, section 4 (pixels), and the authors' code.

    Args:
        cfg: sections ``encoder``, ``actor``, ``qvalue``, ``temperature``, ``loss``, ``value_estimator``, ``target``,
            ``optim``, and ``target_entropy_per_dim``, ``utd_ratio``, ``channels_last``, ``autocast``.
        shape: of the stacked frames, (channels, height, width).
        action_dim: action dimension.

    Returns:
        The learner.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> cfg = script_config("rlpd_pixels", ["preset=cpu", "compile=false"])
        >>> learner = make_rlpd_pixels(cfg, (9, 16, 16), action_dim=2)  # stacks of three frames
        >>> rows, frames = random_transitions(8, 1, 2), torch.zeros(8, 9, 16, 16, dtype=torch.uint8)
        >>> rows["observation"] = rows["next", "observation"] = frames
        >>> bool(learner.update(rows)["loss_actor"].isfinite())
        True
    """
    encoder = _laid_out(make_pixel_encoder(shape, **plain(cfg.encoder)), cfg)
    actor = make_pixel_actor(encoder, action_dim, **plain(cfg.actor))
    width = encoder_width(encoder)
    heads = make_qvalue_ensemble(width, action_dim, in_keys=("latent", "action"), **plain(cfg.qvalue))  # pyright: ignore
    temperature = Temperature(cfg.target_entropy_per_dim * action_dim, **plain(cfg.temperature))
    loss = PixelSACLoss(actor, encoder, heads, temperature=temperature, **plain(cfg.loss))  # pyright: ignore
    loss.make_value_estimator(**plain(cfg.value_estimator))
    critics = [*loss.encoder_network_params.parameters(), *loss.qvalue_network_params.parameters()]
    critic_optim, targets = Adam(critics, **plain(cfg.optim)), MoveTargets(SoftUpdate(loss, **plain(cfg.target)))
    update = Update(
        loss,
        Copy(*PixelSACLoss.LATE_COPY),
        Repeat(cfg.utd_ratio, Descend("qvalue", critic_optim), targets),
        Descend("actor", Adam(loss.actor_network_params.parameters(), **plain(cfg.optim))),
        Descend("alpha", Adam(loss.temperature.parameters(), **plain(cfg.optim))),
    )
    return Learner(actor, loss, _prepared(update, cfg))


@on_device
def make_drqv2(cfg: DictConfig, shape: tuple[int, ...], action_dim: int) -> Learner:
    """Build DrQ-v2's networks, loss and update: critics with encoder, the actor on features from before, the targets.

    Source: Yarats et al. 2021 (DrQ-v2), arXiv:2107.09645; Lu et al. 2023 (V-D4RL), arXiv:2206.04779.

    Args:
        cfg: sections ``encoder``, ``actor``, ``qvalue``, ``loss``, ``cloning``, ``value_estimator``, ``target``,
            ``penalty``, ``optim``, ``channels_last``, ``autocast``, and ``algorithm``: ``"drqv2"``; ``"drqv2_bc"``,
            with a cloning term; ``"bc"``, cloning alone; ``"drqv2_cql"``, with CQL's penalty.
        shape: of the stacked frames, (channels, height, width).
        action_dim: action dimension.

    Returns:
        The learner; it explores with normal noise; the explorer's last module has its ``sigma``.

    Raises:
        O2OSpecError: if the algorithm is unknown, or ``utd_ratio`` is not 1.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> cfg = script_config("drqv2", ["preset=cpu", "compile=false", "algorithm=drqv2"])
        >>> learner = make_drqv2(cfg, (9, 16, 16), action_dim=2)  # stacks of three frames
        >>> learner.update
        Update of DrQV2Loss
          Descend('qvalue', Adam)
          Descend('actor', Adam)
          MoveTargets(SoftUpdate)
        >>> rows, frames = random_transitions(8, 1, 2), torch.zeros(8, 9, 16, 16, dtype=torch.uint8)
        >>> rows["observation"] = rows["next", "observation"] = frames
        >>> bool(learner.update(rows)["loss_actor"].isfinite())
        True
    """
    check_option("algorithm", cfg.algorithm, ("drqv2", "drqv2_bc", "bc", "drqv2_cql"))
    if cfg.utd_ratio != 1:
        raise O2OSpecError(
            f"got utd_ratio={cfg.utd_ratio}, expected 1, because DrQ-v2 makes one update of all networks; set "
            "utd_ratio=1"
        )
    fixed: dict[str, Any] = {"offset": 0.5, "initialization": "orthogonal", "latent_dim": None, "out_key": "features"}
    encoder = _laid_out(make_pixel_encoder(shape, **fixed, **plain(cfg.encoder)), cfg)
    width = encoder_width(encoder)
    actor, latent = make_latent_actor(width, action_dim, **plain(cfg.actor)), cfg.actor.latent_dim
    heads = make_qvalue_ensemble(latent, action_dim, in_keys=("latent", "action"), **plain(cfg.qvalue))
    networks, settings = (encoder, actor, make_bottleneck(width, latent), heads), plain(cfg.loss)
    if cfg.algorithm == "drqv2":
        loss = DrQV2Loss(*networks, **settings)
    elif cfg.algorithm == "drqv2_cql":
        loss = DrQV2CQLLoss(*networks, penalty=ConservativePenalty(**plain(cfg.penalty)), **settings)
    else:
        loss = DrQV2BCLoss(*networks, **plain(cfg.cloning), **settings)
    loss.make_value_estimator(**plain(cfg.value_estimator))
    policy, noise = TensorDictSequential([encoder, actor]), AdditiveGaussianModule(actor.spec)
    explorer = TensorDictSequential([encoder, actor, noise])
    return Learner(policy, loss, _prepared(_drqv2_update(loss, cfg), cfg), explorer=explorer)


def _laid_out(encoder: TensorDictModule, cfg: DictConfig) -> TensorDictModule:
    """The encoder; with ``channels_last``, its convolution weights are in the layout that frames always have."""
    if not cfg.channels_last:
        return encoder
    # torch's overloads omit this argument.
    return encoder.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _prepared(update: Update, cfg: DictConfig) -> Update:
    return compiled(update.autocast() if cfg.autocast else update, cfg)


def _drqv2_update(loss: DrQV2Loss, cfg: DictConfig) -> Update:
    seeing, acting = loss.encoder_network_params, loss.actor_network_params
    if cfg.algorithm == "bc":
        return Update(loss, Descend("clone", Adam([*seeing.parameters(), *acting.parameters()], **plain(cfg.optim))))
    trained = seeing, loss.latent_network_params, loss.qvalue_network_params
    critics = Descend("qvalue", Adam([param for part in trained for param in part.parameters()], **plain(cfg.optim)))
    if isinstance(loss, DrQV2CQLLoss) and loss.penalty.target_gap is not None:
        multiplier = Descend("alpha_prime", Adam(loss.penalty.parameters(), **plain(cfg.optim)))
        critics = Joint(critics, multiplier)
    return Update(
        loss,
        critics,
        Descend("actor", Adam(acting.parameters(), **plain(cfg.optim))),
        MoveTargets(SoftUpdate(loss, **plain(cfg.target))),
    )


def _check_fits(data: PixelData, shape: tuple[int, ...], action_dim: int, cfg: DictConfig) -> None:
    """Raise for data of another environment before anything is built for them."""
    if not len(data):
        return
    stacked = [cfg.num_stack * data.frames["observation"].shape[1], *data.frames["observation"].shape[2:]]
    found = data.rows["action"].shape[-1]
    if stacked != list(shape) or found != action_dim:
        raise O2ODataError(
            f"got {cfg.dataset.source} with stacks of frames {stacked} and {found} numbers an action, expected "
            f"{list(shape)} and {action_dim} as in {cfg.env.env_id}; use the environment of the data, with "
            "env.render_size as their frames' size"
        )


def _stacked_env(env: Mapping[str, Any], num_stack: int, *, drawing: bool = False) -> gymnasium.Env:
    return make_gym_env(**(drawing_arguments(env) if drawing else env), num_stack=num_stack)


class PixelRun:
    """The parts of a run from pixels: data, environment, learner, buffer, collector and run folder.

    Args:
        cfg: the settings of ``make_learner``, ``env``, ``dataset``, ``num_stack``, ``mixed_episodes``, ``pad``,
            ``offline_fraction``, ``utd_ratio``, the section ``online``, and the run's own settings.
        make_learner: builds the learner from configuration, shape of the frames and action dimension.
        rows: keeps transitions until their episode has ended. Defaults to ``None``: they are written immediately.

    Raises:
        O2ODataError: if the data are broken, or their frames or actions differ from the environment's.
        O2OSpecError: if something does not fit.

    Examples:
        >>> import tempfile
        >>> from torchrl_o2o.scripts import script_config
        >>> words = ["preset=cpu", "compile=false", "task=dotreach", "dataset.source=null", "offline_fraction=0.0"]
        >>> words += ["online.total_frames=3", "evaluation.num_episodes=1", f"run_dir={tempfile.mkdtemp()}/run"]
        >>> run = PixelRun(script_config("rlpd_pixels", words), make_rlpd_pixels)
        >>> with run.session as session:
        ...     for step, transition in session.online(run.collector):
        ...         _ = run.buffer.extend(transition)
        >>> step, len(run.buffer)
        (3, 3)
    """

    def __init__(self, cfg: DictConfig, make_learner: MakePixelLearner, *, rows: EpisodeRows | None = None) -> None:
        check_no_pretraining(cfg)
        make_env = partial(_stacked_env, plain(cfg.env), cfg.num_stack)
        env = GuardedEnv(make_env, **plain(cfg.env_guard))
        shape, action_dim = env.observation_space.shape, env.action_space.shape[0]  # type: ignore[index]
        self.data = load_pixels(cfg, shape)  # type: ignore[arg-type]
        _check_fits(self.data, shape, action_dim, cfg)  # type: ignore[arg-type]
        seed_everything(cfg.seed)
        self.learner = make_learner(cfg, shape, action_dim)  # type: ignore[arg-type]
        writer, total = OnlineWriter(len(self.data)), cfg.online.total_frames
        self.buffer = TensorDictReplayBuffer(
            storage=self.data.storage(cfg.online.get("buffer_size") or max(total, 1), device=self.learner.device),
            sampler=BalancedSampler(len(self.data), cfg.offline_fraction),
            writer=writer,
            batch_size=cfg.online.batch_size * cfg.utd_ratio,
            transform=RandomShift(cfg.pad),
        )
        self.collector = StepCollector(
            env,
            self.learner.explorer,
            total_frames=max(total, 1),
            init_random_frames=cfg.online.init_random_frames,
            seed=cfg.seed,
            on_cut=writer.truncate_last if rows is None else rows.cut,
        )
        options = run_options(cfg, cfg.run_dir)
        score = options.scorer(self.learner, make_env, cfg.env.env_id)
        objects = {**self.learner.objects(), "collector": self.collector, **({} if rows is None else {"rows": rows})}
        shown = {**plain(cfg.env), "num_stack": cfg.num_stack}
        save = policy_saver(self.learner.actor, env=shown, metadata=options.labels())
        #: The session of the run folder, a context; ``online(collector)`` yields the remaining steps.
        self.session = options.open(objects, self.buffer, score, total, save)
