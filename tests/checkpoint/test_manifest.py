# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""States without code, and files that are checked before they are believed."""

from __future__ import annotations

from collections import OrderedDict, deque

import numpy as np
import pytest
import torch

from torchrl_o2o.checkpoint.manifest import DamagedError, digest, dump, load, read_manifest, verify_file, write_manifest
from torchrl_o2o.errors import O2OCheckpointError


@pytest.mark.parametrize(
    "state",
    [
        {"step": 3, "name": "a", "none": None, "list": [1, (2.5, True)]},
        OrderedDict(w=torch.rand(3), ids=torch.arange(4)),
        {("next", "reward"): torch.rand(2, 1)},
        torch.optim.Adam([torch.nn.Parameter(torch.rand(2))]).state_dict(),
        {"state": 2**127 - 1},
    ],
)
def test_plain_states_come_back(state):
    assert str(load(dump("a", state))) == str(state)


@pytest.mark.parametrize(
    "state", [{"a": np.zeros(2)}, {"a": np.float64(1)}, deque([1]), {"a": print}, {"a": lambda: 0}]
)
def test_states_that_need_code_are_refused(state):
    with pytest.raises(O2OCheckpointError, match="the state of 'counters' cannot be read back without running code"):
        dump("counters", state)


def test_a_part_of_a_tensor_is_saved_without_the_rest() -> None:
    """Every stacked agent's checkpoint and policy file held the parameters of all agents."""
    whole = torch.arange(100_000.0)
    state = OrderedDict(a=whole[3:6], b=[whole[:2], (whole.view(100, 1000)[:, 3],)], c=torch.nn.Parameter(whole[:4]))
    state._metadata = {"version": 1}  # as modules add it
    data = dump("agent", state)
    assert len(data) < 5_000
    found = load(data)
    assert found["a"].tolist() == [3.0, 4.0, 5.0]
    assert found["b"][1][0].tolist() == [1000.0 * row + 3.0 for row in range(100)]
    assert isinstance(found["c"], torch.nn.Parameter)
    assert found._metadata == state._metadata
    assert state["a"].untyped_storage().nbytes() == 400_000  # the state itself is not changed


def test_manifest_comes_back(tmp_path):
    write_manifest(tmp_path, {"step": 3, "files": {"a": {"bytes": 1}}})
    assert read_manifest(tmp_path) == {"step": 3, "files": {"a": {"bytes": 1}}}


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '{"manifest": "{}"}', '{"manifest": 3, "blake2b": "0"}'])
def test_what_is_no_manifest_is_damaged(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(O2OCheckpointError, match="is damaged"):
        read_manifest(tmp_path)


def test_every_flipped_bit_of_a_manifest_is_found(tmp_path):
    write_manifest(tmp_path, {"step": 3})
    path = tmp_path / "manifest.json"
    data = path.read_bytes()
    for position in range(len(data)):
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        with pytest.raises(O2OCheckpointError):
            read_manifest(tmp_path)


def test_files_are_checked_by_size_and_hash(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    entry = {"bytes": 3, "blake2b": digest(b"abc")}
    assert verify_file(path, entry) == b"abc"
    path.write_bytes(b"abd")
    with pytest.raises(O2OCheckpointError, match="its content was altered"):
        verify_file(path, entry)
    path.write_bytes(b"ab")
    with pytest.raises(O2OCheckpointError, match="has 2 bytes, expected 3: it was cut short"):
        verify_file(path, entry)
    path.unlink()
    with pytest.raises(DamagedError, match="is missing"):
        verify_file(path, entry)


@pytest.mark.parametrize(
    ("value", "named"), [(np.zeros(2), r"numpy.*_reconstruct"), (deque([1]), r"collections\.deque")]
)
def test_what_cannot_be_read_is_named(value: object, named: str) -> None:
    """Not in torch's words, which are about how to read it all the same."""
    with pytest.raises(O2OCheckpointError, match=rf"would run code: it names {named}\); return tensors"):
        dump("counters", {"step": value})
