# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential
from torch import nn
from torchrl.data import Bounded, Composite
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import Actor, AdditiveGaussianModule, ProbabilisticActor, TanhNormal

from torchrl_o2o.checkpoint.manifest import dump, load
from torchrl_o2o.checkpoint.rng import rng_state
from torchrl_o2o.collectors import FastActor
from torchrl_o2o.data.conventions import FittedConvention
from torchrl_o2o.data.transforms import AffineReward, ObservationStats
from torchrl_o2o.deploy import export_policy, load_policy, policy_saver, read_policy, save_policy
from torchrl_o2o.envs import make_gym_env
from torchrl_o2o.errors import O2OCheckpointError, O2OSpecError
from torchrl_o2o.modules import average_actors, make_actor, make_deterministic_actor, make_gaussian_actor

BOX = Bounded(torch.tensor([-0.5, -0.25]), torch.tensor([0.5, 1.0]), shape=(2,), dtype=torch.float32)
NATIVE = (torch.tensor([-2.0, 0.0]), torch.tensor([2.0, 0.4]))
STATS = ObservationStats(torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.5, 2.0, 3.0]))
CONVENTION = FittedConvention(AffineReward(scale=10.0, shift=-5.0), STATS)

ACTORS: dict[str, Callable[[], TensorDictModuleBase]] = {
    "tanh": lambda: make_actor(3, 2, hidden_sizes=(8, 8)),
    "tanh, cql": lambda: make_actor(3, 2, hidden_sizes=(8,), affine_log_std=True, unit_norm=True),
    "tanh, box": lambda: make_actor(3, BOX, hidden_sizes=(8,)),
    "gaussian": lambda: make_gaussian_actor(3, 2, hidden_sizes=(8, 8), dropout=0.5),
    "gaussian, rlkit": lambda: make_gaussian_actor(
        3, BOX, hidden_sizes=(8,), std="sigmoid", log_std_bounds=(-6.0, 0.0), clip_samples=False
    ),
    "gaussian, linear": lambda: make_gaussian_actor(3, 2, hidden_sizes=(8,), mean="linear"),
    "deterministic": lambda: make_deterministic_actor(3, 2, hidden_sizes=(8,), dropout=0.5),
    "deterministic, box": lambda: make_deterministic_actor(3, BOX, hidden_sizes=(8,)),
    "off2on": lambda: average_actors([make_actor(3, 2, hidden_sizes=(8,)) for _ in range(3)]),
    "off2on, box": lambda: average_actors([make_actor(3, BOX, hidden_sizes=(8,)) for _ in range(2)]),
    "float64": lambda: make_actor(3, 2, hidden_sizes=(8,)).double(),
}


def trained(name: str) -> TensorDictModuleBase:
    """An actor whose parameters are far from their initial values."""
    torch.manual_seed(0)
    actor = ACTORS[name]()
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return actor


def act(actor: TensorDictModuleBase, observation: torch.Tensor, kind: ExplorationType) -> torch.Tensor:
    torch.manual_seed(1)
    with torch.no_grad(), set_exploration_type(kind):
        return actor(TensorDict({"observation": observation}, observation.shape[:1]))["action"]


@pytest.mark.parametrize("kind", [ExplorationType.DETERMINISTIC, ExplorationType.RANDOM], ids=["mode", "sample"])
@pytest.mark.parametrize("name", ACTORS)
def test_the_policy_comes_back(name: str, kind: ExplorationType, tmp_path: Path) -> None:
    """In the units of training bit for bit; in native ones stretched from [-1, 1]; FastActor the same in both."""
    actor = trained(name)
    save_policy(tmp_path, actor, convention=CONVENTION, action_box=NATIVE)
    dtype = next(actor.parameters()).dtype
    observation = 3.0 * torch.randn(64, 3, dtype=dtype)
    expected = act(actor.eval(), (observation - STATS.mean.to(dtype)) / STATS.scale.to(dtype), kind)
    loaded = load_policy(tmp_path, native_actions=False)
    assert torch.equal(act(loaded, observation, kind), expected)
    low, high = NATIVE
    native = load_policy(tmp_path)
    stretched = low + 0.5 * (high - low) * (expected + 1.0)
    torch.testing.assert_close(act(native, observation, kind), stretched.to(dtype), rtol=0.0, atol=2e-6)
    for policy in (loaded, native):
        fast = FastActor(policy, deterministic=kind is ExplorationType.DETERMINISTIC)
        torch.manual_seed(1)
        got = torch.from_numpy(fast(observation.numpy()))
        torch.testing.assert_close(got, act(policy, observation, kind), rtol=1e-6, atol=4e-6)


@pytest.mark.parametrize("name", ["tanh", "gaussian", "deterministic", "off2on"])
def test_a_native_policy_is_an_actor_like_others(name: str, tmp_path: Path) -> None:
    """Its spec is the native box, its density that of native actions, and it can be saved and exported again."""
    save_policy(tmp_path, trained(name), convention=CONVENTION, action_box=NATIVE)
    native, observation = load_policy(tmp_path), torch.randn(5, 3)
    assert torch.equal(native.spec["action"].space.low, NATIVE[0])
    assert torch.equal(native.spec["action"].space.high, NATIVE[1])
    again = load_policy(save_policy(tmp_path / "again.pt", native, action_box=NATIVE))
    mode = act(native, observation, ExplorationType.DETERMINISTIC)
    assert torch.equal(act(again, observation, ExplorationType.DETERMINISTIC), mode)
    program = torch.export.load(export_policy(tmp_path, tmp_path / "policy.pt2")).module()
    torch.testing.assert_close(program(observation), mode, rtol=0.0, atol=2e-6)
    if name != "deterministic":
        unit = load_policy(tmp_path, native_actions=False)
        data = TensorDict({"observation": observation}, [5])
        width = (0.5 * (NATIVE[1] - NATIVE[0])).log().sum()
        inner = torch.rand(5, 2) - 0.5
        outer = NATIVE[0] + 0.5 * (NATIVE[1] - NATIVE[0]) * (inner + 1.0)
        got, expected = native.get_dist(data.clone()).log_prob(outer), unit.get_dist(data.clone()).log_prob(inner)
        torch.testing.assert_close(got, expected - width, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["tanh", "gaussian", "deterministic", "off2on"])
def test_an_action_entry_with_one_value_only(name: str, tmp_path: Path) -> None:
    """An environment may have such an entry, and a run in it writes a policy that can be read."""
    save_policy(tmp_path, trained(name), action_box=([0.0, 3.0], [1.0, 3.0]))
    action = FastActor(load_policy(tmp_path))(np.ones(3))
    assert 0.0 <= action[0] <= 1.0
    assert action[1] == 3.0
    save_policy(tmp_path / "again.pt", load_policy(tmp_path), action_box=([0.0, 3.0], [1.0, 3.0]))
    np.testing.assert_array_equal(FastActor(load_policy(tmp_path / "again.pt"))(np.ones(3)), action)


def test_observations_are_not_standardized_twice(tmp_path: Path) -> None:
    """A loaded policy standardizes already; the statistics would be applied once more."""
    save_policy(tmp_path, trained("tanh"), convention=CONVENTION, action_box=NATIVE)
    policy = load_policy(tmp_path)
    refused = "got statistics of observations for a policy that standardizes them itself"
    with pytest.raises(O2OSpecError, match=rf"{refused}.*pass replace\(convention, observation=None\)"):
        save_policy(tmp_path / "again.pt", policy, convention=CONVENTION, action_box=NATIVE)
    with pytest.raises(O2OSpecError, match=rf"{refused}.*leave stats out"):
        FastActor(policy, stats=STATS)
    with pytest.raises(O2OSpecError, match=rf"{refused}.*leave stats out"):
        export_policy(tmp_path, tmp_path / "policy.pt2", stats=STATS)
    save_policy(tmp_path / "again.pt", policy, convention=replace(CONVENTION, observation=None), action_box=NATIVE)
    again = FastActor(load_policy(tmp_path / "again.pt"))
    np.testing.assert_array_equal(again(np.ones(3)), FastActor(policy)(np.ones(3)))


def test_all_that_the_file_holds(tmp_path: Path) -> None:
    actor = make_actor(3, 1, hidden_sizes=(8,))
    file = save_policy(
        tmp_path / "best.pt",
        actor,
        convention=CONVENTION,
        env={"env_id": "Pendulum-v1", "max_episode_steps": 50},
        metadata={"algorithm": "rlpd", "seed": 3},
    )
    assert [entry.name for entry in tmp_path.iterdir()] == ["best.pt"], "no temporary file stays"
    policy = read_policy(file)
    assert policy.convention is not None
    assert policy.convention.same_as(CONVENTION)
    assert policy.env == {"env_id": "Pendulum-v1", "max_episode_steps": 50}
    assert policy.metadata == {"algorithm": "rlpd", "seed": 3}
    assert (policy.low, policy.high) == (torch.tensor([-2.0]), torch.tensor([2.0]))
    assert policy.versions["torch"] == version("torch")
    assert policy.parts.observation_key == "observation"
    assert not policy.actor().training


def test_other_keys_and_dropout(tmp_path: Path) -> None:
    actor = make_deterministic_actor(
        3, 2, hidden_sizes=(8,), dropout=0.5, observation_key=("agent", "seen"), action_key=("agent", "done")
    )
    loaded = load_policy(save_policy(tmp_path, actor, action_box=([-1.0, -1.0], [1.0, 1.0])))
    data = TensorDict({"agent": {"seen": torch.ones(4, 3)}}, [4])
    with torch.no_grad():
        assert torch.equal(loaded(data.clone())["agent", "done"], actor.eval()(data.clone())["agent", "done"])


def test_saving_and_loading_draw_nothing(tmp_path: Path) -> None:
    """A run that saves its policy at every checkpoint draws the same numbers as one that does not."""
    actor, one_action = trained("off2on"), make_actor(3, 1, hidden_sizes=(8,))
    before = dump("rng", rng_state())
    save_policy(tmp_path, actor, action_box=NATIVE)
    load_policy(tmp_path)
    save_policy(tmp_path, one_action, env="Pendulum-v1")
    assert dump("rng", rng_state()) == before


def test_a_saver_writes_what_the_actor_is_then(tmp_path: Path) -> None:
    """As a run saves at every checkpoint; what does not fit is found when it is made."""
    actor, observation = trained("gaussian"), torch.randn(4, 3)
    save = policy_saver(actor, convention=CONVENTION, env={"env_id": "Somewhere-v0"}, action_box=NATIVE)
    save(tmp_path)
    first = act(load_policy(tmp_path), observation, ExplorationType.DETERMINISTIC)
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.mul_(0.5)
    save(tmp_path)
    second = load_policy(tmp_path)
    assert not torch.equal(act(second, observation, ExplorationType.DETERMINISTIC), first)
    assert read_policy(tmp_path).env == {"env_id": "Somewhere-v0"}, "not built where the box is given"
    with pytest.raises(O2OSpecError, match="Somewhere-v0"):
        policy_saver(actor, env="Somewhere-v0")


def test_a_training_actor_is_not_touched(tmp_path: Path) -> None:
    actor = trained("tanh")
    save_policy(tmp_path, actor, action_box=NATIVE)
    loaded = load_policy(tmp_path)
    with torch.no_grad():
        next(actor.parameters()).zero_()
    assert next(iter(loaded.parameters())).abs().sum() > 0
    assert all(parameter.requires_grad for parameter in (*actor.parameters(), *loaded.parameters()))


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    actor = trained("deterministic")
    noisy = TensorDictSequential(actor, AdditiveGaussianModule(actor.spec))
    with pytest.raises(O2OSpecError, match=r"expected an actor that .* adds no exploration noise"):
        save_policy(tmp_path, noisy, action_box=NATIVE)
    spec = Composite({"action": BOX})
    odd = Actor(nn.Sequential(nn.Linear(3, 2), nn.Softsign()), in_keys=["observation"], spec=spec)
    with pytest.raises(O2OSpecError, match="a network with a Softsign, expected layers among Sequential, Linear"):
        save_policy(tmp_path, odd, action_box=NATIVE)
    function = Actor(lambda seen: seen[..., :2], in_keys=["observation"], spec=spec)
    with pytest.raises(O2OSpecError, match=r"got Actor with keys \['observation'\] -> \['action'\], expected an actor"):
        save_policy(tmp_path, function, action_box=NATIVE)
    with pytest.raises(O2OSpecError, match="got neither env nor action_box, expected one of them, because"):
        save_policy(tmp_path, actor)
    with pytest.raises(O2OSpecError, match="an actor with 2 action dimensions, expected 1"):
        save_policy(tmp_path, actor, env="Pendulum-v1")
    with pytest.raises(O2OSpecError, match="an actor with 2 action dimensions, expected 1"):
        save_policy(tmp_path, actor, action_box=([-1.0, -1.0], [1.0]))
    for low, high in (([2.0, 2.0], [-2.0, 3.0]), ([-1.0, -float("inf")], [1.0, 1.0])):
        with pytest.raises(O2OSpecError, match=r"got the action box .*, expected finite edges, low not above high"):
            save_policy(tmp_path, actor, action_box=(low, high))
    with pytest.raises(
        O2OSpecError, match=r"Pendulum-v1 with observations of shape \[3\], expected \[4\].*; name the environment"
    ):
        save_policy(tmp_path, make_actor(4, 1), env="Pendulum-v1")
    four = FittedConvention(AffineReward(), ObservationStats(torch.zeros(4), torch.ones(4)))
    with pytest.raises(O2OSpecError, match=r"shape \(4,\), expected 3 observation entries"):
        save_policy(tmp_path, actor, convention=four, action_box=NATIVE)
    wide = Bounded(torch.tensor([-3.0]), torch.tensor([3.0]), shape=(1,), dtype=torch.float32)
    with pytest.raises(O2OSpecError, match=r"actions in \[-3.0\]..\[3.0\], expected \[-1, 1\] or the env"):
        save_policy(tmp_path, make_actor(3, wide), env="Pendulum-v1")
    with pytest.raises(O2OCheckpointError, match=r"expected an existing folder, or .* ends in .pt"):
        save_policy(tmp_path / "nowhere", actor, action_box=NATIVE)
    with pytest.raises(O2OCheckpointError, match="cannot be read back without running code"):
        policy_saver(actor, action_box=NATIVE, metadata={"env": object()})  # and not at the first checkpoint
    with pytest.raises(O2OCheckpointError, match=r"whose folder .*nowhere does not exist; make it first"):
        save_policy(tmp_path / "nowhere" / "policy.pt", actor, action_box=NATIVE)
    assert not any(tmp_path.iterdir())


def test_layers_that_a_file_cannot_hold_are_refused(tmp_path: Path) -> None:
    """The file would hold another function, or parameters that belong to no layer."""
    hooked, replaced, normed = (make_actor(3, 1, hidden_sizes=(8,)) for _ in range(3))
    hooked[0].module[0].register_forward_pre_hook(lambda layer, seen: (2 * seen[0],))
    replaced[0].module[1].mean = nn.Sequential(nn.Linear(8, 1), nn.Tanh())
    nn.utils.parametrizations.weight_norm(normed[0].module[1].mean)
    for actor, message in (
        (hooked, "hooks on the Sequential"),
        (replaced, "a GaussianHead with other layers inside than its own"),
        (normed, "a ParametrizedLinear at 'mean' of its GaussianHead, expected a Linear"),
    ):
        with pytest.raises(O2OSpecError, match=message):
            save_policy(tmp_path, actor, env="Pendulum-v1")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_keeps_the_old_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_policy(tmp_path, trained("tanh"), action_box=NATIVE)
    before = (tmp_path / "policy.pt").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(O2OCheckpointError, match=r"No space left.*make room on the disk"):
        save_policy(tmp_path, trained("gaussian"), action_box=NATIVE)
    assert (tmp_path / "policy.pt").read_bytes() == before


def first_edition(kind: str) -> bytes:
    state = make_actor(3, 1, hidden_sizes=(8,)).state_dict()
    return dump("policy", dict(state) if kind == "rlpd" else {"actor": dict(state), "convention": {}})


FOREIGN: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"not a policy",
    "pickle": lambda: pickle.dumps({"format": "torchrl_o2o policy"}),
    "number": lambda: dump("policy", 3),
    "list": lambda: dump("policy", [1, 2]),
    "empty dict": lambda: dump("policy", {"weights": "none"}),
    "module": lambda: saved(nn.Linear(3, 1)),
    "numpy": lambda: saved({"format": np.arange(3)}),
    "zip": lambda: zipped({"data.pkl": b"x"}),
    "exported": lambda: zipped({"archive/version": b"1"}),
}


def saved(value: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def zipped(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return stream.getvalue()


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_files_are_refused(name: str, tmp_path: Path) -> None:
    file = tmp_path / "policy.pt"
    file.write_bytes(FOREIGN[name]())
    for path in (tmp_path, file):
        with pytest.raises(O2OCheckpointError, match=r"policy.pt is not a policy of torchrl_o2o"):
            load_policy(path)


@pytest.mark.parametrize("kind", ["rlpd", "pipeline"])
def test_files_of_the_first_edition_are_refused_with_a_way_out(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "policy.pt"
    file.write_bytes(first_edition(kind))
    part = "" if kind == "rlpd" else r'\["actor"\]'
    with pytest.raises(O2OCheckpointError, match=rf"first edition.*weights_only=True\){part}\), and write it with"):
        load_policy(tmp_path)


def test_a_policy_that_reads_its_past_is_refused(tmp_path: Path) -> None:
    """As ODT's: an actor in a policy file gets observations alone."""
    keys = ["observation", "action", "return_to_go"]
    body = TensorDictModule(nn.Linear(7, 4), in_keys=keys, out_keys=["loc", "scale"])
    box = Bounded(-torch.ones(2), torch.ones(2))
    actor = ProbabilisticActor(body, in_keys=["loc", "scale"], spec=box, distribution_class=TanhNormal)
    with pytest.raises(O2OSpecError, match=r"'return_to_go'\] -> .*expected an actor that reads observations alone"):
        save_policy(tmp_path, actor, action_box=([-1.0, -1.0], [1.0, 1.0]))


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(
        O2OCheckpointError, match=r"policy.pt, which does not exist; expected a run folder.*Only runs of ODT"
    ):
        load_policy(tmp_path)
    with pytest.raises(O2OCheckpointError, match="nowhere, which does not exist"):
        load_policy(tmp_path / "nowhere")


def changed(content: dict[str, Any], *path: Any, to: Any) -> dict[str, Any]:
    inner: Any = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = to
    return content


LAYER = ("network", "inner", 0, "inner", 0, "inner", 0)
DAMAGE: dict[str, tuple[tuple[Any, ...], Any]] = {
    "a layer that is not known": ((*LAYER, "layer"), "os.system"),
    "a layer of another size": ((*LAYER, "settings", "out_features"), 9),
    "an enormous layer": ((*LAYER, "settings", "out_features"), 10**12),
    "an enormous layer in memory": ((*LAYER, "settings", "device"), "cpu"),
    "no layer": (LAYER, None),
    "words for a size": ((*LAYER, "settings", "out_features"), "many"),
    "parameters": (("parameters",), {}),
    "parameters of another type": (("parameters",), [1]),
    "a distribution": (("distribution",), "Categorical"),
    "the distribution's arguments": (("settings",), {"loc": 3.0}),
    "keys": (("keys",), 7),
    "the actor's box": (("actor_box",), (1.0, 2.0)),
    "the action box": (("action_box",), (None, None)),
    "the convention": (("convention",), {"reward": {}}),
    "the environment": (("env",), "Pendulum-v1"),
    "the metadata": (("metadata",), 3),
    "a convention's numbers": (("convention",), {"reward": {"scale": 1.0, "shift": 0.0}, "observation": {"mean": 1}}),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_files_are_refused(name: str, tmp_path: Path) -> None:
    file = save_policy(tmp_path, trained("tanh"), convention=CONVENTION, action_box=NATIVE)
    path, value = DAMAGE[name]
    file.write_bytes(dump("policy", changed(load(file.read_bytes()), *path, to=value)))
    with pytest.raises(O2OCheckpointError, match="damaged, or of a later version"):
        load_policy(tmp_path)


def test_an_ensemble_of_a_billion_members(tmp_path: Path) -> None:
    file = save_policy(tmp_path, trained("off2on"), action_box=NATIVE)
    content = changed(load(file.read_bytes()), "network", "settings", "num_members", to=10**9)
    file.write_bytes(dump("policy", content))
    with pytest.raises(O2OCheckpointError, match="expected 1 to 1000"):
        load_policy(tmp_path)


def test_later_editions_and_cut_or_compressed_files(tmp_path: Path) -> None:
    file = save_policy(tmp_path, trained("tanh"), action_box=NATIVE)
    whole = file.read_bytes()
    file.write_bytes(dump("policy", changed(load(whole), "edition", to=3)))
    with pytest.raises(O2OCheckpointError, match="of edition 3, expected 2 in this version; update"):
        load_policy(tmp_path)
    for length in (1, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(O2OCheckpointError, match="is damaged"):
            load_policy(tmp_path)
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    file.write_bytes(zipped(entries, zipfile.ZIP_DEFLATED))
    with pytest.raises(O2OCheckpointError, match="it is compressed"):
        load_policy(tmp_path)


def test_no_code_runs(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "was_here"),)

    (tmp_path / "policy.pt").write_bytes(saved({"format": "torchrl_o2o policy", "metadata": Evil()}))
    with pytest.raises(O2OCheckpointError, match="is not a policy"):
        load_policy(tmp_path)
    assert not (tmp_path / "was_here").exists()


@pytest.mark.parametrize("wrong", [torch.nn.Linear(3, 1), None, "actor"])
def test_what_is_no_actor_is_refused(tmp_path: Path, wrong: Any) -> None:
    with pytest.raises(O2OSpecError, match=r"got actor=.*, expected TensorDictModuleBase"):
        save_policy(tmp_path, wrong)
    if not isinstance(wrong, str):  # which is a policy file's name there
        with pytest.raises(O2OSpecError, match=r"got actor=.*, expected TensorDictModuleBase or a word or Path"):
            export_policy(wrong, tmp_path / "policy.pt2")


def test_arguments_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(O2OSpecError, match=r"got env=.*, expected a word or Mapping or None"):
        save_policy(tmp_path, make_actor(3, 1, hidden_sizes=(8,)), env=make_gym_env("Pendulum-v1"))  # type: ignore[arg-type]
    with pytest.raises(O2OSpecError, match="got path=None, expected a word or Path"):
        load_policy(None)  # type: ignore[arg-type]


def test_a_box_of_two_numbers_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(O2OSpecError, match=r"got action_box=\(-2.0, 2.0\), expected \(a list, each a number"):
        save_policy(tmp_path, trained("tanh"), action_box=(-2.0, 2.0))  # type: ignore[arg-type]


def test_no_single_bit_of_a_parameter_may_be_damaged(tmp_path: Path) -> None:
    """torch writes a checksum of each entry, and does not read it."""
    file = save_policy(tmp_path, make_actor(3, 1, hidden_sizes=(8,)), action_box=([-2.0], [2.0]))
    content, state = file.read_bytes(), read_policy(file).actor().state_dict()
    refused = 0
    for place in range(0, len(content), 101):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            found = read_policy(file).actor().state_dict()
        except O2OCheckpointError:
            refused += 1
        else:  # between the entries
            assert all(torch.equal(found[name], value) for name, value in state.items())
    assert refused > 10
    weights = content.find(state[next(name for name in state if name.endswith("weight"))].numpy().tobytes())
    file.write_bytes(content[:weights] + bytes([content[weights] ^ 1]) + content[weights + 1 :])
    with pytest.raises(O2OCheckpointError, match=r"is damaged \(the checksum of its entry .* copy the file again"):
        load_policy(file)


def test_policies_are_read_if_torch_wrote_no_checksums(tmp_path: Path) -> None:
    actor = make_actor(3, 1, hidden_sizes=(8,))
    torch.serialization.set_crc32_options(False)
    try:
        save_policy(tmp_path, actor, action_box=([-2.0], [2.0]))
    finally:
        torch.serialization.set_crc32_options(True)
    weights = read_policy(tmp_path).actor().state_dict()
    assert all(torch.equal(weights[name], value) for name, value in actor.state_dict().items())
