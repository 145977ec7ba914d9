# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Whole updates of the authors' codes through `Update`: eagerly, as captured graphs, and stacked over two agents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch.optim import Adam

from tests import golden_vectors as golden
from tests.data.samplers import test_golden_a3rl as a3rl
from tests.kernels import without_kernels
from tests.objectives import golden_offline as offline
from tests.objectives import test_golden_aca as aca
from tests.objectives import test_golden_awac as awac
from tests.objectives import test_golden_bear as bear
from tests.objectives import test_golden_brac as brac
from tests.objectives import test_golden_cql as cql
from tests.objectives import test_golden_drqv2 as drqv2
from tests.objectives import test_golden_fql as fql
from tests.objectives import test_golden_iql as iql
from tests.objectives import test_golden_pex as pex
from tests.objectives import test_golden_qc as qc
from tests.objectives import test_golden_rebrac as rebrac
from tests.objectives import test_golden_rlpd as rlpd
from tests.objectives import test_golden_rlpd_pixels as rlpd_pixels
from tests.objectives import test_golden_spot as spot
from tests.objectives import test_golden_td3_bc as td3_bc
from tests.objectives import test_golden_wsrl as wsrl
from tests.objectives import test_off2on as off2on
from torchrl_o2o.updates import Descend, Every, Joint, MoveTargets, Repeat, Update

pytestmark = pytest.mark.usefixtures("float64")


class Recorded:
    """Recorded numbers, each used once, in the order of the draws of their name."""

    def __init__(self, values: Mapping[str, Sequence[Tensor]]) -> None:
        self.values = {name: list(each) for name, each in values.items()}

    def normal(self, name: str, like: Tensor, sample_shape: tuple[int, ...] = ()) -> Tensor:
        value = self.values[name].pop(0)
        assert tuple(value.shape) == (*sample_shape, *like.shape), name
        return value

    uniform = normal

    def subset(self, name: str, num_members: int, size: int, like: Tensor, **_: bool) -> Tensor:
        return self.values[name].pop(0).long() if name in self.values else torch.arange(num_members)


@dataclass
class Whole:
    """An agent, the batches of its updates with their noise, and what it must end in."""

    loss: Any
    update: Update
    batches: list[TensorDictBase]
    noise: list[Mapping[str, Sequence[Tensor]]]
    check: Callable[[Mapping[str, Tensor]], None]
    after: Callable[[], None] = lambda: None


def rlpd_update(case: str) -> Whole:
    tree = golden.load(f"rlpd/{case}")
    loss, updater = rlpd.build(tree)
    optims = rlpd.optimizers(loss, tree)
    steps = [golden.sub(tree, f"step{t}") for t in range(int(golden.hp(tree, "n_updates")))]
    batches = [golden.transitions(step) for step in steps]
    noise = [
        {
            "next_action": list(step["noise/next_action"]),
            "target": list(step["subset"]),
            "action": [step["noise/action"]],
        }
        for step in steps
    ]
    repeat = Repeat(len(batches[0]) // 8, Descend("qvalue", optims["critic"]), MoveTargets(updater))
    update = Update(loss, repeat, Descend("actor", optims["actor"]), Descend("alpha", optims["alpha"]))

    def check(metrics: Mapping[str, Tensor]) -> None:
        golden.assert_close(metrics["loss_qvalue"], steps[-1]["out/critic_loss"], "critic loss")
        golden.assert_close(metrics["loss_actor"], steps[-1]["out/actor_loss"], "actor loss")
        golden.assert_close(metrics["entropy"], steps[-1]["out/entropy"], "entropy")
        golden.assert_close(metrics["loss_alpha"], steps[-1]["out/temperature_loss"], "temperature loss")
        net, actor = loss.qvalue_network.module, loss.actor_network[0].module
        after = golden.sub(tree, "out/critic_after")
        golden.assert_params(rlpd.flat(loss.qvalue_network_params), net, after, "module.")
        after = golden.sub(tree, "out/target_critic_after")
        golden.assert_params(rlpd.flat(loss.target_qvalue_network_params), net, after, "module.")
        after = golden.sub(tree, "out/actor_after")
        golden.assert_params(rlpd.flat(loss.actor_network_params), actor, after, rlpd.ACTOR_PREFIX)
        golden.assert_close(loss.temperature.log_alpha, tree["out/log_alpha_after"], "log alpha")

    return Whole(loss, update, batches, noise, check)


def a3rl_update(variant: str) -> Whole:
    """The authors' weights multiply the actor's and the temperature's loss too."""
    tree = golden.load("a3rl/update_A")
    loss, critic, others, updater = a3rl.learner(tree)
    batch, _ = a3rl.draw(tree, loss, variant == "official")
    out = golden.sub(tree, f"out/{variant}")
    actor, alpha = (
        Adam(group["params"], lr=group["lr"], betas=group["betas"], eps=group["eps"]) for group in others.param_groups
    )
    noise = {
        "next_action": list(tree["noise/next_action"]),
        "target": list(tree["subset"]),
        "action": [tree["noise/action"]],
    }
    repeat = Repeat(len(batch) // 8, Descend("qvalue", critic), MoveTargets(updater))  # type: ignore[arg-type]
    update = Update(loss, repeat, Descend("actor", actor), Descend("alpha", alpha))

    def check(metrics: Mapping[str, Tensor]) -> None:
        golden.assert_close(metrics["loss_qvalue"], out["critic_loss"], "critic loss")
        golden.assert_close(metrics["loss_actor"], out["actor_loss"], "actor loss")
        golden.assert_close(metrics["entropy"], out["entropy"], "entropy")
        golden.assert_close(metrics["loss_alpha"], out["temperature_loss"], "temperature loss")
        net, module = loss.qvalue_network.module, loss.actor_network[0].module
        golden.assert_params(a3rl.flat(loss.qvalue_network_params), net, golden.sub(out, "critic_after"), "module.")
        after = golden.sub(out, "actor_after")
        golden.assert_params(a3rl.flat(loss.actor_network_params), module, after, a3rl.ACTOR_PREFIX)
        golden.assert_close(loss.temperature.log_alpha, out["log_alpha_after"], "log alpha")

    return Whole(loss, update, [batch.select(*KEPT)], [noise], check)


#: What the losses read of a batch.
KEPT = ("observation", "action", "next", "priority_weight")


def aca_update(case: str) -> Whole:
    tree = golden.load(case)
    online = case in aca.ONLINE
    loss, updater = (aca.aca if online else aca.sacml)(tree)
    recorded = loss.noise
    parts = {"alpha": (loss.temperature, "temp"), "qvalue": (loss.qvalue_network_params, "critic")}
    if not online:
        parts["baseline"] = (loss.baseline_network_params, "baseline")
    parts["actor"] = (loss.actor_network_params, "actor")
    clip = golden.hp(tree, "actor_grad_clip_norm") if online else None
    steps = [
        Descend(name, aca.adam(part, tree, key), clip if name == "actor" else None)
        for name, (part, key) in parts.items()
    ]

    def check(metrics: Mapping[str, Tensor]) -> None:
        step = golden.sub(tree, "out/update")
        golden.assert_close(metrics["loss_actor"], step["actor_loss"], "actor loss")
        golden.assert_close(loss.temperature.log_alpha, step["log_alpha_after"], "log alpha")
        aca.assert_critics(loss, tree, "out/update/critic_after")
        aca.assert_critics(loss, tree, "out/update/target_critic_after", target=True)
        aca.assert_actor(loss, tree, "out/update/actor_after", grad=False)

    noise = {name: [value] for name, value in recorded.values.items()}  # type: ignore[attr-defined]
    return Whole(loss, Update(loss, *steps, MoveTargets(updater)), [golden.transitions(tree)], [noise], check)


def cql_update(case: str) -> Whole:
    tree = golden.load(case)
    loss, updater = cql.build(case, tree)
    steps = [
        Descend("qvalue", Adam(loss.qvalue_network_params.parameters(), lr=golden.hp(tree, "qf_lr"))),
        Descend("actor", Adam(loss.actor_network_params.parameters(), lr=golden.hp(tree, "policy_lr"))),
        Descend("alpha", Adam(loss.temperature.parameters(), lr=golden.hp(tree, "policy_lr"))),
    ]
    if loss.penalty.target_gap is not None:
        steps.append(Descend("alpha_prime", Adam(loss.penalty.parameters(), lr=golden.hp(tree, "qf_lr"))))

    def check(_: Mapping[str, Tensor]) -> None:
        net = loss.qvalue_network.module
        after = golden.sub(tree, "out/train/critic_after")
        golden.assert_params(cql.values(loss.qvalue_network_params), net, after, "module.")
        after = golden.sub(tree, "out/train/target_critic_after")
        golden.assert_params(cql.values(loss.target_qvalue_network_params), net, after, "module.")
        cql.assert_actor(loss, tree, "out/train/actor_after", False)

    noise = {name: [value] for name, value in cql.recorded(tree).values.items()}
    update = Update(loss, Joint(*steps), MoveTargets(updater))
    return Whole(loss, update, [cql.batch_of(tree)], [noise], check)


def iql_update(case: str) -> Whole:
    tree, loss, updater = iql.build(case)
    optims = iql.optimizers(loss, tree)
    names = [("value", "value"), ("actor", "actor"), ("qvalue", "critic")]
    steps = [Descend(name, optims[theirs]) for name, theirs in names]
    authors = case == iql.AUTHORS
    update = Update(loss, *(steps if authors else [Joint(*steps)]), MoveTargets(updater))
    where = "out/update1" if authors else "out/train2"

    def check(metrics: Mapping[str, Tensor]) -> None:
        golden.assert_close(metrics["loss_actor"], tree[f"{where}/actor_loss"], "actor loss")
        golden.assert_close(metrics["loss_value"], tree[f"{where}/value_loss"], "value loss")
        offline.same_actor(loss, tree, f"{where}/actor_after")
        offline.same_critic(loss, tree, f"{where}/critic_after")
        offline.same_critic(loss, tree, f"{where}/target_critic_after", target=True)
        iql.same_value(loss, tree, f"{where}/value_after")

    batches = [golden.transitions(tree)] * 2
    return Whole(loss, update, batches, [{}, {}], check, optims["schedule"].step)


def spot_update(case: str) -> Whole:
    tree, loss, updater = spot.build(case)
    recorded: Any = loss.noise
    critic = offline.adam(loss.qvalue_network_params, golden.hp(tree, "critic_lr"))
    actor = offline.adam(loss.actor_network_params, golden.hp(tree, "actor_lr"))
    update = Update(loss, Descend("qvalue", critic), Descend("actor", actor), MoveTargets(updater))

    def check(metrics: Mapping[str, Tensor]) -> None:
        golden.assert_close(metrics["loss_actor"], tree["out/step/actor_loss"], "actor loss")
        offline.same_actor(loss, tree, "out/step/actor_after")
        offline.same_actor(loss, tree, "out/step/target_actor_after", target=True)
        offline.same_critic(loss, tree, "out/step/critic_after")
        offline.same_critic(loss, tree, "out/step/target_critic_after", target=True)

    noise = {name: [value] for name, value in recorded.values.items()}
    return Whole(loss, update, [golden.transitions(tree)], [noise], check)


def rebrac_update(case: str) -> Whole:
    """Three updates, the actor in the first and the third."""
    tree, loss, update = rebrac.whole_update(case)
    steps = range(int(golden.hp(tree, "n_updates")))
    noise = [{"target_smoothing": [tree[f"step{index}/noise/target_smoothing"]]} for index in steps]

    def check(metrics: Mapping[str, Tensor]) -> None:
        golden.assert_close(metrics["loss_actor"], tree[f"step{steps[-1]}/out/actor_loss"], "actor loss")
        rebrac.check_end(tree, loss)

    return Whole(loss, update, [rebrac.batch_of(tree, index) for index in steps], noise, check)


def pex_update(case: str) -> Whole:
    """V and critics, targets, then the policy on actions of its own choice."""
    tree, loss, update = pex.whole_update(case)
    steps = range(int(golden.hp(tree, "n_updates")))
    noise = [{name: [value] for name, value in pex.draws(tree, f"step{index}/noise").items()} for index in steps]

    def check(metrics: Mapping[str, Tensor]) -> None:
        golden.assert_close(metrics["loss_actor"], tree[f"step{steps[-1]}/out/actor_loss"], "actor loss")
        pex.check_end(tree, loss)

    return Whole(loss, update, [golden.transitions(tree, f"step{index}/batch") for index in steps], noise, check)


def wsrl_update() -> Whole:
    tree = golden.load("wsrl/update_A")
    loss, update = wsrl.whole_update(tree)
    steps = [golden.sub(tree, f"step{index}") for index in range(int(golden.hp(tree, "n_updates")))]
    checked = iter(steps)

    def check(metrics: Mapping[str, Tensor]) -> None:
        wsrl.check_step(steps[-1], loss, metrics)
        wsrl.same_critics(loss, tree, "out/target_critic_after", target=True)

    def after() -> None:
        wsrl.same_actor(loss, next(checked), "out/actor_after")

    batches = [golden.transitions(step) for step in steps]
    return Whole(loss, update, batches, [wsrl.noise_of(step) for step in steps], check, after)


def rlpd_pixels_update(case: str) -> Whole:
    """The actor's convolutions are those of the critics before the call."""
    tree, loss, update = rlpd_pixels.build(case)
    steps = [golden.sub(tree, f"step{index}") for index in range(int(golden.hp(tree, "n_updates")))]

    def check(metrics: Mapping[str, Tensor]) -> None:
        golden.assert_close(metrics["loss_actor"], steps[-1]["out/actor_loss"], "actor loss")
        rlpd_pixels.check(loss, tree, f"step{len(steps) - 1}/out/")

    batches = [rlpd_pixels.batch_of(tree, step) for step in steps]
    return Whole(loss, update, batches, [rlpd_pixels.noise_of(step) for step in steps], check)


def drqv2_update(case: str) -> Whole:
    """The actor sees the encoding from before the encoder's step."""
    tree, loss, update = drqv2.build(case)
    steps = drqv2.steps_of(tree)
    stds = iter([*(float(step["out/std"]) for step in steps), 0.0])
    loss.std.fill_(next(stds))

    def check(metrics: Mapping[str, Tensor]) -> None:
        drqv2.check_metrics(dict(metrics), steps[-1])
        drqv2.check(loss, tree, f"step{int(steps[-1]['index'])}/out/")

    noise = [{name: [value] for name, value in drqv2.noise_of(step).items()} for step in steps]
    batches = [drqv2.batch_of(tree, step) for step in steps]
    return Whole(loss, update, batches, noise, check, lambda: loss.std.fill_(next(stds)))


def flow_update(case: str) -> Whole:
    tree, loss, update = fql.whole_update(case)
    steps = range(int(golden.hp(tree, "n_updates")))

    def check(metrics: Mapping[str, Tensor]) -> None:
        fql.check_metrics(tree, steps[-1], metrics)
        fql.check_end(tree, loss)

    noise = [{name: [value] for name, value in fql.noise_of(tree, index).items()} for index in steps]
    return Whole(loss, update, [fql.batch_of(tree, index) for index in steps], noise, check)


def chunked_rlpd_update(case: str) -> Whole:
    tree, loss, update = qc.build(case)
    steps = range(int(golden.hp(tree, "n_updates")))

    def check(metrics: Mapping[str, Tensor]) -> None:
        qc.check_metrics(tree, steps[-1], metrics)
        qc.check_end(tree, loss)

    noise = [{name: [value] for name, value in qc.noise_of(tree, index).items()} for index in steps]
    return Whole(loss, update, [qc.batch_of(tree, index) for index in steps], noise, check)


def brac_update(case: str) -> Whole:
    """Tables in place of networks; no step moves what a later loss reads."""
    tree, loss, batch = brac.build(case, value_penalty=True)
    recorded: Any = loss.noise
    parts = {"qvalue": loss.qvalue_network_params, "actor": loss.actor_network_params, "multiplier": loss.multiplier}
    update = Update(loss, *(Descend(name, offline.adam(part, 1e-3)) for name, part in parts.items()))

    def check(metrics: Mapping[str, Tensor]) -> None:
        for name, key in (
            ("qvalue", "critic_loss_value_penalty"),
            ("actor", "actor_loss"),
            ("multiplier", "alpha_loss"),
        ):
            golden.assert_close(metrics[f"loss_{name}"], tree[f"out/{key}"], name)

    used = ("action", "next_action", "divergence", "next_divergence")
    return Whole(loss, update, [batch], [{name: [recorded.values[name]] for name in used}], check)


def bear_update(case: str) -> Whole:
    """The policy's actions before tanh are the noise; those of the VAE are written down."""
    tree, loss, batch = bear.build(case)
    recorded: Any = loss.noise
    parts = {"actor": loss.actor_network_params, "multiplier": loss.multiplier}
    update = Update(loss, *(Descend(name, offline.adam(part, 1e-3)) for name, part in parts.items()))

    def check(metrics: Mapping[str, Tensor]) -> None:
        golden.assert_close(metrics["loss_actor"], tree["out/actor_loss"], "actor loss")
        golden.assert_close(-metrics["loss_multiplier"], tree["out/log_lagrange_gradient_ascent"], "its gradient")

    return Whole(loss, update, [batch], [{"action": [recorded.values["action"]]}], check)


def td3_update(case: str) -> Whole:
    """The critics twice, the actor and the targets every second time."""
    tree, loss, updater = td3_bc.build(case)
    lr = golden.hp(tree, "lr")
    critic, actor = offline.adam(loss.qvalue_network_params, lr), offline.adam(loss.actor_network_params, lr)
    update = Update(loss, Descend("qvalue", critic), Every(2, Descend("actor", actor), MoveTargets(updater)))

    def check(metrics: Mapping[str, Tensor]) -> None:
        golden.assert_close(metrics["loss_qvalue"], tree["out/step2/critic_loss"], "critic loss")
        golden.assert_close(metrics["loss_actor"], tree["out/step2/actor_loss"], "actor loss")
        offline.same_actor(loss, tree, "out/step2/actor_after")
        offline.same_actor(loss, tree, "out/step2/target_actor_after", target=True)
        offline.same_critic(loss, tree, "out/step2/critic_after")
        offline.same_critic(loss, tree, "out/step2/target_critic_after", target=True)

    noise = [{"target_smoothing": [tree["noise/target_smoothing"][index]]} for index in range(2)]
    return Whole(loss, update, [golden.transitions(tree)] * 2, noise, check)


def off2on_update(case: str) -> Whole:
    tree = golden.load(f"off2on/{case}")
    test = off2on.TestGolden()
    loss, updater = test.build(tree)
    recorded: Any = loss.noise
    betas = (golden.hp(tree, "adam_b1"), golden.hp(tree, "adam_b2"))
    parts = {
        "alpha": (loss.temperature, "alpha"),
        "actor": (loss.actor_network_params, "actor"),
        "qvalue": (loss.qvalue_network_params, "critic"),
    }
    optims = {
        name: Adam(part.parameters(), lr=golden.hp(tree, f"{key}_lr"), betas=betas, eps=golden.hp(tree, "adam_eps"))
        for name, (part, key) in parts.items()
    }
    steps = [Descend(name, optims[name]) for name in ("actor", "alpha", "qvalue")]

    def check(_: Mapping[str, Tensor]) -> None:
        golden.assert_close(loss.temperature.log_alpha, tree["out/step/log_alpha_after"], "log alpha")
        members, after = loss.actor_network[0].module.members, golden.sub(tree, "out/step/actor_after")
        golden.assert_params(test.flat(loss.actor_network_params), members, after, off2on.ACTOR_PREFIX)
        net, after = loss.qvalue_network.module, golden.sub(tree, "out/step/target_critic1_after")
        first = {name: value[::2] for name, value in test.flat(loss.target_qvalue_network_params).items()}
        golden.assert_params(first, net, after, "module.")

    noise = {name: [value] for name, value in recorded.values.items()}
    update = Update(loss, Joint(*steps), MoveTargets(updater))
    return Whole(loss, update, [golden.transitions(tree)], [noise], check)


def awac_update(case: str) -> Whole:
    tree, loss, updater = awac.build(case)
    recorded: Any = loss.noise
    critic = offline.adam(loss.qvalue_network_params, golden.hp(tree, "lr"))
    actor = offline.adam(loss.actor_network_params, golden.hp(tree, "lr"))
    update = Update(loss, Descend("qvalue", critic), Descend("actor", actor), MoveTargets(updater))

    def check(metrics: Mapping[str, Tensor]) -> None:
        golden.assert_close(metrics["loss_actor"], tree["out/update/actor_loss"], "actor loss")
        golden.assert_close(metrics["loss_qvalue"], tree["out/update/critic_loss"], "critic loss")
        offline.same_critic(loss, tree, "out/update/critic_after")
        offline.same_critic(loss, tree, "out/update/target_critic_after", target=True)
        offline.same_actor(loss, tree, "out/update/actor_after")

    noise = {name: [value] for name, value in recorded.values.items()}
    return Whole(loss, update, [golden.transitions(tree)], [noise], check)


CASES: dict[str, Callable[[], Whole]] = {
    **{f"rlpd/{case}": lambda case=case: rlpd_update(case) for case in rlpd.UPDATES},
    **{f"a3rl/update_A/{variant}": lambda variant=variant: a3rl_update(variant) for variant in a3rl.ALIGNMENTS},
    **{case: lambda case=case: aca_update(case) for case in (*aca.ONLINE, *aca.OFFLINE)},
    **{case: lambda case=case: cql_update(case) for case in (*cql.CORL, cql.OFFICIAL)},
    **{case: lambda case=case: iql_update(case) for case in (*iql.CORL, iql.AUTHORS)},
    **{f"spot/{case}": lambda case=case: spot_update(f"spot/{case}") for case in "AB"},
    **{case: lambda case=case: rebrac_update(case) for case in rebrac.CASES},
    **{case: lambda case=case: pex_update(case) for case in pex.UPDATES},
    "wsrl/update_A": wsrl_update,
    **{f"rlpd_pixels/{case}": lambda case=case: rlpd_pixels_update(case) for case in rlpd_pixels.UPDATES},
    **{f"drqv2/{case}": lambda case=case: drqv2_update(case) for case in drqv2.UPDATES},
    **{case: lambda case=case: flow_update(case) for case in fql.CASES},
    **{case: lambda case=case: chunked_rlpd_update(case) for case in qc.CASES},
    **{case: lambda case=case: brac_update(case) for case in brac.CASES},
    **{case: lambda case=case: bear_update(case) for case in bear.CASES},
    **{f"td3_bc/{case}": lambda case=case: td3_update(f"td3_bc/{case}") for case in "AB"},
    **{f"off2on/{case}": lambda case=case: off2on_update(case) for case in "AB"},
    **{case: lambda case=case: awac_update(case) for case in awac.CORL},
}


def run(whole: Whole) -> None:
    metrics: dict[str, Tensor] = {}
    for batch, noise in zip(whole.batches, whole.noise, strict=True):
        whole.loss.noise = Recorded(noise)
        metrics = whole.update(batch)
        assert metrics["finite"]
        assert not any(left for left in whole.loss.noise.values.values()), "every recorded number was used"
        whole.after()
    whole.check(metrics)


@pytest.mark.parametrize("case", CASES)
def test_eager(case: str) -> None:
    run(CASES[case]())


#: One case of each method, which is stacked; stacking runs the captured graphs too.
FIRST = {case.partition("/")[0]: case for case in reversed(CASES) if not case.startswith("rlpd_pixels")}.values()
#: Those whose update is no other's with another loss; the rest are stacked by the slow tests.
STACKED = tuple(f"{method}/" for method in ("rlpd", "a3rl", "awac", "aca", "cql", "iql", "off2on", "fql"))


def slow_if(slow: Callable[[str], bool]) -> list[Any]:
    """The cases, some of them marked slow."""
    return [pytest.param(case, marks=pytest.mark.slow) if slow(case) else case for case in CASES]


@pytest.mark.parametrize("case", slow_if(lambda case: case in FIRST))
def test_captured(case: str) -> None:
    """The graphs that are compiled, run as they are."""
    whole = CASES[case]()
    whole.update.compile()
    with without_kernels():
        run(whole)


@pytest.mark.compiler
@pytest.mark.slow
@pytest.mark.parametrize("case", ["a3rl/update_A/official", "td3_bc/A"])
def test_kernels(case: str) -> None:
    """The generated code itself."""
    whole = CASES[case]()
    whole.update.compile()
    run(whole)


@pytest.mark.parametrize("case", slow_if(lambda case: case not in FIRST or not case.startswith(STACKED)))
def test_stacked(case: str) -> None:
    agents = [CASES[case]() for _ in range(2)]
    update = Update.stack([agent.update for agent in agents]).compile()
    metrics: dict[str, Tensor] = {}
    with without_kernels():
        for turn, batch in enumerate(agents[0].batches):
            for agent in agents:
                agent.loss.noise = Recorded(agent.noise[turn])
            metrics = update(torch.stack([batch, batch]))
            for agent in agents:
                agent.after()
    for position, agent in enumerate(agents):
        agent.check({name: value[position] for name, value in metrics.items()})
