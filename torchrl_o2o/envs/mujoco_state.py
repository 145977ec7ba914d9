# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Conversion of MuJoCo's model and data to tensors and back.

MuJoCo's own integration state is not enough: after a step, the positions of bodies are those of the last substep, and
environments compute velocities from them, so the arrays computed from the state are saved, too.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from torchrl_o2o.errors import O2OCheckpointError

__all__ = ["capture_data", "capture_model", "is_mujoco", "restore_data", "restore_model"]

#: Arrays whose length depends on the current contacts; the next step recomputes them.
_CONTACT_PREFIXES = ("efc_", "iefc_", "efm_", "iacc", "ifrc_", "island_")
#: Model arrays that environments change between episodes (goal markers, handles, masses, what tendons pull).
_MODEL_PREFIXES = ("actuator_", "body_", "dof_", "geom_", "jnt_", "qpos0", "site_", "wrap_")


def is_mujoco(value: Any, name: str) -> bool:
    """Whether a value is MuJoCo's struct of that name, without importing MuJoCo."""
    return type(value).__name__ == name and type(value).__module__.partition(".")[0] == "mujoco"


def capture_model(model: Any) -> dict[str, torch.Tensor]:
    """The arrays of a model that environments may change."""
    return _arrays(model, lambda name: name.startswith(_MODEL_PREFIXES))


def restore_model(model: Any, captured: Mapping[str, torch.Tensor]) -> None:
    """Write what :func:`capture_model` returned.

    Raises:
        O2OCheckpointError: if it is another model.
    """
    _restore_arrays(model, captured)


def capture_data(data: Any) -> dict[str, Any]:
    """The integration state and the arrays computed from it."""
    mujoco = _mujoco()
    spec = int(mujoco.mjtState.mjSTATE_INTEGRATION)
    state = np.empty(mujoco.mj_stateSize(data.model, spec))
    mujoco.mj_getState(data.model, data, state, spec)
    derived = _arrays(data, lambda name: not name.startswith(_CONTACT_PREFIXES))
    return {"integration": torch.from_numpy(state), "derived": derived}


def restore_data(data: Any, captured: Mapping[str, Any]) -> None:
    """Write what :func:`capture_data` returned; restore its model first.

    Raises:
        O2OCheckpointError: if it belongs to another model.
    """
    mujoco = _mujoco()
    spec = int(mujoco.mjtState.mjSTATE_INTEGRATION)
    state = captured["integration"].numpy()
    size = mujoco.mj_stateSize(data.model, spec)
    if len(state) != size:
        raise O2OCheckpointError(
            f"the saved MuJoCo state has {len(state)} numbers, expected {size} for this model; use the model of the "
            "saved state"
        )
    mujoco.mj_setState(data.model, data, state, spec)
    mujoco.mj_forward(data.model, data)  # contacts
    _restore_arrays(data, captured["derived"])


def _mujoco() -> Any:
    """MuJoCo, imported when it is needed. It does not declare the contents of its compiled modules."""
    return importlib.import_module("mujoco")


def _arrays(struct: Any, wanted: Callable[[str], bool]) -> dict[str, torch.Tensor]:
    names = (name for name in dir(struct) if not name.startswith("_") and wanted(name))
    arrays = ((name, getattr(struct, name)) for name in names)
    return {
        name: torch.from_numpy(array.copy())
        for name, array in arrays
        if isinstance(array, np.ndarray) and array.dtype.kind == "f"
    }


def _restore_arrays(struct: Any, arrays: Mapping[str, torch.Tensor]) -> None:
    for name, saved in arrays.items():
        present = getattr(struct, name, None)
        if present is None or present.shape != tuple(saved.shape):
            shape = None if present is None else present.shape
            raise O2OCheckpointError(
                f"MuJoCo's {type(struct).__name__}.{name} has shape {tuple(saved.shape)} in the saved environment and "
                f"{shape} in this one; use the same model and version of MuJoCo"
            )
        present[...] = saved.numpy()
