# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Networks for pixels: convolutions on stacked frames, and the bottleneck after them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar, cast

import torch
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.data import Composite, TensorSpec
from torchrl.modules import Actor, ProbabilisticActor

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.errors import O2OSpecError, check_count, check_option
from torchrl_o2o.functional.pixels import check_stack
from torchrl_o2o.modules.actors import GaussianHead
from torchrl_o2o.modules.boxes import action_box, distribution_box, make_squash
from torchrl_o2o.modules.distributions import TanhNormal
from torchrl_o2o.modules.initialization import initialize_
from torchrl_o2o.modules.trunk import FLAX_LAYER_NORM_EPS, feature_dim, make_trunk

__all__ = [
    "Bottleneck",
    "ConvStack",
    "LatentPolicy",
    "PixelEncoder",
    "PixelPolicy",
    "encoder_width",
    "make_bottleneck",
    "make_latent_actor",
    "make_pixel_actor",
    "make_pixel_encoder",
]

_Recipe = Literal["xavier_uniform", "orthogonal"]
_Module = TypeVar("_Module", bound=nn.Module)
Shape = Sequence[int]


class ConvStack(nn.Module):
    """Convolutions without padding, each followed by a ReLU. uint8 frames are cast and scaled here, after any crop.

    Args:
        shape: channels, height and width of a stack of frames; the frames' channels are concatenated, oldest frame
            first.
        features: number of channels after each layer.
        kernel_size: rows and columns of the kernels: a number for all layers, or one a layer.
        strides: one a layer.
        offset: subtracted after the division by 255: 0 (RLPD) or 0.5 (DrQ-v2).

    Raises:
        O2OSpecError: if the frames are too small for the layers, or the numbers of strides or kernels are not that of
            the layers.

    Examples:
        >>> import torch
        >>> stack = ConvStack((9, 64, 64), features=(32, 64, 128, 256), strides=(2, 2, 2, 2))
        >>> stack.out_features, stack(torch.zeros(5, 9, 64, 64, dtype=torch.uint8)).shape
        (2304, torch.Size([5, 2304]))
    """

    @checked_arguments
    def __init__(
        self,
        shape: Shape,
        features: Sequence[int],
        strides: Sequence[int],
        kernel_size: int | Sequence[int] = 3,
        offset: float = 0.0,
    ) -> None:
        super().__init__()
        kernels = (kernel_size,) * len(features) if isinstance(kernel_size, int) else tuple(kernel_size)
        if len(shape) != 3 or not len(features) == len(strides) == len(kernels) or not features:
            raise O2OSpecError(
                f"got shape={tuple(shape)}, features={tuple(features)}, strides={tuple(strides)}, "
                f"kernel_size={kernel_size}, expected a shape (C, H, W), and one stride and one kernel per layer"
            )
        for width in (*kernels, *shape, *features, *strides):
            check_count("a size of the convolutions", width, least=1)
        self.shape, self.offset = tuple(shape), offset
        channels = (shape[0], *features)
        self.layers = nn.ModuleList(
            nn.Conv2d(before, behind, kernel, stride)
            for before, behind, kernel, stride in zip(channels, features, kernels, strides)
        )
        self.out_features = _flat_size(self.shape, features[-1], kernels, strides)

    @property
    def convs(self) -> list[nn.Conv2d]:
        """The convolutions, in order."""
        return cast("list[nn.Conv2d]", list(self.layers))  # torch's ModuleList is not typed by its elements

    def forward(self, frames: Tensor) -> Tensor:
        """Map uint8 frames [*B, C, H, W] to features [*B, F], channel after channel, each row by row."""
        check_stack(frames, self.shape)
        dtype = self.convs[0].weight.dtype
        # Channels last in memory: a CPU convolves such frames in half the time.
        last = frames.reshape(-1, *self.shape).movedim(-3, -1).contiguous()
        features = last.to(dtype).div_(255.0)  # in place: dividing into new memory takes twice the time
        if self.offset:
            features.sub_(self.offset)
        features = features.movedim(-1, -3)
        for layer in self.layers:
            features = torch.relu(layer(features))
        return features.reshape(*frames.shape[:-3], self.out_features)


def _flat_size(shape: tuple[int, ...], channels: int, kernels: Sequence[int], strides: Sequence[int]) -> int:
    sizes = list(shape[1:])
    for kernel, stride in zip(kernels, strides):
        sizes = [(size - kernel) // stride + 1 for size in sizes]
        if min(sizes) < 1:
            raise O2OSpecError(
                f"got frames of {shape[1]}x{shape[2]}, expected larger ones for strides {tuple(strides)} with kernels "
                f"of {tuple(kernels)}; use larger frames or fewer layers"
            )
    return channels * sizes[0] * sizes[1]


class Bottleneck(nn.Sequential):
    """Linear, LayerNorm, tanh, in that order: the narrow layer between convolutions and heads.

    Args:
        in_features: width of the input.
        latent_dim: width of the output.
        layer_norm_eps: LayerNorm's epsilon. Defaults to 1e-6, flax's (RLPD); DrQ-v2 has torch's 1e-5.

    Examples:
        >>> import torch
        >>> Bottleneck(2304, 50)(torch.zeros(4, 2304)).shape
        torch.Size([4, 50])
    """

    @checked_arguments
    def __init__(self, in_features: int, latent_dim: int, layer_norm_eps: float = FLAX_LAYER_NORM_EPS) -> None:
        check_count("in_features", in_features, least=1)
        check_count("latent_dim", latent_dim, least=1)
        norm = nn.LayerNorm(latent_dim, eps=layer_norm_eps)
        super().__init__(nn.Linear(in_features, latent_dim), norm, nn.Tanh())
        self.in_features, self.out_features = in_features, latent_dim


class PixelEncoder(nn.Module):
    """Convolutions for images, and a separate bottleneck for each image and vector; the results are concatenated.

    Args:
        convs: one stack of convolutions per image.
        latents: a bottleneck for each image and then each vector; ``None`` concatenates features and vectors directly.
        vector_sizes: widths of the vectors. Defaults to none.
        detach_conv: whether the convolutions get no gradient. Their weights are then buffers, copies of another
            network's.

    Examples:
        >>> import torch
        >>> conv = ConvStack((9, 32, 32), features=(8, 8), strides=(2, 2))
        >>> encoder = PixelEncoder([conv], [Bottleneck(conv.out_features, 10), Bottleneck(4, 10)], (4,))
        >>> encoder(torch.zeros(5, 9, 32, 32, dtype=torch.uint8), torch.zeros(5, 4)).shape
        torch.Size([5, 20])
    """

    @checked_arguments
    def __init__(
        self,
        convs: Sequence[ConvStack],
        latents: Sequence[Bottleneck] | None,
        vector_sizes: Sequence[int] = (),
        *,
        detach_conv: bool = False,
    ) -> None:
        super().__init__()
        self.conv, self.latent = nn.ModuleList(convs), nn.ModuleList(latents or ())
        self.sizes = (*(conv.out_features for conv in convs), *vector_sizes)
        self.detach_conv = detach_conv
        widths = [latent.out_features for latent in latents] if latents else self.sizes
        self.out_features = sum(widths)
        if detach_conv:
            _as_buffers_(self.conv)

    @property
    def stacks(self) -> list[ConvStack]:
        """The stacks of convolutions, one per image."""
        return cast("list[ConvStack]", list(self.conv))  # torch's ModuleList is not typed by its elements

    @property
    def bottlenecks(self) -> list[Bottleneck]:
        """The bottlenecks of the images and then the vectors; an empty list without bottlenecks."""
        return cast("list[Bottleneck]", list(self.latent))  # as above

    def forward(self, *inputs: Tensor) -> Tensor:
        """Map images [*B, C, H, W] and then vectors [*B, n] to features [*B, F]."""
        images, vectors = inputs[: len(self.conv)], inputs[len(self.conv) :]
        features = [conv(image) for conv, image in zip(self.conv, images, strict=True)]
        if self.detach_conv:
            features = [each.detach() for each in features]
        parts = [*features, *(vector.to(features[0].dtype) for vector in vectors)]
        if len(self.latent):
            parts = [latent(part) for latent, part in zip(self.latent, parts, strict=True)]
        return torch.cat(parts, -1)


def _as_buffers_(module: nn.Module) -> None:
    """Turn parameters into buffers of the same names, so that no optimizer takes them."""
    for child in module.modules():
        for name, param in list(child.named_parameters(recurse=False)):
            delattr(child, name)
            child.register_buffer(name, param.detach().clone())


class PixelPolicy(nn.Module):
    """An encoder, hidden layers and a Gaussian head.

    Args:
        encoder: from what is observed to features.
        trunk: hidden layers.
        head: mean and standard deviation.

    Examples:
        >>> import torch
        >>> from torchrl_o2o.modules import GaussianHead, make_trunk
        >>> conv = ConvStack((9, 32, 32), features=(8, 8), strides=(2, 2))
        >>> encoder = PixelEncoder([conv], [Bottleneck(conv.out_features, 10)])
        >>> policy = PixelPolicy(encoder, make_trunk(10, (16,)), GaussianHead(16, 2))
        >>> policy(torch.zeros(5, 9, 32, 32, dtype=torch.uint8))[0].shape
        torch.Size([5, 2])
    """

    @checked_arguments
    def __init__(self, encoder: PixelEncoder, trunk: nn.Module, head: GaussianHead) -> None:
        super().__init__()
        self.encoder, self.trunk, self.head = encoder, trunk, head

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Map observations to mean and standard deviation, each [*B, A]."""
        return self.head(self.trunk(self.encoder(*inputs)))


class LatentPolicy(nn.Sequential):
    """A deterministic policy from pixels: an encoder of images and vectors, and a network on its features.

    Args:
        encoder: from what is observed to features.
        net: network from features to actions, as in :func:`make_latent_actor`.

    Examples:
        >>> import torch
        >>> conv = ConvStack((9, 32, 32), features=(8, 8), strides=(2, 2))
        >>> policy = LatentPolicy(PixelEncoder([conv], None, (4,)), nn.Linear(conv.out_features + 4, 2))
        >>> policy(torch.zeros(5, 9, 32, 32, dtype=torch.uint8), torch.zeros(5, 4)).shape
        torch.Size([5, 2])
    """

    def __init__(self, encoder: nn.Module, net: nn.Module) -> None:
        super().__init__(encoder, net)

    def forward(self, input: Tensor, *others: Tensor) -> Tensor:
        """Map images [*B, C, H, W] and then vectors [*B, n] to actions [*B, A]."""
        return self[1](self[0](input, *others))


@checked_arguments
def make_pixel_encoder(
    images: Shape | Mapping[NestedKey, Shape],
    *,
    vectors: Mapping[NestedKey, int] | None = None,
    features: Sequence[int] = (32, 64, 128, 256),
    strides: Sequence[int] = (2, 2, 2, 2),
    kernel_size: int | Sequence[int] = 3,
    offset: float = 0.0,
    latent_dim: int | None = 50,
    layer_norm_eps: float = FLAX_LAYER_NORM_EPS,
    initialization: _Recipe = "xavier_uniform",
    out_key: NestedKey = "latent",
) -> TensorDictModule:
    """The critics' encoder of RLPD from pixels, or with ``latent_dim=None`` the convolutions of DrQ-v2.

    RLPD's settings are the defaults. DrQ-v2: ``features=(32, 32, 32, 32), strides=(2, 1, 1, 1), offset=0.5,
    latent_dim=None, initialization="orthogonal", out_key="features"``.

    Source: Ball et al. 2023 (RLPD), ``rlpd_pixels_config`` and ``PixelMultiplexer`` of the code, also for vectors;
    Yarats et al. 2021 (DrQ-v2), ``Encoder``.

    Args:
        images: (channels, height, width) of the stacked frames under ``"observation"``, or of several entries. The
            frames' channels are concatenated, oldest frame first, as after stacking frames [3, H, W].
        vectors: entries of vectors and their widths. Defaults to none.
        features: number of channels after each convolution.
        strides: one per convolution.
        kernel_size: size of the square kernels, one number for all layers or one per layer. Defaults to 3.
        offset: see :class:`ConvStack`. Defaults to 0.
        latent_dim: width of the bottlenecks, or ``None`` for no bottlenecks. Defaults to 50.
        layer_norm_eps: epsilon of the bottlenecks' LayerNorm. Defaults to 1e-6, flax's.
        initialization: ``"xavier_uniform"`` (default, RLPD), or ``"orthogonal"`` with gain sqrt(2) for convolutions and
            1 for linear layers (DrQ-v2). Biases are 0.
        out_key: entry written. Defaults to ``"latent"``.

    Returns:
        A module that reads the images and then the vectors.

    Raises:
        O2OSpecError: if the frames are too small for the layers or an option is unknown.

    Examples:
        >>> import torch
        >>> encoder = make_pixel_encoder({"pixels": (9, 64, 64)}, vectors={"state": 5})
        >>> encoder.in_keys, encoder_width(encoder)
        (['pixels', 'state'], 100)
        >>> encoder(torch.zeros(4, 9, 64, 64, dtype=torch.uint8), torch.zeros(4, 5)).shape
        torch.Size([4, 100])
    """
    check_option("initialization", initialization, ("xavier_uniform", "orthogonal"))
    shapes = images if isinstance(images, Mapping) else {"observation": images}
    sizes = dict(vectors or {})
    convs = [ConvStack(shape, features, strides, kernel_size, offset) for shape in shapes.values()]
    widths = [*(conv.out_features for conv in convs), *sizes.values()]
    latents = None if latent_dim is None else [Bottleneck(width, latent_dim, layer_norm_eps) for width in widths]
    net = _draw_(PixelEncoder(convs, latents, tuple(sizes.values())), initialization)
    return TensorDictModule(net, in_keys=[*shapes, *sizes], out_keys=[out_key])


def encoder_width(encoder: TensorDictModuleBase) -> int:
    """The number of features that an encoder computes from its images and vectors.

    Args:
        encoder: of :func:`make_pixel_encoder`.

    Returns:
        The width for which critics and latent actors are built.

    Raises:
        O2OSpecError: if it is another module.

    Examples:
        >>> encoder_width(make_pixel_encoder((9, 64, 64), latent_dim=50))
        50
    """
    net = encoder.module if isinstance(encoder, TensorDictModule) else None
    if not isinstance(net, PixelEncoder):
        raise O2OSpecError(
            f"got a {type(encoder).__name__}, expected an encoder; build it with make_pixel_encoder(...)"
        )
    return net.out_features


def _draw_(module: _Module, recipe: _Recipe) -> _Module:
    """Initialize convolutions and linear layers; biases are 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            if recipe == "xavier_uniform":
                nn.init.xavier_uniform_(layer.weight)
            else:
                nn.init.orthogonal_(layer.weight, 2.0**0.5 if isinstance(layer, nn.Conv2d) else 1.0)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module


@checked_arguments
def make_pixel_actor(
    encoder: TensorDictModule,
    action: TensorSpec | int,
    *,
    hidden_sizes: Sequence[int] = (256, 256),
    log_std_bounds: tuple[float, float] = (-20.0, 2.0),
    action_key: NestedKey = "action",
) -> ProbabilisticActor:
    """RLPD's policy from pixels: a copy of the critics' convolutions, its own bottleneck, ReLU layers, two heads.

    The copy is not trained: its weights are buffers, which no optimizer changes, and no gradient goes through them. An
    update refreshes them with :class:`~torchrl_o2o.updates.Copy`.

    Source: Ball et al. 2023 (RLPD), ``DrQLearner`` of the code; xavier uniform, biases 0.

    Args:
        encoder: the critics' encoder, from :func:`make_pixel_encoder` with a ``latent_dim``.
        action: bounded spec of the action, shape [A], or A for the box [-1, 1]^A.
        hidden_sizes: widths of the hidden layers. Defaults to (256, 256).
        log_std_bounds: clip of the log standard deviation. Defaults to (-20, 2).
        action_key: entry written. Defaults to ``"action"``.

    Returns:
        An actor like that of :func:`~torchrl_o2o.modules.make_actor`.

    Raises:
        O2OSpecError: if the encoder has no bottleneck, or the action has no finite box.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> actor = make_pixel_actor(make_pixel_encoder((9, 32, 32), features=(8, 8), strides=(2, 2)), 2)
        >>> actor(TensorDict({"observation": torch.zeros(4, 9, 32, 32, dtype=torch.uint8)}, [4]))["action"].shape
        torch.Size([4, 2])
    """
    theirs = encoder.module
    if not isinstance(theirs, PixelEncoder) or not len(theirs.latent):
        raise O2OSpecError(
            "got an encoder without bottleneck, expected one with; build it with make_pixel_encoder(..., latent_dim=50)"
        )
    spec = action_box(action)
    latents = [_draw_(copy.deepcopy(latent), "xavier_uniform") for latent in theirs.bottlenecks]
    vectors = theirs.sizes[len(theirs.conv) :]
    own = PixelEncoder(copy.deepcopy(theirs.stacks), latents, vectors, detach_conv=True)
    trunk = initialize_(make_trunk(own.out_features, hidden_sizes), "xavier_uniform", has_output=False)
    head = GaussianHead(hidden_sizes[-1], feature_dim(spec, "action"), log_std_bounds)
    module = TensorDictModule(
        PixelPolicy(own, trunk, _draw_(head, "xavier_uniform")),
        in_keys=list(encoder.in_keys),
        out_keys=["loc", "scale"],
    )
    return ProbabilisticActor(
        module,
        in_keys=["loc", "scale"],
        out_keys=[action_key],
        spec=spec,
        distribution_class=TanhNormal,
        distribution_kwargs=distribution_box(spec),
    )


@checked_arguments
def make_bottleneck(
    in_features: int, latent_dim: int = 50, *, in_key: NestedKey = "features", out_key: NestedKey = "latent"
) -> TensorDictModule:
    """The bottleneck that DrQ-v2's two critics share.

    Source: Yarats et al. 2021 (DrQ-v2), ``Critic.trunk`` of the code; orthogonal, torch's LayerNorm.

    Args:
        in_features: width of the encoder's features.
        latent_dim: width of the bottleneck. Defaults to 50; DrQ-v2 has 100 on humanoid.
        in_key: entry read. Defaults to ``"features"``.
        out_key: entry written. Defaults to ``"latent"``.

    Returns:
        A module from [*B, in_features] to [*B, latent_dim].

    Examples:
        >>> import torch
        >>> make_bottleneck(39200)(torch.zeros(2, 39200)).shape
        torch.Size([2, 50])
    """
    net = _draw_(Bottleneck(in_features, latent_dim, 1e-5), "orthogonal")
    return TensorDictModule(net, in_keys=[in_key], out_keys=[out_key])


@checked_arguments
def make_latent_actor(
    in_features: int,
    action: TensorSpec | int,
    *,
    latent_dim: int = 50,
    hidden_sizes: Sequence[int] = (1024, 1024),
    in_key: NestedKey = "features",
    action_key: NestedKey = "action",
) -> Actor:
    """DrQ-v2's policy on the encoder's features: bottleneck, ReLU layers, tanh.

    To act, put it after the encoder: ``TensorDictSequential(encoder, actor)``.

    Source: Yarats et al. 2021 (DrQ-v2), ``Actor`` of the code; orthogonal with gain 1, biases 0.

    Args:
        in_features: width of the encoder's features.
        action: bounded spec of the action, shape [A], or A for the box [-1, 1]^A.
        latent_dim: width of the bottleneck. Defaults to 50; DrQ-v2 has 100 on humanoid.
        hidden_sizes: widths of the hidden layers. Defaults to (1024, 1024).
        in_key: entry read. Defaults to ``"features"``.
        action_key: entry written. Defaults to ``"action"``.

    Returns:
        A deterministic actor.

    Raises:
        O2OSpecError: if the action has no finite box.

    Examples:
        >>> import torch
        >>> make_latent_actor(200, 3, hidden_sizes=(16, 16))(torch.zeros(2, 200)).shape
        torch.Size([2, 3])
    """
    spec = action_box(action)
    squash = make_squash(spec)
    output = nn.Linear(hidden_sizes[-1], feature_dim(spec, "action"))
    bottleneck = Bottleneck(in_features, latent_dim, 1e-5)
    net = _draw_(nn.Sequential(bottleneck, make_trunk(latent_dim, hidden_sizes), output), "orthogonal")
    return Actor(
        nn.Sequential(net, squash), in_keys=[in_key], out_keys=[action_key], spec=Composite({action_key: spec})
    )
