# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Numbered cases of the second list: copies and foreign losses (A8, A10), late settings (B16), batch sizes (B22).

A9, rows over several steps, is in `tests/data/test_storage_and_writers.py`; B17, evaluations whose environment fails,
in `tests/trainers/test_evaluation.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from torchrl.objectives import DDPGLoss

from tests.kernels import without_kernels
from torchrl_o2o.data import load_offline
from torchrl_o2o.data.transforms import AffineReward, ObservationStats, add_mc_return
from torchrl_o2o.envs import GuardedEnv, make_gym_env
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import (
    ConservativePenalty,
    GaussianVectorHead,
    Multiplier,
    Temperature,
    make_action_vae,
    make_actor,
    make_deterministic_actor,
    make_flow_network,
    make_gaussian_actor,
    make_one_step_actor,
    make_qvalue_ensemble,
    make_value_network,
)
from torchrl_o2o.objectives import (
    AWACLoss,
    AWRLoss,
    EnsembleSACLoss,
    FQLLoss,
    IQLLoss,
    ReBRACLoss,
    SAMGEstimator,
    SPOTLoss,
    TD3BCLoss,
    VAELoss,
)
from torchrl_o2o.priorities import Sum, TDError
from torchrl_o2o.scripts import find_script, script_config, script_names
from torchrl_o2o.testing import random_transitions
from torchrl_o2o.trainers import Finetuning, HandOver, weight_decay_groups
from torchrl_o2o.trainers.settings import (
    check_added,
    check_arguments,
    check_no_pretraining,
    check_settings,
    not_taken,
)
from torchrl_o2o.updates import Descend, Update

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


def iql() -> IQLLoss:
    sizes = {"hidden_sizes": (8,)}
    critics = make_qvalue_ensemble(3, 2, num_qvalue_nets=2, **sizes)
    return IQLLoss(make_gaussian_actor(3, 2, **sizes), critics, make_value_network(3, **sizes))


def test_case_a08_a_copy_of_iql_targets_its_own_v() -> None:
    loss, batch = iql(), random_transitions(8, 3, 2)
    other = copy.deepcopy(loss)
    with torch.no_grad():
        for value in other.value_network_params.parameters():
            value.add_(1.0)
    twin = iql()
    twin.load_state_dict(other.state_dict())
    assert torch.equal(other.qvalue_loss(batch)[0], twin.qvalue_loss(batch)[0])
    assert not torch.equal(other.qvalue_loss(batch)[0], loss.qvalue_loss(batch)[0])
    wide = batch.apply(lambda each: each.double() if each.is_floating_point() else each)
    assert other.double().qvalue_loss(wide)[0].dtype == torch.float64


def test_case_a10_samg_refuses_losses_that_only_seem_to_fit() -> None:
    critic = make_qvalue_ensemble(3, 2, num_qvalue_nets=1, hidden_sizes=(8,))[0]
    loss = DDPGLoss(make_deterministic_actor(3, 2, hidden_sizes=(8,)), critic)
    with pytest.raises(O2OSpecError, match="DDPGLoss"):
        SAMGEstimator.from_loss(loss)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("seed", "abc"), ("num_threads", 0), ("online.total_frames", -5), ("online.batch_size", "abc")),
        *(("seed", True), ("update_every", 0), ("phases.every", 0), ("phases.every", None)),
    ],
)
def test_case_b16_settings_are_checked_before_the_first_step(name: str, value: object) -> None:
    cfg = OmegaConf.create({"seed": 0, "num_threads": 1, "online": {"total_frames": 1, "batch_size": 1}})
    OmegaConf.update(cfg, name, value)
    with pytest.raises(O2OSpecError, match=f"got {name}={value}, expected a whole number"):
        check_settings(cfg)


def test_case_b16_a_setting_without_a_value_is_named() -> None:
    with pytest.raises(O2OSpecError, match=r"got no value of env.env_id, task_name; give each as name=value"):
        check_settings(OmegaConf.create({"env": {"env_id": "???"}, "task_name": "???", "run": "${task_name}"}))


def test_case_b16_a_pretraining_that_nothing_starts_from_is_refused() -> None:
    check_no_pretraining(OmegaConf.create({"seed": 0}))
    with pytest.raises(
        O2OSpecError, match=r"got pretrained=runs/awac, expected null, because this method has no offline phase"
    ):
        check_no_pretraining(OmegaConf.create({"pretrained": "runs/awac"}))


@pytest.mark.parametrize("name", [each for each in script_names() if find_script(each).parent.name == each])
def test_case_b16_the_scripts_own_settings_pass(name: str) -> None:
    for preset in ("paper", "cpu"):
        check_settings(script_config(name, [f"preset={preset}"]))


def test_case_b22_an_update_takes_more_than_eight_batch_sizes() -> None:
    actor = make_gaussian_actor(3, 2, hidden_sizes=(8,))
    loss = AWACLoss(actor, make_qvalue_ensemble(3, 2, num_qvalue_nets=2, hidden_sizes=(8,)))
    update = Update(loss, Descend("qvalue", torch.optim.Adam(loss.qvalue_network_params.parameters()))).compile()
    with without_kernels():
        for rows in range(4, 16):
            assert update(random_transitions(rows, 3, 2))["finite"]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"online": None}, r"got online=None, expected a section; give its settings, as online\.NAME=VALUE"),
        ({"handover": 5}, "got handover=5, expected a section"),
        ({"schedule": [1]}, "expected a section"),
        *(({"optim": {"lr": bad}}, r"got optim\.lr=.*, expected a number from 0 to 1")
          for bad in (-1, "abc", float("nan"), float("inf"), None, True)),
        ({"run_dir": ""}, "got run_dir=, expected a folder"),
        ({"run_dir": 3}, "got run_dir=3, expected a folder"),
        ({"recorder": {"tensorboard": "abc"}}, r"got recorder\.tensorboard=abc, expected true or false"),
        ({"target": {"tau": 5}}, r"got target\.tau=5"),
        *(({"my_optim": {"betas": bad}}, r"got my_optim\.betas=.*, expected two numbers of at least 0 and below 1")
          for bad in ([0.9], [0.9, 1.0], [0.9, "abc"], 0.9, None)),
        *(({"samg": {"optim": {name: -1}}}, rf"got samg\.optim\.{name}=-1, expected a finite number of at least 0")
          for name in ("weight_decay", "eps", "momentum")),
        ({"actor_weight_decay": "abc"}, "got actor_weight_decay=abc, expected a finite number of at least 0"),
        *(({"optim": {"fused": bad}}, r"got optim\.fused=.*, expected true or false") for bad in ("maybe", 1)),
        ({"exploration": {"sigma_init": -0.1}}, r"got exploration\.sigma_init=-0\.1, expected a finite number of at"),
        ({"exploration": {"sigma_init": 0.1, "sigma_end": 0.3}}, r"got exploration\.sigma_end=0\.3 and exploration\."
            r"sigma_init=0\.1, expected sigma_end of at most sigma_init; lower exploration\.sigma_end or raise"),
        ({"exploration": {"sigma_init": 0.05}}, r"sigma_end=0\.1 and .*the defaults of AdditiveGaussianModule are 0"),
        ({"sigma_end": 2.0}, r"got sigma_end=2\.0 and sigma_init=1\.0, expected sigma_end of at most sigma_init"),
        ({"loss": {"min_alpha": 2.0, "max_alpha": 1.0}}, r"got loss\.min_alpha=2\.0 and loss\.max_alpha=1\.0"),
        ({"optim": {"maximize": True}}, r"got optim\.maximize=true, expected false, because an update descends"),
        ({"samg": {"optim": {"differentiable": True}}}, r"got samg\.optim\.differentiable=true, expected false"),
        ({"optim": {"foreach": True, "fused": True}}, r"got optim\.foreach=true and optim\.fused=true, expected only"),
        ({"target_entropy_per_dim": None}, "got target_entropy_per_dim=None, expected a finite number"),
        ({"cooling_floor": -1}, "got cooling_floor=-1, expected a number from 0 to 1"),
        ({"ghost_steps": "abc"}, "got ghost_steps=abc, expected true or false"),
        *(({name: -1}, f"got {name}=-1, expected a whole number of at least 0") for name in (
            "vae_steps", "clone_steps", "warm_start", "best_of", "density_updates", "updates_per_rollout")),
        *(({name: 0}, f"got {name}=0, expected a whole number of at least 1") for name in (
            "pool_multiplier", "warmup_updates", "context", "acting_context", "n_step", "num_stack")),
        ({"bc_steps": -1}, "got bc_steps=-1, expected a whole number of at least 0"),
        ({"value_estimator": {"gamma": -0.1}}, r"got value_estimator\.gamma=-0\.1"),
        ({"seed": "3"}, r"got seed=3, expected a whole number .* and not the text '3'; .* 'seed=\"\$\{oc\.decode:"),
        ({"optim": {"lr": "1e-3"}}, r"got optim\.lr=1e-3, expected a number from 0 to 1 and not the text '1e-3'"),
    ],
)  # fmt: skip
def test_case_b16_sections_and_rates_that_are_none(settings: dict, told: str) -> None:
    with pytest.raises(O2OSpecError, match=told):
        check_settings(OmegaConf.create(settings))


@pytest.mark.parametrize(
    "section",
    [
        *({"sigma_init": 0.3, "sigma_end": 0.3}, {"sigma_end": 0.5}, {"min_alpha": 2.0}, {"max_alpha": 0.1}),
        *({"foreach": True, "fused": False}, {"fused": True, "maximize": False}, {"differentiable": None}),
    ],
)
def test_case_b16_settings_that_fit_each_other(section: dict) -> None:
    check_settings(OmegaConf.create({"optim": section}))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["+foo=1"], r"got \+foo, expected a setting of this script: convention, env, loss, online, seed"),
        (["+sed=1"], r"got \+sed, .*did you mean seed"),
        (["+extra.deep.setting=1"], r"got \+extra, "),
        (["+extra={deep: 1}"], r"got \+extra, "),
        (["++foo=1"], r"got \+\+foo, expected a setting of this script: convention, env, loss, online, seed"),
        (["++extra.deep.setting=1"], r"got \+\+extra, "),
        (["+loss.alpha=1", "++loss.beta=1", "++online.more=1", "seed=3", "++seed=3", "~online"], None),
        (["+env.render_size=64", "+actors=2", "+convention.reward_scale=2", "++convention.reward_shift=1"], None),
        (["+seeds=[0,1]"], r"got \+seeds"),  # for scripts that read it
        (["+mine=group"], None),  # of a user's own folder, whose settings lie elsewhere
    ],
)
def test_case_b16_settings_that_are_added_where_nobody_reads_them(words: list[str], told: str | None) -> None:
    base = {"seed": 0, "env": {}, "convention": None, "loss": {"beta": 3.0}, "online": {"batch_size": 1}}
    added = [word.lstrip("+") for word in words if word.startswith("+") and not word.startswith("+mine")]
    values = [word.replace("={deep: 1}", ".deep=1") for word in added]
    cfg = OmegaConf.merge(base, OmegaConf.from_dotlist(values))
    with pytest.raises(O2OSpecError, match=told) if told else nullcontext():
        check_added(cfg, words, OmegaConf.create(base), optional=("actors",))


def test_case_b16_an_argument_that_nothing_takes_is_named() -> None:
    error = TypeError("AWACLoss.__init__() got an unexpected keyword argument 'alpa'")
    assert str(not_taken(error, ["+loss.alpa=1.0"])).startswith("got loss.alpa, which is not an argument of AWACLoss")
    assert not_taken(error, ["seed=1"]) is None
    assert not_taken(TypeError("'int' object is not iterable"), ["+loss.alpa=1.0"]) is None


def test_a_setting_that_was_removed_although_it_is_needed_is_told() -> None:
    def Pretraining(*, num_steps: int, batch_size: int) -> None: ...  # named like what scripts build

    with pytest.raises(TypeError) as caught:
        Pretraining(num_steps=1)  # type: ignore[call-arg]
    told = str(not_taken(caught.value, ["seed=1", "~optim.batch", "~offline.batch_size"]))
    assert told.startswith("got ~offline.batch_size, but")
    assert "Pretraining needs batch_size" in told
    assert not_taken(caught.value, ["offline.batch_size=1"]) is None


@pytest.mark.parametrize(
    ("section", "function"),
    [("online", Finetuning), ("dataset", load_offline), ("env", make_gym_env), ("env_guard", GuardedEnv)],
)
def test_case_b16_settings_that_nobody_reads(section: str, function: Callable) -> None:
    with pytest.raises(O2OSpecError, match=rf"got {section}\.total_frame, expected one of "):
        check_arguments(section, {"total_frame": 5}, function)


SMALL = {"hidden_sizes": (8,)}


def pair() -> list:
    return make_qvalue_ensemble(3, 2, num_qvalue_nets=2, **SMALL)


def with_inf(name: str) -> dict:
    return {name: float("inf")}


INFINITE: dict[str, Callable[[], object]] = {
    "alpha of TD3+BC": lambda: TD3BCLoss(make_deterministic_actor(3, 2, **SMALL), pair(), **with_inf("alpha")),
    "policy_noise": lambda: TD3BCLoss(make_deterministic_actor(3, 2, **SMALL), pair(), **with_inf("policy_noise")),
    "actor_bc_coef": lambda: ReBRACLoss(make_deterministic_actor(3, 2, **SMALL), pair(), **with_inf("actor_bc_coef")),
    "critic_bc_coef": lambda: ReBRACLoss(make_deterministic_actor(3, 2, **SMALL), pair(), **with_inf("critic_bc_coef")),
    "density_weight": lambda: SPOTLoss(
        make_deterministic_actor(3, 2, **SMALL), pair(), make_action_vae(3, 2, **SMALL), **with_inf("density_weight")
    ),
    "beta of VAE": lambda: VAELoss(make_action_vae(3, 2, **SMALL), **with_inf("beta")),
    "bc_alpha": lambda: EnsembleSACLoss(make_gaussian_actor(3, 2, **SMALL), pair(), **with_inf("bc_alpha")),
    "bound_weight": lambda: AWRLoss(
        make_gaussian_actor(3, 2, **SMALL), make_value_network(3, **SMALL), **with_inf("bound_weight")
    ),
    "alpha of FQL": lambda: FQLLoss(
        make_one_step_actor(3, 2, **SMALL), make_flow_network(3, 2, **SMALL), pair(), **with_inf("alpha")
    ),
    "beta of IQL": lambda: IQLLoss(
        make_gaussian_actor(3, 2, **SMALL), pair(), make_value_network(3, **SMALL), **with_inf("beta")
    ),
    "init of Temperature": lambda: Temperature(-2.0, **with_inf("init")),
    "target_entropy": lambda: Temperature(float("inf")),
    "target of Multiplier": lambda: Multiplier(1.0, **with_inf("target")),
    "weight of ConservativePenalty": lambda: ConservativePenalty(float("inf")),
    "target_gap": lambda: ConservativePenalty(1.0, **with_inf("target_gap")),
    "softmax_temperature": lambda: ConservativePenalty(1.0, **with_inf("softmax_temperature")),
}


def scale_of_descend() -> Descend:
    return Descend("qvalue", torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))]), **with_inf("scale"))


def returns_of_failures() -> object:
    rows = random_transitions(4, 3, 2).set("episode", torch.zeros(4, dtype=torch.long))
    return add_mc_return(rows, gamma=0.9, **with_inf("failure_reward"))


def decay() -> object:
    return weight_decay_groups(TensorDict.from_module(torch.nn.Linear(2, 1)), float("inf"))


INFINITE |= {
    "scale of Descend": scale_of_descend,
    "scale of AffineReward": lambda: AffineReward(float("inf")),
    "shift of AffineReward": lambda: AffineReward(1.0, float("inf")),
    "eps of ObservationStats": lambda: ObservationStats.of(random_transitions(4, 3, 2), **with_inf("eps")),
    "failure_reward": returns_of_failures,
    "weight_decay": decay,
    "warmup_steps=0, init_alpha": lambda: HandOver(**with_inf("init_alpha")),
    "log_std_bounds": lambda: GaussianVectorHead(3, 2, std="sigmoid", log_std_bounds=(-5.0, float("inf"))),
    "log_prob_edge": lambda: make_actor(3, 2, **with_inf("log_prob_edge"), **SMALL),
}


@pytest.mark.parametrize("setting", INFINITE)
def test_infinite_weights_are_refused_where_they_come_in(setting: str) -> None:
    """Each of them made a loss infinite or NaN at the first update, which named the loss and not the setting."""
    with pytest.raises(O2OSpecError, match=f"got {setting.split(' of ')[0]}=inf"):
        INFINITE[setting]()


def test_infinity_stays_where_it_means_something() -> None:
    """AWAC without advantages is behavior cloning, and clipping at infinity is none."""
    batch = random_transitions(8, 3, 2)
    for loss in (
        AWACLoss(make_gaussian_actor(3, 2, **SMALL), pair(), awac_lambda=float("inf"), weight_clip=float("inf")),
        TD3BCLoss(make_deterministic_actor(3, 2, **SMALL), pair(), noise_clip=float("inf")),
    ):
        assert loss(batch.copy())["loss_actor"].isfinite()


def test_factors_that_turn_something_round_are_refused() -> None:
    """A negative scale ranks rewards the other way round, a negative decay makes parameters grow."""
    with pytest.raises(O2OSpecError, match=r"got scale=-1\.0, expected a finite number above 0"):
        AffineReward(-1.0)
    with pytest.raises(O2OSpecError, match=r"got weight_decay=-0\.1, expected a finite number of at least 0"):
        weight_decay_groups(TensorDict.from_module(torch.nn.Linear(2, 1)), -0.1)
    terms = [TDError(EnsembleSACLoss(make_actor(3, 2, **SMALL), pair())) for _ in range(2)]
    with pytest.raises(O2OSpecError, match=r"got factors\[1\]=nan, expected a finite number"):
        Sum(*terms, factors=(1.0, float("nan")))
