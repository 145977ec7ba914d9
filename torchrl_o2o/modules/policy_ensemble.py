# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Several agents' policies as one actor.

Shapes: ``K`` agents, ``B`` any batch shape, ``A`` action dimensions.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from operator import attrgetter

import torch
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torchrl.modules import ProbabilisticActor, SafeProbabilisticModule

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.errors import O2OSpecError, check_order
from torchrl_o2o.functional.off2on import merge_gaussians
from torchrl_o2o.modules.input_checks import differing_layer

__all__ = ["PolicyEnsemble", "average_actors"]


class PolicyEnsemble(nn.Module):
    r"""K Gaussian policies of the same shape, evaluated in one batched call and merged into one Gaussian.

    The members' parameters are stacked: the parameter ``p`` of a member becomes ``members.p`` of shape [K, ...]. They
    are copies. All of them get gradients through the merged mean and standard deviation.

    Source: Lee et al. 2021 (Off2On), pessimistic Q-ensemble: the policy that is fine-tuned online. The equations are
    :func:`~torchrl_o2o.functional.merge_gaussians`.

    Args:
        members: K modules of the same structure that map the same inputs to mean and standard deviation before tanh,
            each of shape [*B, A].

    Keyword Args:
        log_std_bounds: clip of the merged log standard deviation. Defaults to (-20, 2).

    Raises:
        O2OSpecError: if there is no member, their parameters differ in name or shape, their layers differ in settings,
            or a member has buffers.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from torchrl_o2o.modules import GaussianHead
        >>> merged = PolicyEnsemble([GaussianHead(8, 2) for _ in range(3)])
        >>> loc, scale = merged(torch.zeros(5, 8))
        >>> loc.shape, merged.members.mean.weight.shape
        (torch.Size([5, 2]), torch.Size([3, 2, 8]))
    """

    members: nn.Module

    @checked_arguments
    def __init__(self, members: Sequence[nn.Module], *, log_std_bounds: tuple[float, float] = (-20.0, 2.0)) -> None:
        super().__init__()
        _check_alike(members)
        check_order("log_std_bounds", log_std_bounds)
        self.log_std_bounds = log_std_bounds
        self.num_members = len(members)
        # A member without parameters, called with explicit ones; in a tuple, so that it is not a submodule.
        self._template = (copy.deepcopy(members[0]).to("meta"),)
        self._names = tuple(name for name, _ in members[0].named_parameters())
        self.members = copy.deepcopy(members[0])
        for name in self._names:
            owner, _, leaf = name.rpartition(".")
            stacked = torch.stack([member.get_parameter(name).detach() for member in members])
            setattr(self.members.get_submodule(owner), leaf, nn.Parameter(stacked))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Map the members' inputs, [*B, ...], to the merged mean and standard deviation, each [*B, A]."""
        template = self._template[0]
        for layer, own in zip(template.modules(), self.members.modules(), strict=True):
            if layer.training != own.training:  # train() and eval() do not reach the template
                layer.training = own.training
        params = {name: attrgetter(name)(self.members) for name in self._names}

        def member(member_params: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            return functional_call(template, member_params, inputs)

        loc, scale = vmap(member, randomness="different")(params)
        return merge_gaussians(loc, scale, self.log_std_bounds)


@checked_arguments
def average_actors(
    actors: Sequence[ProbabilisticTensorDictSequential], *, log_std_bounds: tuple[float, float] = (-20.0, 2.0)
) -> ProbabilisticActor:
    r"""One actor whose pre-tanh Gaussian has the moments of the equal mixture of K actors' Gaussians.

    It can collect, be evaluated, and be passed to any loss, which then trains all members' parameters together.

    Source: Lee et al. 2021 (Off2On), pessimistic Q-ensemble.

    Args:
        actors: K actors of the same shape, for example from :func:`~torchrl_o2o.modules.make_actor`, each trained
            offline; their parameters are copied.

    Keyword Args:
        log_std_bounds: clip of the merged log standard deviation. Defaults to (-20, 2).

    Returns:
        An actor with the keys, action spec and distribution of the first one.

    Raises:
        O2OSpecError: if the actors differ in shape or settings, or are not a network followed by a distribution with
            its mean and standard deviation.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_o2o.modules import make_actor
        >>> actor = average_actors([make_actor(17, 6, hidden_sizes=(32, 32)) for _ in range(5)])
        >>> actor(TensorDict({"observation": torch.zeros(4, 17)}, [4]))["action"].shape
        torch.Size([4, 6])
    """
    if not actors:
        raise O2OSpecError("got no actor to average, expected at least one; pass a list of them")
    head = actors[0][-1]
    if not isinstance(head, SafeProbabilisticModule):
        raise O2OSpecError(
            f"got an actor that ends in a {type(head).__name__}, expected one with a distribution; build it with "
            "make_actor(...)"
        )
    nets = [_net(actor, head.in_keys) for actor in actors]
    merged = PolicyEnsemble(nets, log_std_bounds=log_std_bounds)
    return ProbabilisticActor(
        TensorDictModule(merged, in_keys=actors[0][0].in_keys, out_keys=head.in_keys),
        in_keys=head.in_keys,
        out_keys=head.out_keys,
        spec=head.spec,
        distribution_class=head.distribution_class,
        distribution_kwargs=head.distribution_kwargs,
    )


def _net(actor: ProbabilisticTensorDictSequential, writes: list[NestedKey]) -> nn.Module:
    """The network of an actor, which writes the parameters of its distribution."""
    body = actor[0]
    net = body.module if isinstance(body, TensorDictModule) else body
    if len(actor) != 2 or not isinstance(body, TensorDictModule) or body.out_keys != writes:
        raise O2OSpecError(
            f"got an actor of {len(actor)} parts writing {body.out_keys}, expected a network that writes {writes} and "
            "a distribution; build it with make_actor(...)"
        )
    if not isinstance(net, nn.Module):
        raise O2OSpecError(
            f"got an actor with a {type(net).__name__}, expected a torch.nn.Module; build it with make_actor(...)"
        )
    return net


def _check_alike(members: Sequence[nn.Module]) -> None:
    if not members:
        raise O2OSpecError("got no policy to merge, expected at least one; pass a list of them")
    shapes = [{name: tuple(value.shape) for name, value in member.named_parameters()} for member in members]
    for position, shape in enumerate(shapes):
        if shape != shapes[0]:
            different = sorted(set(shape.items()) ^ set(shapes[0].items()))
            raise O2OSpecError(
                f"got policies 0 and {position} that differ in {different[:4]}, expected the same parameters' names "
                "and shapes; build all policies alike"
            )
    if odd := differing_layer(members):
        position, name, own, first = odd
        raise O2OSpecError(
            f"got policies 0 and {position} that have {first} and {own} at {name!r}, expected the same, because the "
            "first one's layers evaluate all; build all policies alike"
        )
    if next(members[0].buffers(), None) is not None:
        raise O2OSpecError("got policies with buffers, expected only parameters; remove batch normalization")
