# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces

from torchrl_o2o.data.datasets.actors import gaussian_noise, linear_policy, load_actor, mixture, uniform_policy
from torchrl_o2o.errors import O2ODataError

BOX = spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([1.0, 4.0], np.float32))
OBSERVATION = np.array([0.5, -1.0, 2.0])


def layers(rng: np.random.Generator, *sizes: int) -> dict[str, np.ndarray]:
    out = {}
    for number, (width, height) in enumerate(pairwise(sizes)):
        out[f"w{number}"], out[f"b{number}"] = rng.standard_normal((height, width)), rng.standard_normal(height)
    return out


def test_linear_policy() -> None:
    rng = np.random.default_rng(0)
    weight, mean, scale = rng.standard_normal((2, 3)), rng.standard_normal(3), rng.uniform(1, 2, 3)
    expected = weight @ ((OBSERVATION - mean) / scale)
    np.testing.assert_allclose(linear_policy(weight, mean, scale)(OBSERVATION), expected)


def test_uniform_policy_fills_the_box() -> None:
    act = uniform_policy(BOX)(np.random.default_rng(0))
    actions = np.stack([act(OBSERVATION) for _ in range(2000)])
    np.testing.assert_allclose(actions.min(0), BOX.low, atol=0.02)
    np.testing.assert_allclose(actions.max(0), BOX.high, atol=0.02)
    np.testing.assert_allclose(actions.mean(0), [0.0, 2.0], atol=0.1)


def test_noise_is_in_units_of_half_the_box_and_clipped() -> None:
    act = gaussian_noise(lambda rng: lambda observation: np.array([0.0, 2.0]), BOX, low=0.1)(np.random.default_rng(0))
    np.testing.assert_allclose(np.stack([act(OBSERVATION) for _ in range(4000)]).std(0), [0.1, 0.2], rtol=0.05)
    act = gaussian_noise(lambda rng: lambda observation: BOX.high, BOX, low=0.1)(np.random.default_rng(0))
    assert np.stack([act(OBSERVATION) for _ in range(100)]).max(0).tolist() == [1.0, 4.0]


def test_noise_drawn_anew_each_episode() -> None:
    rng = np.random.default_rng(0)
    begin = gaussian_noise(lambda rng: lambda observation: np.array([0.0, 2.0]), BOX, low=0.0, high=0.3)
    sizes = [np.std([act(OBSERVATION)[0] for _ in range(300)]) for act in (begin(rng) for _ in range(200))]
    assert np.mean(sizes) == pytest.approx(0.15, rel=0.1)
    assert min(sizes) < 0.02
    assert max(sizes) > 0.27


def test_mixture_gives_every_member_its_turn() -> None:
    members = [lambda rng, number=number: lambda observation: number for number in range(4)]
    begin, rng = mixture(members), np.random.default_rng(0)
    rounds = [[begin(rng)(OBSERVATION) for _ in range(4)] for _ in range(5)]
    assert all(sorted(turns) == [0, 1, 2, 3] for turns in rounds)
    assert len({tuple(turns) for turns in rounds}) > 1


def test_the_zoo_layout(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = layers(rng, 3, 8, 8, 2)
    arrays |= {"w3": np.zeros((2, 8)), "b3": np.full(2, -30.0)}  # below the clip of -20: no noise to speak of
    np.savez(tmp_path / "a.npz", **{f"tqc_Toy/{key}": values for key, values in arrays.items()})
    act = load_actor(tmp_path / "a.npz", "tqc_Toy/", BOX)(rng)
    hidden = np.maximum(arrays["w0"] @ OBSERVATION + arrays["b0"], 0)
    hidden = np.maximum(arrays["w1"] @ hidden + arrays["b1"], 0)
    unit = np.tanh(arrays["w2"] @ hidden + arrays["b2"])
    np.testing.assert_allclose(act(OBSERVATION), [unit[0], 2 * unit[1] + 2], atol=1e-6)


def test_the_zoo_layout_is_sampled(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {key: np.zeros_like(values) for key, values in layers(rng, 3, 8, 8, 2).items()}
    arrays |= {"w3": np.zeros((2, 8)), "b3": np.full(2, np.log(0.1))}
    np.savez(tmp_path / "a.npz", **arrays)
    act = load_actor(tmp_path / "a.npz", "tqc_Toy/", BOX)(rng)  # a file without groups serves any name
    assert np.std([act(OBSERVATION)[0] for _ in range(2000)]) == pytest.approx(0.1, rel=0.1)


def test_the_dapg_layout(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = layers(rng, 3, 8, 8, 2)
    arrays |= {"in_shift": rng.standard_normal(3), "in_scale": rng.uniform(1, 2, 3)}
    arrays |= {"out_shift": rng.standard_normal(2), "out_scale": rng.uniform(1, 2, 2), "log_std": np.zeros(2)}
    np.savez(tmp_path / "a.npz", **{f"door/{key}": values for key, values in arrays.items()})
    hidden = (OBSERVATION - arrays["in_shift"]) / (arrays["in_scale"] + 1e-8)
    for layer in "01":
        hidden = np.tanh(arrays[f"w{layer}"] @ hidden + arrays[f"b{layer}"])
    expected = (arrays["w2"] @ hidden + arrays["b2"]) * arrays["out_scale"] + arrays["out_shift"]
    action = load_actor(tmp_path / "a.npz", "door/", BOX)(rng)(OBSERVATION)
    np.testing.assert_allclose(action, np.clip(expected, BOX.low, BOX.high))


def test_the_linear_layout_is_clipped(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", W=np.full((2, 3), 9.0), mu=np.zeros(3), sd=np.ones(3))
    assert load_actor(tmp_path / "a.npz", "", BOX)(np.random.default_rng(0))(OBSERVATION).tolist() == [1.0, 4.0]


def test_files_that_are_no_actors(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **{"sac_Toy/w0": np.zeros(1)})
    with pytest.raises(O2ODataError, match=r"has no actor 'tqc_Toy'; it has \['sac_Toy'\]"):
        load_actor(path, "tqc_Toy/", BOX)
    with pytest.raises(O2ODataError, match=r"holds \['w0'\] for 'sac_Toy/'; expected a linear policy"):
        load_actor(path, "sac_Toy/", BOX)
    np.savez(path, W=np.full((2, 3), np.nan), mu=np.zeros(3), sd=np.ones(3))
    with pytest.raises(O2ODataError, match=r"not finite in \['W'\]"):
        load_actor(path, "", BOX)


def test_actors_in_damaged_files(tmp_path: Path) -> None:
    """What zip, zlib and numpy raise is theirs alone."""
    path = tmp_path / "a.npz"
    np.savez_compressed(path, W=np.ones((2, 3)), mu=np.zeros(3), sd=np.ones(3))
    content = path.read_bytes()
    for spoiled in (b"garbage", *(content[:kept] for kept in (0, 10, 200, 500)), content[:100] + b"x" + content[101:]):
        path.write_bytes(spoiled)
        with pytest.raises(O2ODataError, match=r"a\.npz is not a readable npz file"):
            load_actor(path, "", BOX)
