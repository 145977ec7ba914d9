# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What SAMG's mixed target costs: the update of each base algorithm with and without it, interleaved.

    python benchmarks/samg.py             21 rounds of 20 updates
    python benchmarks/samg.py --short     5 rounds of 10

Networks and batches have the papers' sizes; observation 17, action 6, batch 256, one thread, eager. With and without
take turns after every single update, so that a busy machine slows both; printed are medians per update and the median
of the rounds' ratios. Only those ratios may be quoted.
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
from functools import reduce

import torch
import torchrl
from tensordict import TensorDict
from torchrl.modules import ProbabilisticActor
from torchrl.objectives import SoftUpdate

from torchrl_o2o.modules import (
    ConstantConfidence,
    make_actor,
    make_gaussian_actor,
    make_qvalue_ensemble,
    make_value_network,
)
from torchrl_o2o.objectives import AWACLoss, CalQLLoss, CQLLoss, EnsembleSACLoss, IQLLoss, SAMGEstimator
from torchrl_o2o.objectives.base import TransitionLoss
from torchrl_o2o.testing import random_transitions

OBSERVATION, ACTION, BATCH = 17, 6, 256
TWO, THREE = (256, 256), (256, 256, 256)


def critics(hidden: tuple[int, ...], number: int = 2, layer_norm: bool = False) -> list:
    """The critics of a base algorithm."""
    return make_qvalue_ensemble(OBSERVATION, ACTION, num_qvalue_nets=number, hidden_sizes=hidden, layer_norm=layer_norm)


def gaussian(hidden: tuple[int, ...]) -> ProbabilisticActor:
    """The actor of AWAC and IQL."""
    return make_gaussian_actor(OBSERVATION, ACTION, hidden_sizes=hidden)


def iql() -> IQLLoss:
    """IQL, 2x256."""
    return IQLLoss(gaussian(TWO), critics(TWO), make_value_network(OBSERVATION))


def cql(kind: type[CQLLoss]) -> CQLLoss:
    """CQL and Cal-QL, 3x256 as CORL's."""
    return kind(make_actor(OBSERVATION, ACTION, hidden_sizes=THREE), critics(THREE))


BASES: dict[str, Callable[[], TransitionLoss]] = {
    "AWAC, 3x256": lambda: AWACLoss(gaussian(THREE), critics(THREE)),
    "IQL, 2x256": iql,
    "CQL, 3x256": lambda: cql(CQLLoss),
    "Cal-QL, 3x256": lambda: cql(CalQLLoss),
    "RLPD's critic step, 10 x 2x256, Z=2": lambda: EnsembleSACLoss(
        make_actor(OBSERVATION, ACTION), critics(TWO, 10, True), sub_sample_len=2
    ),
}


def updater(name: str, guided: bool) -> Callable[[TensorDict], None]:
    """One whole update of a base algorithm: losses, gradients, optimizer, targets."""
    loss = BASES[name]()
    if guided:
        loss.make_value_estimator(SAMGEstimator.from_loss(loss))
    targets = SoftUpdate(loss, tau=0.005)
    network = loss.qvalue_network_params if isinstance(loss, EnsembleSACLoss) else loss
    optim = torch.optim.Adam([value for value in network.parameters() if value.requires_grad], lr=3e-4, fused=True)

    def update(batch: TensorDict) -> None:
        if isinstance(loss, EnsembleSACLoss):  # the critics alone
            value = loss.qvalue_loss(batch)[0]
        else:
            value = reduce(torch.add, [term for key, term in loss(batch).items() if key.startswith("loss_")])
        optim.zero_grad()
        value.backward()
        optim.step()
        targets.step()

    return update


def seconds(update: Callable[[TensorDict], None], batch: TensorDict) -> float:
    """Wall time of one update."""
    start = time.perf_counter()
    update(batch)
    return time.perf_counter() - start


def compare(name: str, rounds: int, updates: int) -> tuple[float, float, float]:
    """Milliseconds without and with SAMG, and the median over rounds of the ratio of medians."""
    torch.manual_seed(0)
    batch = ConstantConfidence(0.5)(random_transitions(BATCH, OBSERVATION, ACTION))
    batch["mc_return"] = batch["next", "reward"].clone()
    pair = (updater(name, False), updater(name, True))
    for update in pair * 3:
        update(batch)
    medians = []
    for _ in range(rounds):
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(updates):
            for update, kept in zip(pair, times):
                kept.append(seconds(update, batch))
        medians.append([1e3 * statistics.median(kept) for kept in times])
    base, guided = (statistics.median(column) for column in zip(*medians))
    return base, guided, statistics.median(after / before for before, after in medians)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="5 rounds of 10 updates")
    rounds, updates = (5, 10) if parser.parse_args().short else (21, 20)
    warnings.filterwarnings("ignore")
    logging.getLogger("torchrl").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, torchrl {torchrl.__version__}, {platform.processor() or platform.machine()}")
    print(f"one thread, load {os.getloadavg()[0]:.1f}; {rounds} rounds of {updates} interleaved updates")
    for name in BASES:
        base, guided, ratio = compare(name, rounds, updates)
        print(f"{name:38} {base:7.2f} ms, with SAMG {guided:7.2f} ms: {100 * (ratio - 1):+5.1f} %")


if __name__ == "__main__":
    main()
