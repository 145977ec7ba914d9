# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A whole update of an agent as a few compiled functions; the loss modules stay as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.objectives import SoftUpdate
from torchrl.objectives.common import LossModule

from torchrl_o2o.errors import O2OSpecError, check_option
from torchrl_o2o.updates.adam import check_optimizer
from torchrl_o2o.updates.program import Program
from torchrl_o2o.updates.replay import CudaGraphProgram
from torchrl_o2o.updates.state import target_pairs
from torchrl_o2o.updates.steps import Learning, Part

__all__ = ["CompiledUpdate", "Mode", "Runner", "build", "columns_of", "compile_update"]

Mode = Literal["default", "max-autotune-no-cudagraphs", "reduce-overhead"]
Runner = Program | CudaGraphProgram


def compile_update(
    loss: LossModule,
    optims: Mapping[str, torch.optim.Optimizer],
    target_updater: SoftUpdate | None = None,
    *,
    utd_ratio: int | None = None,
    joint: bool = False,
    rows: Sequence[str] = (),
    max_grad_norm: Mapping[str, float] | None = None,
    compile: bool = True,
    mode: Mode = "default",
    matmul_dtype: torch.dtype | None = None,
) -> CompiledUpdate:
    r"""Make one fast function of a whole update: losses, gradients, Adam and target averaging.

    ``optims`` names the losses in the order they are stepped; ``"qvalue"`` stands for ``loss.qvalue_loss`` and so on.
    What a loss returns beside its value is handed to later ones that ask for it by name (``log_prob`` to
    ``alpha_loss``, ``gap`` to ``alpha_prime_loss``). One call computes, for a batch of utd_ratio * B rows,

    - with ``utd_ratio``, RLPD's Algorithm 1: on each minibatch of B consecutive rows one step on the *first* loss and
      then the target average; afterwards, on the last minibatch, one step on each of the other losses;
    - without, the offline learners' update: one step on each loss with the whole batch, each with the parameters the
      last step left, then the target average;
    - with ``joint``, the same, but all losses are taken at the parameters before the first step (CQL, Cal-QL, CORL's
      IQL).

    Those are the numbers of the loop written out with the loss's methods and the same optimizers, up to rounding, with
    the same random numbers drawn from ``loss.noise`` in the same order. It is faster because each part is one graph
    in which everything between the matrix products is fused, and because products that depend on nothing a critic step
    changes (next actions of a frozen actor) are computed for all minibatches in one pass.

    The parameters, targets and the optimizers' states (``state_dict`` included) are updated in place, so checkpoints,
    actors, schedulers of the learning rate and collectors see every step; there is no state beside them. The *first*
    call compiles and says so in the log; what it compiled is kept on disk, in ``TORCHINDUCTOR_CACHE_DIR`` if that is
    set. Settings that are not tensors (betas, ``loss.calibrate``) are read then: after changing one, call
    :meth:`CompiledUpdate.recompile`.

    A step whose loss or gradient is not finite and all later ones of the call change nothing; ``finite`` in the result
    says so, on the device. Nothing waits for a device.

    Every second step of TD3+BC: one update of ``{"qvalue": critic}`` without a target updater and one of both losses
    with it, in turns; they share optimizers and loss.

    Args:
        loss: a loss module of this package, not compiled itself.
        optims: name of the loss -> :class:`torch.optim.Adam` or :class:`~torch.optim.AdamW` of what it trains.
        target_updater: moves the targets; ``None`` (default) leaves them.
        utd_ratio: minibatches per call, see above. Defaults to ``None``.
        joint: see above. Defaults to ``False``.
        rows: entries beside the first loss to return row by row, for example ``("td_error",)`` for priorities, shape
            [utd_ratio * B]. Defaults to none.
        max_grad_norm: by loss, clip the norm of its gradient over all its parameters, as
            ``torch.nn.utils.clip_grad_norm_`` does. Defaults to none.
        compile: ``False`` computes the same eagerly, to look inside.  Defaults to ``True``.
        mode: ``"max-autotune-no-cudagraphs"`` searches for faster kernels, for minutes; ``"reduce-overhead"`` records
            the whole update as one CUDA graph. Defaults to ``"default"``.
        matmul_dtype: ``torch.bfloat16`` multiplies wide float32 matrices (no dimension below 64: the hidden layers) in
            bfloat16, twice as fast where the hardware has it, at a relative error of some 1e-3 per product. ``None``
            (default) keeps float32. It has no effect with ``compile=False``.

    Returns:
        A function of a batch. It returns scalars, detached: ``loss_<name>``, the mean of everything the losses return
        beside their value, ``qvalue_std`` between critics, of the last minibatch; ``finite``; and the rows asked for.

    Raises:
        O2OSpecError: if an optimizer is not Adam or AdamW or holds something the loss has not, if the updater is not a
            :class:`~torchrl.objectives.SoftUpdate` of this loss, or an option is unknown.

    Examples:
        >>> import torch
        >>> from torchrl.objectives import SoftUpdate
        >>> from torchrl_o2o.updates import compile_update
        >>> from torchrl_o2o.modules import make_actor, make_qvalue_ensemble
        >>> from torchrl_o2o.objectives import EnsembleSACLoss
        >>> from torchrl_o2o.testing import random_transitions
        >>> critics = make_qvalue_ensemble(5, 2, num_qvalue_nets=3, hidden_sizes=(16,))
        >>> loss = EnsembleSACLoss(make_actor(5, 2, hidden_sizes=(16,)), critics, sub_sample_len=2)
        >>> optims = {
        ...     "qvalue": torch.optim.Adam(loss.qvalue_network_params.parameters()),
        ...     "actor": torch.optim.Adam(loss.actor_network_params.parameters()),
        ...     "alpha": torch.optim.Adam(loss.temperature.parameters()),
        ... }
        >>> update = compile_update(loss, optims, SoftUpdate(loss, tau=0.005), utd_ratio=4, compile=False)
        >>> metrics = update(random_transitions(4 * 8, 5, 2))
        >>> metrics["finite"], optims["qvalue"].state_dict()["state"][0]["step"]
        (tensor(True), tensor(4.))
    """
    check_option("mode", mode, ("default", "max-autotune-no-cudagraphs", "reduce-overhead"))
    if matmul_dtype not in (None, torch.bfloat16):
        raise O2OSpecError(f"got matmul_dtype={matmul_dtype}, expected torch.bfloat16, or None for float32")
    if not optims or (utd_ratio is not None and (utd_ratio < 1 or joint)):
        raise O2OSpecError(
            f"got {len(optims)} losses, {utd_ratio=}, {joint=}; expected a loss, and no joint steps at a ratio"
        )
    for name, optim in optims.items():
        check_optimizer(name, optim)
    compiled = [name for name in getattr(loss, "_cores", ()) if name in loss.__dict__]
    if compiled:
        raise O2OSpecError(f"{compiled} of {type(loss).__name__} are compiled already; leave loss.compile() out")
    bounds = dict(max_grad_norm or {})
    if unknown := sorted(set(bounds) - set(optims)):
        raise O2OSpecError(f"got max_grad_norm for {unknown}, expected losses among {list(optims)}")
    learning = Learning(loss, dict(optims), *_averaging(loss, target_updater), bounds)
    moves, names, kept = target_updater is not None, tuple(optims), tuple(rows)
    if utd_ratio is None:
        parts: tuple[Part, ...] = (Part(names, moves, joint, kept),)
    else:
        once = (Part(names[1:], False),) if names[1:] else ()
        parts = (Part(names[:1], moves, False, kept), *once)
    return CompiledUpdate(learning, parts, utd_ratio or 1, mode if compile else None, matmul_dtype)


def _averaging(loss: LossModule, updater: SoftUpdate | None) -> tuple[dict[str, str], float]:
    """Which targets follow what, and by which share."""
    if updater is None:
        return {}, 0.0
    if not isinstance(updater, SoftUpdate) or updater.loss_module is not loss:
        raise O2OSpecError(
            f"got {type(updater).__name__} as target_updater, expected a SoftUpdate of this very {type(loss).__name__}"
        )
    return target_pairs(loss), 1.0 - updater.eps


class CompiledUpdate:
    """What :func:`compile_update` returns: call it on batches.

    Args:
        learning: what is trained.
        parts: the part done on each minibatch, then perhaps one done once on the last minibatch.
        rounds: number of minibatches.
        mode: see :func:`compile_update`; ``None`` computes eagerly.
        matmul_dtype: see :func:`compile_update`.
    """

    def __init__(
        self,
        learning: Learning,
        parts: tuple[Part, ...],
        rounds: int,
        mode: Mode | None,
        matmul_dtype: torch.dtype | None = None,
    ) -> None:
        self.learning, self.parts, self.rounds = learning, parts, rounds
        self.mode: Mode | None = mode
        self.matmul_dtype = matmul_dtype
        self._programs: dict[Any, tuple[Program, Runner]] = {}

    def __call__(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Do one update.

        Args:
            batch: transitions, shape [utd_ratio * B]; not modified. A new shape compiles anew.

        Returns:
            See :func:`compile_update`.

        Raises:
            O2OSpecError: if the batch cannot be split into ``utd_ratio`` equal minibatches.
        """
        if batch.ndim != 1 or not len(batch) or len(batch) % self.rounds:
            raise O2OSpecError(f"got a batch of shape {list(batch.shape)}, expected [n], n a multiple of {self.rounds}")
        columns, signature = columns_of(batch)
        if signature not in self._programs:
            program = Program(self.learning, self.parts, self.rounds, columns)
            self._programs[signature] = build(program, columns, self.mode, self.matmul_dtype)
        program, runner = self._programs[signature]
        return runner.run(program.inputs(columns))

    def recompile(self) -> None:
        """Forget what was compiled, after a change of something that is not a tensor."""
        self._programs.clear()


def columns_of(batch: TensorDictBase) -> tuple[dict[str, Tensor], Any]:
    """A batch as its columns, and what a compiled function of them depends on.

    Args:
        batch: transitions.

    Returns:
        ``batch:<key>`` -> column, and the columns' names, shapes, types and devices.
    """
    columns = {f"batch:{_joined(key)}": value for key, value in batch.items(True, True) if isinstance(value, Tensor)}
    return columns, tuple((name, value.shape, value.dtype, value.device) for name, value in columns.items())


def build(
    program: Program, columns: dict[str, Tensor], mode: Mode | None, matmul_dtype: torch.dtype | None
) -> tuple[Program, Runner]:
    """Compile a program as asked.

    Args:
        program: not compiled yet.
        columns: an example batch.
        mode: see :func:`compile_update`; ``None`` leaves the program as it is.
        matmul_dtype: see :func:`compile_update`.

    Returns:
        The program, which makes the inputs, and what runs on them.

    Raises:
        O2OSpecError: if a CUDA graph is asked for on another device.
    """
    if mode is None:
        return program, program
    device = next(iter(columns.values())).device
    if mode == "reduce-overhead" and device.type != "cuda":
        raise O2OSpecError(f"mode='reduce-overhead' records a CUDA graph, but the batch is on {device}; leave mode out")
    search = {"max_autotune": True} if mode == "max-autotune-no-cudagraphs" else {}
    program.compile(columns, search, matmul_dtype)
    return program, CudaGraphProgram(program) if mode == "reduce-overhead" else program


def _joined(key: str | tuple[str, ...]) -> str:
    return key if isinstance(key, str) else "/".join(key)
