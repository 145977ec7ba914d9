# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Export policies as files that other programs can run without this package.

Shapes: ``B`` batch, ``o`` observation entries, ``A`` action dimensions.
"""

from __future__ import annotations

import copy
import importlib.util
import io
import warnings
from pathlib import Path
from typing import Literal

import torch
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.collectors.numpy_actor import policy_parts
from torchrl_o2o.data.transforms import ObservationStats
from torchrl_o2o.deploy.architecture import observation_shape
from torchrl_o2o.deploy.policy import load_policy
from torchrl_o2o.durable import replace_durably
from torchrl_o2o.errors import O2OCheckpointError, O2OSpecError, check_option
from torchrl_o2o.modules.units import refuse_standardized_again

__all__ = ["export_policy"]


class _Policy(nn.Module):
    """A module from observations [B, o] to deterministic actions [B, A]."""

    mean: Tensor
    scale: Tensor

    def __init__(self, actor: TensorDictModuleBase, stats: ObservationStats | None) -> None:
        super().__init__()
        self.parts = policy_parts(actor)
        self.net = self.parts.net
        self.standardizes = stats is not None
        if stats is not None:
            dtype = next(self.net.parameters()).dtype  # statistics of another type would change the observations'
            self.register_buffer("mean", stats.mean.to(dtype, copy=True))
            self.register_buffer("scale", stats.scale.to(dtype, copy=True))

    def forward(self, observation: Tensor) -> Tensor:
        if self.standardizes:
            observation = (observation - self.mean) / self.scale
        return self.parts.act(observation, deterministic=True)


@checked_arguments
def export_policy(
    actor: TensorDictModuleBase | str | Path,
    path: str | Path,
    *,
    format: Literal["torch_export", "onnx"] = "torch_export",
    stats: ObservationStats | None = None,
) -> Path:
    """Write a deterministic policy that maps observations [B, o] to actions [B, A], for any B.

    ``torch.export.load(path).module()`` or ``onnxruntime.InferenceSession(path)`` runs it on a machine with torch or
    ONNX Runtime; neither this package nor TorchRL is needed. Observations have the type of the actor's parameters,
    usually float32; stacked frames are uint8 [B, C, H, W].

    Args:
        actor: a run folder or policy file, read by :func:`~torchrl_o2o.deploy.load_policy`; or an actor that
            :func:`~torchrl_o2o.deploy.save_policy` accepts, on any device, which is not changed. An actor that decides
            h actions at once returns all of them, [B, h A]. To export an encoder followed by an actor, pass its policy
            file.
        path: file to write.

    Keyword Args:
        format: ``"torch_export"`` (default; usually ``.pt2``), or ``"onnx"``, which needs the extra ``onnx``. In an
            ONNX file the input is called ``observation`` and the output ``action``.
        stats: statistics that standardize observations first, like the training data. Defaults to ``None``.

    Returns:
        The path.

    Raises:
        O2OSpecError: if the actor is not one of those, the format is unknown, ONNX is not installed, the path has the
            other format's ending, a policy file's (``.pt``) or no folder, the statistics are not of its observations,
            it standardizes itself, or its parameters are quantized or not finite.
        O2OCheckpointError: if the policy file cannot be read, or the file cannot be written.

    Examples:
        >>> import tempfile
        >>> from torchrl_o2o.modules import make_actor
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = export_policy(make_actor(3, 1, hidden_sizes=(8,)), f"{folder}/policy.pt2")
        ...     policy = torch.export.load(file).module()
        >>> policy(torch.zeros(5, 3)).shape
        torch.Size([5, 1])
    """
    check_option("format", format, ("torch_export", "onnx"))
    _check_path(Path(path), format)
    if isinstance(actor, str | Path):
        actor = load_policy(actor)
    refuse_standardized_again(actor, stats, "leave stats out")
    policy = copy.deepcopy(_Policy(actor, stats)).cpu().eval()
    first = next(policy.parameters(), None)
    if first is None:
        raise O2OSpecError(
            f"got a {type(actor).__name__} without parameters, such as one whose layers are quantized, expected one in "
            "floating point; export the actor first and quantize the exported program"
        )
    odd = next((name for name, value in policy.state_dict().items() if not value.isfinite().all()), None)
    if odd is not None:
        raise O2OSpecError(
            f"got an actor whose {odd} has NaN or infinite entries, expected finite numbers, because an exported "
            "program checks no action; return to the last checkpoint with finite losses"
        )
    shape = observation_shape(policy.net) or first.shape[-1:]
    example = torch.zeros(2, *shape, dtype=torch.uint8 if len(shape) == 3 else first.dtype)
    batch = {"observation": {0: torch.export.Dim("batch", min=1)}}
    if stats is not None and not stats.mean.shape == stats.scale.shape == shape:
        raise O2OSpecError(
            f"got statistics of the shapes {list(stats.mean.shape)} and {list(stats.scale.shape)}, expected "
            f"{list(shape)}, the actor's observation; pass the statistics of its own data set"
        )
    if format == "onnx":
        return _export_onnx(policy, example, batch, Path(path))
    stream = io.BytesIO()
    with torch.no_grad():
        torch.export.save(torch.export.export(policy, (example,), dynamic_shapes=batch), stream)
    return _written(Path(path), stream.getvalue())


def _written(path: Path, data: bytes) -> Path:
    """Write a file. A reader sees the old or the new file, even after a crash."""
    try:
        replace_durably(path, data)
    except OSError as error:
        raise O2OCheckpointError(
            f"the exported policy cannot be written to {path} ({error}); name a file in a writable folder, or make "
            "room on the disk"
        ) from error
    return path


def _check_path(path: Path, format: str) -> None:
    """Raise if a file's ending belongs to another format, or its folder does not exist."""
    other = {"torch_export": ".onnx", "onnx": ".pt2"}[format]
    if path.suffix == ".pt":
        raise O2OSpecError(
            f"got {path.name}, expected another suffix than .pt, which policy files have, because the export would "
            f"take the place of one; rename the file, for example to {path.stem}.pt2"
        )
    if path.suffix == other:
        raise O2OSpecError(
            f"got {path.name} for format={format!r}, expected another suffix than {other}, which belongs to the "
            f"other format; rename the file, or pass format={'onnx' if other == '.onnx' else 'torch_export'!r}"
        )
    if not path.parent.is_dir():
        raise O2OSpecError(f"got {path}, whose folder {path.parent} does not exist; make it first")


def _export_onnx(policy: nn.Module, example: Tensor, batch: dict, path: Path) -> Path:
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise O2OSpecError(
            f"format='onnx' needs {' and '.join(missing)}; install them with pip install torchrl_o2o[onnx], or use "
            "format='torch_export'"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation warnings inside torch's exporter
        program = torch.onnx.export(
            policy,
            (example,),
            input_names=["observation"],
            output_names=["action"],
            dynamo=True,
            dynamic_shapes=batch,
            verbose=False,
        )
    assert program is not None
    return _written(path, program.model_proto.SerializeToString())
