# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""One update of RLPD from pixels, or of DrQ-v2, against the same arithmetic in plain torch; drawing stacks from frames.

    OMP_NUM_THREADS=1 python benchmarks/pixels.py                    sizes of a CPU preset, below two minutes
    python benchmarks/pixels.py --size drqv2                         84x84, two critics of 2x1024: minutes
    python benchmarks/pixels.py --size paper --device cuda --compile --autocast
    OMP_NUM_THREADS=1 python benchmarks/pixels.py --frames 500_000   a batch of 256 stacks: 6 GB of 64x64 frames

The plain form is how one would write it: modules, padding and cropping by indices, stock Adam, targets by a loop. Both
get uint8 batches on the device, and shift them there.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from tensordict import TensorDict
from timing import take_turns
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam
from torchrl.objectives import SoftUpdate

from torchrl_o2o.data import FrameStorage, RandomShift
from torchrl_o2o.modules import (
    Temperature,
    encoder_width,
    make_bottleneck,
    make_latent_actor,
    make_pixel_actor,
    make_pixel_encoder,
    make_qvalue_ensemble,
)
from torchrl_o2o.objectives import DrQV2Loss, PixelSACLoss
from torchrl_o2o.testing import random_transitions
from torchrl_o2o.updates import Copy, Descend, MoveTargets, Update

ACTION, GAMMA, TAU, LATENT = 6, 0.99, 0.005, 50
# frame, channels, strides, batch, critics, hidden, pad
SIZES = {
    "least": (32, (8, 16, 32), (2, 2, 2), 64, 5, 64, 4),
    "small": (32, (16, 32, 32), (2, 2, 1), 64, 5, 128, 4),
    "cpu": (32, (16, 32, 64), (2, 2, 2), 128, 10, 128, 4),
    "48": (48, (16, 32, 64), (2, 2, 2), 128, 10, 128, 4),
    "half": (64, (16, 32, 64, 128), (2, 2, 2, 2), 128, 10, 256, 4),
    "paper-two": (64, (32, 64, 128, 256), (2, 2, 2, 2), 256, 2, 256, 4),
    "paper": (64, (32, 64, 128, 256), (2, 2, 2, 2), 256, 10, 256, 4),
    "drqv2": (
        84,
        (32, 32, 32, 32),
        (2, 1, 1, 1),
        256,
        2,
        1024,
        4,
    ),  # DrQ-v2's networks and update; RLPD's are the others
}


class PlainNet(nn.Module):
    """Convolutions, a bottleneck, two hidden layers and an output of so many members."""

    def __init__(self, size: tuple, members: int, inputs: int, outputs: int, norm: bool) -> None:
        super().__init__()
        frame, channels, strides, _, _, hidden, _ = size
        layers, before = [], 9
        for number, stride in zip(channels, strides, strict=True):
            layers += [nn.Conv2d(before, number, 3, stride), nn.ReLU()]
            before = number
        self.conv = nn.Sequential(*layers, nn.Flatten())
        width = self.conv(torch.zeros(1, 9, frame, frame)).shape[-1]
        self.latent = nn.Sequential(nn.Linear(width, LATENT), nn.LayerNorm(LATENT), nn.Tanh())
        parts = [nn.Linear(LATENT + inputs, hidden), nn.Linear(hidden, hidden)]
        heads = []
        for _ in range(members):
            layers = []
            for part in copy.deepcopy(parts):
                layers += [part, nn.LayerNorm(hidden), nn.ReLU()] if norm else [part, nn.ReLU()]
            heads.append(nn.Sequential(*layers, nn.Linear(hidden, outputs)))
        self.heads = nn.ModuleList(heads)

    def features(self, frames: Tensor) -> Tensor:
        """What the convolutions see, [B, F]."""
        return self.conv(frames.float() / 255.0)

    def judge(self, features: Tensor, action: Tensor | None = None) -> Tensor:
        """Outputs of all members, [E, B, n]."""
        latent = self.latent(features)
        inputs = latent if action is None else torch.cat([latent, action], -1)
        return torch.stack([head(inputs) for head in self.heads])


def crop(frames: Tensor, pad: int) -> Tensor:
    """Pad by repeating the edge, and cut each sample out at a place of its own."""
    count, _, height, width = frames.shape
    padded = F.pad(frames.float(), (pad,) * 4, mode="replicate").to(torch.uint8)
    offset = torch.randint(0, 2 * pad + 1, (count, 2), device=frames.device)
    rows = offset[:, :1, None] + torch.arange(height, device=frames.device)[None, :, None]
    columns = offset[:, 1:, None] + torch.arange(width, device=frames.device)[None, None, :]
    return padded[torch.arange(count, device=frames.device)[:, None, None], :, rows, columns].permute(0, 3, 1, 2)


def plain_update(size: tuple, device: str) -> Callable[[TensorDict], Any]:
    """RLPD's whole call at one update a step."""
    members, pad = size[4], size[6]
    critic = PlainNet(size, members, ACTION, 1, True).to(device)
    actor, target = PlainNet(size, 1, 0, 2 * ACTION, False).to(device), copy.deepcopy(critic)
    log_alpha = torch.zeros((), device=device, requires_grad=True)
    critic_optim, alpha_optim = Adam(critic.parameters(), lr=3e-4), Adam([log_alpha], lr=3e-4)
    actor_optim = Adam([*actor.latent.parameters(), *actor.heads.parameters()], lr=3e-4)

    def act(frames: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            features = actor.features(frames)
        mean, log_std = actor.judge(features)[0].chunk(2, -1)
        std = log_std.clamp(-20, 2).exp()
        draw = mean + std * torch.randn_like(std)
        action = draw.tanh()
        normal = torch.distributions.Normal(mean, std).log_prob(draw) - torch.log1p(-action.square() + 1e-6)
        return action, normal.sum(-1)

    def update(batch: TensorDict) -> Any:
        actor.conv.load_state_dict(critic.conv.state_dict())
        frames, following = (crop(batch[key], pad) for key in ("observation", ("next", "observation")))
        with torch.no_grad():
            action, _ = act(following)
            value = target.judge(target.features(following), action).squeeze(-1)
            chosen = value[torch.randint(0, members, (1,))].squeeze(0)
            live = 1.0 - batch["next", "terminated"].squeeze(-1).float()
            goal = batch["next", "reward"].squeeze(-1) + GAMMA * live * chosen
        found = critic.judge(critic.features(frames), batch["action"]).squeeze(-1)
        critic_optim.zero_grad()
        (found - goal).square().mean().backward()
        critic_optim.step()
        with torch.no_grad():
            for slow, fast in zip(target.parameters(), critic.parameters(), strict=True):
                slow.lerp_(fast, TAU)
        action, log_prob = act(frames)
        with torch.no_grad():
            features = critic.features(frames)
        value = critic.judge(features, action).squeeze(-1).mean(0)
        actor_optim.zero_grad()
        (log_alpha.exp().detach() * log_prob - value).mean().backward()
        actor_optim.step()
        alpha_optim.zero_grad()
        (-log_alpha.exp() * (log_prob.detach() - 0.5 * ACTION).mean()).backward()
        alpha_optim.step()

    return update


def plain_drqv2(size: tuple, device: str) -> Callable[[TensorDict], Any]:
    """DrQ-v2's whole update: critics and convolutions together, then the policy on the features of before."""
    pad = size[6]
    critic, actor = PlainNet(size, 2, ACTION, 1, False).to(device), PlainNet(size, 1, 0, ACTION, False).to(device)
    target = copy.deepcopy(critic)
    slow = [*target.latent.parameters(), *target.heads.parameters()]
    fast = [*critic.latent.parameters(), *critic.heads.parameters()]
    critic_optim = Adam(critic.parameters(), lr=1e-4)
    actor_optim = Adam([*actor.latent.parameters(), *actor.heads.parameters()], lr=1e-4)

    def act(features: Tensor) -> Tensor:
        mean = actor.judge(features)[0].tanh()
        return (mean + (0.2 * torch.randn_like(mean)).clamp(-0.3, 0.3)).clamp(-1.0, 1.0)

    def update(batch: TensorDict) -> Any:
        frames, following = (crop(batch[key], pad) for key in ("observation", ("next", "observation")))
        features = critic.features(frames)
        with torch.no_grad():
            after = critic.features(following)
            value = target.judge(after, act(after)).squeeze(-1).amin(0)
            live = 1.0 - batch["next", "terminated"].squeeze(-1).float()
            goal = batch["next", "reward"].squeeze(-1) + GAMMA * live * value
        found = critic.judge(features, batch["action"]).squeeze(-1)
        critic_optim.zero_grad()
        (found - goal).square().mean(-1).sum().backward()
        critic_optim.step()
        features = features.detach()
        actor_optim.zero_grad()
        (-critic.judge(features, act(features)).amin(0)).mean().backward()
        actor_optim.step()
        with torch.no_grad():
            for old, new in zip(slow, fast, strict=True):
                old.lerp_(new, TAU)

    return update


def lay_out_(*modules: nn.Module) -> None:
    """Their convolutions' weights with the channels last in memory."""
    for layer in chain.from_iterable(module.modules() for module in modules):
        if isinstance(layer, nn.Conv2d):
            # torch's overloads leave this argument out.
            layer.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def our_drqv2(size: tuple, device: str, *, channels_last: bool = False) -> tuple[Update, RandomShift]:
    """The package's, eager."""
    frame, channels, strides, _, _, hidden, pad = size
    conv = {"features": channels, "strides": strides, "offset": 0.5, "initialization": "orthogonal"}
    encoder = make_pixel_encoder((9, frame, frame), latent_dim=None, out_key="features", **conv)
    if channels_last:
        lay_out_(encoder)
    width = encoder_width(encoder)
    actor = make_latent_actor(width, ACTION, latent_dim=LATENT, hidden_sizes=(hidden, hidden))
    heads = {"hidden_sizes": (hidden, hidden), "layer_norm": False, "in_keys": ("latent", "action")}
    critics = make_qvalue_ensemble(LATENT, ACTION, num_qvalue_nets=2, **heads)
    loss = DrQV2Loss(encoder, actor, make_bottleneck(width, LATENT), critics).to(device)
    loss.make_value_estimator(gamma=GAMMA)
    trained = loss.encoder_network_params, loss.latent_network_params, loss.qvalue_network_params
    update = Update(
        loss,
        Descend("qvalue", Adam([param for part in trained for param in part.parameters()], lr=1e-4)),
        Descend("actor", Adam(loss.actor_network_params.parameters(), lr=1e-4)),
        MoveTargets(SoftUpdate(loss, tau=TAU)),
    )
    return update, RandomShift(pad)


def our_update(size: tuple, device: str, *, channels_last: bool = False) -> tuple[Update, RandomShift]:
    """The package's, eager."""
    frame, channels, strides, _, members, hidden, pad = size
    encoder = make_pixel_encoder((9, frame, frame), features=channels, strides=strides, latent_dim=LATENT)
    actor = make_pixel_actor(encoder, ACTION, hidden_sizes=(hidden, hidden))
    heads = make_qvalue_ensemble(
        LATENT, ACTION, num_qvalue_nets=members, hidden_sizes=(hidden, hidden), in_keys=("latent", "action")
    )
    if channels_last:
        lay_out_(encoder, actor)
    settings = {"sub_sample_len": 1, "entropy_backup": False, "ensemble_reduction": "mean"}
    loss = PixelSACLoss(actor, encoder, heads, temperature=Temperature(-0.5 * ACTION), **settings).to(device)
    loss.make_value_estimator(gamma=GAMMA)
    critics = [*loss.encoder_network_params.parameters(), *loss.qvalue_network_params.parameters()]
    update = Update(
        loss,
        Copy(*PixelSACLoss.LATE_COPY),
        Descend("qvalue", Adam(critics, lr=3e-4)),
        MoveTargets(SoftUpdate(loss, tau=TAU)),
        Descend("actor", Adam(loss.actor_network_params.parameters(), lr=3e-4)),
        Descend("alpha", Adam(loss.temperature.parameters(), lr=3e-4)),
    )
    return update, RandomShift(pad)


def contenders(arguments: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """All forms of one update, on the same batch."""
    size, device = SIZES[arguments.size], arguments.device
    batch = random_transitions(size[3], 1, ACTION)
    for key in ("observation", ("next", "observation")):
        batch[key] = torch.randint(0, 256, (size[3], 9, size[0], size[0]), dtype=torch.uint8)
    batch = batch.to(device)
    forms: dict[str, Callable[[], Any]] = {}
    make_plain, ours = (plain_drqv2, our_drqv2) if arguments.size == "drqv2" else (plain_update, our_update)
    plain = make_plain(size, device)
    forms["plain torch"] = lambda: plain(batch)

    def add(name: str, *, compiled: bool = False, autocast: bool = False, **settings: Any) -> None:
        update, shift = ours(size, device, **settings)
        if compiled:
            update.compile()

        def run() -> None:
            with torch.autocast(device, torch.bfloat16, enabled=autocast):
                update(shift(batch))

        forms[name] = run

    add("Update, eager")
    add("Update, eager, channels last", channels_last=True)
    if arguments.compile:
        add("Update, compiled", compiled=True)
        add("Update, compiled, channels last", compiled=True, channels_last=True)
    if arguments.autocast:
        add("Update, eager, channels last, bfloat16 by autocast", channels_last=True, autocast=True)
    return forms


def draw_stacks(arguments: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """Draw 256 rows of stacks at s and s' from so many frames."""
    size, count = SIZES[arguments.size][0] if arguments.size != "cpu" else 64, arguments.frames
    frames = torch.zeros(count, 3, size, size, dtype=torch.uint8)
    frames[:: max(1, count // 1000)] = 1  # touched, so that pages are not all the same one
    frames.view(-1)[::4096] = 2
    storage = FrameStorage(count, {"observation": frames}, num_offline=count - 1, device=arguments.device)
    rows = random_transitions(count - 1, 1, ACTION)
    number = torch.arange(count - 1)
    rows["observation"] = (number[:, None] + torch.arange(-2, 1)).clamp(min=0)
    rows["next", "observation"] = rows["observation"] + 1
    storage.set(number, rows)
    return {f"256 stacks of {count} frames": lambda: storage.get(torch.randint(0, count - 1, (256,)))}


def main() -> None:
    """Measure, interleaved, and print medians and ratios to the first form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="cpu")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--autocast", action="store_true")
    parser.add_argument("--frames", type=int, default=0, help="measure drawing from so many frames instead")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    forms = draw_stacks(arguments) if arguments.frames else contenders(arguments)
    for form in forms.values():
        form()  # compiled ones are captured here
        form()
    found = take_turns(forms, arguments.rounds)
    first = next(iter(found.values()))
    print(f"{'':52} {'wall ms':>9} {'CPU ms':>9} {'rate':>6} {'by CPU':>7}")
    for name, (wall, cpu) in found.items():
        print(f"{name:52} {wall:9.1f} {cpu:9.1f} {first[0] / wall:6.2f} {first[1] / cpu:7.2f}")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(found, file, indent=2)


if __name__ == "__main__":
    main()
