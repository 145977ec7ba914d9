# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A pretended accelerator, ``"accel"``, for tests of devices on machines that have none.

Its tensors keep their values in main memory and compute there, so a program gives the same numbers on it as on the CPU.
An operation on tensors of both devices raises, as it does with a real one. Import this in a process of its own:
registering a device cannot be undone.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map

ATEN = torch.ops.aten
LAYOUT = {
    ATEN.sym_size.default: lambda inner: inner.shape,
    ATEN.sym_stride.default: lambda inner: inner.stride(),
    ATEN.sym_numel.default: lambda inner: inner.numel(),
    ATEN.sym_storage_offset.default: lambda inner: inner.storage_offset(),
    ATEN.dim.default: lambda inner: inner.dim(),
    ATEN.is_contiguous.default: lambda inner: inner.is_contiguous(),
    ATEN.is_contiguous.memory_format: lambda inner, format: inner.is_contiguous(memory_format=format),
    ATEN.is_strides_like_format.default: ATEN.is_strides_like_format.default,
    ATEN.is_non_overlapping_and_dense.default: ATEN.is_non_overlapping_and_dense.default,
}
NAME = "accel"
DEVICE = torch.device("cpu")  # until it is registered


class Backend(backend_registration._DummyBackendModule):
    """What ``torch.accel`` needs beside the stubs that torch has."""

    def synchronize(self, *_: Any) -> None:
        """Nothing is asynchronous."""

    def manual_seed_all(self, seed: int) -> None:
        """It draws from the CPU's generator."""


class OnAccelerator(Tensor):
    """A tensor on the pretended device; ``inner`` has its values."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnAccelerator:
        how = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        how["dispatch_sizes_strides_policy"] = "sizes"  # asks for them below, because `squeeze_` and others change them
        out = Tensor._make_wrapper_subclass(cls, inner.shape, **how, device=DEVICE)  # type: ignore[attr-defined]
        out.inner = inner
        return out

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"OnAccelerator({self.inner})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        out = OnAccelerator(self.inner.detach().clone()).requires_grad_(self.requires_grad)
        memo[id(self)] = out
        if self.grad is not None:
            out.grad = copy.deepcopy(self.grad, memo)
        out.__dict__ |= {name: value for name, value in self.__dict__.items() if name != "inner"}
        return out

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.inner.detach().__reduce_ex__(protocol)

    def tolist(self) -> Any:
        return self.inner.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError(f"can't convert a tensor on {self.device} to numpy; use .cpu() first")

    def untyped_storage(self) -> Any:
        return self.inner.untyped_storage()

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        assert isinstance(value, OnAccelerator)
        self.inner = value.inner


def inside(value: Any) -> Any:
    """The values of a tensor on the device; anything else as it is."""
    return value.inner if isinstance(value, OnAccelerator) else value


def is_there(device: Any) -> bool:
    return torch.device(device).type == NAME


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the CPU, if its tensors are on one device, and place the results there."""
    if func in LAYOUT:
        return LAYOUT[func](*tree_map(inside, args), **kwargs)
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    there = [each for each in tensors if isinstance(each, OnAccelerator)]
    here = [each for each in tensors if not isinstance(each, OnAccelerator) and each.ndim]
    given = kwargs.get("device")
    kwargs = {name: value for name, value in kwargs.items() if name not in ("device", "pin_memory", "layout")}
    if func is ATEN.copy_.default:
        inside(args[0]).copy_(inside(args[1]))
        return args[0]
    if func is ATEN._to_copy.default:
        copied = func(inside(args[0]), **kwargs)
        return OnAccelerator(copied) if (bool(there) if given is None else is_there(given)) else copied
    if func is ATEN._local_scalar_dense.default:
        return func(inside(args[0]))
    indexing = func in (ATEN.index.Tensor, ATEN.index_put.default, ATEN.index_put_.default)
    if there and here and not (indexing and isinstance(args[0], OnAccelerator)):  # numbers of rows may be on the CPU
        shapes = [list(each.shape) for each in here]
        raise RuntimeError(f"expected all tensors on the same device, but {func} got {shapes} from the CPU")
    placed = is_there(given) if given is not None else bool(there)
    known = {id(each.inner): each for each in there}
    if given is not None:
        kwargs["device"] = "cpu"
    out = func(*tree_map(inside, args), **tree_map(inside, kwargs))

    def place(value: Any) -> Any:
        if id(value) in known:  # an operation in place
            return known[id(value)]
        return OnAccelerator(value) if placed and isinstance(value, Tensor) else value

    return tree_map(place, out)


def _empty(size: Any, *, dtype: Any = None, **_: Any) -> Tensor:
    return OnAccelerator(torch.empty(size, dtype=dtype, device="cpu"))


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> Tensor:
    return OnAccelerator(torch.empty_strided(size, stride, dtype=dtype, device="cpu"))


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    inside(target).copy_(inside(source))
    return target


LIBRARY = torch.library.Library("aten", "IMPL")


def register() -> None:
    """Make ``torch.device("accel")`` exist in this process."""
    global DEVICE
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=Backend())
    DEVICE = torch.device(NAME, 0)
    LIBRARY.impl("empty.memory_format", _empty, "PrivateUse1")
    LIBRARY.impl("empty_strided", _empty_strided, "PrivateUse1")
    LIBRARY.impl("_copy_from", _copy_from, "PrivateUse1")
