# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Does SAMG's confidence tell the data set's pairs from another policy's? AUC, for states and actions apart.

    python benchmarks/samg_confidence.py                       HalfCheetah and Hopper, a few minutes on one core
    python benchmarks/samg_confidence.py --env hopper --encoders vae-latent
    python benchmarks/samg_confidence.py --split choose        other policies and rows, to choose settings by

"Offline" are rows of one half-trained linear policy (with action noise 0.1), to whose data the encoder and the Normals
are fitted, or the density ratio, in place of both. The other policy is the last snapshot of the same training, or an
untrained linear one; to choose settings by, an earlier and a later snapshot than the offline policy's. "raw" is no
encoder: the Normals are fitted to (s, a) itself. The AUC is the probability that p before the threshold is higher for a
fresh pair of the offline policy than for

    pairs     a pair of the other policy
    states    a state of the other policy with the offline policy's action there
    actions   a fresh state of the offline policy with the other policy's action there
    uniform   a fresh state of the offline policy with a uniform action

so 0.5 is blind and 1 perfect; below 0.5 the other pairs seem more typical than the data set's own.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import time
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor, nn

import torchrl_o2o
from torchrl_o2o.data.datasets.actors import Act, gaussian_noise, linear_policy
from torchrl_o2o.data.datasets.rollout import roll_out
from torchrl_o2o.functional import Aggregator
from torchrl_o2o.modules import (
    Confidence,
    ConfidenceReport,
    DensityRatio,
    DensityRatioConfidence,
    OfflineConfidence,
    make_conditional_vae,
    make_inverse_dynamics,
)
from torchrl_o2o.objectives import ConditionalVAELoss, InverseDynamicsLoss, PerturbationRatioLoss

ENVS = {"halfcheetah": "HalfCheetah-v5", "hopper": "Hopper-v5"}
ENCODERS = ("vae-full", "vae-annealed", "vae-latent", "inverse", "raw", "density-ratio")
#: Seeds of fresh rows, of the other policies' rows, of the actions on foreign states, of foreign and of uniform ones.
SEEDS = {"report": (1, 2, 3, 4, 5), "choose": (101, 102, 103, 104, 105)}
AGGREGATORS: tuple[Aggregator, ...] = ("mean", "min", "geometric", "chi_square")
NOISE = 0.1
POLICIES = Path(torchrl_o2o.__file__).parent / "data" / "datasets" / "policies"


class Raw(nn.Module):
    """No encoder: (s, a) as it is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.latent_dim = width

    def encode(self, observation: Tensor, action: Tensor) -> tuple[Tensor, None]:
        """Observation and action in a row."""
        return torch.cat([observation, action], -1), None


def snapshots(name: str) -> dict[str, Act]:
    """The half-trained policy, as in the data set linear-medium, others of that training and an untrained one."""
    with np.load(POLICIES / f"{name}_linear_f32.npz", allow_pickle=False) as file:
        arrays = list(zip(file["W"], file["mu"], file["sd"]))
    weight, mean, scale = arrays[-1]
    drawn = np.random.default_rng(7).normal(scale=np.sqrt(np.mean(weight**2)), size=weight.shape)
    return {
        "offline": linear_policy(*arrays[len(arrays) // 2 - 1]),
        "earlier": linear_policy(*arrays[len(arrays) // 4 - 1]),
        "later": linear_policy(*arrays[3 * len(arrays) // 4 - 1]),
        "last": linear_policy(*arrays[-1]),
        "untrained": linear_policy(drawn, mean, scale),
    }


def rows(name: str, act: Act, num_steps: int, seed: int) -> TensorDict:
    """Transitions of one policy."""
    env = gymnasium.make(ENVS[name])
    box = env.action_space
    assert isinstance(box, gymnasium.spaces.Box)
    parts = roll_out(env, gaussian_noise(lambda rng: act, box, low=NOISE), num_steps=num_steps, seed=seed)
    states = [np.asarray(part.observations) for part in parts]
    columns = [(seen[:-1], part.actions, seen[1:]) for seen, part in zip(states, parts, strict=True)]
    observation, action, following = (torch.as_tensor(np.concatenate(c), dtype=torch.float32) for c in zip(*columns))
    return TensorDict({"observation": observation, "action": action, "next": {"observation": following}}, [num_steps])


def acting(data: TensorDict, act: Act | None, seed: int) -> TensorDict:
    """The same states with another policy's noisy actions, or with uniform ones."""
    rng = np.random.default_rng(seed)
    shape = tuple(data["action"].shape)
    if act is None:
        action = rng.uniform(-1, 1, shape)
    else:
        means = np.stack([act(row) for row in data.get("observation").double().numpy()])
        action = np.clip(means + NOISE * rng.standard_normal(shape), -1, 1)
    return data.copy().set("action", torch.as_tensor(action, dtype=torch.float32))


def auc(higher: Tensor, lower: Tensor) -> float:
    """Probability that an element of the first is above one of the second, ties counting half."""
    difference = higher.unsqueeze(1) - lower
    return float(((difference > 0).float() + 0.5 * (difference == 0).float()).mean())


def fit_encoder(kind: str, data: TensorDict, steps: int) -> nn.Module:
    """Train one kind of encoder on the offline rows."""
    dims = data["observation"].shape[-1], data["action"].shape[-1]
    if kind == "raw":
        return Raw(sum(dims))
    if kind == "density-ratio":
        encoder = DensityRatio(*dims, standardize=True)
        encoder.fit_scale(data)
        loss = PerturbationRatioLoss(encoder)
    elif kind == "inverse":
        encoder = make_inverse_dynamics(*dims)
        loss = InverseDynamicsLoss(encoder)
    else:
        encoder = make_conditional_vae(*dims, decoder="latent" if kind == "vae-latent" else "full")
        loss = ConditionalVAELoss(encoder)
    optim = torch.optim.Adam(loss.parameters(), lr=1e-3, fused=True)
    for step in range(steps):
        if kind == "vae-annealed" and isinstance(loss, ConditionalVAELoss):
            loss.set_progress(step / steps)
        out = loss(data[torch.randint(len(data), (256,))])
        optim.zero_grad()
        out[loss.out_keys[0]].backward()
        optim.step()
    return encoder


def others(name: str, fresh: TensorDict, size: int, split: str = "report") -> dict[str, TensorDict]:
    """What the confidence is to tell from fresh rows of the offline policy."""
    _, rows_seed, states_seed, actions_seed, uniform_seed = SEEDS[split]
    policies, found = snapshots(name), {"uniform": acting(fresh, None, uniform_seed)}
    for other in ("last", "untrained") if split == "report" else ("earlier", "later"):
        foreign = rows(name, policies[other], size, rows_seed)
        found[f"{other} pairs"] = foreign
        found[f"{other} states"] = acting(foreign, policies["offline"], states_seed)
        found[f"{other} actions"] = acting(fresh, policies[other], actions_seed)
    return found


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", choices=tuple(ENVS), nargs="+", default=list(ENVS))
    parser.add_argument("--encoders", choices=ENCODERS, nargs="+", default=list(ENCODERS))
    parser.add_argument("--rows", type=int, default=30_000, help="offline rows (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=5_000, help="of the encoder's training (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--split", choices=tuple(SEEDS), default="report")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("torchrl").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    for name in arguments.env:
        offline = rows(name, snapshots(name)["offline"], arguments.rows, 0)
        fresh = rows(name, snapshots(name)["offline"], 2_000, SEEDS[arguments.split][0])
        data = {"fresh": fresh, **others(name, fresh, 2_000, arguments.split)}
        for kind, seed in itertools.product(arguments.encoders, arguments.seeds):
            torch.manual_seed(seed)
            start = time.perf_counter()
            encoder = fit_encoder(kind, offline, arguments.steps)
            print(f"{name} {kind}, seed {seed}: {time.perf_counter() - start:.0f} s")
            compare(encoder, offline, data)


def compare(encoder: nn.Module, offline: TensorDict, data: dict[str, TensorDict]) -> None:
    """Print the report and a line of AUCs for each way to make a confidence of this encoder."""
    if isinstance(encoder, DensityRatio):
        confidence = DensityRatioConfidence(encoder)
        judge("density ratio", confidence, confidence.check(offline), data)
        return
    for whiten, aggregator in itertools.product((False, True), AGGREGATORS):
        confidence = OfflineConfidence(encoder, aggregator=aggregator, whiten=whiten, threshold=0.5)
        words = f"{aggregator}{', whitened' if whiten else ''}, KL {{0.kl:.4f}}, spread {{0.spread:.3f}}"
        report = confidence.fit(offline)
        judge(words.format(report), confidence, report, data)


@torch.no_grad()
def judge(words: str, confidence: Confidence, report: ConfidenceReport, data: dict[str, TensorDict]) -> None:
    """Print a line of AUCs."""
    score = {key: confidence.probability(part["observation"], part["action"]) for key, part in data.items()}
    fresh = score.pop("fresh")
    numbers = ", ".join(f"{key} {auc(fresh, other):.3f}" for key, other in score.items())
    print(f"  {words}, p >= 0.5: {report.passing:.2f}: {numbers}", flush=True)


if __name__ == "__main__":
    main()
