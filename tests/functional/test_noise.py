# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import pytest
import torch

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional.noise import GeneratorNoise, RecordedNoise


def test_draws_have_shape_dtype_and_range() -> None:
    noise, like = GeneratorNoise(), torch.zeros(4, 2, dtype=torch.float64)
    normal, uniform = noise.normal("a", like, (3,)), noise.uniform("b", like)
    assert (normal.shape, normal.dtype) == ((3, 4, 2), torch.float64)
    assert uniform.shape == (4, 2)
    assert uniform.abs().max() <= 1.0


def test_own_generator_repeats_and_leaves_the_global_one_alone() -> None:
    like = torch.zeros(5)
    state = torch.get_rng_state()
    first, second = (GeneratorNoise(torch.Generator().manual_seed(3)).normal("a", like) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


def test_subsets_are_without_replacement_and_uniform() -> None:
    noise = GeneratorNoise(torch.Generator().manual_seed(0))
    counts = torch.zeros(10)
    for _ in range(2000):
        index = noise.subset("target", 10, 2, torch.zeros(4))
        assert len(set(index.tolist())) == 2
        counts[index] += 1
    assert (counts / 2000 - 0.2).abs().max() < 0.04


def test_subsets_per_row() -> None:
    index = GeneratorNoise().subset("target", 5, 3, torch.zeros(100), per_row=True)
    assert index.shape == (3, 100)
    assert all(len(set(column.tolist())) == 3 for column in index.T)
    assert not (index == index[:, :1]).all()


@pytest.mark.parametrize("per_row", [False, True])
def test_a_whole_subset_draws_nothing(per_row: bool) -> None:
    state = torch.get_rng_state()
    index = GeneratorNoise().subset("target", 3, 3, torch.zeros(2), per_row=per_row)
    assert torch.equal(torch.get_rng_state(), state)
    assert index.shape == ((3, 2) if per_row else (3,))


def test_recorded_numbers_are_returned_in_the_asked_dtype() -> None:
    noise = RecordedNoise({"a": torch.ones(2, 3, dtype=torch.float64), "target": torch.tensor([1, 0])})
    assert noise.normal("a", torch.zeros(2, 3)).dtype == torch.float32
    assert noise.subset("target", 4, 2, torch.zeros(1)).tolist() == [1, 0]


def test_recorded_noise_refuses_what_was_not_recorded() -> None:
    noise = RecordedNoise({"a": torch.ones(2, 3)})
    with pytest.raises(O2OSpecError, match=r"'b' without recorded numbers, expected one of \['a'\]"):
        noise.normal("b", torch.zeros(2, 3))
    with pytest.raises(O2OSpecError, match=r"shape \(2, 3\) for .*expected \(4, 3\)"):
        noise.normal("a", torch.zeros(4, 3))


def test_rows_come_from_the_generator_as_torch_draws_them() -> None:
    noise, same = (GeneratorNoise(torch.Generator().manual_seed(3)) for _ in range(2))
    prob = torch.tensor([0.0, 0.5, 0.5])
    generator = same.generator
    assert torch.equal(noise.integers("a", 2, 9, 50), torch.randint(2, 9, (50,), generator=generator))
    assert torch.equal(noise.fractions("b", 50), torch.rand(50, dtype=torch.float64, generator=generator))
    assert torch.equal(noise.choices("c", prob, 50), torch.multinomial(prob, 50, True, generator=generator))


def test_recorded_rows() -> None:
    noise = RecordedNoise({"a": torch.tensor([4, 2]), "b": torch.tensor([0.5, 0.25])})
    assert noise.integers("a", 2, 5, 2).tolist() == [4, 2]
    assert noise.choices("a", torch.ones(5), 2).tolist() == [4, 2]
    assert noise.fractions("b", 2).tolist() == [0.5, 0.25]
    for call in (lambda: noise.integers("a", 3, 5, 2), lambda: noise.choices("a", torch.ones(4), 2)):
        with pytest.raises(O2OSpecError, match=r"recorded numbers in 2\.\.4 for 'a', expected"):
            call()
    with pytest.raises(O2OSpecError, match=r"shape \(2,\) for .*expected \(3,\)"):
        noise.integers("a", 0, 9, 3)


def test_the_old_path_is_the_same_module() -> None:
    from torchrl_o2o.objectives import noise as old

    assert (old.GeneratorNoise, old.RecordedNoise) == (GeneratorNoise, RecordedNoise)
