# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""One value in place of a list: it is refused by name, and a text is not read as a list of its letters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torchrl.data import ReplayBuffer

from torchrl_o2o.data import insert_intervened, pixel_data, stack_rows
from torchrl_o2o.data.buffers import offline_buffer, starting_buffer
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import make_actor, make_gaussian_actor
from torchrl_o2o.objectives import BCLoss
from torchrl_o2o.record import Curve, Panel, draw_panels, group_runs, write_report
from torchrl_o2o.testing import random_transitions
from torchrl_o2o.trainers import align, carry_over, continue_run, stack_agents
from torchrl_o2o.updates import Descend, Update

DATA = random_transitions(6, 3, 2).set("episode", torch.zeros(6, dtype=torch.long))


def make_loss() -> BCLoss:
    return BCLoss(make_gaussian_actor(3, 2, hidden_sizes=(8,)))


def make_update() -> Update:
    loss = make_loss()
    return Update(loss, Descend("actor", torch.optim.Adam(loss.parameters())))


CALLS: dict[str, tuple[Callable[[], Any], str]] = {
    "updates": (lambda: Update.stack(make_update()), r"got Update to stack, expected a list"),  # type: ignore[arg-type]
    "rows": (lambda: Update(make_loss(), *make_update().steps, rows="td_error"), "got rows='td_error'"),
    "agents": (lambda: stack_agents(make_loss()), r"got sources=.*expected a list"),  # type: ignore[arg-type]
    "networks": (lambda: carry_over(make_loss(), make_loss(), "actor_network"), "got names='actor_network'"),
    "residuals": (lambda: align(make_loss(), make_actor(3, 2), torch.nn.Linear(1, 1)), "expected a list of them"),  # type: ignore[arg-type]
    "starting keys": (lambda: starting_buffer(DATA, 5, keys="observation"), "got keys='observation'"),
    "offline keys": (lambda: offline_buffer(DATA, keys="observation"), "got keys='observation'"),
    "intervened keys": (lambda: insert_intervened(ReplayBuffer(), DATA, keys="action"), "got keys='action'"),
    "stacked images": (lambda: stack_rows(DATA, image_keys="observation"), "got image_keys='observation'"),
    "images": (lambda: pixel_data(DATA, image_keys="observation"), "got image_keys='observation'"),
    "runs to continue": (lambda: continue_run("run", data="new.npz"), "got data='new.npz'"),  # type: ignore[call-arg]
    "ignored": (lambda: group_runs([], ignore="seed"), "got ignore='seed'"),
    "ignored in a report": (lambda: write_report([], Path("out"), ignore="seed"), "got ignore='seed'"),
    "panels": (lambda: draw_panels(Panel("a", "b", list[Curve]()), "a.png"), "expected a list"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", CALLS)
def test_one_value_in_place_of_a_list_is_refused_by_name(name: str) -> None:
    call, message = CALLS[name]
    with pytest.raises(O2OSpecError, match=message):
        call()
