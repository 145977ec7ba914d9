# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The methods that can continue from recorded rows alone, with the work of each around an update."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from torchrl_o2o.data import OnlineWriter
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.trainers.algorithms import (
    BASES,
    BEHAVIOR_REGULARIZED,
    Guide,
    anneal_pool,
    decay_alignment,
    learn_density,
    make_a3rl,
    make_aca,
    make_awac,
    make_base,
    make_bc,
    make_cal_ql,
    make_confidence,
    make_cql,
    make_critics_alone,
    make_iql,
    make_pex,
    make_pool,
    make_qc,
    make_rebrac,
    make_rlpd,
    make_sac_after_cql,
    make_sac_after_sac_ml,
    make_sac_ml,
    make_sac_of_clone,
    make_sope,
    make_spot,
    make_td3_bc,
    make_wsrl,
    phase_settings,
    pool_metrics,
)
from torchrl_o2o.trainers.handover import HandOver
from torchrl_o2o.trainers.learner import Learner, MakeLearner
from torchrl_o2o.trainers.phases import Phase
from torchrl_o2o.trainers.problem import Problem
from torchrl_o2o.trainers.settings import plain
from torchrl_o2o.trainers.stabilization import StoppingRule, is_due, stabilize

__all__ = ["ContinuedMethod", "find_method"]


class ContinuedMethod:
    """Continue a method: draw batches uniformly from all rows, and make the learner's update on each.

    Args:
        cfg: the run's configuration.
        learner: built as the run's.
    """

    def __init__(self, cfg: DictConfig, learner: Learner) -> None:
        self.cfg, self.learner = cfg, learner

    def objects(self) -> dict[str, Any]:
        """The objects of the method that belong into a checkpoint."""
        return self.learner.objects()

    def complete(self, rows: TensorDictBase) -> TensorDictBase:
        """Add what the method stores with a transition.

        Args:
            rows: new recordings [N], with the learner's scaling of rewards and observations.
        """
        return rows

    def buffer(self, problem: Problem, num_offline: int) -> TensorDictReplayBuffer:
        """Build the buffer that batches are drawn from; its rows are part of the checkpoints.

        Args:
            problem: its rows are those of the run, followed by the new ones.
            num_offline: number of leading rows that the run treats as offline data.
        """
        rows, section = problem.offline, "online" if self.cfg.get("online", {}).get("batch_size") else "offline"
        size = self.cfg[section].batch_size * getattr(self.learner.update, "num_minibatches", 1)
        storage = LazyTensorStorage(len(rows) + 1)  # a writer has at least one slot
        storage.set(slice(0, len(rows)), rows)
        return TensorDictReplayBuffer(storage=storage, writer=OnlineWriter(len(rows)), batch_size=size)

    def update(self, phase: Phase, step: int) -> dict[str, Tensor]:
        """Make one update.

        Args:
            phase: draws the batch.
            step: number of the update; counts on from the run's last environment step.

        Returns:
            The metrics.
        """
        return self.learner.update(phase.sample())


class _Aligned(ContinuedMethod):
    """ACA: k keeps falling with every update."""

    def __init__(self, cfg: DictConfig, dims: tuple[int, int]) -> None:
        # Only the shapes of this SAC+ML state matter: the checkpoint overwrites all of it.
        super().__init__(cfg, make_aca(cfg, dims, make_sac_ml(cfg, dims).loss.state_dict()))

    def update(self, phase: Phase, step: int) -> dict[str, Tensor]:
        return super().update(phase, step) | decay_alignment(self.cfg, self.learner)


class _Stabilized(ContinuedMethod):
    """SOPE, SPEQ: one update a step, and every ``phases.every`` steps a phase that trains the critics alone.

    New recordings are online rows. Batches are half offline, half online.
    """

    def __init__(self, cfg: DictConfig, dims: tuple[int, int]) -> None:
        super().__init__(cfg, make_sope(cfg, dims))
        self._alone = make_critics_alone(cfg, self.learner)
        self._rule = StoppingRule(**plain(cfg.phases.rule))

    def buffer(self, problem: Problem, num_offline: int) -> TensorDictReplayBuffer:
        offline, online = problem.offline[:num_offline], problem.offline[num_offline:]
        settings = {"batch_size": self.cfg.online.batch_size, "keys": self.learner.keys}
        buffer = HandOver(**plain(self.cfg.handover)).buffer(offline, len(online), **settings)
        buffer.extend(online)
        return buffer

    def update(self, phase: Phase, step: int) -> dict[str, Tensor]:
        metrics: dict[str, Tensor] = {}
        if is_due(step, self.cfg.phases.every):
            settings = phase_settings(self.cfg, _num_offline(phase.buffer))
            metrics = stabilize(self.learner, self._alone, phase.buffer, self._rule, **settings).metrics()
        return super().update(phase, step) | metrics


class _Pooled(ContinuedMethod):
    """A3RL: keep training the density ratio and scoring the pool by it, with the exponents of the end of the run.

    A run that replayed by turns uniformly goes on replaying by score alone.

    New recordings are online rows: the ratio separates them, and the rows that the run collected, from the data set.
    """

    def __init__(self, cfg: DictConfig, dims: tuple[int, int]) -> None:
        super().__init__(cfg, make_a3rl(cfg, dims))

    def buffer(self, problem: Problem, num_offline: int) -> TensorDictReplayBuffer:
        online = problem.offline[num_offline:]
        cfg: DictConfig = OmegaConf.merge(self.cfg, {"online": {"total_frames": len(online)}})  # type: ignore[assignment]
        buffer = make_pool(cfg, Problem(problem.env, problem.offline[:num_offline], problem.convention), self.learner)
        buffer.extend(online)
        last: DictConfig = OmegaConf.merge(self.cfg, {"alternate": None})  # type: ignore[assignment]
        anneal_pool(last, buffer, self.cfg.online.total_frames)
        return buffer

    def update(self, phase: Phase, step: int) -> dict[str, Tensor]:
        before = self.cfg.density_update == "before"
        ratio = learn_density(self.cfg, phase) if before else {}
        batch = phase.sample()
        metrics = self.learner.update(batch)
        if not before:
            ratio = learn_density(self.cfg, phase)
        return metrics | ratio | pool_metrics(phase, batch, step)


class _Guided(ContinuedMethod):
    """SAMG: new recordings get the run's fitted confidence; the guidance factor keeps its last value."""

    def __init__(self, cfg: DictConfig, dims: tuple[int, int]) -> None:
        confidence = make_confidence(cfg, dims)
        super().__init__(cfg, make_base(cfg, online=True)(cfg, dims))
        self._guide: Guide | None = None
        if confidence is not None:
            self._guide = Guide(self.learner, confidence, plain(cfg.guidance), weigh_penalty=cfg.weigh_penalty)

    def objects(self) -> dict[str, Any]:
        return super().objects() | ({} if self._guide is None else self._guide.objects())

    def complete(self, rows: TensorDictBase) -> TensorDictBase:
        return rows if self._guide is None else self._guide.confidence(rows)

    def update(self, phase: Phase, step: int) -> dict[str, Tensor]:
        guide = self._guide
        if guide is None:
            return super().update(phase, step)
        guide.estimator.set_step(guide.steps["online"])
        batch = phase.sample()
        guidance = guide.weigh(batch)
        return self.learner.update(batch) | guidance


def _num_offline(buffer: TensorDictReplayBuffer) -> int:
    assert isinstance(buffer.writer, OnlineWriter)
    return buffer.writer.num_offline


#: Builds a method from configuration and dimensions.
MakeContinued = Callable[[DictConfig, tuple[int, int]], ContinuedMethod]


def _uniform(make: MakeLearner) -> MakeContinued:
    return lambda cfg, dims: ContinuedMethod(cfg, make(cfg, dims))


def _make_samg_offline(cfg: DictConfig, dims: tuple[int, int]) -> Learner:
    """The learner of the base algorithm. IQL's learning-rate schedule has ended by then."""
    return BASES[cfg.learner.label][0](cfg, dims)


_QC = dict.fromkeys(("fql", "fql_n", "qc_fql", "bfn", "bfn_n", "qc"), make_qc)
#: Offline learners that can continue, by the configuration's ``algorithm`` up to its first hyphen.
_OFFLINE: Mapping[str, MakeLearner] = {
    "awac": make_awac,
    "iql": make_iql,
    "td3_bc": make_td3_bc,
    "cql": make_cql,
    "cal_ql": make_cal_ql,
    "bc": make_bc,
    "rebrac": make_rebrac,
    "spot": make_spot,
    **BEHAVIOR_REGULARIZED,
    **dict.fromkeys(("pex", "direct"), make_iql),
    **_QC,
    "aca": make_sac_ml,
    "samg": _make_samg_offline,
}
_ONLINE: Mapping[str, MakeLearner] = {
    **{name: _OFFLINE[name] for name in ("awac", "iql", "td3_bc", *BEHAVIOR_REGULARIZED)},
    **dict.fromkeys(("rlpd", "sacfd", "redq", "sac"), make_rlpd),
    "rebrac": partial(make_rebrac, online=True),
    "spot": partial(make_spot, online=True),
    "pex": make_pex,
    **dict.fromkeys(("direct", "buffer", "scratch"), make_iql),
    **dict.fromkeys((*_QC, "rlpd_ac", "qc_rlpd"), partial(make_qc, online=True)),
}
#: Online methods that do more than an update on a uniform batch.
_ONLINE_OWN: Mapping[str, MakeContinued] = {
    **dict.fromkeys(("sope", "speq_o2o", "speq"), _Stabilized),
    "a3rl": _Pooled,
    "samg": _Guided,
}
#: Online learners by the configuration's ``learner``, for scripts whose online learner may differ from the offline one.
#: WSRL's configuration has no ``learner``.
_AFTER_CQL: Mapping[str, MakeContinued] = {
    "cql": _uniform(make_cql),
    "cal_ql": _uniform(make_cal_ql),
    "sac": _uniform(make_sac_after_cql),
    "None": _uniform(make_wsrl),
}
_BY_LEARNER: Mapping[str, Mapping[str, MakeContinued]] = {
    "cql": _AFTER_CQL,
    "cal_ql": _AFTER_CQL,
    "bc": {"bc": _uniform(make_bc), "sac": _uniform(make_sac_of_clone)},
    "aca": {"aca": _Aligned, "sac": _uniform(partial(make_sac_after_sac_ml, source={}))},
}
#: Why the other methods cannot continue.
_REASONS = {
    "off2on": "its rows have priorities that were set when they were collected",
    "awr": "one of its steps is an iteration over all rows in their order",
    "odt": "it learns from whole episodes that are labeled with their returns",
    **dict.fromkeys(("drqv2", "drqv2_bc", "rlpd_pixels"), "it learns from images, and recordings hold numbers"),
}


def find_method(folder: Path, config: Mapping[str, Any]) -> MakeContinued:
    """Find the function that builds a run's method from its configuration and dimensions.

    Args:
        folder: the run folder.
        config: the recorded configuration of the run.

    Raises:
        O2OSpecError: if the method cannot continue from recordings alone.

    Examples:
        >>> find_method(Path("runs/a3rl"), {"algorithm": "a3rl-uniform", "online": {}}).__name__
        '_Pooled'
    """
    named, online = str(config.get("algorithm")), "online" in config
    name = named.partition("-")[0]
    if config.get("best_episodes", 1.0) != 1.0 and not online:
        raise O2OSpecError(
            f"{folder} has learned from a share of {config['best_episodes']} of its data (best_episodes), which is "
            "undefined for new recordings; clone all (best_episodes=1.0), or start a new run"
        )
    if online:
        own = _BY_LEARNER.get(name, {}).get(str(config.get("learner")), _ONLINE_OWN.get(name))
        if own is not None:
            return own
    make = (_ONLINE if online else _OFFLINE).get(name)
    if make is None:
        reason = f": {_REASONS[name]}" if name in _REASONS else ""
        raise O2OSpecError(
            f"{folder} is a run of {named}{' online' if online else ''}, which cannot continue from recordings "
            f"alone{reason}; expected an offline phase of {', '.join(_OFFLINE)}, or an online one of "
            f"{', '.join([*_ONLINE, *_ONLINE_OWN, *_BY_LEARNER])}"
        )
    return _uniform(make)
