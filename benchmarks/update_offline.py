# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""One update of the offline learners: plain eager torch, TorchRL's losses, ours eager and as one compiled function.

    python benchmarks/update_offline.py             11 rounds, one thread
    python benchmarks/update_offline.py --short     3 rounds
    python benchmarks/update_offline.py --only awac iql
    python benchmarks/update_offline.py --bfloat16      bfloat16 products too: slow on many CPUs

Batch 256, 2x256, two critics, observation 17, action 6. Contenders take turns within every round; only ratios of one
run may be quoted. Products of the critics' size take a turn too: the last column is the share of their rate.
"""

from __future__ import annotations

import argparse
import logging
import os
import warnings
from collections.abc import Callable, Iterable
from functools import reduce
from typing import Any, cast

import plain
import torch
from memory import remember
from tensordict import TensorDict
from timing import Update, by_onednn, count_gflop, products, take_turns
from torch import nn
from torchrl.objectives import CQLLoss as UpstreamCQLLoss
from torchrl.objectives import IQLLoss as UpstreamIQLLoss
from torchrl.objectives import SoftUpdate
from torchrl.objectives import TD3BCLoss as UpstreamTD3BCLoss

from torchrl_o2o.modules import (
    ConservativePenalty,
    make_actor,
    make_baselines,
    make_deterministic_actor,
    make_gaussian_actor,
    make_qvalue_ensemble,
    make_value_network,
)
from torchrl_o2o.objectives import ACALoss, AWACLoss, CalQLLoss, CQLLoss, IQLLoss, SACMLLoss, TD3BCLoss
from torchrl_o2o.testing import random_transitions
from torchrl_o2o.updates import compile_update, keep_freed_memory
from torchrl_o2o.updates.loss_calls import call_loss
from torchrl_o2o.updates.program import Mode

OBSERVATION, ACTION, BATCH = plain.OBSERVATION, plain.ACTION, 256
SIZE = (OBSERVATION, ACTION)


def critics() -> list:
    """Two critics without LayerNorm."""
    return make_qvalue_ensemble(*SIZE, num_qvalue_nets=2, layer_norm=False)


LOSSES: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "awac": (lambda: AWACLoss(make_gaussian_actor(*SIZE), critics()), ("qvalue", "actor")),
    "iql": (
        lambda: IQLLoss(make_gaussian_actor(*SIZE), critics(), make_value_network(OBSERVATION)),
        ("value", "actor", "qvalue"),
    ),
    "cql": (
        lambda: CQLLoss(make_actor(*SIZE), critics(), penalty=ConservativePenalty(5.0)),
        ("qvalue", "actor", "alpha"),
    ),
    "cal_ql": (
        lambda: CalQLLoss(make_actor(*SIZE), critics(), penalty=ConservativePenalty(5.0)),
        ("qvalue", "actor", "alpha"),
    ),
    "td3_bc": (lambda: TD3BCLoss(make_deterministic_actor(*SIZE), critics()), ("qvalue", "actor")),
    "sac_ml": (
        lambda: SACMLLoss(make_actor(*SIZE), critics(), make_baselines(OBSERVATION)),
        ("alpha", "qvalue", "baseline", "actor"),
    ),
    "aca": (lambda: ACALoss(make_actor(*SIZE), critics(), make_actor(*SIZE)), ("alpha", "qvalue", "actor")),
}
PLAIN: dict[str, Callable[[], Update]] = {
    "awac": plain.awac,
    "iql": plain.iql,
    "cql": plain.cql,
    "cal_ql": lambda: plain.cql(calibrated=True),
    "td3_bc": plain.td3_bc,
    "sac_ml": plain.sac_ml,
    "aca": plain.aca,
}
EDGES: Any = (-1, 1)  # TorchRL's annotation says one number
UPSTREAM: dict[str, Callable[[], Any]] = {
    "iql": lambda: UpstreamIQLLoss(
        make_gaussian_actor(*SIZE), critics(), make_value_network(OBSERVATION), num_qvalue_nets=2, loss_function="l2"
    ),
    "cql": lambda: UpstreamCQLLoss(make_actor(*SIZE), critics(), loss_function="l2"),
    "td3_bc": lambda: UpstreamTD3BCLoss(
        make_deterministic_actor(*SIZE), critics(), bounds=EDGES, num_qvalue_nets=2, loss_function="l2"
    ),
}
JOINT = ("cql", "cal_ql")


def adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of our losses and TorchRL's; the plain form has stock Adam, as such scripts have."""
    return torch.optim.Adam([value for value in parameters if value.requires_grad], lr=3e-4, fused=True)


def optimizers(loss: Any, names: tuple[str, ...]) -> dict[str, torch.optim.Optimizer]:
    """One per loss."""
    held = {"alpha": "temperature"} | {name: f"{name}_network_params" for name in names if name != "alpha"}
    return {name: adam(getattr(loss, held[name]).parameters()) for name in names}


def joint_update(loss: Any) -> Update:
    """All losses of one call, one optimizer, as TorchRL's losses and ours are used in the shortest script."""
    optim, updater = adam(loss.parameters()), SoftUpdate(loss, tau=plain.TAU)

    def update(batch: TensorDict) -> None:
        out = loss(batch)
        optim.zero_grad()
        reduce(torch.add, [value for key, value in out.items() if key.startswith("loss_")]).backward()
        optim.step()
        updater.step()

    return update


def eager(kind: str) -> Update:
    """Our loss, its methods called one after the other, each with what earlier ones returned."""
    make, names = LOSSES[kind]
    loss = make()
    if kind in JOINT:
        return joint_update(loss)
    optims, updater = optimizers(loss, names), SoftUpdate(loss, tau=plain.TAU)

    def update(batch: TensorDict) -> None:
        known: dict[str, Any] = {}
        for name in names:
            value, info = call_loss(loss, name, batch, known)
            known |= info
            optims[name].zero_grad()
            value.backward()
            optims[name].step()
        updater.step()

    return update


def compiled(kind: str, matmul_dtype: torch.dtype | None = None, mode: str = "default") -> Update:
    """Our loss, the whole update compiled."""
    make, names = LOSSES[kind]
    loss = make()
    updater = SoftUpdate(loss, tau=plain.TAU)
    how = cast(Mode, mode)  # compile_update checks it
    return compile_update(
        loss, optimizers(loss, names), updater, joint=kind in JOINT, mode=how, matmul_dtype=matmul_dtype
    )


def contenders(kind: str, bfloat16: bool = False) -> dict[str, Update]:
    """All forms of one learner."""
    forms = {"plain eager torch": PLAIN[kind](), "ours, eager": eager(kind), "ours, compile_update": compiled(kind)}
    forms["the same, products by oneDNN"] = by_onednn(compiled(kind))
    if bfloat16:
        forms["ours, compile_update, bf16"] = compiled(kind, torch.bfloat16)
    return forms | ({"TorchRL's loss": joint_update(UPSTREAM[kind]())} if kind in UPSTREAM else {})


def run(kind: str, rounds: int, *, bfloat16: bool = False, calls: int = 10) -> None:
    """Time all forms of one learner and print a table."""
    torch.manual_seed(0)
    batch = random_transitions(BATCH, *SIZE)
    batch["mc_return"] = batch["next", "reward"].clone()
    updates = contenders(kind, bfloat16)
    for update in updates.values():
        update(batch)
    gflop = count_gflop(lambda: updates["ours, eager"](batch))
    product, work = products((2, BATCH, 256, 256))
    turns: dict[str, Callable[[], Any]] = {
        name: lambda update=update: [update(batch) for _ in range(calls)] for name, update in updates.items()
    }
    times = take_turns({**turns, "product": lambda: [product() for _ in range(50)]}, rounds)
    rate = 50 * work / times.pop("product")[0]
    base = times["plain eager torch"][0]
    remember(f"update_offline, {kind}", {name: wall for name, (wall, _) in times.items()}, "plain eager torch")
    print(f"\n{kind}: {gflop:.2f} GFLOP per update; products at {rate * 1e3:.0f} GFLOP/s")
    for name, (wall, cpu) in times.items():
        share = f"{gflop * calls / wall / rate:6.0%}" if name.startswith("ours") else ""
        print(f"  {name:28s}{wall / calls:9.2f} ms{cpu / calls:9.2f} CPU ms{base / wall:8.2f}x {share}", flush=True)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="3 rounds")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--bfloat16", action="store_true", help="compiled with bfloat16 products too")
    parser.add_argument("--only", nargs="+", choices=list(LOSSES), default=list(LOSSES))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("torchrl").setLevel(logging.WARNING)
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # as the scripts do with compile=true; all contenders run with it
    print(f"torch {torch.__version__}, {arguments.threads} thread(s), load {os.getloadavg()[0]:.1f}")
    for kind in arguments.only:
        run(kind, 3 if arguments.short else arguments.rounds, bfloat16=arguments.bfloat16)


if __name__ == "__main__":
    main()
