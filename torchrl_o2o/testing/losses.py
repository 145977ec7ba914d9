# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The contract of all loss modules."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping

import torch
from tensordict import TensorDict
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.objectives import SoftUpdate

from torchrl_o2o.data.keys import key_text
from torchrl_o2o.objectives.base import TransitionLoss

__all__ = ["LossContract", "random_transitions"]


def random_transitions(
    batch_size: int,
    observation_dim: int,
    action_dim: int,
    *,
    observation_key: NestedKey = "observation",
    action_key: NestedKey = "action",
    generator: torch.Generator | None = None,
) -> TensorDict:
    """Random TED transitions, a third of them terminal, for tests.

    Args:
        batch_size: number of rows B.
        observation_dim: width of the observation.
        action_dim: width of the action, drawn in (-1, 1).
        observation_key: entry of the observation. Defaults to ``"observation"``.
        action_key: entry of the action. Defaults to ``"action"``.
        generator: source of the numbers. Defaults to torch's global one.

    Returns:
        Transitions of batch shape [B].

    Examples:
        >>> random_transitions(4, 3, 2)["next", "reward"].shape
        torch.Size([4, 1])
    """

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    terminated = (torch.arange(batch_size) % 3 == 0).unsqueeze(-1)
    data = TensorDict({}, [batch_size])
    data[observation_key] = normal(batch_size, observation_dim)
    data[action_key] = normal(batch_size, action_dim).tanh()
    following = TensorDict({"reward": normal(batch_size, 1)}, [batch_size])
    following[observation_key] = normal(batch_size, observation_dim)
    following.update({"terminated": terminated, "truncated": ~terminated, "done": torch.ones_like(terminated)})
    return data.set("next", following)


class LossContract:
    """Tests that hold for any loss module with separate ``loss_*`` outputs.

    Subclasses implement :meth:`make_loss` and declare in :attr:`trains` which parameters each loss may change. Override
    ``make_batch`` for losses that read more than transitions.

    Examples:
        >>> from torchrl_o2o.modules import make_gaussian_actor
        >>> from torchrl_o2o.objectives import BCLoss
        >>> class TestBC(LossContract):
        ...     trains = {"loss_actor": ("actor_network_params",)}
        ...     weighted = ("loss_actor",)
        ...
        ...     def make_loss(self, *, observation_key="observation", action_key="action"):
        ...         keys = {"observation_key": observation_key, "action_key": action_key}
        ...         return BCLoss(make_gaussian_actor(5, 3, hidden_sizes=(8,), **keys))
        >>> TestBC().test_gradients_reach_only_their_own_parameters()  # pytest runs all that begin with test
    """

    observation_dim = 5
    action_dim = 3
    batch_size = 12

    #: For each output, the parameter groups (attributes of the loss) that get its gradient; all others get none.
    trains: Mapping[str, tuple[str, ...]] = {}
    #: Outputs whose rows are multiplied by importance weights; the others ignore the weights.
    weighted: tuple[str, ...] = ("loss_qvalue", "loss_value", "loss_baseline", "loss_vae", "loss_inverse")

    def make_loss(
        self, *, observation_key: NestedKey = "observation", action_key: NestedKey = "action"
    ) -> TransitionLoss:
        """Build the loss on networks that read the given entries; called again in every test."""
        raise AssertionError(f"{type(self).__name__} must implement make_loss")

    def make_batch(self, *, observation_key: NestedKey = "observation", action_key: NestedKey = "action") -> TensorDict:
        """Transitions for the loss, the same at every call."""
        return random_transitions(
            self.batch_size,
            self.observation_dim,
            self.action_dim,
            observation_key=observation_key,
            action_key=action_key,
            generator=torch.Generator().manual_seed(0),
        )

    def bootstrapped(self, loss: TransitionLoss, batch: TensorDict) -> Tensor | None:
        """A value, shape [B], that must not depend on the next state of terminal rows: the critic's loss by default.

        Override it for losses that also read the next state for another purpose (CQL draws actions there); return
        ``None`` if nothing is bootstrapped.
        """
        output = next((key for key in ("loss_qvalue", "loss_value") if key in self.trains), None)
        return None if output is None else self._run(loss, batch)[output]

    def _seeded(self, **keys: NestedKey) -> TransitionLoss:
        torch.manual_seed(0)
        loss = self.make_loss(**keys)
        self._updater = SoftUpdate(loss, tau=0.5) if self._targets(loss) else None
        return loss

    @staticmethod
    def _targets(loss: TransitionLoss) -> list[str]:
        return [name for name, _ in loss.named_children() if name.startswith("target_")]

    def _run(self, loss: TransitionLoss, batch: TensorDict, seed: int = 1) -> TensorDict:
        torch.manual_seed(seed)
        return loss(batch.clone())

    def test_outputs_are_finite_scalars(self) -> None:
        """Every output is one finite number under the default reduction."""
        out = self._run(self._seeded(), self.make_batch())
        assert set(self.trains) == {key for key in map(key_text, out.keys()) if key.startswith("loss_")}
        for key, value in out.items():
            assert value.shape == (), key
            assert value.isfinite(), key

    def test_gradients_reach_only_their_own_parameters(self) -> None:
        """Each loss changes all parameters that it is declared to change, and no others."""
        for output, groups in self.trains.items():
            loss = self._seeded()
            self._run(loss, self.make_batch())[output].backward()
            moved = {name for name, value in loss.named_parameters() if value.grad is not None and value.grad.any()}
            expected = {name for name, _ in loss.named_parameters() if name.split(".")[0] in groups}
            assert moved == expected, f"{output} and its declaration differ in {sorted(moved ^ expected)}"

    def test_targets_have_no_gradient_and_follow(self) -> None:
        """Target parameters are buffers, equal at first, and follow only through the updater."""
        loss = self._seeded()
        for name in self._targets(loss):
            assert not any(value.requires_grad for value in getattr(loss, name).values(True, True))
        if self._updater is None:
            return
        before = [value.clone() for name in self._targets(loss) for value in getattr(loss, name).values(True, True)]
        self._run(loss, self.make_batch())
        after = [value for name in self._targets(loss) for value in getattr(loss, name).values(True, True)]
        assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))

    def test_what_is_handed_on_of_targets_is_named_so(self) -> None:
        """Metrics computed from targets are named ``target_...``, so that an update drops them when targets move."""
        loss, batch = self._seeded(), self.make_batch()
        methods = [getattr(loss, f"{output.removeprefix('loss_')}_loss", None) for output in self.trains]
        given = [inspect.signature(method).parameters for method in methods if method is not None]
        asked = {name for each in given for name, one in each.items() if one.kind is inspect.Parameter.KEYWORD_ONLY}
        before = self._handed_on(loss, batch, asked)
        for name in self._targets(loss):
            for value in getattr(loss, name).values(True, True):
                value.data.add_(0.1)
        after = self._handed_on(loss, batch, asked)
        changed = {name for name, value in before.items() if not torch.equal(after[name], value)}
        assert not {name for name in changed if not name.startswith("target_")}

    def _handed_on(self, loss: TransitionLoss, batch: TensorDict, asked: set[str]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for output in self.trains:
            method = getattr(loss, f"{output.removeprefix('loss_')}_loss", None)
            if method is not None:
                torch.manual_seed(1)
                info = method(batch)[1]
                found |= {name: value for name, value in info.items() if name in asked}
        return found

    def test_dispatch_equals_tensordict(self) -> None:
        """Calls with keyword tensors and with a tensordict give the same results, for every reduction."""
        loss, batch = self._seeded(), self.make_batch()
        words = {key_text(key, "_"): batch[key] for key in loss.in_keys}
        for loss.reduction in ("none", "sum", "mean"):
            expected = self._run(loss, batch)
            torch.manual_seed(1)
            values = loss(**words)
            values = values if isinstance(values, tuple) else (values,)
            for key, value in zip(loss.out_keys, values, strict=True):
                torch.testing.assert_close(value, expected[key])

    def test_out_keys_are_what_is_returned(self) -> None:
        """The outputs match ``out_keys`` for every reduction, also after changing it."""
        loss, batch = self._seeded(), self.make_batch()
        for loss.reduction in ("mean", "none", "sum", None):
            assert sorted(loss.out_keys) == sorted(self._run(loss, batch).keys()), loss.reduction

    def test_input_is_not_modified(self) -> None:
        """No entry of the batch changes; only the declared priority is added."""
        loss, batch = self._seeded(), self.make_batch()
        before = batch.clone()
        loss(batch)
        for key in before.keys(True, True):
            assert torch.equal(batch[key], before[key]), key
        allowed = {getattr(loss.tensor_keys, "priority", None)}
        assert set(batch.keys(True, True)) - set(before.keys(True, True)) <= allowed

    def test_set_keys(self) -> None:
        """Renamed and nested entries give the same numbers."""
        expected = self._run(self._seeded(), self.make_batch())
        nested = {"observation_key": ("agent", "state"), "action_key": ("agent", "action")}
        loss, batch = self._seeded(**nested), self.make_batch(**nested)
        batch = batch.rename_key_(("next", "reward"), ("next", "agent", "reward"))
        loss.set_keys(action=("agent", "action"), reward=("agent", "reward"))
        got = self._run(loss, batch)
        for key, value in expected.items():
            torch.testing.assert_close(got[key], value)

    def test_terminated_stops_the_bootstrap_and_truncated_does_not(self) -> None:
        """The next observation has no influence on terminal rows, but has one on truncated rows."""
        loss, batch = self._seeded(), self.make_batch()
        loss.reduction = "none"
        terminated = batch["next", "terminated"].squeeze(-1)
        other = batch.clone()
        following = other["next", "observation"]
        other["next", "observation"] = following + (10.0 if following.is_floating_point() else 10)
        first, second = self.bootstrapped(loss, batch), self.bootstrapped(loss, other)
        if first is None or second is None:
            return
        torch.testing.assert_close(first[terminated], second[terminated])
        assert (first[~terminated] != second[~terminated]).all()

    def test_reduction(self) -> None:
        """``"none"`` keeps the rows, ``"sum"`` and ``"mean"`` are their sum and mean."""
        loss, batch = self._seeded(), self.make_batch()
        mean = self._run(loss, batch)
        loss.reduction = "sum"
        total = self._run(loss, batch)
        loss.reduction = "none"
        rows = self._run(loss, batch)
        for key in self.trains:
            assert rows[key].shape == (self.batch_size,), key
            torch.testing.assert_close(rows[key].sum(), total[key])
            torch.testing.assert_close(rows[key].mean(), mean[key])

    def test_importance_weights(self) -> None:
        """Importance weights multiply the rows of the outputs in :attr:`weighted` and change no others."""
        loss, batch = self._seeded(), self.make_batch()
        loss.reduction, key = "none", loss.tensor_keys.priority_weight
        weights = torch.linspace(0.5, 1.5, self.batch_size)
        plain = self._run(loss, batch.clone().set(key, torch.ones_like(weights)))
        for shaped in (weights, weights.unsqueeze(-1)):
            rows = self._run(loss, batch.clone().set(key, shaped))
            for output in self.trains:
                expected = weights * plain[output] if output in self.weighted else plain[output]
                torch.testing.assert_close(rows[output], expected, msg=lambda text, name=output: f"{name}: {text}")

    def test_state_dict_round_trip(self) -> None:
        """A freshly built loss loads the state strictly and computes the same."""
        loss, batch = self._seeded(), self.make_batch()
        self._step(loss, batch)
        torch.manual_seed(99)
        other = self.make_loss()
        other.load_state_dict(loss.state_dict(), strict=True)
        for key, value in self._run(loss, batch).items():
            assert torch.equal(self._run(other, batch)[key], value), key

    def test_reset_draws_trained_networks_and_their_targets(self) -> None:
        """``reset_parameters_recursive`` draws new trained networks, equal to their targets, and no frozen ones."""
        loss, batch = self._seeded(), self.make_batch()
        self._step(loss, batch)
        trained = {name for name, value in loss.named_parameters() if value.requires_grad and value.ndim > 1}
        before = {name: value.clone() for name, value in loss.state_dict().items() if isinstance(value, Tensor)}
        frozen = before.keys() - {name for name, value in loss.named_parameters() if value.requires_grad}
        loss.reset_parameters_recursive()
        after = loss.state_dict()
        assert any(not torch.equal(after[name], before[name]) for name in trained)
        for name in frozen:
            source = name.removeprefix("target_")
            drawn = source != name and source in after
            assert torch.equal(after[name], after[source] if drawn else before[name]), name
        assert self._run(loss, batch).isfinite().all()

    def test_float64(self) -> None:
        """After ``.double()`` everything is computed in float64 and agrees with float32."""
        loss, batch = self._seeded(), self.make_batch()
        single = self._single_noise(loss, batch)
        double = self._single_noise(loss.double(), batch.apply(lambda x: x.double() if x.is_floating_point() else x))
        for key, value in double.items():
            assert value.dtype == torch.float64, key
            torch.testing.assert_close(value.float(), single[key], rtol=1e-4, atol=1e-5)

    def _single_noise(self, loss: TransitionLoss, batch: TensorDict) -> TensorDict:
        """Draw noise in float32 for all dtypes, because torch draws different numbers in float64."""
        noise = loss.noise

        def single(name: str) -> Callable[..., Tensor]:
            original = getattr(type(noise), name)

            def draw(what: str, like: Tensor, sample_shape: tuple[int, ...] = ()) -> Tensor:
                return original(noise, what, like.float(), sample_shape).to(like.dtype)

            return draw

        for name in ("normal", "uniform"):
            setattr(noise, name, single(name))
        try:
            return self._run(loss, batch)
        finally:
            for name in ("normal", "uniform"):
                delattr(noise, name)

    def test_copies_are_independent(self) -> None:
        """A deep copy trains by itself: its losses follow its own parameters, not the original's."""
        loss, batch = self._seeded(), self.make_batch()
        before = self._run(loss, batch)
        other = copy.deepcopy(loss)
        self._step(other, batch)
        after = self._run(other, batch)
        for key in self.trains:
            assert not torch.equal(after[key], before[key]), f"the copy's {key} does not follow its parameters"
            assert torch.equal(self._run(loss, batch)[key], before[key]), (
                f"training the copy moved the original's {key}"
            )

    def test_moved_copies_compute_with_their_own_state(self) -> None:
        """After changing all its parameters and buffers, a deep copy equals a new loss that loads its state."""
        loss, batch = self._seeded(), self.make_batch()
        before = self._run(loss, batch)
        other, twin = copy.deepcopy(loss), self.make_loss()
        for value in other.state_dict().values():
            if isinstance(value, Tensor) and value.is_floating_point():
                value.add_(0.01)
        twin.load_state_dict(other.state_dict())
        moved = self._run(other, batch)
        for key, value in self._run(twin, batch).items():
            assert torch.equal(moved[key], value), f"the copy's {key} is not what its state says"
        for key, value in self._run(loss, batch).items():
            assert torch.equal(before[key], value), f"moving the copy moved the original's {key}"
        double = batch.apply(lambda x: x.double() if x.is_floating_point() else x)
        moved = self._run(other.double(), double)
        for key, value in self._run(twin.double(), double).items():
            assert torch.equal(moved[key], value), f"after .double() the copy's {key} is not what its state says"

    def _step(self, loss: TransitionLoss, batch: TensorDict) -> None:
        optim = torch.optim.SGD([value for value in loss.parameters() if value.requires_grad], lr=0.05)
        out = self._run(loss, batch)
        sum(out[key] for key in self.trains).backward()  # type: ignore[union-attr]
        optim.step()
        optim.zero_grad()
