# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from torchrl_o2o.commands.cli import main
from torchrl_o2o.data.coverage import coverage
from torchrl_o2o.data.datasets import optional
from torchrl_o2o.errors import O2ODataError, O2OSpecError


def blobs(*centers: float, number: int = 60, width: int = 3, scale: float = 1.0) -> TensorDict:
    generator = torch.Generator().manual_seed(len(centers))
    values = torch.cat([torch.randn(number, width + 2, generator=generator) + 40 * center for center in centers])
    return TensorDict({"observation": values[:, :width] * scale, "action": values[:, width:]}, [len(values)])


@pytest.fixture(autouse=True)
def _sklearn() -> None:
    pytest.importorskip("sklearn")


def test_share_of_clusters_by_hand() -> None:
    """Four far blobs of which one set has all and the other two; standardizing leaves the scale without influence."""
    data = {"wide": blobs(0, 1, 2, 3, number=30), "narrow": blobs(1, 2)}
    found = coverage(data, num_clusters=4, rows_per_source=120)
    assert found.covered == {"wide": 1.0, "narrow": 0.5}
    assert found.embedding.shape == (240, 2)
    assert found.source.tolist() == [0] * 120 + [1] * 120
    assert sorted(np.bincount(found.cluster).tolist()) == [30, 30, 90, 90]
    scaled = {"wide": blobs(0, 1, 2, 3, number=30, scale=1e4), "narrow": blobs(1, 2, scale=1e4)}
    assert coverage(scaled, num_clusters=4, rows_per_source=120).covered == found.covered


def test_equal_sets_cover_alike_and_draws_are_seeded() -> None:
    data = {"a": blobs(0, 1), "b": blobs(0, 1)}
    first, second = (coverage(data, num_clusters=2, rows_per_source=80, seed=1) for _ in range(2))
    assert first.covered == {"a": 1.0, "b": 1.0}
    assert np.array_equal(first.embedding, second.embedding)


def test_sets_of_unequal_size_are_drawn_from_alike() -> None:
    found = coverage({"small": blobs(0, number=20), "large": blobs(0, 1, number=500)}, num_clusters=2)
    assert np.bincount(found.source).tolist() == [20, 20]


def test_constant_columns_do_no_harm() -> None:
    data = {"a": blobs(0, 1), "b": blobs(1, 2)}
    for rows in data.values():
        rows["observation"][:, 0] = 3.0
    assert np.isfinite(coverage(data, num_clusters=3, rows_per_source=80).embedding).all()


def test_what_cannot_be_compared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(O2OSpecError, match="got 1 data set, expected two or more"):
        coverage({"a": blobs(0)})
    with pytest.raises(O2ODataError, match=r"different widths, \{'a': 5, 'b': 7\}"):
        coverage({"a": blobs(0), "b": blobs(0, width=5)})
    with pytest.raises(O2ODataError, match="got 40 rows for 50 clusters"):
        coverage({"a": blobs(0, number=20), "b": blobs(1)})
    two = {"a": blobs(0), "b": blobs(1)}
    for name in ("num_clusters", "rows_per_source", "min_rows"):
        for number in (0, -3):
            with pytest.raises(O2OSpecError, match=rf"{name}={number}"):
                coverage(two, **{name: number})
    for seed in (-1, 2**32):
        with pytest.raises(O2OSpecError, match=rf"seed={seed}"):
            coverage(two, seed=seed)
    images = TensorDict({"observation": torch.zeros(60, 3, 8, 8), "action": torch.zeros(60, 2)}, [60])
    for rows, shape in ((images, r"\[60, 3, 8, 8\]"), (blobs(0)[:0], r"\[0, 3\]")):
        with pytest.raises(O2ODataError, match=f"b has observations of shape {shape}, expected at least one vector"):
            coverage({"a": blobs(0), "b": rows})

    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(optional, "import_module", absent)
    with pytest.raises(O2OSpecError, match=r"pip install torchrl_o2o\[coverage\]"):
        coverage({"a": blobs(0), "b": blobs(1)})


@pytest.mark.filterwarnings("ignore")  # the audit has much to say about data without rewards
def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    sources = []
    for name, centers in (("wide", (0, 1)), ("narrow", (1,))):
        data = blobs(*centers)
        ends = np.arange(len(data)) % 20 == 19
        arrays = {"observations": data["observation"].numpy(), "actions": data["action"].tanh().numpy()}
        arrays |= {"rewards": np.zeros(len(data), np.float32), "terminals": np.zeros(len(data), bool), "timeouts": ends}
        np.savez(tmp_path / f"{name}.npz", **arrays)
        sources.append(f"path:{tmp_path / name}.npz")
    words = ["data", "coverage", *sources, "--clusters", "2", "--rows", "60", "--plot", str(tmp_path / "a.png")]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[1:3]] == ["100%", "50%"]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert main([*words[:-2], "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {sources[0]: 1.0, sources[1]: 0.5}
