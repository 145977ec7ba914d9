# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Which methods continue from recorded rows alone, and what is a method's own around an update then."""

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
    fade_alignment,
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
from torchrl_o2o.trainers.learner import Learner
from torchrl_o2o.trainers.phases import Phase
from torchrl_o2o.trainers.problem import Problem
from torchrl_o2o.trainers.settings import plain
from torchrl_o2o.trainers.stabilization import StoppingRule, is_due, stabilize

__all__ = ["Further", "find_method"]


class Further:
    """How a method continues: batches are drawn from all rows uniformly, and each update is the learner's.

    Args:
        cfg: the run's configuration.
        learner: built as the run's.
    """

    def __init__(self, cfg: DictConfig, learner: Learner) -> None:
        self.cfg, self.learner = cfg, learner

    def objects(self) -> dict[str, Any]:
        """What a checkpoint has to hold of the method."""
        return self.learner.objects()

    def complete(self, rows: TensorDictBase) -> TensorDictBase:
        """Add what the method stores with a transition.

        Args:
            rows: new recordings [N] in the learner's numbers.
        """
        return rows

    def buffer(self, problem: Problem, num_offline: int) -> TensorDictReplayBuffer:
        """What batches are drawn from; its rows are part of the checkpoints.

        Args:
            problem: whose rows are the run's and the new ones behind them.
            num_offline: how many of the first rows the run has kept apart as offline ones.
        """
        rows, section = problem.offline, "online" if self.cfg.get("online", {}).get("batch_size") else "offline"
        size = self.cfg[section].batch_size * getattr(self.learner.update, "num_minibatches", 1)
        storage = LazyTensorStorage(len(rows) + 1)  # a writer has at least one slot
        storage.set(slice(0, len(rows)), rows)
        return TensorDictReplayBuffer(storage=storage, writer=OnlineWriter(len(rows)), batch_size=size)

    def update(self, phase: Phase, step: int) -> dict[str, Tensor]:
        """Make one update.

        Args:
            phase: that draws the batch.
            step: its number; it follows the run's last environment step.

        Returns:
            What was measured.
        """
        return self.learner.update(phase.sample())


class _Aligned(Further):
    """ACA: k continues falling, as it does with every update."""

    def __init__(self, cfg: DictConfig, dims: tuple[int, int]) -> None:
        # The state that aligns a new critic is there for its shapes; all of it is read from the checkpoint.
        super().__init__(cfg, make_aca(cfg, dims, make_sac_ml(cfg, dims).loss.state_dict()))

    def update(self, phase: Phase, step: int) -> dict[str, Tensor]:
        return super().update(phase, step) | fade_alignment(self.cfg, self.learner)


class _Stabilized(Further):
    """SOPE and its relatives: one update a step, and after so many steps a phase in which the critics learn alone.

    New recordings are online rows, of which as many are drawn as of offline ones.
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


class _Pooled(Further):
    """A3RL: the density ratio learns on, and the pool is scored by it; its exponents stay as they were in the end.

    New recordings are online rows: the ratio learns to tell them, with those that the run collected, from the data set.
    """

    def __init__(self, cfg: DictConfig, dims: tuple[int, int]) -> None:
        super().__init__(cfg, make_a3rl(cfg, dims))

    def buffer(self, problem: Problem, num_offline: int) -> TensorDictReplayBuffer:
        online = problem.offline[num_offline:]
        cfg: DictConfig = OmegaConf.merge(self.cfg, {"online": {"total_frames": len(online)}})  # type: ignore[assignment]
        buffer = make_pool(cfg, Problem(problem.env, problem.offline[:num_offline], problem.convention), self.learner)
        buffer.extend(online)
        anneal_pool(self.cfg, buffer, self.cfg.online.total_frames)
        return buffer

    def update(self, phase: Phase, step: int) -> dict[str, Tensor]:
        before = self.cfg.density_update == "before"
        ratio = learn_density(self.cfg, phase) if before else {}
        batch = phase.sample()
        metrics = self.learner.update(batch)
        if not before:
            ratio = learn_density(self.cfg, phase)
        return metrics | ratio | pool_metrics(phase, batch, step)


class _Guided(Further):
    """SAMG: new recordings get the confidence that the run has fitted; guidance stays as faded as it was in the end."""

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


_MakeLearner = Callable[[DictConfig, tuple[int, int]], Learner]
#: Builds a method from configuration and dimensions.
MakeFurther = Callable[[DictConfig, tuple[int, int]], Further]


def _uniform(make: _MakeLearner) -> MakeFurther:
    return lambda cfg, dims: Further(cfg, make(cfg, dims))


def _make_samg_offline(cfg: DictConfig, dims: tuple[int, int]) -> Learner:
    """The base algorithm; IQL's schedule of learning rates is over."""
    return BASES[cfg.learner.label][0](cfg, dims)


_QC = dict.fromkeys(("fql", "fql_n", "qc_fql", "bfn", "bfn_n", "qc"), make_qc)
#: Learners that continue from rows alone, by what a configuration calls its algorithm, up to the first hyphen.
_OFFLINE: Mapping[str, _MakeLearner] = {
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
_ONLINE: Mapping[str, _MakeLearner] = {
    **{name: _OFFLINE[name] for name in ("awac", "iql", "td3_bc", *BEHAVIOR_REGULARIZED)},
    **dict.fromkeys(("rlpd", "sacfd", "redq", "sac"), make_rlpd),
    "rebrac": partial(make_rebrac, online=True),
    "spot": partial(make_spot, online=True),
    "pex": make_pex,
    **dict.fromkeys(("direct", "buffer", "scratch"), make_iql),
    **dict.fromkeys((*_QC, "rlpd_ac", "qc_rlpd"), partial(make_qc, online=True)),
}
#: Online, methods with something of their own around the update.
_ONLINE_OWN: Mapping[str, MakeFurther] = {
    **dict.fromkeys(("sope", "speq_o2o", "speq"), _Stabilized),
    "a3rl": _Pooled,
    "samg": _Guided,
}
#: Online, by ``learner``, where a script continues with another than it began with. WSRL's configuration has none.
_AFTER_CQL: Mapping[str, MakeFurther] = {
    "cql": _uniform(make_cql),
    "cal_ql": _uniform(make_cal_ql),
    "sac": _uniform(make_sac_after_cql),
    "None": _uniform(make_wsrl),
}
_BY_LEARNER: Mapping[str, Mapping[str, MakeFurther]] = {
    "cql": _AFTER_CQL,
    "cal_ql": _AFTER_CQL,
    "bc": {"bc": _uniform(make_bc), "sac": _uniform(make_sac_of_clone)},
    "aca": {"aca": _Aligned, "sac": _uniform(partial(make_sac_after_sac_ml, source={}))},
}
#: Why others do not.
_REASONS = {
    "off2on": "its rows have priorities that were set when they were collected",
    "awr": "one of its steps is an iteration over all rows in their order",
    "odt": "it learns from whole episodes that are labeled with their returns",
    **dict.fromkeys(("drqv2", "drqv2_bc", "rlpd_pixels"), "it learns from images, and recordings hold numbers"),
}


def find_method(folder: Path, config: Mapping[str, Any]) -> MakeFurther:
    """What builds the method of a run, from its configuration and dimensions.

    Args:
        folder: the run's.
        config: its configuration as recorded.

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
            f"{folder} has learned from a share of {config['best_episodes']} of its data (best_episodes), and "
            f"which of new recordings are the best is not said; clone all (best_episodes=1.0), or start a new run"
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
