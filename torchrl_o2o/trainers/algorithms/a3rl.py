# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A3RL (Liu et al. 2025): RLPD plus a density ratio and a pool that is replayed by a score of transitions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from omegaconf import DictConfig
from tensordict import TensorDictBase
from torch import Tensor
from torch.optim import Adam
from torchrl.data import TensorDictReplayBuffer

from torchrl_o2o.data import BalancedSampler, OnlineWriter, PoolSampler, offline_online_storage
from torchrl_o2o.errors import O2OSpecError, check_number
from torchrl_o2o.functional import annealed_alpha, annealed_beta, offline_share
from torchrl_o2o.modules import DensityRatio, make_actor
from torchrl_o2o.objectives import DensityRatioLoss, EnsembleSACLoss
from torchrl_o2o.priorities import Advantage, DensityRatioScore, LogPriority, Sum, TDError
from torchrl_o2o.trainers.algorithms.sac import ensemble_sac
from torchrl_o2o.trainers.compiling import compiled
from torchrl_o2o.trainers.handover import MakeStorage
from torchrl_o2o.trainers.learner import Learner, on_device
from torchrl_o2o.trainers.phases import Phase
from torchrl_o2o.trainers.problem import Problem
from torchrl_o2o.trainers.settings import plain
from torchrl_o2o.updates import Descend, Update

__all__ = ["anneal_pool", "density_rows", "learn_density", "make_a3rl", "make_pool", "pool_metrics"]


@on_device
def make_a3rl(cfg: DictConfig, dims: tuple[int, int]) -> Learner:
    """Build RLPD's learner with an additional density ratio.

    Source: Liu et al. 2025 (A3RL).

    Args:
        cfg: sections of :func:`~torchrl_o2o.trainers.algorithms.make_rlpd`, and ``density_ratio``, ``density_loss``,
            ``density_optim``.
        dims: observation and action dimension.

    Returns:
        The learner; ``further["density_ratio"]`` is the update of the ratio.

    Examples:
        >>> import torch
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> cfg = script_config("a3rl", ["preset=cpu", "compile=false"])
        >>> learner = make_a3rl(cfg, (3, 2))
        >>> learner.update
        Update of EnsembleSACLoss
          Repeat(2)
            Descend('qvalue', AdamW)
            MoveTargets(SoftUpdate)
          Descend('actor', AdamW)
          Descend('alpha', AdamW)
        >>> rows = random_transitions(8, 3, 2)
        >>> rows["is_offline"] = torch.arange(8) % 2 == 0
        >>> bool(learner.further["density_ratio"](rows)["loss_density_ratio"].isfinite())
        True
    """
    actor = make_actor(*dims, **plain(cfg.actor))
    loss, update = ensemble_sac(actor, dims, cfg, utd_ratio=cfg.utd_ratio)
    ratio = DensityRatioLoss(DensityRatio(*dims, **plain(cfg.density_ratio)), **plain(cfg.density_loss))
    optim = Adam(ratio.parameters(), **plain(cfg.density_optim))
    further = {"density_ratio": compiled(Update(ratio, Descend("density_ratio", optim)), cfg)}
    return Learner(actor, loss, compiled(update, cfg), further=further)


def make_pool(
    cfg: DictConfig, problem: Problem, learner: Learner, make_storage: MakeStorage | None = None
) -> TensorDictReplayBuffer:
    """One storage for both sources, replayed by score (Liu et al. 2025, Eq. 5).

    Args:
        cfg: sections ``pool``, ``terms``, ``advantage``, ``td_error``, ``density_score``, ``adv_temp``,
            ``pool_multiplier``, ``alpha_final``, ``alternate`` and ``online`` (with ``scratch_dir``, the rows lie in
            files there).
        problem: whose data come first.
        learner: of :func:`make_a3rl`.
        make_storage: makes the storage from the offline rows and the number of online slots. ``None`` (default) is
            :func:`~torchrl_o2o.data.offline_online_storage`.

    Returns:
        The buffer; its sampler is a :class:`~torchrl_o2o.data.PoolSampler`.

    Raises:
        O2OSpecError: if ``handover`` or ``online`` ask for another buffer: the pool holds all data and all steps; or
            ``alpha_final`` is below 0, or ``alternate`` is no pair of numbers of steps.

    Examples:
        >>> from torchrl_o2o.data import Convention
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> rows = random_transitions(100, 3, 1)
        >>> problem = Problem({"env_id": "Pendulum-v1"}, rows, Convention().fit(rows))
        >>> cfg = script_config("a3rl", ["preset=cpu", "compile=false"])
        >>> make_pool(cfg, problem, make_a3rl(cfg, problem.dims)).sampler
        PoolSampler(pool_size=1024, alpha=0.3, beta=0.4, uniform=BalancedSampler(num_offline=100, offline_fraction=0.5))
    """
    other = {"handover.data": cfg.handover.data, "online.online_capacity": cfg.online.get("online_capacity")}
    if other != {"handover.data": "symmetric", "online.online_capacity": None}:
        raise O2OSpecError(
            f"got {other}, expected none of them, because A3RL's pool holds all recorded and all online rows and "
            "pool.offline_fraction sets their shares; leave them out"
        )
    end, turns = _schedule(cfg)
    if end is not None:
        check_number("alpha_final", end, least=0)
    if turns is not None and not (len(turns) == 2 and all(isinstance(each, int) and each >= 1 for each in turns)):
        raise O2OSpecError(
            f"got alternate={turns}, expected null or [steps of A3RL, steps of RLPD], for example [5, 5]"
        )
    if make_storage is None:
        folder = cfg.online.get("scratch_dir")
        make_storage = partial(offline_online_storage, device=learner.device, scratch_dir=folder)
    storage = make_storage(problem.offline, cfg.online.total_frames)
    batch_size, number = cfg.utd_ratio * cfg.online.batch_size, len(problem.offline)
    pool_size = None if cfg.pool_multiplier is None else cfg.pool_multiplier * cfg.online.batch_size
    sampler = PoolSampler(_score(cfg, learner), number, pool_size=pool_size, **plain(cfg.pool))
    sampler.check_capacity(storage, batch_size)
    return TensorDictReplayBuffer(storage=storage, sampler=sampler, writer=OnlineWriter(number), batch_size=batch_size)


def _score(cfg: DictConfig, learner: Learner) -> LogPriority:
    """The sum of the terms that the configuration names; adv_temp multiplies all terms except the density ratio."""
    assert isinstance(learner.loss, EnsembleSACLoss)
    ratio = learner.further["density_ratio"].loss
    assert isinstance(ratio, DensityRatioLoss)
    advantage = Advantage(learner.loss, **plain(cfg.advantage))
    td_error = TDError(learner.loss, **plain(cfg.td_error))
    if cfg.compile:
        advantage.compile()
        td_error.compile()
    density = DensityRatioScore(ratio.density_ratio_network, **plain(cfg.density_score))
    known: dict[str, LogPriority] = {"density": density, "advantage": advantage, "td_error": td_error}
    factors = tuple(1.0 if name == "density" else cfg.adv_temp for name in cfg.terms)
    return Sum(*(known[name] for name in cfg.terms), factors=factors)


def anneal_pool(cfg: DictConfig, buffer: TensorDictReplayBuffer, step: int) -> None:
    """Set the sampler's exponents for a step; with alpha = 0 rows are replayed uniformly, as RLPD does.

    Source: ``train_finetuning_all.py`` of the authors' code. Its flags ``interweave_a3rl`` and ``interweave_rlpd``, in
    an earlier version ``steps_a3rl`` and ``steps_rlpd``, are the two numbers of ``alternate``.

    Rows are scored from step ``priority_from`` + 1 on, by default from the first. The authors' code begins one step
    later, with i > ``start_a3rl`` for i = step - 1.

    Args:
        cfg: ``pool.alpha``, ``alpha_final``, ``alternate``, ``priority_from``, ``beta_start`` and
            ``online.total_frames``.
        buffer: of :func:`make_pool`.
        step: the environment step.

    Examples:
        >>> from torchrl_o2o.data import Convention
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> rows = random_transitions(100, 3, 1)
        >>> problem = Problem({"env_id": "Pendulum-v1"}, rows, Convention().fit(rows))
        >>> cfg = script_config("a3rl", ["preset=cpu", "compile=false", "beta_start=0.4", "online.total_frames=1_000"])
        >>> buffer = make_pool(cfg, problem, make_a3rl(cfg, problem.dims))
        >>> for step in (1, 501, 1_001):
        ...     anneal_pool(cfg, buffer, step)
        ...     print(round(buffer.sampler.beta, 2))
        0.4
        0.7
        1.0
        >>> cfg.alternate = [2, 1]  # two steps by score, then a uniform one, by turns
        >>> for step in (1, 2, 3, 4):
        ...     anneal_pool(cfg, buffer, step)
        ...     print(buffer.sampler.alpha)
        0.3
        0.3
        0.0
        0.3
    """
    sampler, before, total = _sampler_of(buffer), step - 1, cfg.online.total_frames
    sampler.alpha, (end, turns) = 0.0, _schedule(cfg)
    if step > cfg.priority_from and (turns is None or before % sum(turns) < turns[0]):
        progress = (before - cfg.priority_from) / (total - cfg.priority_from)
        sampler.alpha = annealed_alpha(cfg.pool.alpha, cfg.pool.alpha if end is None else end, progress)
    sampler.beta = annealed_beta(cfg.beta_start, before / total)


def _schedule(cfg: DictConfig) -> tuple[float | None, Sequence[int] | None]:
    """``alpha_final`` and ``alternate``, which runs of earlier versions do not have."""
    return cfg.get("alpha_final"), cfg.get("alternate")


def density_rows(buffer: TensorDictReplayBuffer, num_offline: int, batch_size: int) -> TensorDictBase:
    """Draw uniform rows, alternately offline and online, with ``is_offline``.

    Args:
        buffer: one storage for both sources.
        num_offline: number of offline rows.
        batch_size: number of rows.

    Returns:
        Rows [batch_size] with ``is_offline``.

    Examples:
        >>> from torchrl_o2o.testing import random_transitions
        >>> from torchrl_o2o.trainers import starting_buffer
        >>> buffer = starting_buffer(random_transitions(100, 3, 2), 10, data="symmetric")
        >>> _ = buffer.extend(random_transitions(5, 3, 2))  # online
        >>> density_rows(buffer, 100, 4)["is_offline"]
        tensor([ True, False,  True, False])
    """
    index, _ = BalancedSampler(num_offline).sample(buffer.storage, batch_size)
    return buffer.storage[index].set("is_offline", index < num_offline)


def learn_density(cfg: DictConfig, run: Phase) -> dict[str, Tensor]:
    """Update the density ratio on uniform rows, half of each source.

    Args:
        cfg: ``density_updates`` and ``online.batch_size``.
        run: a phase on a buffer of :func:`make_pool`, with a learner of :func:`make_a3rl`.

    Returns:
        Metrics of the last step; empty while there are no online rows, or if ``density_updates`` is 0.

    Examples:
        >>> import tempfile
        >>> from torchrl_o2o.data import Convention
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> from torchrl_o2o.trainers import online_phase
        >>> rows = random_transitions(100, 3, 1)
        >>> problem = Problem({"env_id": "Pendulum-v1"}, rows, Convention().fit(rows))
        >>> folder = f"run_dir={tempfile.mkdtemp()}/run"
        >>> cfg = script_config("a3rl", ["preset=cpu", "compile=false", "online.batch_size=16", folder])
        >>> pool = partial(make_pool, cfg, problem)
        >>> with online_phase(cfg, problem, None, make_a3rl, make_buffer=pool) as run:
        ...     _ = run.buffer.extend(random_transitions(20, 3, 1))  # what the environment gave
        ...     sorted(learn_density(cfg, run))
        ['log_ratio_offline', 'log_ratio_online', 'loss_density_ratio']
    """
    info: dict[str, Tensor] = {}
    number = _sampler_of(run.buffer).uniform.num_offline
    if len(run.buffer) > number:
        for _ in range(cfg.density_updates):
            rows = density_rows(run.buffer, number, cfg.online.batch_size)
            info = run.learner.further["density_ratio"](rows)
    return {name: value for name, value in info.items() if name != "finite"}


def pool_metrics(run: Phase, batch: TensorDictBase, step: int) -> dict[str, Tensor]:
    """Metrics of the batch and, at logged steps, of the pool.

    Args:
        run: a phase on a buffer of :func:`make_pool`.
        batch: drawn from the pool.
        step: the environment step.

    Returns:
        ``offline_share`` and the sampler's metrics.

    Examples:
        >>> import tempfile
        >>> from torchrl_o2o.data import Convention
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> from torchrl_o2o.trainers import online_phase
        >>> rows = random_transitions(100, 3, 1)
        >>> problem = Problem({"env_id": "Pendulum-v1"}, rows, Convention().fit(rows))
        >>> folder = f"run_dir={tempfile.mkdtemp()}/run"
        >>> cfg = script_config("a3rl", ["preset=cpu", "compile=false", "online.batch_size=16", folder])
        >>> pool = partial(make_pool, cfg, problem)
        >>> with online_phase(cfg, problem, None, make_a3rl, make_buffer=pool) as run:
        ...     _ = run.buffer.extend(random_transitions(20, 3, 1))  # what the environment gave
        ...     share = pool_metrics(run, run.sample(), step=1)["offline_share"]
        >>> 0.0 < share.item() < 1.0
        True
    """
    sampler = _sampler_of(run.buffer)
    share = {"offline_share": offline_share(batch["index"], sampler.uniform.num_offline)}
    return share | (sampler.metrics() if run.session.logs_at(step) else {})


def _sampler_of(buffer: TensorDictReplayBuffer) -> PoolSampler:
    assert isinstance(buffer.sampler, PoolSampler)
    return buffer.sampler
