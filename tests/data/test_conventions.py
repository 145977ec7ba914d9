# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Conventions: the table holds the papers' numbers, and each is applied exactly once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from tensordict import TensorDict

from torchrl_o2o.checkpoint.manifest import dump, load
from torchrl_o2o.collectors.single import StepCollector
from torchrl_o2o.collectors.vector import VectorCollector, make_vector_env
from torchrl_o2o.data.conventions import CONVENTIONS, Convention, FittedConvention, get_convention
from torchrl_o2o.data.keys import stored_keys
from torchrl_o2o.data.pixels import pixel_data
from torchrl_o2o.data.storage import offline_online_storage
from torchrl_o2o.data.transforms import add_mc_return
from torchrl_o2o.deploy import load_policy, save_policy
from torchrl_o2o.envs.make import make_gym_env
from torchrl_o2o.errors import O2ODataError, O2OSpecError
from torchrl_o2o.modules import make_gaussian_actor
from torchrl_o2o.scripts import script_config
from torchrl_o2o.testing import DelayedRewardEnv, probe_transitions, random_transitions
from torchrl_o2o.trainers.evaluation import evaluate


def recorded(num_episodes: int = 10) -> TensorDict:
    data = probe_transitions(DelayedRewardEnv(), 2 * num_episodes)
    return data.set("episode", torch.arange(2 * num_episodes) // 2)


@pytest.mark.parametrize(
    ("method", "domain", "reward", "expected"),
    [
        ("rlpd", "locomotion", 3.0, 3.0),
        ("rlpd", "antmaze", 1.0, 0.0),
        ("a3rl", "antmaze", 0.0, -1.0),
        ("aca", "antmaze", 0.0, -1.0),
        ("iql", "antmaze", 0.0, -1.0),
        ("cql", "antmaze", 1.0, 5.0),
        ("cal_ql", "antmaze", 0.0, -5.0),
        ("cal_ql", "adroit", -1.0, -5.0),
        ("cal_ql", "adroit", 0.0, 5.0),
        ("spot", "adroit", -1.0, -1.0),
        ("off2on", "locomotion", 2.0, 2.0),
    ],
)
def test_rewards_of_the_papers(method: str, domain: str, reward: float, expected: float) -> None:
    fitted = get_convention(method, domain).fit(recorded())
    data = TensorDict({"next": {"reward": torch.tensor([[reward]])}}, [1])
    assert fitted.online(data)["next", "reward"].item() == expected


def test_who_standardizes_observations() -> None:
    standardized = {method for method, row in CONVENTIONS.items() if row["locomotion"].normalize_observations}
    assert {"awac", "td3_bc", "bc", "cql"} <= standardized
    assert not standardized & {"rlpd", "a3rl", "aca", "iql", "spot", "cal_ql", "off2on"}
    assert not CONVENTIONS["cql"]["antmaze"].normalize_observations


def test_what_is_added_to_the_deviations() -> None:
    """1e-6 by ODT's authors, 1e-3 by CORL."""
    data = recorded()
    data["observation"] = torch.zeros_like(data["observation"])
    for method, eps in (("odt", 1e-6), ("td3_bc", 1e-3)):
        stats = get_convention(method, "locomotion").fit(data).observation
        assert stats is not None
        torch.testing.assert_close(stats.scale, torch.full_like(stats.scale, eps))
    with pytest.raises(O2OSpecError, match="observation_eps=0"):
        Convention(observation_eps=0.0)


def test_iql_scales_locomotion_by_the_spread_of_returns() -> None:
    data = recorded()
    data["next", "reward"] = torch.arange(20.0).unsqueeze(-1)  # returns 1, 5, 9, ..., 37
    assert get_convention("iql", "locomotion").fit(data).reward.scale == pytest.approx(1000 / 36)
    with pytest.raises(O2ODataError, match="returns that differ"):
        get_convention("iql", "locomotion").fit(recorded())


@pytest.mark.parametrize(("method", "domain", "word"), [("rldp", "antmaze", "rlpd"), ("rlpd", "maze", "antmaze")])
def test_unknown_names(method: str, domain: str, word: str) -> None:
    with pytest.raises(O2OSpecError, match=word):
        get_convention(method, domain)


def test_applied_exactly_once_to_data_online_rows_returns_and_never_to_scores() -> None:
    """One number followed through: recorded 1 -> 5, collected 1 -> 5, Monte-Carlo 5 - 0.5 * 5, evaluated 1."""
    fitted = Convention(10.0, -5.0, normalize_observations=True).fit(recorded())
    offline = fitted.data(recorded())
    assert offline["next", "reward"].unique().tolist() == [-5.0, 5.0]
    assert offline["observation"].unique().tolist() == pytest.approx([-1.0, 1.0], abs=2e-3), "-1 and 1, standardized"
    returns = add_mc_return(offline, gamma=0.5)["mc_return"].squeeze(-1)
    assert returns[:2].tolist() == [-5.0 + 0.5 * 5.0, 5.0]

    actor = make_gaussian_actor(1, 1, hidden_sizes=(8,))
    env = fitted.env(gymnasium.wrappers.TimeLimit(DelayedRewardEnv(), 10))
    rows = torch.cat([fitted.online(row) for row in StepCollector(env, actor, total_frames=4, seed=0)])
    assert rows["next", "reward"].squeeze(-1).tolist() == [-5.0, 5.0, -5.0, 5.0]
    assert rows["observation"].dtype == torch.float32
    torch.testing.assert_close(rows["observation"][:2], offline["observation"][:2])
    assert rows["next", "episode_reward"][1].item() == 1.0, "what is logged is the task's own return"
    result = evaluate(actor, lambda: fitted.env(DelayedRewardEnv()), num_episodes=2, seed=0)
    assert result.returns.tolist() == [1.0, 1.0]


def test_input_is_left_alone() -> None:
    data = recorded()
    before = data.clone()
    Convention(2.0, 1.0, normalize_observations=True).fit(data).data(data)
    assert (data == before).all()


@pytest.mark.parametrize("convention", [Convention(), Convention(10.0, -5.0, normalize_observations=True)])
def test_a_second_application_is_refused(convention: Convention) -> None:
    """Of the same or of another convention, to parts of the rows, and to rows that were put together."""
    fitted, raw = convention.fit(recorded()), recorded()
    offline, online = fitted.data(raw), fitted.online(raw)
    for rows in (offline, offline[3:5], torch.cat([offline, offline]), offline.clone(), online):
        for again in (fitted.data, fitted.online, Convention(2.0).fit(raw).data, convention.fit):
            with pytest.raises(O2ODataError, match="a convention was already applied, expected rows as recorded"):
                again(rows)
    torch.testing.assert_close(fitted.data(raw)["next", "reward"], offline["next", "reward"])


def test_the_mark_of_an_application_is_not_stored() -> None:
    fitted, raw = Convention(2.0).fit(recorded()), recorded()
    storage = offline_online_storage(fitted.data(raw), 4)
    storage.set(torch.arange(20, 24), fitted.online(raw[:4]).select(*stored_keys(raw)))
    assert storage[:24].get("convention_applied", None) is None
    images = np.zeros((4, 32, 32, 3), np.uint8)
    data = pixel_data([{"observation": images, "action": np.zeros((3, 2)), "reward": np.ones(3)}])
    rows = replace(data, rows=fitted.data(data.rows))
    assert rows.stacks(torch.arange(3))["next", "reward"].squeeze(-1).tolist() == [2.0, 2.0, 2.0]
    assert rows.stacks(torch.arange(3)).get("convention_applied", None) is None
    assert rows.storage(2)[:3].get("convention_applied", None) is None


@pytest.mark.parametrize("normalize", [False, True])
def test_saved_with_the_policy(normalize: bool) -> None:
    fitted = Convention(10.0, -5.0, normalize_observations=normalize).fit(recorded())
    again = FittedConvention.from_state_dict(load(dump("convention", fitted.state_dict())))
    assert fitted.same_as(again)
    assert not again.same_as(Convention(10.0, -4.0, normalize_observations=normalize).fit(recorded()))
    assert not again.same_as(Convention(10.0, -5.0, normalize_observations=not normalize).fit(recorded()))


def test_other_statistics_are_another_convention() -> None:
    other = recorded()
    other["observation"] = other["observation"] + np.float32(1.0)
    convention = Convention(normalize_observations=True)
    assert not convention.fit(recorded()).same_as(convention.fit(other))


def test_statistics_of_another_width_are_refused() -> None:
    """One number would standardize every width without a word."""
    fitted = Convention(normalize_observations=True).fit(random_transitions(9, 1, 1))
    with pytest.raises(O2OSpecError, match=r"observations of shape \[3\], expected \[1\] as in the statistics"):
        fitted.data(random_transitions(4, 3, 1))
    with pytest.raises(O2OSpecError, match=r"observations of shape \[3\], expected \[1\] as in the statistics"):
        fitted.env(make_gym_env("Pendulum-v1"))


def test_observations_are_standardized_once(tmp_path: Path) -> None:
    """By an environment that has the convention or by a policy file that has it, and by neither of them twice."""
    data = random_transitions(50, 3, 1).set("episode", torch.zeros(50, dtype=torch.long))
    data["observation"] = 5.0 * data["observation"] + 3.0
    fitted = Convention(normalize_observations=True).fit(data)

    def build() -> gymnasium.Env:
        return fitted.env(make_gym_env("Pendulum-v1", max_episode_steps=5))

    with pytest.raises(O2OSpecError, match="with standardized observations, expected its own observations"):
        fitted.env(gymnasium.wrappers.TimeLimit(build(), 3))
    trained = make_gaussian_actor(3, 1, hidden_sizes=(8,))
    loaded = load_policy(save_policy(tmp_path, trained, convention=fitted, action_box=([-1.0], [1.0])))
    for act in (
        lambda: evaluate(loaded, build, num_episodes=1, seed=0),
        lambda: StepCollector(build(), loaded, total_frames=1),
        lambda: VectorCollector(make_vector_env(build, 2), loaded, total_frames=2),
    ):
        with pytest.raises(O2OSpecError, match="got a policy that standardizes observations, as from load_policy"):
            act()
    bare = evaluate(loaded, lambda: make_gym_env("Pendulum-v1", max_episode_steps=5), num_episodes=2, seed=0)
    np.testing.assert_allclose(bare.returns, evaluate(trained, build, num_episodes=2, seed=0).returns, rtol=1e-4)


def test_ignored_terminations_are_truncations_offline_and_online_and_in_saved_conventions() -> None:
    rows = recorded(2)
    rows["next", "terminated"] = torch.tensor([False, True, False, False])[:, None]
    rows["next", "truncated"] = torch.tensor([False, False, False, True])[:, None]
    fitted = Convention(ignore_termination=True).fit(rows)
    for seen in (fitted.data(rows), fitted.online(rows)):
        assert not seen["next", "terminated"].any()
        assert seen["next", "truncated"].flatten().tolist() == [False, True, False, True]
        assert torch.equal(seen["next", "done"], rows["next", "done"])
    assert rows["next", "terminated"].any()
    assert FittedConvention.from_state_dict(load(dump("convention", fitted.state_dict()))) == fitted
    assert not fitted.same_as(Convention().fit(rows))
    older = {name: value for name, value in fitted.state_dict().items() if name != "ignore_termination"}
    assert not FittedConvention.from_state_dict(older).ignore_termination


def test_authors_of_awac_ignore_terminations_on_hands_only() -> None:
    ignored = {
        reference: script_config("awac", ["task=adroit-pen", f"reference={reference}"]).convention.get(
            "ignore_termination", False
        )
        for reference in ("authors_hand", "authors_mujoco", "jaxrl", "corl")
    }
    assert ignored == {"authors_hand": True, "authors_mujoco": False, "jaxrl": False, "corl": False}
