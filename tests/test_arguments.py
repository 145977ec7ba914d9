# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_type_hints

import numpy as np
import pytest
import torch

from torchrl_o2o.arguments import ChecksArguments, checked_arguments
from torchrl_o2o.data import BalancedSampler, Convention, EpisodeRows, PoolSampler, PrioritizedReplaySampler
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import (
    ConservativePenalty,
    Multiplier,
    Temperature,
    make_actor,
    make_baselines,
    make_bottleneck,
    make_deterministic_actor,
    make_gaussian_actor,
    make_qvalue_ensemble,
    make_trunk,
    make_value_network,
)
from torchrl_o2o.objectives import AWACLoss, BCLoss, CQLLoss, IQLLoss, SACMLLoss, TD3BCLoss
from torchrl_o2o.trainers import HandOver
from torchrl_o2o.updates import Descend

SUBPACKAGES = ("checkpoint", "collectors", "data", "envs", "modules", "objectives", "priorities", "record", "trainers")
SMALL: Any = {"hidden_sizes": (8,)}
NAN = float("nan")


class Foreign:
    """An object of somebody else's; its name is the same in every process, so that tests have one."""

    def __repr__(self) -> str:
        return "Foreign()"


@checked_arguments
def takes(
    number: float = 1.0,
    count: int | None = 3,
    switch: bool = False,
    choice: Literal["x", "y"] | bool = "x",
    widths: Sequence[int] = (1,),
    bounds: tuple[float, float] = (0.0, 1.0),
    function: Callable[[int], int] | None = None,
    settings: Mapping[str, int] | None = None,
    network: torch.nn.Module | None = None,
    anything: Any = None,
    odd: float = None,  # type: ignore[assignment]  # noqa: RUF013
    file: str | Path | None = None,
) -> tuple[Any, ...]:
    return number, count, switch, choice, widths, bounds, function, settings, network, anything, odd, file


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"number": 2}, 2),
        ({"number": np.float32(0.5)}, 0.5),
        ({"number": np.int64(2)}, 2.0),
        ({"number": np.array(0.5)}, 0.5),
        ({"number": torch.tensor(0.5)}, 0.5),
        ({"number": float("inf")}, float("inf")),
        ({"count": np.int64(2)}, 2),
        ({"count": None}, None),
        ({"switch": np.bool_(True)}, True),
        ({"choice": True}, True),
        ({"widths": [1, 2]}, [1, 2]),
        ({"widths": np.array([1, 2])}, (1, 2)),
        ({"bounds": (-1, float("inf"))}, (-1, float("inf"))),
        ({"anything": object}, object),
        ({"odd": None}, None),
        ({"file": "a"}, "a"),
        ({"file": Path("a")}, Path("a")),
    ],
)
def test_what_fits_comes_through(given: dict[str, Any], kept: Any) -> None:
    names = list(inspect.signature(takes).parameters)
    (name,) = given
    got = takes(**given)[names.index(name)]
    assert got == kept
    assert type(got) is type(kept)


@pytest.mark.parametrize(
    "given",
    [
        *({"number": value} for value in ("1.0", True, None, NAN, [1.0], torch.tensor(1.0, requires_grad=True))),
        *({"count": value} for value in (2.0, True, "3", NAN, Foreign(), torch.nn.Linear(1, 1))),
        *({"switch": value} for value in (1, "false", None)),
        *({"choice": value} for value in ("z", 1, None)),
        *({"widths": value} for value in (3, "ab", (1.5,), [True], None)),
        *({"bounds": value} for value in ((1,), (1, 2, 3), (0, "1"), (0.0, NAN))),
        {"function": 3},
        {"function": Foreign()},
        *({"settings": value} for value in ([1], Foreign())),
        {"network": "mlp"},
        *({"file": value} for value in (3, Foreign(), torch.nn.Linear(1, 1))),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named(given: dict[str, Any]) -> None:
    with pytest.raises(O2OSpecError, match=f"got {next(iter(given))}=.*expected "):
        takes(**given)


def test_calls_that_python_refuses_are_pythons_to_refuse() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'nothing'"):
        takes(nothing=1)  # type: ignore[call-arg]


def test_classes_derived_from_a_checked_one_are_checked() -> None:
    class Base(ChecksArguments):
        pass

    class Derived(Base):
        def __init__(self, size: int) -> None:
            self.size = size

    assert Derived(2).size == 2
    with pytest.raises(O2OSpecError, match="size='2', expected a whole number"):
        Derived("2")  # type: ignore[arg-type]


def test_what_the_package_annotates_is_known_when_it_runs() -> None:
    """A name that is imported for type checkers only would switch a function's checks off."""
    checked = 0
    for subpackage in SUBPACKAGES:
        for item in vars(importlib.import_module(f"torchrl_o2o.{subpackage}")).values():
            function = item.__init__ if isinstance(item, type) else item
            if getattr(function, "__module__", "").startswith("torchrl_o2o") and hasattr(function, "__wrapped__"):
                assert get_type_hints(function)
                checked += 1
    assert checked > 100


def critics() -> Any:
    return make_qvalue_ensemble(3, 2, num_qvalue_nets=2, **SMALL)


def iql(**settings: Any) -> IQLLoss:
    return IQLLoss(make_gaussian_actor(3, 2, **SMALL), critics(), make_value_network(3, **SMALL), **settings)


WRONG: list[tuple[str, Callable[[], Any]]] = [
    ("actor_network=None", lambda: BCLoss(None)),  # type: ignore[arg-type]
    ("actor_network=Linear", lambda: BCLoss(torch.nn.Linear(3, 2))),  # type: ignore[arg-type]
    ("qvalue_network=None", lambda: AWACLoss(make_gaussian_actor(3, 2, **SMALL), None)),  # type: ignore[arg-type]
    ("temperature=0.1", lambda: CQLLoss(make_actor(3, 2, **SMALL), critics(), temperature=0.1)),  # type: ignore[arg-type]
    ("expectile='a'", lambda: iql(expectile="a")),
    ("beta=nan", lambda: iql(beta=NAN)),
    ("weight_clip=-1", lambda: iql(weight_clip=-1)),
    ("weight_clip=0", lambda: AWACLoss(make_gaussian_actor(3, 2, **SMALL), critics(), weight_clip=0)),
    ("value_samples=1.5", lambda: AWACLoss(make_gaussian_actor(3, 2, **SMALL), critics(), value_samples=1.5)),  # type: ignore[arg-type]
    ("entropy_backup='false'", lambda: CQLLoss(make_actor(3, 2, **SMALL), critics(), entropy_backup="false")),  # type: ignore[arg-type]
    ("ml_weight=-1", lambda: SACMLLoss(make_actor(3, 2, **SMALL), critics(), make_baselines(3, **SMALL), ml_weight=-1)),
    ("num_offline=2.5", lambda: BalancedSampler(2.5)),  # type: ignore[arg-type]
    ("alpha=inf", lambda: PoolSampler(len, 2, alpha=float("inf"))),  # type: ignore[arg-type]
    ("beta=inf", lambda: PrioritizedReplaySampler(2, 0.6, float("inf"))),
    ("reward_scale=0", lambda: Convention(reward_scale=0)),
    ("reward_scale='a'", lambda: Convention(reward_scale="a")),  # type: ignore[arg-type]
    ("n=0", lambda: EpisodeRows(0, 0.9)),
    ("target_entropy=nan", lambda: Temperature(NAN)),
    ("target=nan", lambda: Multiplier(1.0, target=NAN)),
    ("weight=nan", lambda: ConservativePenalty(NAN)),
    ("action dimensions=-1", lambda: make_actor(3, -1, **SMALL)),
    ("num_baselines=0", lambda: make_baselines(3, num_baselines=0, **SMALL)),
    ("latent_dim=0", lambda: make_bottleneck(3, 0)),
    ("dropout=2", lambda: make_trunk(3, (8,), dropout=2)),
    ("log_std_bounds=None", lambda: make_actor(3, 2, log_std_bounds=None, **SMALL)),  # type: ignore[arg-type]
    ("warmup_steps='5'", lambda: HandOver(warmup_steps="5")),  # type: ignore[arg-type]
    ("optim='adam'", lambda: Descend("actor", "adam")),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("told", "make"), WRONG, ids=[told for told, _ in WRONG])
def test_constructors_refuse_what_they_cannot_use(told: str, make: Callable[[], Any]) -> None:
    with pytest.raises(O2OSpecError) as caught:
        make()
    name, _, value = told.partition("=")
    assert f"{name}=" in str(caught.value)
    assert value in str(caught.value)


def test_numbers_of_numpy_are_pythons() -> None:
    loss = TD3BCLoss(make_deterministic_actor(3, 2, **SMALL), critics(), alpha=np.float64(2.0))
    assert type(loss.alpha) is float
    assert type(BalancedSampler(np.int64(4)).num_offline) is int


def test_paths_may_be_words_everywhere() -> None:
    """Of everything public that takes a path."""
    names = ("checkpoint", "collectors", "data", "deploy", "envs", "record", "reproduce", "trainers", "updates")
    rooms = {room: importlib.import_module(f"torchrl_o2o.{room}") for room in names}
    results = {"PolicyFile", "Run", "Pretrained", "RunStatus", "EvaluationResult"}  # which the package itself makes
    internal = {"TensorBoardSink", "WandbSink", "write_html"}  # a recorder and a report make these
    strict = []
    for room, module in rooms.items():
        for name in set(module.__all__) - results - internal:
            made = getattr(module, name)
            if not inspect.isfunction(made) and not inspect.isclass(made):
                continue
            if issubclass(made if inspect.isclass(made) else object, Exception):
                continue
            for argument in inspect.signature(made).parameters.values():
                kinds = str(argument.annotation)
                if "Path" in kinds and "str" not in kinds and "Callable" not in kinds:
                    strict.append(f"{room}.{name}({argument.name}: {kinds})")
    assert strict == []
