# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What tasks and domains make of the scripts' settings, against what the papers and their codes state."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.scripts.running import ROOT, compose, script_of
from torchrl_o2o.data.conventions import CONVENTIONS, Convention
from torchrl_o2o.trainers import Problem

#: Who standardizes observations on hands, in CORL's runs and AWR's code; nobody else does.
STANDARDIZE = {"awac", "td3_bc", "bc", "odt", "awr"}
#: What a CPU preset may change of a domain's settings.
SIZES = {
    "actor.hidden_sizes",
    "qvalue.hidden_sizes",
    "offline.num_steps",
    "offline.batch_size",
    "online.total_frames",
    "actor_lr",
}
CPU_PRESETS = sorted((ROOT / "sota-implementations").glob("*/*preset/*cpu.yaml"))
SCRIPTS = [
    path.parent.name
    for path in sorted((ROOT / "sota-implementations").glob("*/config.yaml"))
    if path.parent.name not in ("rlpd_pixels", "drqv2")  # no observations to standardize
]


class _LoadedError(Exception):
    """A script has come to its data."""

    def __init__(self, convention: Convention) -> None:
        self.convention = convention


def convention_of(script: str, *words: str) -> Convention:
    """What a script does to rewards and observations, caught where it loads its data."""

    def stop(*arguments: Any) -> None:
        raise _LoadedError(arguments[-1])

    cfg = compose(script, *words)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Problem, "load", stop)
        patch.setitem(sys.modules, "transformers", ModuleType("transformers"))  # ODT asks for it first
        with pytest.raises(_LoadedError) as loaded:
            script_of(script).train(cfg)
    return loaded.value.convention


@pytest.mark.parametrize("task", ["adroit-pen", "adroit-pen-dense", "adroit-door"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_observations_on_hands(script: str, task: str) -> None:
    assert convention_of(script, f"task={task}").normalize_observations == (script in STANDARDIZE)


@pytest.mark.parametrize("script", SCRIPTS)
def test_rewards_of_dense_hands_stay(script: str) -> None:
    convention = convention_of(script, "task=adroit-pen-dense")
    scale = 0.01 if script == "awr" else 1.0
    assert (convention.reward_scale, convention.reward_shift, convention.scale_by_returns) == (scale, 0.0, False)


@pytest.mark.parametrize("script", [name for name in SCRIPTS if name in CONVENTIONS])
def test_the_table_agrees_on_hands(script: str) -> None:
    """A domain may change rewards, since those of the environment differ; not whether observations are standardized."""
    convention = convention_of(script, "task=adroit-door")
    assert convention.normalize_observations == CONVENTIONS[script]["adroit"].normalize_observations


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("awac", "task=pointmaze-medium"), Convention(reward_shift=-1.0, normalize_observations=True)),
        (
            ("awac", "task=pointmaze-medium", "convention={normalize_observations: false}"),
            Convention(reward_shift=-1.0),
        ),
        (("awac", "task=adroit-pen-dense", "reference=authors_mujoco"), Convention()),
        (
            ("awac", "task=adroit-pen", "reference=authors_hand"),
            Convention(0.0990099, -0.990099, ignore_termination=True),
        ),
        (("iql", "task=adroit-pen", "reference=corl"), Convention(0.0990099, -0.990099, normalize_observations=True)),
        (("iql", "task=adroit-pen-dense", "reference=corl"), Convention(normalize_observations=True)),
        (("iql", "convention={reward_shift: -1.0}"), Convention(reward_shift=-1.0, scale_by_returns=True)),
        (("samg", "base=cql", "task=antmaze-large"), Convention(10.0, -5.0)),
        (
            ("samg", "base=cql", "task=antmaze-large", "convention={normalize_observations: true}"),
            Convention(10.0, -5.0, normalize_observations=True),
        ),
        (("awr", "task=antmaze-umaze"), Convention(0.01, normalize_observations=True)),
    ],
)
def test_a_configuration_changes_what_it_names(words: tuple[str, ...], expected: Convention) -> None:
    """What it does not name is the table's."""
    assert convention_of(*words) == expected


@pytest.mark.parametrize("script", SCRIPTS)
def test_rewards_of_binary_hands_are_the_same_two_numbers(script: str) -> None:
    """The environment pays -0.1 and 10; a learner sees -1 and 0, or a multiple of them."""
    for settings in ([], ["base=cal_ql"], ["base=cql"]) if script == "samg" else ([],):
        convention = convention_of(script, "task=adroit-door", *settings)
        low, high = (convention.reward_scale * reward + convention.reward_shift for reward in (-0.1, 10.0))
        if script == "odt":  # returns are asked for in the environment's own rewards
            assert (low, high) == (-0.1, 10.0)
        elif settings or script in ("cql", "wsrl"):
            assert (low, high) == pytest.approx((-5.0, 5.0), abs=1e-4)
        else:
            assert (low, high) == pytest.approx((-0.01, 0.0) if script == "awr" else (-1.0, 0.0), abs=1e-5)


@pytest.mark.parametrize(
    ("script", "words", "expected"),
    [
        ("awac", ("task=adroit-pen-dense",), {"loss.awac_lambda": 0.1}),
        ("awac", (), {"qvalue.initialization": "torch"}),
        ("samg", (), {"qvalue.initialization": "torch"}),
        ("iql", ("task=adroit-pen-dense",), {"loss.beta": 0.5, "actor.dropout": 0.1}),
        ("spot", ("task=adroit-pen-dense",), {"cooling_floor": 0.5, "loss.density_weight": 1.0}),
        ("spot", ("task=antmaze-umaze",), {"loss.density_weight": 0.25}),
        ("spot", ("task=antmaze-large",), {"loss.density_weight": 0.025}),
        ("rebrac", ("task=adroit-pen-dense",), {"loss.critic_bc_coef": 0.5, "offline.batch_size": 256}),
        ("rebrac", ("task=adroit-door",), {"loss.calibrate": False, "failure_reward": -0.1}),
        ("rebrac", ("task=pointmaze-medium",), {"loss.actor_bc_coef": 0.003, "offline.batch_size": 256}),
        ("rlpd", ("algorithm=redq", "task=hopper"), {"target_entropy_per_dim": -0.333333}),
        ("rlpd", ("algorithm=redq", "task=walker2d"), {"target_entropy_per_dim": -0.5}),
        ("a3rl", ("task=pointmaze-large",), {"convention.reward_shift": -1.0, "loss.entropy_backup": False}),
        ("a3rl", ("priority=authors_code",), {"priority_from": 0}),
        ("a3rl", ("priority=authors_newer_code",), {"priority_from": 100_000, "density_score.normalize": "sum"}),
        ("a3rl", ("priority=authors_newer_code",), {"pool.normalize": "batch", "density_ratio.eps": 1e-5}),
        ("pex", ("task=antmaze-umaze",), {"schedule.eval_every": 10_000, "evaluation.num_episodes": 100}),
        ("qc", (), {"schedule.eval_every": 100_000, "evaluation.num_episodes": 50}),
        ("qc", ("task=antmaze-umaze",), {"offline.num_steps": 500_000}),
        ("qc", ("task=adroit-pen-dense",), {"loss.one_step.alpha": 10_000.0, "alpha_online": 1_000.0}),
        ("samg", ("base=cal_ql", "task=adroit-door"), {"penalty.weight": 1.0, "failure_reward": -0.1}),
        ("samg", ("base=cql", "task=pointmaze-large"), {"penalty.target_gap": 0.8, "failure_reward": 0.0}),
        ("samg", ("base=awac", "task=adroit-door"), {"loss.awac_lambda": 0.1}),
        ("samg", ("base=cql", "task=antmaze-large"), {"qvalue.initialization": "orthogonal"}),
        ("cql", ("task=antmaze-large", "domain=antmaze_corl"), {"qvalue.initialization": "orthogonal"}),
        (
            "cql",
            ("task=adroit-pen-dense",),
            {"qvalue.initialization": "orthogonal", "actor.initialization": "orthogonal"},
        ),
        ("cql", ("task=adroit-pen",), {"qvalue.initialization": "orthogonal_small_last"}),
        ("iql", ("task=adroit-pen", "reference=corl"), {"loss.expectile": 0.8, "loss.beta": 3.0}),
        ("iql", ("task=adroit-pen-dense", "reference=corl"), {"loss.expectile": 0.8, "loss.beta": 3.0}),
        ("awac", ("task=antmaze-medium", "reference=authors_mujoco"), {"convention": None}),
        ("samg", ("base=rlpd", "task=pointmaze-medium"), {"loss.entropy_backup": False}),
        ("samg", ("base=rlpd", "task=adroit-pen"), {"loss.entropy_backup": False}),
        ("odt", ("task=halfcheetah",), {"returns.exploration": 12_000}),
        ("odt", ("task=antmaze-large",), {"returns.evaluation": 1, "return_scale": 1.0}),
        ("odt", (), {"returns.evaluation": 3_600}),
        (
            "off2on",
            (),
            {"qvalue.initialization": "fanin_raised_bias", "actor.initialization": "fanin_raised_bias"},
        ),
        ("iql", ("preset=cpu",), {"loss.beta": 0.3}),
        ("iql", ("preset=cpu", "task=antmaze-large"), {"loss.beta": 10.0, "loss.expectile": 0.9}),
        ("iql", ("preset=cpu", "task=adroit-pen", "reference=corl"), {"loss.beta": 3.0}),
        ("awac", ("preset=cpu",), {"loss.awac_lambda": 2.0}),
        ("awac", ("preset=cpu", "task=adroit-pen-dense"), {"loss.awac_lambda": 0.1}),
        ("spot", ("preset=cpu", "task=halfcheetah"), {"loss.density_weight": 5.0}),
        ("spot", ("preset=cpu", "task=antmaze-large"), {"loss.density_weight": 0.025}),
        ("qc", ("preset=cpu",), {"loss.one_step.alpha": 10.0}),
        ("qc", ("preset=cpu", "task=adroit-pen-dense"), {"loss.one_step.alpha": 10_000.0}),
        ("cql", ("preset=cpu",), {"penalty.weight": 5.0}),
        ("cql", ("preset=cpu", "task=adroit-door"), {"penalty.weight": 1.0}),
        ("off2on", ("preset=cpu",), {"penalty.weight": 5.0}),
        ("off2on", ("preset=cpu", "task=adroit-door"), {"penalty.weight": 1.0}),
        ("samg", ("preset=cpu", "base=cql", "task=hopper"), {"penalty.weight": 5.0}),
        ("samg", ("preset=cpu", "base=cql", "task=antmaze-large"), {"penalty.weight": 2.5}),
        ("samg", ("preset=cpu", "base=iql", "task=antmaze-large"), {"loss.beta": 10.0}),
        ("samg", ("preset=cpu", "base=awac", "task=adroit-door"), {"loss.awac_lambda": 0.1}),
    ],
)
def test_settings_of_domains(script: str, words: tuple[str, ...], expected: dict[str, Any]) -> None:
    cfg = compose(script, *words)
    assert {key: OmegaConf.select(cfg, key) for key in expected} == expected


def leaves(path: Path) -> dict[str, Any]:
    """The settings of a file by name."""

    def named(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
        for key, value in tree.items():
            if isinstance(value, dict):
                yield from named(value, f"{prefix}{key}.")
            elif prefix + key != "defaults":
                yield prefix + key, value

    return dict(named(OmegaConf.to_container(OmegaConf.load(path)) or {}))


@pytest.mark.parametrize("preset", CPU_PRESETS, ids=lambda path: "-".join(path.parts[-3:]))
def test_a_cpu_preset_keeps_what_a_domain_tunes(preset: Path) -> None:
    """It changes sizes, steps and learning rates; what else small networks need stands before the domains."""
    of_base = preset.parent.name == "base_preset"
    folders = ("base_domain",) if of_base else ("domain", "maze", "reference_domain", "base_domain")
    base = f"{preset.stem.removesuffix('-cpu')}-*.yaml" if of_base else "*.yaml"
    own, changed = leaves(preset), set[str]()
    for tuned in (leaves(path) for folder in folders for path in (preset.parents[1] / folder).glob(base)):
        changed |= {name for name in tuned.keys() & own.keys() if tuned[name] != own[name]}
    assert {name for name in changed if not name.startswith(("schedule.", "evaluation."))} <= SIZES
