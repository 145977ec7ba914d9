# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""sota-implementations/samg/samg.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from omegaconf import OmegaConf

from tests.scripts.phases import SHORT, PhasesContract, Stop, assert_equal, dying, newest, rows
from tests.scripts.running import DOMAIN_TASKS, TASKS, compose, script_of
from torchrl_o2o.checkpoint.manifest import load
from torchrl_o2o.deploy import read_policy
from torchrl_o2o.errors import O2OCheckpointError, O2OSpecError
from torchrl_o2o.modules.confidence import ConstantConfidence
from torchrl_o2o.testing import random_transitions
from torchrl_o2o.trainers.algorithms import Guide, make_base
from torchrl_o2o.trainers.pipeline import Pretrained

pytestmark = [
    pytest.mark.filterwarnings("ignore:No target network updater"),
    pytest.mark.filterwarnings("ignore:.*(collapsed|reach the threshold).*"),  # six steps train no encoder
]

BASES = ("awac", "iql", "cql", "cal_ql", "rlpd")
SMALL = (
    "qvalue.hidden_sizes=[16]",
    "encoder.hidden_sizes=[16]",
    "encoder.num_steps=6",
    "handover.warmup_steps=8",
    "threshold=0.2",
)


class TestSAMG(PhasesContract):
    """All that a pipeline's script has to pass; dying "online" at step 5 is dying while the encoder trains."""

    script = "samg"
    words = (*SMALL, "base=awac", "guidance.guidance=linear", "guidance.cutoff=40")


class Run:
    """One run's folder, started and read in short words."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.folder, self.words = folder, words

    def config(self, *words: str) -> Any:
        return TestSAMG().config(self.folder, "base=awac", *self.words, *words)

    def train(self, *words: str) -> Run:
        script_of("samg").train(self.config(*words))
        return self

    def state(self, name: str = "loss") -> Any:
        return newest(self.folder, name)

    def online(self, key: str) -> list[Any]:
        return [row[key] for row in rows(self.folder) if key in row]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, small_datasets: Path) -> Run:
    """AWAC with SAMG."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MINARI_DATASETS_PATH", str(small_datasets))
        return Run(tmp_path_factory.mktemp("samg") / "run").train()


@pytest.fixture
def start(trained: Run) -> tuple[str, ...]:
    """Words that start from what it has trained before it went online."""
    return f"pretrained={trained.folder / 'offline'}", f"confidence.pretrained={trained.folder / 'confidence'}"


@pytest.mark.parametrize(
    "base", [pytest.param(base, marks=pytest.mark.slow) if base in ("cal_ql", "rlpd") else base for base in BASES[1:]]
)
def test_every_base_resumes_exactly(tmp_path: Path, base: str) -> None:
    words = [f"base={base}", "schedule.checkpoint_every=15"]
    words += ["value.hidden_sizes=[16]"] if base == "iql" else []
    whole, parts = Run(tmp_path / "whole", *words).train(), Run(tmp_path / "parts", *words)
    with dying("online", 15):
        parts.train()
    parts.train("resume=true")
    assert_equal(whole.state(), parts.state(), base)
    assert whole.online("train/p_mean") == parts.online("train/p_mean")
    before, after = Pretrained.read(whole.folder / "offline").states["loss"], whole.state()
    assert any(not torch.equal(before[key], after[key]) for key in before if key.startswith("actor_network_params"))


def test_online_needs_no_data_set(
    trained: Run, start: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files are deleted while the run is down, and nothing is loaded: before the first online step, and later."""
    every = "schedule.checkpoint_every=11"
    parts = Run(tmp_path / "run", every, *start)
    script = script_of("samg")
    with patch.object(script, "online_run", side_effect=Stop), pytest.raises(Stop):
        parts.train()
    gone = tmp_path / "nowhere"
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(gone))
    with patch.object(script.Problem, "load", side_effect=AssertionError("the data set was asked for")):
        with dying("online", 11):
            parts.train("resume=true")
        parts.train("resume=true")
    assert not gone.exists()
    assert_equal(parts.state(), trained.state(), "loss")
    assert_equal(parts.state("confidence"), trained.state("confidence"), "confidence")


def test_frozen_critic_and_confidence_are_in_the_checkpoint(trained: Run) -> None:
    offline = Pretrained.read(trained.folder / "offline").states["loss"]
    copied = frozen(trained.state())
    assert copied
    for key, value in copied.items():
        assert torch.equal(value, offline[f"qvalue_network_params.{key}"]), key
    saved = load((trained.folder / "start.pt").read_bytes())
    assert_equal(trained.state("confidence"), saved["confidence"], "confidence")


def test_p_is_stored_once_and_no_offline_row_is_drawn(tmp_path: Path, start: tuple[str, ...]) -> None:
    script, guides = script_of("samg"), []
    batches: list[Any] = []
    make = script.online_run

    def watched(*args: Any) -> Any:
        online, guide = make(*args)
        update = online.learner.update

        def spy(batch: Any) -> Any:
            batches.append(batch.clone())
            return update(batch)

        online.learner.update = spy
        guides.append(guide)
        return online, guide

    with patch.object(script, "online_run", watched):
        run = Run(tmp_path / "run", *start).train()
    assert len(batches) == 24 - 15  # updates begin when there is a batch of 16, the warm-up of 8 steps being over
    drawn = torch.cat(batches)
    torch.testing.assert_close(drawn["p_off"], guides[0].confidence(drawn.clone())["p_off"])
    assert len(set(map(tuple, drawn["observation"].tolist()))) <= 24
    assert run.online("train/p_mean")[-1] == pytest.approx(batches[-1]["p_off"].mean().item())
    assert run.online("train/p_passing")[-1] == pytest.approx((batches[-1]["p_off"] > 0).float().mean().item())


def test_density_ratio_resumes_exactly_and_needs_no_data_online(
    start: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted while the classifier trains, and then online, where the data set is gone."""
    words = ("confidence=density_ratio", "confidence.num_steps=6", "schedule.checkpoint_every=4", start[0])
    whole = Run(tmp_path / "whole", *words).train()
    parts = Run(tmp_path / "parts", *words)
    with dying("confidence", 4):
        parts.train()
    with dying("online", 12):
        parts.train("resume=true")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "nowhere"))
    parts.train("resume=true")
    for name in ("loss", "confidence", "buffer"):
        assert_equal(parts.state(name), whole.state(name), name)
    assert parts.online("train/p_mean") == whole.online("train/p_mean")
    state = whole.state("confidence")
    assert float(state["density_ratio.module.trunk.0.std"].min()) > 0.0
    assert not torch.equal(state["density_ratio.module.trunk.0.std"], torch.ones(14))
    saved = load((whole.folder / "start.pt").read_bytes())
    assert_equal(state, saved["confidence"], "confidence")
    other = Run(tmp_path / "other", *words, f"confidence.pretrained={whole.folder / 'confidence'}")
    monkeypatch.undo()
    assert_equal(other.train().state("confidence"), state, "confidence")


def without_guidance(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in state.items() if "value_estimator" not in key}


def test_none_is_p_zero_bit_for_bit(trained: Run, start: tuple[str, ...], tmp_path: Path) -> None:
    alone = Run(tmp_path / "none", "confidence=none", start[0]).train()
    with patch.object(ConstantConfidence, "probability", lambda self, seen, action: seen.new_zeros(seen.shape[:-1])):
        zero = Run(tmp_path / "zero", "confidence=even", start[0]).train()
    assert_equal(without_guidance(alone.state()), without_guidance(zero.state()), "loss")
    assert not alone.online("train/p_mean")
    guided = without_guidance(trained.state())
    assert any(not torch.equal(value, guided[key]) for key, value in without_guidance(alone.state()).items())


@pytest.mark.parametrize("confidence", ["even", "random", "embedding"])
def test_ablations_run(tmp_path: Path, start: tuple[str, ...], confidence: str) -> None:
    run = Run(tmp_path / "run", f"confidence={confidence}", start[0]).train()
    mean = run.online("train/p_mean")[-1]
    assert mean == 0.5 if confidence == "even" else 0.0 <= mean < 1.0


def test_one_encoder_serves_other_thresholds_and_refuses_other_settings(
    trained: Run, start: tuple[str, ...], tmp_path: Path
) -> None:
    for threshold in (0.0, 0.3, 0.5, 0.75):
        run = Run(tmp_path / f"{threshold}", *start).train(f"threshold={threshold}", "confidence.fit.whiten=true")
        assert load((run.folder / "start.pt").read_bytes())["config"]["confidence"]["fit"]["threshold"] == threshold
        own, first = run.state("confidence"), trained.state("confidence")
        assert all(torch.equal(own[key], first[key]) for key in own if key.startswith("encoder."))
    with pytest.raises(O2OCheckpointError, match="decoder"):
        Run(tmp_path / "other", *start).train("encoder.decoder=latent")
    with pytest.raises(O2OCheckpointError, match="no encoder"):
        Run(tmp_path / "none", start[0]).train("confidence.pretrained=/nowhere")


def test_a_resumed_run_keeps_its_confidence(start: tuple[str, ...], tmp_path: Path) -> None:
    run = Run(tmp_path / "run", *start).train()
    with pytest.raises(O2OCheckpointError, match="confidence"):
        run.train("resume=true", "threshold=0.75")


def test_the_penalty_weighs_one_minus_p(tmp_path: Path) -> None:
    words = ("base=cql", "confidence=even")
    full = Run(tmp_path / "full", *words).train()
    weighed = Run(tmp_path / "weighed", *words, f"pretrained={full.folder / 'offline'}").train("weigh_penalty=true")
    assert any(not torch.equal(value, weighed.state()[key]) for key, value in full.state().items())
    with pytest.raises(O2OSpecError, match="expected a loss with a conservative penalty"):
        Run(tmp_path / "awac").train("weigh_penalty=true", "confidence=even")


def test_pretraining_of_the_bases_own_script(tmp_path: Path, trained: Run) -> None:
    """With raw observations both scripts' offline phases are one; a standardized one is refused, or taken as it is."""
    words = ("qvalue.hidden_sizes=[16]", "online.total_frames=1", "compile=false")
    make: Callable[..., Any] = lambda folder, *more: TestSAMG().config(tmp_path / folder, *more)  # noqa: E731
    own = compose("awac", *SHORT, *words, f"run_dir={tmp_path / 'raw'}", "convention={normalize_observations: false}")
    script_of("awac").train(own)
    theirs, ours = (Pretrained.read(folder / "offline") for folder in (tmp_path / "raw", trained.folder))
    assert_equal(theirs.states["loss"], ours.states["loss"], "loss")
    script_of("samg").train(make("from_raw", f"pretrained={tmp_path / 'raw' / 'offline'}"))
    assert_equal(newest(tmp_path / "from_raw", "loss"), trained.state(), "loss")
    script_of("awac").train(compose("awac", *SHORT, *words, f"run_dir={tmp_path / 'standard'}"))
    standard = f"pretrained={tmp_path / 'standard' / 'offline'}"
    with pytest.raises(O2OSpecError, match="convention"):
        script_of("samg").train(make("refused", standard))
    script_of("samg").train(make("taken", standard, "convention={normalize_observations: true}"))
    convention = read_policy(tmp_path / "taken").convention
    assert convention is not None
    assert convention.observation is not None


def test_offline_data_online_are_refused(tmp_path: Path) -> None:
    with pytest.raises(O2OSpecError, match="no offline data"):
        Run(tmp_path / "run").train("handover.data=all")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("base", BASES)
def test_settings_are_the_bases_own(base: str) -> None:
    """Of CORL, as the base's script has them; what SAMG changes is listed here."""
    script, words = {
        "awac": ("awac", []),
        "iql": ("iql", ["reference=corl"]),
        "cql": ("cql", ["algorithm=cql"]),
        "cal_ql": ("cql", ["algorithm=cal_ql"]),
        "rlpd": ("rlpd", ["task=halfcheetah", "collection=mujoco", "data=medium-v0"]),
    }[base]
    if script != "rlpd":
        words += ["task=halfcheetah", "collection=mujoco", "data=medium-v0"]
    ours, theirs = (
        compose("samg", f"base={base}", "task=halfcheetah", "collection=mujoco", "data=medium-v0"),
        compose(script, *words),
    )
    sections = ("actor", "qvalue", "value", "penalty", "temperature", "loss", "value_estimator", "target", "optim")
    for name in (*sections, "actor_lr", "qvalue_lr", "actor_weight_decay", "order", "target_entropy_per_dim"):
        assert ours.get(name) == theirs.get(name), name
    assert (ours.handover.data, ours.handover.warmup_steps, ours.online.online_capacity) == ("none", 1000, 50_000)
    assert (ours.encoder.num_steps, ours.threshold, ours.offline.num_steps) == (100_000, 0.5, 1_000_000)
    assert ours.online.total_frames == (1_000_000 if base == "iql" else 500_000)


def test_settings_of_mazes_and_hoppers() -> None:
    assert compose("samg", "base=cal_ql", "task=antmaze-umaze").threshold == 0.4
    assert compose("samg", "base=cql", "task=antmaze-umaze").penalty.weight == 2.5
    assert compose("samg", "base=iql", "task=antmaze-large").loss.beta == 10.0
    assert compose("samg", "base=awac", "task=antmaze-large").loss.awac_lambda == 0.1
    assert compose("samg", "task=hopper", "collection=mujoco", "data=medium-v0").encoder.decoder == "latent"
    assert compose("samg", "task=halfcheetah", "collection=mujoco", "data=medium-v0").encoder.decoder == "full"


@pytest.mark.parametrize("base", BASES)
def test_every_base_has_every_task_with_and_without_guidance(base: str) -> None:
    for task in TASKS if base == BASES[0] else DOMAIN_TASKS:
        cfg = compose("samg", f"base={base}", f"task={task}", "confidence=none")
        whole = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        assert whole["run_dir"] == f"runs/samg/{cfg.task_name}-paper/{base}-none/seed0"


@pytest.mark.slow
@pytest.mark.compiler
@pytest.mark.parametrize("base", ["awac", "cql"])
def test_compiled_equals_eager(base: str) -> None:
    """With the frozen critic, and with a guidance that fades and ends between two calls of the compiled update."""
    states = []
    words = ("actor.hidden_sizes=[16]", "qvalue.hidden_sizes=[16]", "guidance.guidance=linear", "guidance.cutoff=4")
    for compiled in ("false", "true"):
        torch.manual_seed(0)
        cfg = compose("samg", f"base={base}", "task=halfcheetah", "preset=cpu", f"compile={compiled}", *words)
        learner = make_base(cfg, online=True)(cfg, (5, 2))
        guide = Guide(learner, ConstantConfidence(0.5), dict(cfg.guidance), weigh_penalty=base == "cql")
        for _ in range(6):
            batch = guide.insert(random_transitions(16, 5, 2))
            metrics = guide.weigh(batch)
            learner.update(batch)
        assert metrics["p_mean"] == 0.5
        states.append(learner.loss.state_dict())
    eager, fast = states
    assert any(not torch.equal(eager[f"qvalue_network_params.{key}"], value) for key, value in frozen(eager).items())
    for name, value in eager.items():
        torch.testing.assert_close(fast[name], value, rtol=1e-4, atol=1e-5)


def frozen(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The frozen critic's part of a loss's state."""
    return {key.split("critic.params.")[1]: value for key, value in state.items() if "critic.params." in key}
