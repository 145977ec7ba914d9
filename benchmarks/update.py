# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""One agent update at the papers' size: ours, eager and compiled, beside TorchRL's REDQLoss and SACLoss, interleaved.

    python benchmarks/update.py             11 rounds of 20 critic steps, one and two threads
    python benchmarks/update.py --short     3 rounds, one thread
    python benchmarks/update.py --size cpu  the CPU preset's networks: two critics of 2x64, utd_ratio 4
    taskset -c 0 python benchmarks/update.py --threads 1 --jax --utd-ratio 4      beside JAX, on one core
    python benchmarks/update.py --device cuda --routes default     on a GPU, with the update as one CUDA graph as well

An update is utd_ratio critic steps with target averaging, then one actor and one temperature step. All contenders have
E critics and the same layers, batches and optimizer (fused Adam), and take turns within every round, so that a busy
machine slows all of them. Printed are medians per critic step and ratios within this one run; nothing else may be
quoted. A matrix product of the critics' size takes its turn too: the share of its rate that an update reaches is the
share of what the machine can do.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import warnings
from collections.abc import Callable
from typing import NamedTuple

import tensordict
import torch
import torchrl
from memory import remember
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from timing import Update, by_onednn, count_gflop, products, seconds, take_turns
from torch import nn
from torchrl.modules import ProbabilisticActor
from torchrl.objectives import REDQLoss, SACLoss, SoftUpdate
from torchrl.objectives.common import LossModule

from torchrl_o2o.modules import make_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import EnsembleSACLoss
from torchrl_o2o.testing import random_transitions
from torchrl_o2o.updates import compile_update, keep_freed_memory, matmul_route

OBSERVATION, ACTION, SUBSET, BATCH = 17, 6, 2, 256


class Size(NamedTuple):
    """Of the networks and of an update."""

    members: int
    width: int
    utd_ratio: int


PAPER = Size(10, 256, 20)
SIZES = {"paper": PAPER, "cpu": Size(2, 64, 4)}


def networks(size: Size) -> tuple[ProbabilisticActor, list[TensorDictModule]]:
    """RLPD's networks: two hidden layers, critics with LayerNorm."""
    hidden = [size.width, size.width]
    actor = make_actor(OBSERVATION, ACTION, hidden_sizes=hidden)
    return actor, make_qvalue_ensemble(OBSERVATION, ACTION, num_qvalue_nets=size.members, hidden_sizes=hidden)


def adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of all contenders."""
    return torch.optim.Adam(parameters, lr=3e-4, fused=True)


def group(loss: LossModule, prefix: str) -> list[nn.Parameter]:
    """Trained parameters of a loss whose names begin with a prefix."""
    return [value for name, value in loss.named_parameters() if name.startswith(prefix) and value.requires_grad]


def descend(optim: torch.optim.Optimizer, value: torch.Tensor) -> None:
    """One step of gradient descent."""
    optim.zero_grad()
    value.backward()
    optim.step()


def ours(size: Size = PAPER) -> Update:
    """EnsembleSACLoss, its three losses stepped separately."""
    loss = EnsembleSACLoss(*networks(size), sub_sample_len=SUBSET)
    updater = SoftUpdate(loss, tau=0.005)
    critic, actor = adam(group(loss, "qvalue")), adam(group(loss, "actor"))
    alpha = adam(group(loss, "temperature"))

    def update(batch: TensorDict) -> None:
        minibatches = batch.split(BATCH)
        for minibatch in minibatches:
            descend(critic, loss.qvalue_loss(minibatch)[0])
            updater.step()
        loss_actor, info = loss.actor_loss(minibatches[-1])
        descend(actor, loss_actor)
        descend(alpha, loss.alpha_loss(minibatches[-1], log_prob=info["log_prob"])[0])

    return update


def whole(mode: str, matmul_dtype: torch.dtype | None = None, size: Size = PAPER) -> Update:
    """EnsembleSACLoss, the whole update compiled."""
    loss = EnsembleSACLoss(*networks(size), sub_sample_len=SUBSET)
    names = {"qvalue": "qvalue", "actor": "actor", "alpha": "temperature"}
    optims = {name: adam(group(loss, prefix)) for name, prefix in names.items()}
    updater = SoftUpdate(loss, tau=0.005)
    return compile_update(loss, optims, updater, utd_ratio=size.utd_ratio, mode=mode, matmul_dtype=matmul_dtype)  # type: ignore[arg-type]


def redq(size: Size = PAPER) -> Update:
    """TorchRL's REDQLoss as its own scripts use it: one call that returns all losses, for every critic step."""
    actor_network, critics = networks(size)
    loss = REDQLoss(actor_network, critics, num_qvalue_nets=size.members, sub_sample_len=SUBSET, loss_function="l2")
    updater = SoftUpdate(loss, tau=0.005)
    critic, actor, alpha = adam(group(loss, "qvalue")), adam(group(loss, "actor")), adam(group(loss, "log_alpha"))

    def update(batch: TensorDict) -> None:
        minibatches = batch.split(BATCH)
        for minibatch in minibatches:
            out = loss(minibatch)
            descend(critic, out["loss_qvalue"])
            updater.step()
        out = loss(minibatches[-1])
        descend(actor, out["loss_actor"])
        descend(alpha, out["loss_alpha"])

    return update


def sac(size: Size = PAPER) -> Update:
    """TorchRL's SACLoss with as many critics and separate critic steps; it takes the minimum over all of them."""
    actor_network, critics = networks(size)
    loss = SACLoss(actor_network, critics, num_qvalue_nets=size.members, loss_function="l2")
    updater = SoftUpdate(loss, tau=0.005)
    critic, actor, alpha = adam(group(loss, "qvalue")), adam(group(loss, "actor")), adam(group(loss, "log_alpha"))

    def update(batch: TensorDict) -> None:
        minibatches = batch.split(BATCH)
        for minibatch in minibatches:
            value = loss.qvalue_v2_loss(minibatch)[0]
            descend(critic, value.sum(0).mean() if value.ndim else value)
            updater.step()
        value, info = loss.actor_loss(minibatches[-1])
        descend(actor, value.mean())
        descend(alpha, loss.alpha_loss(info["log_prob"]).mean())

    return update


CONTENDERS: dict[str, Callable[[Size], Update]] = {
    "REDQLoss (TorchRL), joint": redq,
    "SACLoss (TorchRL), separate": sac,
    "EnsembleSACLoss, eager": ours,
    "EnsembleSACLoss, compile_update": lambda size: whole("default", size=size),
    "the same, products by oneDNN": lambda size: by_onednn(whole("default", size=size)),
    "the same, bfloat16": lambda size: whole("default", torch.bfloat16, size),
}


def megabytes_moved(size: Size) -> float:
    """What a critic step reads and writes at least, if nothing stays in a cache: parameters and hidden layers, in MB.

    Per parameter: Adam reads it, its gradient and two moments and writes three of them, the product before wrote the
    gradient, and its target is read and written. Per number of a hidden layer: forward the product is written and read,
    the normalized one written and read by the next product; backward the gradient is written and read, the saved
    product and activation are read, the gradient behind them is written, and read by two products.
    """
    inputs, width = OBSERVATION + ACTION, size.width
    parameters = size.members * (inputs * width + width * width + width + 6 * width + 1)
    hidden = 2 * BATCH * width * (11 * size.members + 4 * SUBSET)
    return 4e-6 * (10 * parameters + hidden)


def megabytes_per_ms(megabytes: float = 16.0) -> float:
    """How fast this machine copies memory now, what is read and what is written counted."""
    source = torch.ones(int(megabytes * 1e6 / 4))
    target = torch.empty_like(source)
    return 2e-3 * megabytes / seconds(lambda: target.copy_(source), repeats=5)


def matmul_error() -> float:
    """Relative error of a float32 product by the route in force, against float64."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(256, 256, generator=generator), torch.randn(256, 256, generator=generator)
    exact = a.double() @ b.double()
    return float(((a @ b).double() - exact).norm() / exact.norm())


def by_jax(size: Size) -> Update:
    """The same update in JAX, which is imported only when it takes part."""
    from jax_rlpd import rlpd

    return rlpd(size.members, size.width, size.utd_ratio, SUBSET, OBSERVATION, ACTION)


def run(threads: int, rounds: int, device: str, route: str, size: Size, jax: bool) -> None:
    """Time all contenders, taking turns, and print medians, ratios and the share of the products' rate."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    batch = random_transitions(size.utd_ratio * BATCH, OBSERVATION, ACTION).to(device)
    contenders = dict(CONTENDERS)
    if device != "cpu" or route == "oneDNN":
        del contenders["the same, products by oneDNN"]
    if device != "cpu":
        contenders["EnsembleSACLoss, one CUDA graph"] = lambda size: whole("reduce-overhead", size=size)
        contenders["the same graph, bfloat16"] = lambda size: whole("reduce-overhead", torch.bfloat16, size)
    if jax:
        contenders["JAX"] = by_jax
    updates = {name: make(size) for name, make in contenders.items()}
    for update in updates.values():
        for _ in range(1 if device == "cpu" else 4):
            update(batch)  # compiles, allocates, records
    gflop = count_gflop(lambda: updates["EnsembleSACLoss, eager"](batch)) / size.utd_ratio
    product, work = products((size.members, BATCH, size.width, size.width), device)
    turns = {name: lambda update=update: update(batch) for name, update in updates.items()}
    times = take_turns({**turns, "product": lambda: [product() for _ in range(50)]}, rounds)
    rate = 50 * work / times.pop("product")[0]
    base = times["REDQLoss (TorchRL), joint"][0]
    walls = {name: wall for name, (wall, _) in times.items()}
    remember(f"update, {size}, {threads} threads, {route} products, {device}", walls, "REDQLoss (TorchRL), joint")
    print(
        f"float32 products of {size.members} x [{BATCH}, {size.width}] @ [{size.width}, {size.width}]: "
        f"{rate * 1e3:.0f} GFLOP/s, "
        f"relative error {matmul_error():.1e}"
    )
    print(f"{'':40s}{'ms/critic step':>15s}{'CPU ms':>9s}{'over REDQLoss':>15s}{'of that rate':>14s}")
    for name, (wall, cpu) in times.items():
        share = f"{gflop * size.utd_ratio / wall / rate:14.0%}" if name.startswith("Ensemble") else ""
        print(
            f"{name:40s}{wall / size.utd_ratio:15.2f}{cpu / size.utd_ratio:9.2f}{base / wall:14.2f}x{share}", flush=True
        )
    print(f"{gflop:.2f} GFLOP per critic step of EnsembleSACLoss, actor and temperature steps included: ", end="")
    print(f"{gflop / rate:.2f} ms at the products' rate")
    if device == "cpu":
        moved, speed = megabytes_moved(size), megabytes_per_ms()
        print(f"{moved:.1f} MB to read and write: {moved / speed:.2f} ms at the {speed:.0f} GB/s of a copy")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="3 rounds, one thread")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--routes", nargs="+", choices=["default", "oneDNN"], default=["default", "oneDNN"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", choices=list(SIZES), default="paper")
    parser.add_argument("--utd-ratio", type=int, help="another number of critic steps than the size's")
    parser.add_argument("--jax", action="store_true", help="the same update in JAX takes part (pip install jax optax)")
    arguments = parser.parse_args()
    if arguments.device != "cpu":
        torch.set_default_device(arguments.device)
    keep_freed_memory()  # as the scripts do with compile=true; all contenders run with it
    warnings.filterwarnings("ignore")
    logging.getLogger("torchrl").setLevel(logging.WARNING)
    print(f"torch {torch.__version__}, torchrl {torchrl.__version__}, tensordict {tensordict.__version__}")
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    size = SIZES[arguments.size]
    if arguments.utd_ratio is not None:
        size = size._replace(utd_ratio=arguments.utd_ratio)
    print(f"{size}, Z={SUBSET}, two hidden layers, batch {BATCH}, observation {OBSERVATION}, action {ACTION}")
    for threads in [1] if arguments.short else arguments.threads:
        for route in arguments.routes:
            rounds = 3 if arguments.short else arguments.rounds
            print(f"\n{threads} thread(s), {route} products, {rounds} rounds", flush=True)
            with matmul_route("onednn" if route == "oneDNN" else "default"):
                run(threads, rounds, arguments.device, route, size, arguments.jax)


if __name__ == "__main__":
    main()
