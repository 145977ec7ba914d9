# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Train the encoder of SAMG's confidence as a separate run: exactly resumable, and shared by several runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase

from torchrl_o2o.checkpoint.reading import check_config, newest_valid, read_state
from torchrl_o2o.errors import O2OCheckpointError
from torchrl_o2o.objectives import ConditionalVAELoss, InverseDynamicsLoss, PerturbationRatioLoss
from torchrl_o2o.trainers.handover import starting_buffer
from torchrl_o2o.trainers.options import RunOptions
from torchrl_o2o.updates import Descend, Update

__all__ = ["read_encoder", "train_encoder"]

EncoderLoss = ConditionalVAELoss | InverseDynamicsLoss | PerturbationRatioLoss
_HELD_FIXED = 1024  # rows for the evaluation of the losses


@dataclass
class _Probe:
    """The losses on fixed rows, which are logged instead of returns."""

    loss: EncoderLoss
    rows: TensorDictBase

    @torch.no_grad()
    def metrics(self) -> dict[str, float]:
        return {f"evaluation/{name}": float(value) for name, value in self.loss(self.rows).items()}


def train_encoder(
    offline: TensorDictBase,
    loss: EncoderLoss,
    optim: torch.optim.Optimizer,
    options: RunOptions,
    *,
    num_steps: int,
    batch_size: int,
    anneal: bool = False,
) -> None:
    """Train a confidence's encoder on the data, in a run folder; steps count up to 0.

    With ``options.resume``, a complete run is read and not repeated.

    Args:
        offline: transitions [N].
        loss: the loss of the encoder, which is trained in place.
        optim: optimizer of its parameters.
        options: the run's options; ``evaluation`` is not used, the losses on 1024 rows are evaluated instead.

    Keyword Args:
        num_steps: updates.
        batch_size: rows drawn uniformly per update.
        anneal: whether the weight of a VAE's divergence rises, see
            :meth:`~torchrl_o2o.objectives.ConditionalVAELoss.set_progress`. Defaults to ``False``.

    Raises:
        NonFiniteError: if a loss becomes NaN or infinite; the batch is kept in the folder.
        SystemExit: if a signal asked to stop; the checkpoint is written.

    Examples:
        >>> import tempfile
        >>> from torchrl_o2o.modules import make_inverse_dynamics
        >>> from torchrl_o2o.testing import random_transitions
        >>> offline = random_transitions(64, 3, 2)
        >>> loss = InverseDynamicsLoss(make_inverse_dynamics(3, 2, hidden_sizes=(8,)))
        >>> optim = torch.optim.Adam(loss.parameters())
        >>> config, folder = {"num_steps": 4}, Path(tempfile.mkdtemp()) / "run"
        >>> train_encoder(offline, loss, optim, RunOptions(folder, config, seed=0), num_steps=4, batch_size=16)
        >>> copy = InverseDynamicsLoss(make_inverse_dynamics(3, 2, hidden_sizes=(8,)))
        >>> read_encoder(folder, copy, config, num_steps=4)
        >>> all(torch.equal(value, copy.state_dict()[name]) for name, value in loss.state_dict().items())
        True
    """
    rows = offline[torch.linspace(0, len(offline) - 1, min(_HELD_FIXED, len(offline))).long()]
    buffer = starting_buffer(offline, 1, batch_size=batch_size)
    probe = _Probe(loss, rows)
    session = options.open({"encoder": loss, "encoder_optim": optim}, None, lambda: probe, 0)
    update = Update(loss, Descend(str(loss.out_keys[0]).removeprefix("loss_"), optim))
    with session:
        for step in session.offline(num_steps):
            if anneal and isinstance(loss, ConditionalVAELoss):
                loss.set_progress((step - 1) / num_steps + 1.0)
            batch = buffer.sample()
            with session.record.dump_if_not_finite(batch):
                session.metrics = update(batch)


def read_encoder(folder: str | Path, loss: EncoderLoss, config: Mapping[str, Any], *, num_steps: int) -> None:
    """Fill a loss from a finished run of :func:`train_encoder`.

    Args:
        folder: the run's folder.
        loss: changed in place.
        config: the run's expected configuration; the seed may differ.

    Keyword Args:
        num_steps: expected number of its updates.

    Raises:
        O2OCheckpointError: if there is no such run, it is not finished, or has another configuration.

    Examples:
        >>> from torchrl_o2o.modules import make_inverse_dynamics
        >>> loss = InverseDynamicsLoss(make_inverse_dynamics(3, 2, hidden_sizes=(8,)))
        >>> read_encoder("nowhere", loss, {"seed": 0}, num_steps=4)  # train_encoder shows one that is there
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OCheckpointError: nowhere/checkpoints holds no encoder of 4 steps, expected a finished ...
    """
    root = Path(folder) / "checkpoints"
    manifest, _ = newest_valid(root)
    if manifest is None or manifest["step"] != num_steps or "encoder.pt" not in manifest["files"]:
        raise O2OCheckpointError(
            f"{root} holds no encoder of {num_steps} steps, expected a finished run of one; name its folder"
        )
    check_config({**manifest["config"], "seed": None}, {**config, "seed": None})
    loss.load_state_dict(read_state(root, manifest, "encoder"))
