# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import numpy as np
import pytest

from tests.golden_vectors import GOLDEN
from torchrl_o2o.envs.scores import (
    D4RL_REFERENCES,
    OWN_REFERENCES,
    V5_REFERENCES,
    Reference,
    find_reference,
    get_reference,
    normalized_score,
)
from torchrl_o2o.errors import O2OSpecError


def test_golden_scores_of_d4rl():
    with np.load(GOLDEN / "misc" / "score_A.npz", allow_pickle=False) as golden:
        for row, task in enumerate(golden["env"]):
            reference = get_reference(str(task))
            assert reference.random == pytest.approx(golden["ref_min"][row], rel=1e-12)
            assert reference.expert == pytest.approx(golden["ref_max"][row], rel=1e-12)
            expected = golden["out/normalised_score_x100"][row]
            assert normalized_score(golden["score"][row], str(task)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "task", [*V5_REFERENCES, *OWN_REFERENCES, "pen-human-v1", "maze2d-large-v1", "kitchen-mixed-v0"]
)
def test_the_two_references_score_0_and_100(task):
    reference = get_reference(task)
    np.testing.assert_allclose(normalized_score([reference.random, reference.expert], task), [0.0, 100.0], atol=1e-12)


@pytest.mark.parametrize(
    "task",
    [
        "hopper",  # an environment of D4RL without a data set name
        "Hopper-v2",
        "Hopper-v4",  # gymnasium's, between the two tables
        "hopper-v5",
        "Ant-v5",  # no expert is published
        "hopper-medium-v3",
        "hopper-medium-v2x",
        "maze2d-umaze-dense-v1",
        "antmaze-umaze-play-v2",
        "AdroitHandDoor-v1",
    ],
)
def test_a_version_without_its_own_reference_has_none(task):
    assert find_reference(task) is None
    with pytest.raises(O2OSpecError, match="which has no reference return"):
        normalized_score(1.0, task)


def test_versions_never_share_a_reference():
    for env_id, reference in V5_REFERENCES.items():
        d4rl = D4RL_REFERENCES[env_id.partition("-")[0].lower()]
        assert (reference.random, reference.expert) != (d4rl.random, d4rl.expert)
        assert "D4RL" not in reference.source
    assert all(reference.source.startswith("D4RL") for reference in D4RL_REFERENCES.values())


def test_own_reference_and_shape():
    reference = Reference(random=-10.0, expert=30.0, source="measured")
    scores = normalized_score(np.array([[-10.0, 10.0], [30.0, 50.0]], dtype=np.float32), reference)
    np.testing.assert_allclose(scores, [[0.0, 50.0], [100.0, 150.0]])
    assert scores.dtype == np.float64


def test_the_tables_are_read_only():
    with pytest.raises(TypeError):
        V5_REFERENCES["Ant-v5"] = Reference(0.0, 1.0, "")  # type: ignore[index]


@pytest.mark.parametrize("returns", [(1.0, 1.0), (5.0, 1.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_returns_that_no_score_can_be_measured_by_are_refused(returns: tuple[float, float]) -> None:
    with pytest.raises(O2OSpecError, match="expected two finite returns"):
        Reference(*returns, source="mine")
