# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""examples/samg.py: guided fine-tuning on online data alone, after the data set is gone."""

from __future__ import annotations

import gc
import re
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.scripts.running import ROOT, load_script
from torchrl_o2o.data import TRANSITION
from torchrl_o2o.objectives import AWACLoss

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gamma.*"),
    pytest.mark.filterwarnings("ignore:.*(collapsed|reach the threshold).*"),  # three steps train no VAE
]

NAME = "o2o/hopper/linear-mix-v0"
SHORT: dict[str, Any] = {
    "env": "Hopper-v5",
    "dataset": NAME,
    "offline_steps": 5,
    "vae_steps": 3,
    "total_frames": 30,
    "online_capacity": 25,
    "init_frames": 10,
    "batch_size": 16,
    "hidden_sizes": (8, 8),
    "threshold": 0.2,
    "eval_every": 15,
    "eval_episodes": 1,
}


def run(**settings: Any) -> AWACLoss:
    script = load_script("examples/samg.py")
    return script.main(script.Config(**{**SHORT, **settings}))


@pytest.mark.parametrize("confidence", ["vae", "none", "even", "random"])
def test_example_runs(confidence: str, capsys: pytest.CaptureFixture[str]) -> None:
    loss = run(confidence=confidence, guidance="linear", cutoff=60)
    assert all(value.isfinite().all() for value in loss.state_dict().values())
    assert float(loss.value_estimator.weight) == 0.5
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    found = [re.match(r"step (\d+): return .*, mean p \d\.\d\d$", line) for line in lines]
    assert [match and match[1] for match in found] == ["10", "15", "30"], "first the offline policy"


def test_the_data_set_is_gone_online(small_datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file is deleted and its memory freed before the first online step; no row of it is ever drawn again."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    shutil.copytree(small_datasets / NAME, tmp_path / NAME)
    script = load_script("examples/samg.py")
    alive: list[weakref.ref[Any]] = []
    known: list[torch.Tensor] = []
    drawn: list[Any] = []
    load = script.load_offline

    def watched_load(*args: Any, **kwargs: Any) -> Any:
        data = load(*args, **kwargs)
        alive.extend(weakref.ref(column) for column in (data, *data.values(True, True)))
        known.append(data["observation"].clone())
        return data

    class Collector(script.StepCollector):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            shutil.rmtree(tmp_path)
            gc.collect()
            assert not [reference for reference in alive if reference() is not None]
            super().__init__(*args, **kwargs)

    class Watched(script.TensorDictReplayBuffer):
        def sample(self, *args: Any, **kwargs: Any) -> Any:
            drawn.append(super().sample(*args, **kwargs))
            return drawn[-1]

    for name, value in (
        ("load_offline", watched_load),
        ("StepCollector", Collector),
        ("TensorDictReplayBuffer", Watched),
    ):
        monkeypatch.setattr(script, name, value)
    loss = script.main(script.Config(**SHORT, seed=7))  # else the initial states are those of the data set
    assert all(value.isfinite().all() for value in loss.parameters())
    assert not tmp_path.exists()
    offline, online = drawn[: 5 + 3], drawn[5 + 3 :]
    assert len(online) == SHORT["total_frames"] - SHORT["init_frames"]
    rows = set(map(tuple, known[0].tolist()))
    assert all(rows.issuperset(map(tuple, batch["observation"].tolist())) for batch in offline)
    assert not any(rows.intersection(map(tuple, batch["observation"].tolist())) for batch in online)
    assert all("p_off" in batch and set(TRANSITION) <= set(batch.keys(True, True)) for batch in online)


def test_without_confidence_it_is_awac_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    guided = run(confidence="none").state_dict()
    script = load_script("examples/samg.py")

    class Plain:
        @staticmethod
        def from_loss(loss: AWACLoss, **settings: Any) -> Any:
            loss.value_estimator.set_step = lambda step: None
            return loss.value_estimator

    monkeypatch.setattr(script, "SAMGEstimator", Plain)
    plain = script.main(script.Config(**{**SHORT, "confidence": "none"})).state_dict()
    assert all(torch.equal(guided[key], value) for key, value in plain.items())
    assert len(plain) < len(guided)  # the frozen critic


def test_equal_seeds_give_equal_networks_and_the_confidence_matters() -> None:
    first, second, even = run().state_dict(), run().state_dict(), run(confidence="even").state_dict()
    assert all(value.equal(second[key]) for key, value in first.items())
    assert not all(value.equal(even[key]) for key, value in first.items())


def test_example_is_short() -> None:
    assert len((ROOT / "examples/samg.py").read_text().splitlines()) <= 120
