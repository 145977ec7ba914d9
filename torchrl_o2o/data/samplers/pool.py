# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A3RL's sampling: draw a pool, score it with the current networks, and replay rows by their score."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import Storage

from torchrl_o2o._moved import renamed_arguments
from torchrl_o2o.data.samplers.balanced import BalancedSampler
from torchrl_o2o.data.samplers.drawing import DrawingSampler
from torchrl_o2o.errors import O2OSpecError, check_count, check_state
from torchrl_o2o.functional.diagnostics import effective_sample_size, offline_share
from torchrl_o2o.functional.replay import (
    finite_scores,
    importance_log_weight,
    kl_to_uniform,
    resampling_log_prob,
)

__all__ = ["PoolSampler"]

_SPAN = 50.0  # rows e^50 times less likely than the most likely one are practically never drawn
_STATE = ("alpha", "beta", "num_clamped", "num_pools")


class PoolSampler(DrawingSampler):
    r"""Resample a freshly scored pool; ``priority_weight`` holds the importance weights.

    Each call draws a pool of N rows with a fixed offline fraction (:class:`BalancedSampler`), scores it with
    ``log_priority``, and draws the batch from the pool, with replacement, by

    .. math:: P_i = \frac{p_i^\alpha}{\sum_j p_j^\alpha}, \qquad u_i = (N P_i)^{-\beta}

    The batch has ``priority_weight``, the u of *its own* rows in the chosen normalization, by which this package's
    losses multiply their rows. A mean of weighted losses is the authors' weighted sum if the mean weight is 1. If
    ``alpha`` is 0, nothing is scored, the rows are those of :class:`BalancedSampler` with the same generator, and all
    weights are 1: RLPD exactly.

    A3RL is ``log_priority=AdvantageAligned(...)``; its ablations use other scores (:mod:`torchrl_o2o.priorities`), and
    its online-only variant is ``offline_fraction=0``.

    The draws are called ``"offline_rows"`` and ``"online_rows"``, as :class:`BalancedSampler` makes them for the pool,
    and ``"drawn"``, positions in the pool. :attr:`noise` replaces their source.

    ``log_priority`` is called on the pool's rows with two entries added: ``"index"`` and the bool ``"is_offline"``,
    both of shape [N]. It sees the rows as stored, before any transform of the replay buffer. Scoring uses the current
    networks. A replay buffer with ``prefetch`` raises an error, because it would score in a thread while the optimizer
    steps.

    Differences from the authors' code (``train_finetuning_a3rl.py`` at 0770a7d), which :meth:`as_published` reproduces
    except for the last:

    - the code gives the weight of pool row j to the j-th *drawn* row, which is another row (fixed in their newer
      script); ``misaligned_weights`` reproduces this;
    - the pool is as large as the batch of all minibatches (``pool_size=None`` here), while the paper's is k = 4
      minibatches; a pool of 1024 instead of 5120 rows makes scoring cheap;
    - the code scales weights to mean 1 over the *pool* instead of the drawn rows, whose weights are smaller on average
      (their newer script uses the drawn rows);
    - the code updates the density ratio after sampling, the paper before. The training loop decides this.

    Source: A3RL Eqs. 3-4 and Algorithm 1.

    Args:
        log_priority: a function from rows, shape [N], to log-priorities, shape [N]; see :mod:`torchrl_o2o.priorities`.
        num_offline: number of offline rows at the storage's start.

    Keyword Args:
        pool_size: N; ``None`` takes the batch size. Defaults to 1024, the paper's 4 x 256.
        alpha: exponent of the priorities. Defaults to 0.3. It may be changed at any time, and so may ``beta``.
        beta: exponent of the importance weights; 1 is a complete correction. Defaults to 0.4; anneal it to 1 with
            :func:`~torchrl_o2o.functional.annealed_beta`.
        offline_fraction: share of offline rows in the pool. Defaults to 0.5.
        normalize: ``"batch"`` (default) divides the drawn rows' weights by their mean, ``"pool"`` by the mean over the
            pool (the authors), ``"max"`` by the maximum over the pool (PER), ``"none"`` keeps u, which is unbiased at
            beta = 1.
        minibatch_size: number of rows over which ``"batch"`` normalizes; ``None`` (default) takes the whole batch.
        misaligned_weights: whether the authors' first script is reproduced. Defaults to ``False``.

    Raises:
        O2OSpecError: if an argument is out of range, the scores have another shape or dtype, or the buffer prefetches.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
        >>> storage = LazyTensorStorage(1000)
        >>> storage.set(torch.arange(60), TensorDict({"x": torch.arange(60.0)}, [60]))  # 40 offline, 20 online
        >>> sampler = PoolSampler(lambda rows: 0.1 * rows["x"], 40, pool_size=1000, alpha=1.0)
        >>> buffer = TensorDictReplayBuffer(storage=storage, sampler=sampler, batch_size=256)
        >>> batch = buffer.sample()
        >>> batch["x"].mean() > 40, batch["priority_weight"].mean()
        (tensor(True), tensor(1...))
        >>> bool(sampler.metrics()["offline_share"] < 0.5)
        True
    """

    @renamed_arguments(normalise="normalize")
    def __init__(
        self,
        log_priority: Callable[[TensorDictBase], Tensor],
        num_offline: int,
        *,
        pool_size: int | None = 1024,
        alpha: float = 0.3,
        beta: float = 0.4,
        offline_fraction: float = 0.5,
        normalize: Literal["batch", "pool", "max", "none"] = "batch",
        minibatch_size: int | None = None,
        misaligned_weights: bool = False,
    ) -> None:
        if normalize not in ("batch", "pool", "max", "none"):
            raise O2OSpecError(f"got normalize={normalize!r}, expected 'batch', 'pool', 'max' or 'none'")
        if misaligned_weights and pool_size is not None:
            raise O2OSpecError(
                "got misaligned_weights=True with a pool_size, expected pool_size=None, because the j-th drawn row is "
                "paired with pool row j; leave pool_size out"
            )
        self.log_priority = log_priority
        self.uniform = BalancedSampler(num_offline, offline_fraction)
        self.pool_size = None if pool_size is None else check_count("pool_size", pool_size, least=1)
        self.alpha, self.beta = alpha, beta
        self.normalize: Literal["batch", "pool", "max", "none"] = normalize
        self.minibatch_size = None if minibatch_size is None else check_count("minibatch_size", minibatch_size, least=1)
        self.misaligned_weights = misaligned_weights
        self.num_clamped = self.num_pools = 0
        self._last: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    @classmethod
    def as_published(
        cls,
        log_priority: Callable[[TensorDictBase], Tensor],
        num_offline: int,
        *,
        misaligned_weights: bool = False,
    ) -> PoolSampler:
        """The sampling of the authors' code: a pool of the batch's size.

        With ``AdvantageAligned(Advantage(loss, num_samples=100, shared_noise=False, antithetic=False),
        DensityRatioScore(ratio, normalize=False))`` on a ReLU density ratio, the rows' probabilities and weights equal
        theirs (``tests/data/samplers/test_golden_a3rl.py``). Their losses also use the weights for actor and
        temperature: ``EnsembleSACLoss(..., weight_actor=True, ensemble_reduction="mean")``.

        Args:
            log_priority: as in the constructor.
            num_offline: as in the constructor.
            misaligned_weights: ``True`` is ``train_finetuning_a3rl.py``: weights have mean 1 over the pool, and the
                j-th drawn row has the weight of pool row j. ``False`` (default) is the later
                ``train_finetuning_all.py``: drawn rows have their own weights, with mean 1 over the drawn rows.

        Returns:
            A sampler with alpha 0.3 and beta 0.4; anneal ``beta`` to 1 over the run.
        """
        over: Literal["pool", "batch"] = "pool" if misaligned_weights else "batch"
        return cls(log_priority, num_offline, pool_size=None, normalize=over, misaligned_weights=misaligned_weights)

    @property
    def alpha(self) -> float:
        """The exponent of the priorities, 0 or more; 0 is uniform. Assigning another number raises an O2OSpecError."""
        return self._alpha

    @alpha.setter
    def alpha(self, value: float) -> None:
        if not 0.0 <= value < math.inf:
            raise O2OSpecError(f"got alpha={value}, expected 0 or more; 0 is uniform sampling, A3RL uses 0.3")
        self._alpha = float(value)

    @property
    def beta(self) -> float:
        """The exponent of the importance weights in [0, 1]; 1 is a complete correction.

        Assigning another number raises an O2OSpecError.
        """
        return self._beta

    @beta.setter
    def beta(self, value: float) -> None:
        if not 0.0 <= value <= 1.0:
            raise O2OSpecError(f"got beta={value}, expected a number in [0, 1]")
        self._beta = float(value)

    def sample(self, storage: Storage, batch_size: int) -> tuple[Tensor, dict[str, Any]]:
        """Draw row indices, shape [batch_size], and their weights.

        Args:
            storage: one storage with the offline rows first.
            batch_size: number of rows.

        Returns:
            The indices, and ``priority_weight`` of shape [batch_size].

        Raises:
            O2OSpecError: see the class.
        """
        self._refuse_prefetch(storage)
        batch_size = check_count("batch_size", batch_size, least=1)
        self.uniform._rng, self.uniform.noise = self._rng, self.noise
        if self._alpha == 0.0:
            index, _ = self.uniform.sample(storage, batch_size)
            self._last = None
            return index, {"priority_weight": torch.ones(batch_size)}
        pool, _ = self.uniform.sample(storage, batch_size if self.pool_size is None else self.pool_size)
        log_prob = self._log_prob(storage, pool)
        drawn = self._source().choices("drawn", log_prob.exp(), batch_size)
        weight = self._weight(log_prob, drawn)
        self.num_pools += 1
        self._last = (log_prob, pool, drawn, weight)
        return pool[drawn], {"priority_weight": weight.to(torch.get_default_dtype())}

    def check_capacity(self, storage: Storage, batch_size: int) -> None:
        """Raise if the online region can never hold the online rows of one pool.

        Args:
            storage: the storage to be sampled from.
            batch_size: rows of a whole batch.

        Raises:
            O2OSpecError: if the online slots are fewer than the online rows of a pool.
        """
        self.uniform.check_capacity(storage, batch_size if self.pool_size is None else self.pool_size)

    def _log_prob(self, storage: Storage, pool: Tensor) -> Tensor:
        """log P over the pool, in float64 on the CPU, shape [N]."""
        device = getattr(storage, "device", None)
        # Copy the indices once, not once for every entry of a row.
        rows = storage[pool if device in (None, "auto") else pool.to(device)]
        if not isinstance(rows, TensorDictBase):
            raise O2OSpecError(
                f"got a {type(storage).__name__}, expected a tensor storage, whose rows are scored at once; use "
                "offline_online_storage or LazyTensorStorage"
            )
        rows = rows.copy()
        rows.set("index", pool)
        rows.set("is_offline", pool < self.uniform.num_offline)
        score = self.log_priority(rows)
        if not isinstance(score, Tensor):
            raise O2OSpecError(
                f"log_priority returned a {type(score).__name__} for {len(pool)} rows, expected a tensor of shape "
                f"{tuple(pool.shape)}"
            )
        if score.shape != pool.shape:
            raise O2OSpecError(
                f"log_priority returned shape {tuple(score.shape)} for {len(pool)} rows, expected {tuple(pool.shape)}; "
                "squeeze the last dimension"
            )
        score, changed = finite_scores(score.detach())
        score, changed = score.to(device="cpu", dtype=torch.float64), changed.cpu()
        span = _SPAN / self._alpha
        bounded = (score - score.max()).clamp_min(-span)
        self.num_clamped += int((changed | (bounded == -span)).sum())
        return resampling_log_prob(bounded, self._alpha)

    def _weight(self, log_prob: Tensor, drawn: Tensor) -> Tensor:
        """Importance weights of the drawn rows, shape [batch_size]."""
        weight = importance_log_weight(log_prob, self._beta).exp()
        if self.normalize == "pool":
            weight = weight / weight.mean()
        elif self.normalize == "max":
            weight = weight / weight.max()
        weight = weight if self.misaligned_weights else weight[drawn]
        if self.normalize != "batch":
            return weight
        parts = weight.split(self.minibatch_size or len(weight))
        return torch.cat([part / part.mean() for part in parts])

    def _refuse_prefetch(self, storage: Storage) -> None:
        for buffer in storage._attached_entities_iter():
            sampler = getattr(buffer, "_sampler", None)
            if getattr(buffer, "_prefetch", False) and self in (sampler, getattr(sampler, "sampler", None)):
                raise O2OSpecError(
                    "got a replay buffer with prefetch, expected none, because PoolSampler would score in a thread "
                    "while the optimizer steps; build the buffer without prefetch"
                )

    def metrics(self) -> dict[str, Tensor]:
        """Metrics of the last draw, as scalars to log. They are computed by this call, not while sampling.

        Returns:
            ``offline_share`` of the drawn rows, ``effective_sample_size`` of the pool under P (a fraction) and
            ``weight_effective_sample_size`` of the drawn weights, ``kl_to_uniform`` in nats, ``np_q05``, ``np_q50``,
            ``np_q95`` and ``np_max`` of :math:`N P`, ``unique_share`` (different rows among the drawn),
            ``pool_clamped`` (fraction of all pool rows so far), ``beta``, and the metrics of ``log_priority`` if it
            has any. Empty before the first draw and while alpha is 0.
        """
        if self._last is None:
            return {}
        log_prob, pool, drawn, weight = self._last
        prob = log_prob.exp()
        low, middle, high = (prob * len(prob)).quantile(torch.tensor([0.05, 0.5, 0.95], dtype=prob.dtype))
        metrics = {
            "offline_share": offline_share(pool[drawn], self.uniform.num_offline),
            "effective_sample_size": effective_sample_size(prob),
            "weight_effective_sample_size": effective_sample_size(weight),
            "kl_to_uniform": kl_to_uniform(log_prob),
            "np_q05": low,
            "np_q50": middle,
            "np_q95": high,
            "np_max": prob.max() * len(prob),
            "unique_share": torch.tensor(len(pool[drawn].unique()) / len(drawn)),
            "pool_clamped": torch.tensor(self.num_clamped / (self.num_pools * len(pool))),
            "beta": torch.tensor(self._beta),
        }
        of_priority = getattr(self.log_priority, "metrics", None)
        return metrics | (of_priority() if of_priority is not None else {})

    def state_dict(self) -> dict[str, Any]:
        """Exponents and counters; the random state belongs to the replay buffer's generator."""
        return {name: getattr(self, name) for name in _STATE} | {"uniform": self.uniform.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            O2OSpecError: as :meth:`BalancedSampler.load_state_dict`.
        """
        check_state(self, state_dict, {**PoolSampler.state_dict(self), "uniform": None})
        self.uniform.load_state_dict(state_dict["uniform"])
        for name in _STATE:
            setattr(self, name, state_dict[name])

    def _empty(self) -> None:
        self.num_clamped = self.num_pools = 0
        self._last = None
        self.uniform._empty()

    def dumps(self, path: str | Path) -> None:
        """Write :meth:`state_dict` as JSON into a folder."""
        folder = Path(path)
        folder.mkdir(exist_ok=True)
        (folder / "pool_sampler.json").write_text(json.dumps(self.state_dict()))

    def loads(self, path: str | Path) -> None:
        """Read what :meth:`dumps` wrote."""
        self.load_state_dict(json.loads((Path(path) / "pool_sampler.json").read_text()))

    def __repr__(self) -> str:
        return (
            f"PoolSampler(pool_size={self.pool_size}, alpha={self._alpha}, beta={self._beta}, uniform={self.uniform})"
        )
