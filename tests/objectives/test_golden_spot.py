# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""SPOTLoss and VAELoss against CORL's numbers, in float64; case B uses the importance-weighted bound and cooling."""

from __future__ import annotations

import pytest
from torchrl.objectives import SoftUpdate

from tests import golden_vectors as golden
from tests.objectives.golden_offline import adam, critics, depth, fill_actor, flat, same_actor, same_critic, step
from tests.objectives.golden_offline import targets as fill_targets
from torchrl_o2o.functional.offline import spot_cooling
from torchrl_o2o.modules import ActionVAE, make_action_vae, make_deterministic_actor
from torchrl_o2o.objectives import RecordedNoise, SPOTLoss, VAELoss

pytestmark = [pytest.mark.usefixtures("float64"), pytest.mark.parametrize("case", ["spot/A", "spot/B"])]


def build_vae(tree: golden.Tree) -> ActionVAE:
    bounds = (golden.hp(tree, "vae_log_std_min"), golden.hp(tree, "vae_log_std_max"))
    hidden = (16,) * (depth(tree, "vae/encoder") + 1)
    vae = make_action_vae(
        5, 3, hidden_sizes=hidden, latent_dim=int(golden.hp(tree, "latent_dim")), log_std_bounds=bounds
    )
    for part in ("encoder", "decoder"):
        golden.fill(getattr(vae.module, part), golden.sub(tree, f"vae/{part}"))
    for head in ("mean", "log_std"):
        getattr(vae.module, head).weight.data.copy_(tree[f"vae/{head}/weight"].T)
        getattr(vae.module, head).bias.data.copy_(tree[f"vae/{head}/bias"])
    return vae


def same_vae(loss: VAELoss, tree: golden.Tree, prefix: str, *, grad: bool = False) -> None:
    params, net = flat(loss.vae_network_params, grad), loss.vae_network.module
    for part in ("encoder", "decoder"):
        golden.assert_params(params, getattr(net, part), golden.sub(tree, f"{prefix}/{part}"), f"module.{part}.")
    for head in ("mean", "log_std"):
        golden.assert_close(params[f"module.{head}.weight"], tree[f"{prefix}/{head}/weight"].T, head)
        golden.assert_close(params[f"module.{head}.bias"], tree[f"{prefix}/{head}/bias"], head)


def build(case: str) -> tuple[golden.Tree, SPOTLoss, SoftUpdate]:
    tree = golden.load(case)
    actor = make_deterministic_actor(5, 3, hidden_sizes=(16,) * depth(tree, "actor"))
    fill_actor(actor, tree)
    loss = SPOTLoss(
        actor,
        critics(tree),
        build_vae(tree),
        density_weight=golden.hp(tree, "lambd"),
        vae_beta=golden.hp(tree, "beta"),
        num_samples=int(golden.hp(tree, "num_samples")),
        iwae=bool(golden.hp(tree, "iwae")),
        policy_noise=golden.hp(tree, "policy_noise"),
        noise_clip=golden.hp(tree, "noise_clip"),
    )
    loss.make_value_estimator(gamma=golden.hp(tree, "discount"))
    if golden.hp(tree, "lambd_cool"):
        settings = [golden.hp(tree, name) for name in ("lambd", "online_it", "max_online_steps", "lambd_end")]
        loss.density_weight.fill_(spot_cooling(settings[0], int(settings[1]), int(settings[2]), settings[3]))
    loss.noise = RecordedNoise(
        {
            "target_smoothing": tree["noise/target_smoothing"],
            "density": tree["noise/density"].transpose(0, 1),  # ours leads with the samples
        }
    )
    return tree, loss, fill_targets(loss, tree)


def test_vae(case: str) -> None:
    tree = golden.load(case)
    loss, batch = VAELoss(build_vae(tree), beta=golden.hp(tree, "beta")), golden.transitions(tree)
    optim = adam(loss.vae_network_params, golden.hp(tree, "vae_lr"))
    loss.noise = RecordedNoise({"latent": tree["noise/vae"]})
    mean, std = loss.vae_network.module.encode(batch["observation"], batch["action"])
    golden.assert_close(mean, tree["out/vae_mean_data"], "mean")
    golden.assert_close(std, tree["out/vae_std_data"], "std")
    value, info = loss.vae_loss(batch)
    golden.assert_close(info["reconstruction_error"].mean(), tree["out/vae/reconstruction_loss"], "reconstruction")
    golden.assert_close(info["kl"].mean(), tree["out/vae/KL_loss"], "divergence")
    golden.assert_close(step(optim, value), tree["out/vae/vae_loss"], "vae loss")
    same_vae(loss, tree, "out/vae/grad", grad=True)
    same_vae(loss, tree, "out/vae/after")


def test_critic(case: str) -> None:
    tree, loss, _ = build(case)
    value, info = loss.qvalue_loss(golden.transitions(tree))
    golden.assert_close(info["target_value"], tree["out/target"], "target")
    golden.assert_close(value, tree["out/critic_loss"], "critic loss")
    value.backward()
    same_critic(loss, tree, "out/critic_grad", grad=True)


def test_actor(case: str) -> None:
    tree, loss, _ = build(case)
    batch = golden.transitions(tree)
    golden.assert_close(loss.data_penalty(batch), tree["out/neg_log_beta_data"], "penalty of the data")
    value, info = loss.actor_loss(batch)
    golden.assert_close(info["penalty"], tree["out/neg_log_beta_policy"], "penalty")
    golden.assert_close(info["penalty"].mean(), tree["out/neg_log_beta_mean"], "mean penalty")
    golden.assert_close(info["density_weight"], tree["out/lambd"], "density weight")
    golden.assert_close(value, tree["out/actor_loss"], "actor loss")
    value.backward()
    same_actor(loss, tree, "out/actor_grad", grad=True)


def test_one_training_step(case: str) -> None:
    """Critic, actor with the new critic, all targets."""
    tree, loss, updater = build(case)
    batch = golden.transitions(tree)
    critic_optim = adam(loss.qvalue_network_params, golden.hp(tree, "critic_lr"))
    actor_optim = adam(loss.actor_network_params, golden.hp(tree, "actor_lr"))
    step(critic_optim, loss.qvalue_loss(batch)[0])
    golden.assert_close(step(actor_optim, loss.actor_loss(batch)[0]), tree["out/step/actor_loss"], "actor loss")
    updater.step()
    same_actor(loss, tree, "out/step/actor_after")
    same_actor(loss, tree, "out/step/target_actor_after", target=True)
    same_critic(loss, tree, "out/step/critic_after")
    same_critic(loss, tree, "out/step/target_critic_after", target=True)
