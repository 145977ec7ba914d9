# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What A3RL costs on top of RLPD per environment step, and which cheap estimators rank like the authors' 100 samples.

    python benchmarks/a3rl.py                   cost, then ranks
    python benchmarks/a3rl.py --short           fewer rounds and training steps
    python benchmarks/a3rl.py --only ranks      one of them

Cost: whole environment steps at utd_ratio 20 (sample, score, critic, actor and temperature steps) and scorings alone,
all taking turns within every round, so that a busy machine slows all of them. Only the ratios within one run may be
quoted. "authors" evaluates all 100 samples of all rows and both members in one eager batch, which is their formulation
(a vmap over samples and members); "loop" goes through samples and members one by one. Both compute as many critic
values as the parity preset. "products" is what no exact scoring can be faster than: the second layers' products alone.
Ranks: Spearman correlation with A from 100 independent samples and the same two members, on critics trained on local
data; the ceiling is another 100 samples.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor, nn
from torchrl.data import ReplayBuffer, TensorDictReplayBuffer
from torchrl.objectives import SoftUpdate

from torchrl_o2o.data import BalancedSampler, OnlineWriter, PoolSampler, load_offline, offline_online_storage
from torchrl_o2o.functional import centered_rank
from torchrl_o2o.modules import DensityRatio, make_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import DensityRatioLoss, EnsembleSACLoss
from torchrl_o2o.objectives.networks import call_ensemble, flat_parameters, take_members
from torchrl_o2o.priorities import Advantage, AdvantageAligned, DensityRatioScore
from torchrl_o2o.testing import random_transitions
from torchrl_o2o.updates import Descend, MoveTargets, Repeat, Update

OBSERVATION, ACTION, MEMBERS, SUBSET, BATCH, UTD = 17, 6, 10, 2, 256, 20
POOL, SAMPLES = 4 * BATCH, 10


def adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of all parts."""
    return torch.optim.Adam(parameters, lr=3e-4, fused=True)


def descend(optim: torch.optim.Optimizer, value: Tensor) -> None:
    """One step of gradient descent."""
    optim.zero_grad()
    value.backward()
    optim.step()


class Agent:
    """RLPD's learner at the paper's size, with a density ratio beside it."""

    def __init__(self, compiled: bool, observation: int = OBSERVATION, action: int = ACTION) -> None:
        critics = make_qvalue_ensemble(observation, action, num_qvalue_nets=MEMBERS)
        self.loss = EnsembleSACLoss(make_actor(observation, action), critics, sub_sample_len=SUBSET)
        self.ratio = DensityRatio(observation, action)
        self.ratio_loss = DensityRatioLoss(self.ratio)
        self.compiled = compiled
        updater = MoveTargets(SoftUpdate(self.loss, tau=0.005))
        parts = (self.loss.qvalue_network_params, self.loss.actor_network_params, self.loss.temperature)
        critic, actor, alpha = (adam(list(part.parameters())) for part in parts)
        steps = Descend("actor", actor), Descend("alpha", alpha)
        self.update = Update(self.loss, Repeat(UTD, Descend("qvalue", critic), updater), *steps)
        self.critics_alone = Update(self.loss, Descend("qvalue", critic), updater)
        self.actor_alone = Update(self.loss, *steps)
        self.update_ratio = Update(
            self.ratio_loss, Repeat(UTD, Descend("density_ratio", adam(list(self.ratio_loss.parameters()))))
        )
        if compiled:
            for update in (self.update, self.critics_alone, self.actor_alone, self.update_ratio):
                update.compile()

    def advantage(self, **settings: int | bool) -> Advantage:
        """An advantage, compiled if the agent is."""
        advantage = Advantage(self.loss, **settings)  # type: ignore[arg-type]
        if self.compiled:
            advantage.compile()
        return advantage


@torch.no_grad()
def looped(loss: EnsembleSACLoss, rows: TensorDictBase, samples: int = 100) -> Tensor:
    """The authors' A, written as a loop: one sample and one member at a time."""
    members = torch.randperm(MEMBERS)[:SUBSET].tolist()
    with loss.actor_network_params.to_module(loss.actor_network):
        dist = loss.actor_network.get_dist(rows)

    def qvalue(action: Tensor) -> Tensor:
        values = []
        for member in members:
            with loss.target_qvalue_network_params.data[member].to_module(loss.qvalue_network):
                values.append(loss.qvalue_network.module(rows["observation"], action).squeeze(-1))
        return torch.stack(values).amin(0)

    return qvalue(rows["action"]) - sum(qvalue(dist.rsample()) for _ in range(samples)) / samples


@torch.no_grad()
def at_once(loss: EnsembleSACLoss, rows: TensorDictBase, samples: int = 100) -> Tensor:
    """The authors' A as their code has it, all samples and members in one batch."""
    critics = take_members(flat_parameters(loss.target_qvalue_network_params.data), torch.randperm(MEMBERS)[:SUBSET])
    with loss.actor_network_params.to_module(loss.actor_network):
        action = torch.cat([rows["action"].unsqueeze(0), loss.actor_network.get_dist(rows).rsample((samples,))])
    states = rows.get("observation").repeat(samples + 1, 1)
    inputs: dict[NestedKey, Tensor] = {"observation": states, "action": action.flatten(0, 1)}
    qvalue = call_ensemble(loss.qvalue_network, critics, inputs, "state_action_value").amin(0).reshape(samples + 1, -1)
    return qvalue[0] - qvalue[1:].mean(0)


@torch.no_grad()
def products(loss: EnsembleSACLoss, samples: int = 100) -> None:
    """The matrix products of the second layer that scoring 5120 rows takes."""
    weight = loss.target_qvalue_network_params.data["module", "trunk", "0", "3", "weight"]
    hidden = torch.ones(UTD * BATCH, weight.shape[-1])
    for _ in range(samples + 1):
        for member in weight[:SUBSET]:
            nn.functional.linear(hidden, member)


def buffers(sampler: BalancedSampler | PoolSampler, batch_size: int) -> ReplayBuffer:
    """A buffer of random rows, half of them offline."""
    generator = torch.Generator().manual_seed(0)
    rows = random_transitions(40_000, OBSERVATION, ACTION, generator=generator)
    storage = offline_online_storage(rows[:20_000], 20_000)
    storage.set(slice(20_000, 40_000), rows[20_000:])
    return TensorDictReplayBuffer(storage=storage, sampler=sampler, writer=OnlineWriter(20_000), batch_size=batch_size)


def contenders(compiled: bool) -> dict[str, Callable[[], object]]:
    """Whole environment steps and scorings alone, by name."""
    agent, size = Agent(compiled), UTD * BATCH
    uniform = buffers(BalancedSampler(20_000, 0.5), size)
    density_rows = buffers(BalancedSampler(20_000, 0.5), BATCH)
    fast, exact = {"num_samples": SAMPLES}, {"num_samples": 100, "shared_noise": False, "antithetic": False}
    default, parity = agent.advantage(**fast), agent.advantage(**exact)
    score = DensityRatioScore(agent.ratio)
    pool = buffers(PoolSampler(AdvantageAligned(default, score), 20_000, pool_size=POOL), size)
    published = buffers(PoolSampler.as_published(AdvantageAligned(parity, score), 20_000), size)
    naive = buffers(PoolSampler.as_published(lambda rows: score(rows) + looped(agent.loss, rows), 20_000), size)

    def a3rl() -> None:
        agent.update_ratio(density_rows.sample())
        agent.update(pool.sample())

    def authors(replay: ReplayBuffer) -> None:
        agent.update(replay.sample())
        agent.update_ratio(uniform.sample())

    rows, few = uniform.sample(), uniform.sample()[:POOL]
    return {
        "step: RLPD": lambda: agent.update(uniform.sample()),
        "step: A3RL, default": a3rl,
        "step: A3RL, parity preset": lambda: authors(published),
        "step: A3RL, loop": lambda: authors(naive),
        "score: default, 1024 x 10": lambda: default(few),
        "score: parity, 5120 x 100": lambda: parity(rows),
        "score: loop": lambda: looped(agent.loss, rows),
        "score: authors": lambda: at_once(agent.loss, rows),
        "score: products": lambda: products(agent.loss),
    }


def cost(compiled: bool, rounds: int, route: str, wanted: list[str]) -> None:
    """Time everything wanted, taking turns, and print medians and paired ratios of wall and CPU time."""
    torch.manual_seed(0)
    torch.backends.mkldnn.matmul.fp32_precision = "bf16" if route == "oneDNN" else "none"  # type: ignore[attr-defined]
    table = {name: call for name, call in contenders(compiled).items() if any(word in name for word in wanted)}
    for call in table.values():
        call()
    wall: dict[str, list[float]] = {name: [] for name in table}
    cpu: dict[str, list[float]] = {name: [] for name in table}
    for _ in range(rounds):
        for name, call in table.items():
            began, spent = time.perf_counter(), time.process_time()
            call()
            wall[name].append((time.perf_counter() - began) * 1e3)
            cpu[name].append((time.process_time() - spent) * 1e3)
    print(
        f"\n{'compiled' if compiled else 'eager'}, {route} matmul, {rounds} rounds, {torch.get_num_threads()} thread(s)"
    )
    print(f"  {'':28s}{'wall ms':>10s}{'CPU ms':>10s}{'over RLPD: wall':>18s}{'CPU':>8s}")
    for name in table:
        ratios = [paired(times[name], times["step: RLPD"]) for times in (wall, cpu)]
        medians = [statistics.median(times[name]) for times in (wall, cpu)]
        print(f"  {name:28s}{medians[0]:10.1f}{medians[1]:10.1f}{ratios[0]:18.2f}{ratios[1]:8.2f}")
    for first, others in PARITY.items():
        for other in (name for name in others if name in table and first in table):
            gain = [paired(times[other], times[first]) for times in (wall, cpu)]
            print(f"  {first} against {other}: {gain[0]:.2f} times as fast by wall, {gain[1]:.2f} by CPU time")


PARITY = {
    "step: A3RL, parity preset": ("step: A3RL, loop",),
    "score: parity, 5120 x 100": ("score: loop", "score: authors", "score: products"),
}


def paired(first: list[float], second: list[float]) -> float:
    """Median of the ratios within rounds."""
    return statistics.median(a / b for a, b in zip(first, second, strict=True))


def trained(steps: int, dataset: str) -> tuple[Agent, TensorDict]:
    """An agent whose critics and actor were trained on a local data set for a while, and the data."""
    data = load_offline(dataset)
    agent = Agent(True, data["observation"].shape[-1], data["action"].shape[-1])
    for step in range(steps):
        minibatch = data[torch.randint(len(data), (BATCH,))]
        agent.critics_alone(minibatch)
        if step % 4 == 0:
            agent.actor_alone(minibatch)
    return agent, data


def spearman(first: Tensor, second: Tensor) -> float:
    """Correlation of ranks."""
    return float(torch.corrcoef(torch.stack([centered_rank(first), centered_rank(second)]))[0, 1])


class Members:
    """Noise of its own, but always the same members."""

    def __init__(self, advantage: Advantage, members: list[int]) -> None:
        self.normal, self.uniform, self.members = advantage.noise.normal, advantage.noise.uniform, members

    def subset(
        self, name: str, num_members: int, size: int, like: Tensor, *, per_row: bool = False, replacement: bool = False
    ) -> Tensor:
        """The fixed members."""
        return torch.tensor(self.members[:size])


def ranks(steps: int, repeats: int, dataset: str) -> None:
    """Print Spearman correlations with the authors' estimator."""
    torch.manual_seed(0)
    agent, data = trained(steps, dataset)
    print(
        f"\nSpearman with 100 independent samples, {POOL} rows of {dataset}, {steps} training steps, {repeats} repeats"
    )
    estimators: dict[str, dict] = {}
    for samples in (1, 2, 5, 10, 20, 100):
        for shared in (False, True):
            for pairs in (False, True) if samples > 1 else (False,):
                name = f"M={samples:<4d}{'common' if shared else 'independent'}{', antithetic' if pairs else ''}"
                estimators[name] = {"num_samples": samples, "shared_noise": shared, "antithetic": pairs}
    estimators["M=10  common, antithetic, online critics"] = {"critics": "online"}
    estimators["M=10  common, antithetic, one member"] = {"sub_sample_len": 1}
    estimators["M=10  common, antithetic, all ten members"] = {"sub_sample_len": MEMBERS}
    estimators["M=10  common, antithetic, two other members"] = {"other": True}
    found: dict[str, list[float]] = {name: [] for name in estimators}
    reference = torch.zeros(0)  # of the last repeat
    for _ in range(repeats):
        rows, order = data[torch.randint(len(data), (POOL,))], torch.randperm(MEMBERS).tolist()
        reference = build(agent, order, num_samples=100, shared_noise=False, antithetic=False)(rows)
        for name, settings in estimators.items():
            own = dict(settings)
            members = order[2:] + order[:2] if own.pop("other", False) else order
            found[name].append(spearman(build(agent, members, **own)(rows), reference))
    for name, values in found.items():
        print(f"  {name:46s}{statistics.mean(values):8.3f}  (least {min(values):.3f})")
    print(f"  A: standard deviation over rows {reference.std():.3f}, mean {reference.mean():.3f}")


def build(agent: Agent, members: list[int], **settings: object) -> Advantage:
    """An eager advantage with fixed members."""
    advantage = Advantage(agent.loss, **settings)  # type: ignore[arg-type]
    advantage.noise = Members(advantage, members)
    return advantage


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="3 rounds, 300 training steps")
    parser.add_argument("--only", choices=["cost", "ranks"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--routes", nargs="+", choices=["default", "oneDNN"], default=["default", "oneDNN"])
    parser.add_argument("--modes", nargs="+", choices=["eager", "compiled"], default=["eager", "compiled"])
    parser.add_argument("--contenders", nargs="+", default=[""], help="parts of names; give 'step: RLPD' as well")
    parser.add_argument("--steps", type=int, default=2000, help="training steps before ranking")
    parser.add_argument("--dataset", default="o2o/halfcheetah/linear-mix-v0")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("torchrl").setLevel(logging.WARNING)
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"E={MEMBERS}, Z={SUBSET}, 2x256, batch {BATCH}, utd_ratio {UTD}, observation {OBSERVATION}, action {ACTION}")
    if arguments.only != "ranks":
        for mode in arguments.modes:
            for route in arguments.routes:
                rounds = 3 if arguments.short else arguments.rounds
                cost(mode == "compiled", rounds, route, arguments.contenders)
    if arguments.only != "cost":
        ranks(300 if arguments.short else arguments.steps, 3 if arguments.short else 5, arguments.dataset)


if __name__ == "__main__":
    main()
