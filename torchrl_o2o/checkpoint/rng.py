# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The states of the global random number generators, as tensors and plain values."""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

__all__ = ["restore_rng_state", "rng_state"]


def rng_state() -> dict[str, Any]:
    """Read the states of Python's, numpy's (legacy, global) and torch's generators; CUDA's too if it is in use.

    Returns:
        A dict of tensors and plain values for :func:`restore_rng_state`; ``torch.load(weights_only=True)`` reads it.

    Examples:
        >>> state = rng_state()
        >>> first = random.random(), np.random.rand(), torch.rand(())
        >>> restore_rng_state(state)
        >>> first == (random.random(), np.random.rand(), torch.rand(()))
        True
    """
    version, words, gauss = random.getstate()
    legacy: Any = np.random.get_state(legacy=False)  # noqa: NPY002  (third-party environments draw from it)
    return {
        "python": [version, list(words), gauss],
        "numpy": {
            "bit_generator": legacy["bit_generator"],
            "key": torch.from_numpy(legacy["state"]["key"].astype(np.int64)),
            "pos": int(legacy["state"]["pos"]),
            "has_gauss": int(legacy["has_gauss"]),
            "gauss": float(legacy["gauss"]),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def restore_rng_state(state: Mapping[str, Any]) -> None:
    """Set the global generators back to a state.

    Args:
        state: from :func:`rng_state`. If it contains the states of more CUDA devices than there are, or of none while
            CUDA is in use, a warning says that those streams are not restored.

    Examples:
        >>> restore_rng_state(rng_state())
    """
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    legacy = state["numpy"]
    np.random.set_state(  # noqa: NPY002
        {
            "bit_generator": legacy["bit_generator"],
            "state": {"key": legacy["key"].numpy().astype(np.uint32), "pos": legacy["pos"]},
            "has_gauss": legacy["has_gauss"],
            "gauss": legacy["gauss"],
        }
    )
    torch.set_rng_state(state["torch"])
    _restore_cuda(state["cuda"])


def _restore_cuda(states: list[torch.Tensor]) -> None:
    devices = torch.cuda.device_count()
    if len(states) > devices or (torch.cuda.is_initialized() and len(states) < devices):
        warnings.warn(
            f"the checkpoint has the generators of {len(states)} CUDA devices, this machine has {devices} devices: "
            "the others are not restored, so the resumed run draws other random numbers",
            stacklevel=3,
        )
    for device, device_state in enumerate(states[:devices]):
        torch.cuda.set_rng_state(device_state, device)
