# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import copy
import io
import logging
import os
import pickle
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor
from torchrl.objectives import HardUpdate, SACLoss, SoftUpdate

from tests.kernels import without_kernels
from tests.updates.agents import JOINT, LOSSES, REPEATED, UTD, Agent, loop, make_agent, make_batch
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import make_actor, make_deterministic_actor, make_gaussian_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import BCLoss, EnsembleSACLoss, SAMGEstimator, TD3BCLoss
from torchrl_o2o.testing import random_transitions
from torchrl_o2o.trainers.optim import descend, weight_decay_groups
from torchrl_o2o.updates import Copy, Descend, Every, Ghost, Joint, MoveTargets, Repeat, Update, Whole, compile_update
from torchrl_o2o.updates.graph import capture
from torchrl_o2o.updates.program import columns_of
from torchrl_o2o.updates.steps import WHOLE, plan


def make_update(kind: str, agent: Agent, **options: Any) -> Update:
    ratio = UTD if kind in REPEATED else None
    return compile_update(agent.loss, agent.optims, agent.updater, utd_ratio=ratio, joint=kind in JOINT, **options)


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            actual[name], value, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def run_loop(kind: str, updates: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    agent, batch = make_agent(kind, dtype), make_batch(dtype)
    torch.manual_seed(1)
    for _ in range(updates):
        loop(kind, agent, batch)
    return agent.tensors()


def run_update(kind: str, updates: int, dtype: torch.dtype = torch.float64, **options: Any) -> dict[str, Tensor]:
    agent, batch = make_agent(kind, dtype), make_batch(dtype)
    update = make_update(kind, agent, **options)
    torch.manual_seed(1)
    for _ in range(updates):
        metrics = update(batch)
        assert metrics["finite"]
    return agent.tensors()


@pytest.mark.parametrize("kind", LOSSES)
def test_equals_the_written_out_loop_over_ten_updates(kind: str, captured: list[Any]) -> None:
    """Parameters, targets and optimizer states, in float64, from one seed: eagerly and as graphs."""
    expected = run_loop(kind, 10)
    assert_close(run_update(kind, 10, compile=False), expected, 1e-9)
    assert_close(run_update(kind, 10), expected, 1e-9)
    assert len(captured) == (3 if kind in REPEATED else 1)


@pytest.mark.slow
@pytest.mark.compiler
def test_kernels_equal_the_loop_over_ten_updates() -> None:
    """The generated code itself, for RLPD, in both precisions."""
    assert_close(run_update("rlpd", 10), run_loop("rlpd", 10), 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.compiler
def test_kernels_of_all_losses(kind: str) -> None:
    assert_close(run_update(kind, 10), run_loop(kind, 10), 1e-9)
    assert_close(run_update(kind, 10, torch.float32), run_loop(kind, 10, torch.float32), 1e-4)


def test_next_actions_are_drawn_in_one_pass_and_only_sampled_targets_evaluated(captured: list[Any]) -> None:
    run_update("rlpd", 1)
    before, critic_step, rest = captured
    rows = [node.meta["val"].shape[0] for node in before.graph.nodes if "mm" in str(node.target)]
    assert rows
    assert set(rows) == {UTD * 8}  # the actor's layers, on all minibatches at once
    products = [node.meta["val"].shape[0] for node in critic_step.graph.nodes if "bmm" in str(node.target)]
    assert sorted(set(products)) == [2, 4]  # two of four targets
    assert products.count(2) == 3
    assert not [node for node in critic_step.graph.nodes if node.target is torch.ops.aten.addmm.default]
    assert len(rest.graph.nodes)


def test_noise_comes_from_the_loss_and_in_the_loop_s_order(captured: list[Any]) -> None:
    loops, updates = make_agent("rlpd"), make_agent("rlpd")
    batch, update = make_batch(), make_update("rlpd", updates)
    torch.manual_seed(3)
    loop("rlpd", loops, batch)
    state = torch.get_rng_state()
    torch.manual_seed(3)
    update(batch)
    assert torch.equal(torch.get_rng_state(), state)  # the first call's capturing draws nothing


@pytest.mark.filterwarnings("error:Detected call of `lr_scheduler.step")
def test_weight_decay_groups_and_a_changing_learning_rate(captured: list[Any]) -> None:
    agents = [make_agent("rlpd"), make_agent("rlpd")]
    schedulers = []
    for agent in agents:
        groups = weight_decay_groups(agent.loss.qvalue_network_params, 0.1)
        agent.optims["qvalue"] = torch.optim.AdamW(groups, lr=1e-2)
        agent.optims["actor"] = torch.optim.Adam(
            agent.loss.actor_network_params.parameters(), lr=1e-2, weight_decay=0.1
        )
        schedulers.append(torch.optim.lr_scheduler.ExponentialLR(agent.optims["qvalue"], 0.5))
    batch, update = make_batch(), make_update("rlpd", agents[1])
    for step in (lambda: loop("rlpd", agents[0], batch), lambda: update(batch)):
        torch.manual_seed(1)
        for _ in range(4):
            step()
            schedulers[0].step()
        schedulers.reverse()
    assert_close(agents[1].tensors(), agents[0].tensors(), 1e-9)


def test_resume_is_exact(captured: list[Any]) -> None:
    """Loss and optimizers are all there is: saved and loaded into new objects, the run continues bit for bit."""
    agent, batch = make_agent("rlpd"), make_batch()
    update = make_update("rlpd", agent)
    torch.manual_seed(1)
    update(batch)
    saved = io.BytesIO()
    states = {name: optim.state_dict() for name, optim in agent.optims.items()}
    torch.save({"loss": agent.loss.state_dict(), "optims": states, "rng": torch.get_rng_state()}, saved)
    update(batch)
    other = make_agent("rlpd", seed=5)
    resumed = make_update("rlpd", other)
    resumed(batch)  # it may have run before it is loaded
    saved.seek(0)
    state = torch.load(saved)
    other.loss.load_state_dict(state["loss"])
    for name, optim in other.optims.items():
        optim.load_state_dict(state["optims"][name])
    torch.set_rng_state(state["rng"])
    resumed(batch)
    for name, value in agent.tensors().items():
        assert torch.equal(other.tensors()[name], value), name


def test_the_actor_and_plain_loops_see_the_same_parameters(captured: list[Any]) -> None:
    agent, batch = make_agent("rlpd"), make_batch()
    before = agent.loss.actor_network_params.data.clone()
    pointers = [value.data_ptr() for value in agent.loss.parameters()]
    make_update("rlpd", agent)(batch)
    assert [value.data_ptr() for value in agent.loss.parameters()] == pointers
    assert not (agent.loss.actor_network_params.data == before).all()
    assert all(value.requires_grad for value in agent.loss.parameters())
    loop("rlpd", agent, batch)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_step_that_is_not_finite_and_all_later_ones_change_nothing(compiled: bool, captured: list[Any]) -> None:
    agent, expected, batch = make_agent("rlpd"), make_agent("rlpd"), make_batch()
    torch.manual_seed(1)
    expected.descend("qvalue", expected.loss.qvalue_loss(batch[:8])[0])
    expected.updater.step()
    broken = batch.clone()
    broken["next", "reward"][8] = float("nan")
    torch.manual_seed(1)
    metrics = make_update("rlpd", agent, compile=compiled)(broken)
    assert not metrics["finite"]
    assert agent.optims["qvalue"].state_dict()["state"][0]["step"] == 1
    assert_close(
        {name: value for name, value in agent.tensors().items() if not name.startswith(("actor", "alpha"))},
        {name: value for name, value in expected.tensors().items() if not name.startswith(("actor", "alpha"))},
        1e-9,
    )


def test_metrics_and_rows(captured: list[Any]) -> None:
    agent, batch = make_agent("rlpd"), make_batch()
    copied = copy.deepcopy(batch)
    with torch.no_grad():
        torch.manual_seed(1)
        _, first = agent.loss.qvalue_loss(batch[:8])
    torch.manual_seed(1)
    metrics = make_update("rlpd", agent, rows=("td_error",))(batch)
    torch.testing.assert_close(metrics["td_error"][:8], first["td_error"])
    assert metrics["td_error"].shape == (UTD * 8,)
    names = {"loss_qvalue", "loss_actor", "loss_alpha", "alpha", "entropy", "qvalue", "qvalue_std", "target_value"}
    assert names <= metrics.keys()
    assert all(metrics[name].ndim == 0 and not metrics[name].requires_grad for name in names)
    assert (batch == copied).all()


def test_settings_are_read_anew_after_recompile(captured: list[Any]) -> None:
    agent, batch = make_agent("cal_ql"), make_batch()
    update = make_update("cal_ql", agent)
    assert update(batch)["bound_rate"] > 0
    agent.loss.calibrate = False
    update.recompile()
    assert update(batch)["bound_rate"] == 0


def set_decay(agent: Any) -> None:
    agent.optims["qvalue"].param_groups[0]["weight_decay"] = 0.1


def split_group(agent: Any) -> None:
    optim = agent.optims["qvalue"]
    first, *rest = optim.param_groups[0]["params"]
    optim.param_groups[0]["params"] = [first]
    optim.add_param_group({"params": rest, "lr": 1e-4})


def set_discount(agent: Any) -> None:
    agent.loss.make_value_estimator(gamma=0.5)


def set_calibrate(agent: Any) -> None:
    agent.loss.calibrate = False


def set_tau(agent: Any) -> None:
    agent.updater.eps = 0.5


def load_discount(agent: Any) -> None:
    """This replaces the tensor, which the graphs read."""
    agent.loss.value_estimator.load_state_dict({"gamma": torch.tensor(0.5, dtype=torch.float64)}, assign=True)


def set_reduction(agent: Any) -> None:
    agent.loss.reduction = "sum"


def set_key(agent: Any) -> None:
    agent.loss.set_keys(priority_weight="p_off")


def set_bounds(agent: Any) -> None:
    agent.loss.penalty.gap_bounds = (-0.01, 0.01)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (set_decay, "weight_decay of the optimizer of 'qvalue' changed from 0 to 0.1"),
        (split_group, "the number of groups of the optimizer of 'qvalue' changed from 1 to 2"),
        (set_discount, "CalQLLoss._value_estimator changed since"),
        (set_calibrate, "CalQLLoss.calibrate changed from True to False"),
        (set_tau, "eps of the SoftUpdate of all targets changed from"),
        (load_discount, "a tensor of CalQLLoss._value_estimator changed since"),
        (set_reduction, "CalQLLoss.reduction changed from mean to sum"),
        (set_key, "the key 'priority_weight' of CalQLLoss changed from priority_weight to p_off"),
        (set_bounds, "CalQLLoss.penalty.gap_bounds changed from (-inf, inf) to (-0.01, 0.01)"),
    ],
    ids=[
        "weight_decay",
        "groups",
        "discount",
        "calibrate",
        "tau",
        "loaded discount",
        "reduction",
        "key",
        "bounds",
    ],
)
def test_a_changed_setting_that_is_built_in_is_refused(captured: list[Any], change: Any, name: str) -> None:
    """The graphs would go on with what it was, and the eager update with what it is."""
    twins = [make_agent("cal_ql") for _ in range(2)]
    compiled, eager = (make_update("cal_ql", agent, compile=fast) for agent, fast in zip(twins, (True, False)))
    batch = make_batch()
    for update, agent in zip((compiled, eager), twins):
        torch.manual_seed(1)
        update(batch)
        change(agent)
    with pytest.raises(O2OSpecError, match=rf"^{re.escape(name)}.*call update.recompile\(\)"):
        compiled(batch)
    compiled.recompile()
    for update in (compiled, eager):
        torch.manual_seed(2)
        update(batch)
    assert_close(twins[0].tensors(), twins[1].tensors(), 1e-6)


def test_guidance_that_begins_again_is_refused_and_its_end_is_followed(captured: list[Any]) -> None:
    """Graphs without SAMG's guidance hold no frozen critic; graphs with it take its weight from a tensor."""
    twins, batch = [make_agent("samg") for _ in range(2)], make_batch()
    for agent in twins:
        agent.loss.make_value_estimator(SAMGEstimator.from_loss(agent.loss, guidance="linear", cutoff=10))
    compiled, eager = (make_update("samg", agent, compile=fast) for agent, fast in zip(twins, (True, False)))
    for step in (0, 5, 20):
        for update, agent in zip((compiled, eager), twins):
            agent.loss.value_estimator.set_step(step)
            torch.manual_seed(step)
            update(batch)
        assert_close(twins[0].tensors(), twins[1].tensors(), 1e-6)
    compiled.recompile()
    compiled(batch)  # without guidance
    twins[0].loss.value_estimator.set_step(5)
    with pytest.raises(O2OSpecError, match=r"whether IQLLoss\._value_estimator guides changed from False to True"):
        compiled(batch)


class Normalized(torch.nn.Module):
    """A critic with batch normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(5 + 2, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return self.net(torch.cat([observation, action], -1))


def test_batch_normalization_is_refused_and_keeps_its_statistics(captured: list[Any]) -> None:
    """The graphs lost the running statistics of each call, and the search for draws moved them."""
    keys: dict[str, Any] = {"in_keys": ["observation", "action"], "out_keys": ["state_action_value"]}
    critics = [TensorDictModule(Normalized(), **keys) for _ in range(2)]
    loss = EnsembleSACLoss(make_actor(5, 2, hidden_sizes=(4,)), critics)
    optim = torch.optim.Adam(loss.qvalue_network_params.parameters())
    update = Update(loss, Descend("qvalue", optim), MoveTargets(SoftUpdate(loss, tau=0.1))).compile()
    batch, before = make_batch(torch.float32), {name: value.clone() for name, value in loss.state_dict().items()}
    with pytest.raises(O2OSpecError, match=r"write into 'qvalue_network_params.*put batch normalization into"):
        update(batch)
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())
    loss.qvalue_network.eval()
    assert update(batch)["finite"]


def test_a_pickled_compiled_update_compiles_anew(captured: list[Any]) -> None:
    """Its graphs were pickled with it, bound to tensors of their own."""
    agent, batch = make_agent("cal_ql"), make_batch()
    update = make_update("cal_ql", agent)
    update(batch)
    twin = pickle.loads(pickle.dumps(update))
    assert twin.compiled
    for each in (update, twin):
        torch.manual_seed(1)
        each(batch)
    assert_close(twin.loss.state_dict(), update.loss.state_dict(), 1e-12)


def test_an_empty_group_of_parameters(captured: list[Any]) -> None:
    """A network without biases leaves that of weight_decay_groups empty; compiled, that was an IndexError."""
    results = []
    for compiled in (False, True):
        agent, batch = make_agent("cal_ql"), make_batch()
        agent.optims["qvalue"].param_groups.append({**agent.optims["qvalue"].param_groups[0], "params": []})
        update = make_update("cal_ql", agent, compile=compiled)
        torch.manual_seed(1)
        update(batch)
        results.append(agent.tensors())
    assert_close(*results, 1e-9)


def test_a_batch_of_another_size_compiles_anew(captured: list[Any]) -> None:
    agent = make_agent("awac")
    update = make_update("awac", agent)
    update(make_batch())
    update(make_batch())
    assert len(captured) == 1
    update(make_batch(rows=6))
    assert len(captured) == 2


def spread(batch: TensorDict) -> TensorDict:
    """The same transitions, whose actions lie column by column in memory."""
    return batch.clone().set("action", batch["action"].T.contiguous().T)


def test_columns_are_handed_to_kernels_row_by_row() -> None:
    """Kernels are made for one layout, whatever views a batch consists of."""
    batch = spread(random_transitions(6, 3, 2))
    columns, _ = columns_of(batch)
    assert not batch["action"].is_contiguous()
    assert columns["batch:action"].is_contiguous()
    torch.testing.assert_close(columns["batch:action"], batch["action"])


@pytest.mark.slow
@pytest.mark.compiler
def test_a_batch_of_another_layout_gives_the_same_numbers() -> None:
    results = []
    for lay_out in (TensorDict.clone, spread):
        agent, batch = make_agent("awac"), make_batch()
        update = make_update("awac", agent)
        torch.manual_seed(1)
        update(batch)
        update(lay_out(batch))
        results.append(agent.tensors())
    assert_close(results[1], results[0], 1e-12)


def test_the_first_call_says_what_it_does(captured: list[Any], caplog: pytest.LogCaptureFixture) -> None:
    agent = make_agent("awac")
    with caplog.at_level(logging.INFO, "torchrl_o2o"):
        make_update("awac", agent)(make_batch())
    assert [record.message.split(" of ")[0] for record in caplog.records] == [
        "compiling the update",
        "compiled the update",
    ]


def test_a_gradient_of_another_layout_is_stepped_rightly() -> None:
    """A fused optimizer reads parameters and gradients element by element as they lie in memory."""
    torch.manual_seed(0)
    loss = BCLoss(make_gaussian_actor(3, 2, hidden_sizes=(8,)))
    params = [value for value in loss.parameters() if value.requires_grad]
    before = [value.detach().clone() for value in params]
    gradients = [torch.randn(value.shape[::-1]).T if value.ndim == 2 else torch.randn(value.shape) for value in params]
    assert any(not gradient.is_contiguous() for gradient in gradients)

    def actor_loss(_: TensorDict) -> Tensor:
        return sum((value * gradient).sum() for value, gradient in zip(params, gradients, strict=True))  # type: ignore[return-value]

    loss.__dict__["actor_loss"] = actor_loss
    Update(loss, Descend("actor", torch.optim.SGD(params, lr=0.1, fused=True)))(make_batch(torch.float32))
    for value, was, gradient in zip(params, before, gradients, strict=True):
        torch.testing.assert_close(value, was - 0.1 * gradient)


def refused(agent: Agent, message: str, **changes: Any) -> None:
    arguments = {"loss": agent.loss, "optims": agent.optims, "target_updater": agent.updater} | changes
    with without_kernels(), pytest.raises(O2OSpecError, match=message):
        compile_update(**arguments)(make_batch())


def test_refusals() -> None:
    agent, other = make_agent("rlpd"), make_agent("rlpd")
    sgd = torch.optim.SGD(agent.loss.parameters(), lr=0.1)
    amsgrad = torch.optim.Adam(agent.loss.parameters(), amsgrad=True)
    refused(agent, "expected torch.optim.Adam", optims={"qvalue": sgd})
    refused(agent, "amsgrad", optims={"qvalue": amsgrad})
    hooked = torch.optim.Adam(agent.loss.qvalue_network_params.parameters())
    handles = [hooked.register_step_pre_hook(lambda optim, args, kwargs: None)]
    handles.append(next(agent.loss.qvalue_network_params.parameters()).register_hook(lambda gradient: None))
    refused(agent, "got 2 hooks of the optimizer of 'qvalue' or its parameters", optims={"qvalue": hooked})
    for handle in handles:
        handle.remove()
    refused(agent, "SoftUpdate of another loss", target_updater=other.updater)
    refused(agent, "expected a SoftUpdate", target_updater=HardUpdate(agent.loss, value_network_update_interval=2))
    refused(agent, "expected one of", optims=other.optims)
    refused(agent, "gives .* no gradient", optims={"qvalue": agent.optims["actor"]})
    refused(agent, "neither", optims={"nothing": agent.optims["alpha"]})
    refused(agent, "expected at least one loss", optims={})
    refused(agent, "joint", utd_ratio=3, joint=True)
    refused(agent, "mode", mode="fast")
    refused(agent, "multiple of 5", utd_ratio=5)
    agent.loss.reduction = "none"
    refused(agent, "expected a scalar")


@pytest.mark.filterwarnings("ignore:No target network updater", "ignore:no step of this update moves")
def test_losses_that_draw_by_themselves_are_not_compiled() -> None:
    """TorchRL's take part in updates that are not compiled."""
    sizes, batch = {"hidden_sizes": (8,)}, random_transitions(6, 3, 2)
    loss = SACLoss(make_actor(3, 2, **sizes), make_qvalue_ensemble(3, 2, num_qvalue_nets=2, **sizes))
    update = Update(loss, Descend("qvalue", torch.optim.Adam(loss.qvalue_network_params.parameters())))
    assert update(batch)["finite"]
    with (
        without_kernels(),
        pytest.raises(O2OSpecError, match=r"got torchrl.*SACLoss, expected a loss of this package.* do not compile"),
    ):
        update.compile()(batch)


def test_a_parameter_the_graph_cannot_follow_is_refused(captured: list[Any]) -> None:
    agent = make_agent("awac")
    hidden = next(iter(agent.loss.qvalue_network_params.values(True, True)))

    class Reading(type(agent.loss)):  # type: ignore[misc]
        def qvalue_loss(self, tensordict: Any) -> Any:
            value, info = super().qvalue_loss(tensordict)
            return value + 0.0 * hidden.detach().mean(), info

    agent.loss.__class__ = Reading
    with pytest.raises(O2OSpecError, match="outside its registered modules"):
        make_update("awac", agent)(make_batch())


def test_cuda_graphs_want_a_cuda_device() -> None:
    agent = make_agent("awac")
    with pytest.raises(O2OSpecError, match="CUDA graph"):
        make_update("awac", agent, mode="reduce-overhead")(make_batch())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["rlpd", "iql"])
def test_cuda_graph_equals_the_loop(kind: str) -> None:
    results = []
    for graph in (False, True):
        agent, batch = make_agent(kind), make_batch().to("cuda")
        agent.loss.to("cuda")
        agent.updater = SoftUpdate(agent.loss, tau=0.1)
        for name, optim in agent.optims.items():
            agent.optims[name] = torch.optim.Adam(optim.param_groups[0]["params"], lr=1e-2, fused=True)
        step = make_update(kind, agent, mode="reduce-overhead") if graph else lambda b, k=kind, a=agent: loop(k, a, b)
        torch.manual_seed(1)
        for _ in range(6):
            step(batch)
        results.append(agent.tensors())
    assert_close(results[1], results[0], 1e-9)


@pytest.mark.slow
@pytest.mark.compiler
def test_a_second_process_finds_what_the_first_compiled(tmp_path: Path) -> None:
    code = "from tests.updates.test_update import run_update; run_update('awac', 1)"
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
        subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=Path(__file__).parents[2])
        seconds.append(time.perf_counter() - began)
    assert any(tmp_path.iterdir())
    assert seconds[1] < 0.8 * seconds[0]


def test_clipped_gradients_equal_the_loops(captured: list[Any]) -> None:
    """ACA's actor: the norm over all of the actor's parameters, as ``clip_grad_norm_`` takes it."""
    bounds = {"actor": 0.01, "qvalue": 0.5}
    written, compiled = make_agent("aca"), make_agent("aca")
    update, batch = make_update("aca", compiled, max_grad_norm=bounds), make_batch()
    for step in range(3):
        torch.manual_seed(step)
        for name, optim in written.optims.items():
            value = getattr(written.loss, f"{name}_loss")(batch)[0]
            descend(optim, value, max_grad_norm=bounds.get(name))
        written.updater.step()
        torch.manual_seed(step)
        update(batch)
    assert_close(compiled.tensors(), written.tensors(), 1e-9)


def test_an_optimizer_that_evaluates_the_loss_itself_is_refused() -> None:
    """Its step would end in a TypeError after the first gradient."""
    weight = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(O2OSpecError, match=r"got LBFGS for 'qvalue', .* expected an optimizer that uses one gradient"):
        Descend("qvalue", torch.optim.LBFGS([weight]))
    for option in ("maximize", "differentiable"):
        for kind in (torch.optim.Adam, torch.optim.SGD):
            with pytest.raises(O2OSpecError, match=rf"got {option}=True in {kind.__name__} of 'qvalue', expected"):
                Descend("qvalue", kind([{"params": [weight], option: True}], lr=0.1))
    assert Descend("qvalue", torch.optim.SGD([weight], lr=0.1)).parameters == [weight]


def test_what_is_no_optimizer_is_refused() -> None:
    optim = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1)
    for wrong in (torch.nn.Linear(2, 2), torch.optim.lr_scheduler.LinearLR(optim)):
        with pytest.raises(O2OSpecError, match=rf"got a {type(wrong).__name__} for 'qvalue', expected an optimizer"):
            Descend("qvalue", wrong)  # type: ignore[arg-type]


def test_a_bound_on_no_loss_is_refused() -> None:
    with pytest.raises(O2OSpecError, match="critic"):
        make_update("awac", make_agent("awac"), max_grad_norm={"critic": 1.0})


def test_times_and_intervals_may_be_numpy_s() -> None:
    step = Descend("qvalue", torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))]))
    assert plan((Repeat(np.int64(2), Every(np.int32(2), step)),), {}).sequence == ((0, 1),)
    for wrong in (0, 2.0, True, "2"):
        with pytest.raises(O2OSpecError, match=r"times of Repeat=.* expected a whole number of at least 1"):
            Repeat(wrong, step)  # type: ignore[arg-type]
        with pytest.raises(O2OSpecError, match=r"interval of Every=.* expected a whole number of at least 1"):
            Every(wrong, step)  # type: ignore[arg-type]


def test_every_may_begin_with_the_first_turn() -> None:
    optim = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])
    critic, actor = Descend("qvalue", optim), Descend("actor", optim)
    counts: dict[int, int] = {}
    steps = (critic, Every(3, actor, first=True))
    assert [len(plan(steps, counts).parts[0]) for _ in range(7)] == [2, 1, 1, 2, 1, 1, 2]


def test_targets_of_some_networks_are_moved() -> None:
    actor = make_deterministic_actor(3, 2, hidden_sizes=(8,))
    loss = TD3BCLoss(actor, make_qvalue_ensemble(3, 2, num_qvalue_nets=2, hidden_sizes=(8,)))
    targets, batch = SoftUpdate(loss, tau=0.5), random_transitions(8, 3, 2)
    optim = torch.optim.Adam(loss.qvalue_network_params.parameters(), lr=0.1)
    before = {name: value.clone() for name, value in loss.target_qvalue_network_params.flatten_keys(".").items()}
    Update(loss, Descend("qvalue", optim), MoveTargets(targets, ("actor_network",)))(batch)
    after = dict(loss.target_qvalue_network_params.flatten_keys(".").items())
    assert all(torch.equal(before[name], after[name]) for name in before)
    Update(loss, Descend("qvalue", optim), MoveTargets(targets, ("qvalue_network",)))(batch)
    assert not any(torch.equal(before[name], after[name]) for name in before if name.endswith("weight"))
    with pytest.raises(O2OSpecError, match="no target of 'value_network'"):
        Update(loss, Descend("qvalue", optim), MoveTargets(targets, ("value_network",)))
    with pytest.raises(O2OSpecError, match=r"got names=\(\), with which no target moves"):
        MoveTargets(targets, ())
    ghost = Ghost(Descend("actor", torch.optim.Adam(loss.actor_network_params.parameters())))
    with pytest.raises(O2OSpecError, match="got a Ghost of 'actor', whose optimizer no step of this update uses"):
        Update(loss, Descend("qvalue", optim), MoveTargets(targets), ghost)


def test_targets_among_joint_steps_follow_the_networks_from_before() -> None:
    """With tau = 1 the targets end in what the critics were, and the gradients are those of the targets from before."""
    ends = {}
    for inside in (False, True):
        torch.manual_seed(0)
        actor = make_deterministic_actor(3, 2, hidden_sizes=(8,))
        loss = TD3BCLoss(actor, make_qvalue_ensemble(3, 2, num_qvalue_nets=2, hidden_sizes=(8,)))
        targets = MoveTargets(SoftUpdate(loss, tau=1.0))
        loss.target_qvalue_network_params.data.mul_(0.5)
        critic = Descend("qvalue", torch.optim.SGD(loss.qvalue_network_params.parameters(), lr=0.1))
        before = loss.qvalue_network_params.data.clone()
        update = Update(loss, Joint(targets, critic)) if inside else Update(loss, Joint(critic), targets)
        update(random_transitions(8, 3, 2, generator=torch.Generator().manual_seed(0)))
        ends[inside] = loss.qvalue_network_params.data.clone()
        followed = before if inside else loss.qvalue_network_params.data
        assert (loss.target_qvalue_network_params.data == followed).all()
    assert (ends[False] == ends[True]).all()
    with pytest.raises(O2OSpecError, match="optionally, MoveTargets"):
        Joint(targets)


def test_steps_on_the_whole_batch_stand_last() -> None:
    optim = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])
    critic, actor = Descend("qvalue", optim), Descend("actor", optim)
    assert plan((Repeat(2, critic), Whole(actor)), {}).sequence == ((0, 0), (0, 1), (1, WHOLE))
    assert plan((Repeat(2, critic), Whole(critic)), {}).sequence == ((0, 0), (0, 1), (1, WHOLE))
    loss = BCLoss(make_gaussian_actor(3, 2, hidden_sizes=(8,)))
    with pytest.raises(O2OSpecError, match="Whole before another step"):
        Update(loss, Whole(actor), actor)


def test_a_ghost_step_is_one_of_a_zero_gradient() -> None:
    """The momentum carries on; from fresh moments nothing moves. The long-run step is that of a larger rate."""
    ends = {}
    for ghosts in (False, True):
        torch.manual_seed(0)
        loss = BCLoss(make_gaussian_actor(3, 2, hidden_sizes=(8,)))
        batch = random_transitions(8, 3, 2)
        actor = Descend("actor", torch.optim.Adam(loss.actor_network_params.parameters(), lr=0.1))
        update = Update(loss, actor, *([Ghost(actor)] if ghosts else []))
        before = loss.actor_network_params.clone()
        update(batch)
        ends[ghosts] = (loss.actor_network_params - before).flatten_keys(".")
        counts = {int(state["step"]) for state in actor.optim.state_dict()["state"].values()}
        assert counts == {2 if ghosts else 1}
    moved = {name: (ends[True][name] / value)[value.abs() > 1e-3] for name, value in ends[False].items()}
    beta1, beta2 = 0.9, 0.999
    expected = 1 + (beta1 * (1 - beta1) / (1 - beta1**2)) / (beta2 * (1 - beta2) / (1 - beta2**2)) ** 0.5
    for ratio in moved.values():
        torch.testing.assert_close(ratio, torch.full_like(ratio, expected), rtol=1e-3, atol=1e-3)


def test_a_scaled_step_is_one_on_that_share_of_the_loss() -> None:
    """Plain gradient descent would see it; so do Adam's moments, eagerly and captured."""
    batch, ends = random_transitions(8, 3, 2), []
    for captured in (False, True):
        torch.manual_seed(0)
        loss = BCLoss(make_gaussian_actor(3, 2, hidden_sizes=(8,)))
        whole = loss.actor_loss(batch)[0].item()
        optim = torch.optim.Adam(loss.actor_network_params.parameters(), lr=0.1)
        update = Update(loss, Descend("actor", optim, scale=0.25))
        if captured:
            update.compile()
        with without_kernels():
            assert update(batch)["loss_actor"].item() == pytest.approx(0.25 * whole, rel=1e-5)
        ends.append([state["exp_avg"] for state in optim.state_dict()["state"].values()])
    torch.testing.assert_close(*ends)
    with pytest.raises(O2OSpecError, match="scale=0"):
        Descend("actor", optim, scale=0.0)


def test_without_a_compiler_compile_says_what_to_do() -> None:
    """It was torch's own trace of forty lines, after the first thousand steps of a run."""
    loss = BCLoss(make_gaussian_actor(3, 2, hidden_sizes=(8,)))
    update = Update(loss, Descend("actor", torch.optim.Adam(loss.parameters())))
    nowhere = torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)})
    with nowhere, pytest.raises(O2OSpecError, match=r"C\+\+ compiler.*CXX.*compile=false"):
        update.compile()
    assert not update.compiled


@pytest.mark.parametrize("compiled", [False, True])
def test_parameters_that_are_frozen_stand_in_no_optimizer(compiled: bool) -> None:
    agent = make_agent("awac")
    next(iter(agent.loss.actor_network_params.parameters())).requires_grad_(False)
    update = Update(agent.loss, Descend("actor", agent.optims["actor"]))
    with without_kernels(), pytest.raises(O2OSpecError, match=r"'actor' holds .*actor_network.*requires_grad=False"):
        (update.compile() if compiled else update)(make_batch())


@pytest.mark.parametrize("compiled", [False, True])
def test_rows_that_no_loss_returns_are_refused(compiled: bool) -> None:
    agent = make_agent("awac")
    update = Update(agent.loss, Descend("actor", agent.optims["actor"]), rows=("nothing",))
    with without_kernels(), pytest.raises(O2OSpecError, match=r"got rows='nothing', expected an entry .*loss_actor"):
        (update.compile() if compiled else update)(make_batch()[:16])


@pytest.mark.parametrize("compiled", [False, True])
def test_hooks_after_the_accumulation_of_gradients_are_refused(compiled: bool) -> None:
    """An update accumulates no gradients, so it would never call them."""
    agent = make_agent("awac")
    param = next(iter(agent.loss.actor_network_params.parameters()))
    handle = param.register_post_accumulate_grad_hook(lambda _: None)
    update = Update(agent.loss, Descend("actor", agent.optims["actor"]))
    with without_kernels(), pytest.raises(O2OSpecError, match=r"got .*hooks.* of .*actor"):
        (update.compile() if compiled else update)(make_batch()[:16])
    handle.remove()
    with without_kernels():
        update.recompile()
        update(make_batch()[:16])


def test_an_optimizer_of_the_critics_that_a_loss_was_given_is_refused() -> None:
    agent, members = make_agent("awac"), make_qvalue_ensemble(5, 2, num_qvalue_nets=2, hidden_sizes=(16,))
    optim = torch.optim.Adam([value for member in members for value in member.parameters()])
    update = Update(agent.loss, Descend("qvalue", optim), MoveTargets(agent.updater))
    with pytest.raises(O2OSpecError, match="a loss copies the critics that it is given"):
        update(make_batch())


def test_critics_whose_targets_nothing_moves_are_told() -> None:
    agent = make_agent("awac")
    with pytest.warns(UserWarning, match="no step of this update moves target_qvalue_network_params"):
        Update(agent.loss, Descend("qvalue", agent.optims["qvalue"]))


def test_a_batch_is_a_tensordict() -> None:
    agent = make_agent("awac")
    with pytest.raises(O2OSpecError, match="got a batch of dict, expected a TensorDict"):
        Update(agent.loss, Descend("actor", agent.optims["actor"]))(make_batch().to_dict())


def moved_between(agent: Agent, how: str) -> list[Any]:
    """V and critics step, the targets move, the actor steps."""
    steps = {name: Descend(name, optim) for name, optim in agent.optims.items()}
    moves = MoveTargets(agent.updater)
    if how == "joint":
        return [Joint(steps["value"], steps["qvalue"], moves), steps["actor"]]
    if how == "copy":
        moves = Copy("qvalue_network_params", "target_qvalue_network_params")
    return [steps["value"], steps["qvalue"], moves, steps["actor"]]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("how", ["move", "joint", "copy"])
def test_what_targets_said_before_they_moved_is_not_handed_on(how: str, compiled: bool, captured: list[Any]) -> None:
    """IQL's actor takes min_j Q'_j of the value's step only for as long as the targets are the same."""
    written, agent, batch = make_agent("iql"), make_agent("iql"), make_batch(rows=8)
    written.loss.ensemble_reduction = agent.loss.ensemble_reduction = "mean"
    update = Update(agent.loss, *moved_between(agent, how))
    metrics = (update.compile() if compiled else update)(batch)
    value, qvalue = written.loss.value_loss(batch)[0], None
    if how == "joint":
        qvalue = written.loss.qvalue_loss(batch)[0]
        written.updater.step()
    written.descend("value", value)
    written.descend("qvalue", written.loss.qvalue_loss(batch)[0] if qvalue is None else qvalue)
    if how == "move":
        written.updater.step()
    elif how == "copy":
        written.loss.target_qvalue_network_params.data.copy_(written.loss.qvalue_network_params.data)
    expected = written.loss.actor_loss(batch)[0]
    written.descend("actor", expected)
    assert_close(agent.tensors(), written.tensors(), 1e-9)
    torch.testing.assert_close(metrics["loss_actor"], expected.detach())


@pytest.mark.parametrize("compiled", [False, True])
def test_what_targets_said_is_handed_on_while_they_stand_still(
    compiled: bool, captured: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The target critics are asked about the recorded actions once an update."""
    agent = make_agent("iql")
    asked, data_q = [], agent.loss._data_q
    monkeypatch.setattr(agent.loss, "_data_q", lambda *args: (asked.append(1), data_q(*args))[1])
    update = Update(agent.loss, *(Descend(name, agent.optims[name]) for name in ("value", "actor")))
    (update.compile() if compiled else update)(make_batch())
    assert len(asked) == (2 if compiled else 1)  # compiled: when draws are looked for, and when it is captured


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kind", ["awac", "td3_bc"])
def test_a_loss_is_not_handed_what_it_returned_itself(kind: str, compiled: bool, captured: list[Any]) -> None:
    """The second step of the critics on a minibatch has a target of its own, with draws of its own."""
    written, agent, batch = make_agent(kind), make_agent(kind), make_batch(rows=8)
    optims = []
    for each in (written, agent):
        params = list(each.loss.qvalue_network_params.parameters())
        halves = [params[::2], params[1::2]]  # a compiled update takes one step per parameter
        optims.append([torch.optim.Adam(half, lr=1e-2) for half in halves])
    torch.manual_seed(1)
    for optim in optims[0]:
        expected = written.loss.qvalue_loss(batch)[0]
        descend(optim, expected)
    update = Update(agent.loss, *(Descend("qvalue", optim) for optim in optims[1]))
    torch.manual_seed(1)
    metrics = (update.compile() if compiled else update)(batch)
    torch.testing.assert_close(metrics["loss_qvalue"], expected.detach())
    for mine, theirs in zip(agent.loss.parameters(), written.loss.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("compiled", [False, True])
def test_log_densities_are_handed_on_over_moving_targets(compiled: bool, captured: list[Any]) -> None:
    """They come from the actor: the temperature draws no actions of its own."""
    written, agent, batch = make_agent("rlpd"), make_agent("rlpd"), make_batch(rows=8)
    steps = [Descend(name, agent.optims[name]) for name in ("actor", "alpha")]
    update = Update(agent.loss, steps[0], MoveTargets(agent.updater), steps[1])
    torch.manual_seed(1)
    (update.compile() if compiled else update)(batch)
    torch.manual_seed(1)
    value, info = written.loss.actor_loss(batch)
    written.descend("actor", value)
    written.updater.step()
    written.descend("alpha", written.loss.alpha_loss(batch, log_prob=info["log_prob"])[0])
    assert_close(agent.tensors(), written.tensors(), 1e-9)


def test_an_entry_that_is_stale_is_missing() -> None:
    agent, batch = make_agent("iql"), make_batch(rows=8)

    class Demanding(type(agent.loss)):  # type: ignore[misc]
        def actor_loss(self, tensordict: TensorDict, *, target_qvalue: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            return super().actor_loss(tensordict, target_qvalue=target_qvalue)

    agent.loss.__class__ = Demanding
    value, actor = (Descend(name, agent.optims[name]) for name in ("value", "actor"))
    Update(agent.loss, value, actor)(batch)
    with pytest.raises(O2OSpecError, match="'target_qvalue', expected a preceding loss that returns it"):
        Update(agent.loss, value, MoveTargets(agent.updater), actor)(batch)


@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_are_taken_under_no_grad_too(compiled: bool, captured: list[Any]) -> None:
    one, other = make_agent("iql"), make_agent("iql")
    batch = make_batch(rows=8)
    updates = make_update("iql", one), make_update("iql", other)
    if compiled:
        updates[1].compile()
    updates[0](batch)
    with torch.no_grad():
        updates[1](batch)
    assert_close(other.tensors(), one.tensors(), 1e-9)


@pytest.mark.parametrize("compiled", [False, True])
def test_inference_mode_is_refused(compiled: bool, captured: list[Any]) -> None:
    update = make_update("iql", make_agent("iql"))
    if compiled:
        update.compile()
    with torch.inference_mode(), pytest.raises(O2OSpecError, match="inference_mode"):
        update(make_batch(rows=8))
    with torch.inference_mode():
        batch = make_batch(rows=8)
    with pytest.raises(O2OSpecError, match=r"a batch of tensors that were made under torch.inference_mode\(\)"):
        update(batch)
    update(batch.clone())


def test_graphs_compile_with_inductors_cpp_wrapper() -> None:
    """With TORCHINDUCTOR_CPP_WRAPPER=1 it refused inputs whose recorded values came from different modes."""
    inputs = {"x": torch.ones(2, 3), "y": torch.ones(3)}
    graph = capture(lambda now: ({"z": now["x"] + now["y"]}, {"y": 2.0 * now["y"]}), inputs)
    with torch._inductor.config.patch(cpp_wrapper=True):
        run = graph.executable(lambda module, examples: torch._inductor.compile(module, [*examples]), inputs)
        assert torch.equal(run(inputs)["z"], torch.full((2, 3), 2.0))
    assert torch.equal(inputs["y"], torch.full((3,), 2.0))
