# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.shared_data import shared_file
from torchrl_o2o.data import describe_offline, load_offline
from torchrl_o2o.data.datasets.demos import load_pickled_episodes
from torchrl_o2o.errors import O2ODataError


class Evil:
    """Unpickling this would run a command."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call = (call, arguments)

    def __reduce__(self) -> Any:
        return self.call


def demos(path: Path, steps: int = 4, protocol: int = 4) -> Path:
    rng = np.random.default_rng(0)
    episodes = [
        {
            "observations": rng.standard_normal((steps, 3)),
            "actions": rng.uniform(-1, 1, (steps, 2)),
            "rewards": rng.standard_normal(steps),
            "init_state_dict": {"qpos": np.zeros(3)},
        }
        for _ in range(2)
    ]
    path.write_bytes(pickle.dumps(episodes, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", [3, 4])
def test_demonstrations_on_values(tmp_path: Path, protocol: int) -> None:
    path = demos(tmp_path / "demos.pickle", protocol=protocol)
    with pytest.warns(UserWarning, match="2 transitions have no next observation"):
        data = load_offline(path, cache_dir=tmp_path / "cache")
    stored = load_pickled_episodes(path)
    np.testing.assert_array_equal(data["observation"][:3], stored[0]["observations"][:-1].astype(np.float32))
    np.testing.assert_array_equal(data["next", "observation"][3:], stored[1]["observations"][1:].astype(np.float32))
    np.testing.assert_array_equal(data["next", "reward"][3:, 0], stored[1]["rewards"][:-1].astype(np.float32))
    assert data["next", "truncated"][:, 0].tolist() == [False, False, True] * 2


def test_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = demos(tmp_path / "demos.pickle")
    with pytest.warns(UserWarning, match="no next observation"):
        first = load_offline(path, cache_dir=tmp_path / "cache")
    monkeypatch.setattr("torchrl_o2o.data.datasets.demos.load_pickled_episodes", lambda path: pytest.fail("read again"))
    with pytest.warns(UserWarning, match="no next observation"):  # reported each time
        assert (load_offline(path, cache_dir=tmp_path / "cache") == first).all()


@pytest.mark.parametrize(
    ("call", "named"),
    [
        ((__import__("os").system, "touch pwned"), "posix.system"),
        ((eval, "1"), "builtins.eval"),
        ((__import__("subprocess").getoutput, "true"), "subprocess.getoutput"),
        ((np.load, "x"), "numpy.load"),
        ((getattr, np, "load"), "builtins.getattr"),
    ],
)
def test_malicious_pickles_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Any, named: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "demos.pickle"
    path.write_bytes(pickle.dumps([{"observations": Evil(*call) if call[1] is not np else Evil(getattr, "a", "b")}]))
    with pytest.raises(O2ODataError, match=rf"demos\.pickle is refused: it refers to {named}, but only numpy arrays"):
        load_offline(path, cache_dir=tmp_path / "cache")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("content", [{"a": 1}, [1, 2], "text", []])
def test_other_contents_are_refused(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "demos.pickle"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(O2ODataError, match=r"expected a list of episodes|holds no episodes"):
        load_offline(path, cache=False)


@pytest.mark.filterwarnings("ignore:.*25 transitions have no next observation")
def test_the_published_door_demonstrations(tmp_path: Path) -> None:
    path = shared_file("door_human_demos.pickle")
    with pytest.raises(O2ODataError, match=r"5478 actions are outside the box \[-1, 1\], first at episode 0, step 4"):
        load_offline(path, cache_dir=tmp_path)
    with pytest.warns(UserWarning, match=r"5478 actions were outside \[-1, 1\] \(to 1\.366\); policy: clip"):
        clipped = load_offline(path, actions="clip", cache_dir=tmp_path)
    assert len(clipped) == 6729 - 25
    assert clipped["action"].abs().max() == 1
    stored = load_pickled_episodes(path)[0]
    inside = np.abs(stored["actions"][:-1]) <= 1
    steps = len(stored["actions"]) - 1
    np.testing.assert_array_equal(
        clipped["action"][:steps].numpy()[inside], stored["actions"][:-1].astype(np.float32)[inside]
    )
    with pytest.warns(UserWarning, match="policy: rescale"):
        rescaled = load_offline(path, actions="rescale", cache_dir=tmp_path)["action"]
    largest = np.abs(np.concatenate([demo["actions"][:-1] for demo in load_pickled_episodes(path)])).max(0)
    np.testing.assert_allclose(rescaled[:steps], stored["actions"][:-1] / np.maximum(largest, 1), rtol=1e-5, atol=1e-6)


def test_the_replay_of_the_door_demonstrations_agrees() -> None:
    """Two files of the same episodes, one with and one without next observations."""
    demo_info = describe_offline(shared_file("door_human_demos.pickle"))
    replay_info = describe_offline(shared_file("door_human_replayed_f32.npz"))
    assert demo_info.episodes == replay_info.episodes == 25
    assert demo_info.transitions == replay_info.transitions - 25
    assert demo_info.observation_shape == replay_info.observation_shape == (39,)


def test_a_pickled_dictionary_of_flat_arrays_is_read_as_one_in_memory(flat: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "d4rl.pkl"
    path.write_bytes(pickle.dumps(flat, protocol=4))
    expected, found = load_offline(flat), load_offline(path, cache=False)
    assert all((found[key] == expected[key]).all() for key in expected.keys(True, True))
    path.write_bytes(pickle.dumps([1, 2], protocol=4))
    with pytest.raises(O2ODataError, match="it holds a list of other things; expected a list of episodes"):
        load_offline(path, cache=False)
    path.write_bytes(pickle.dumps({"obs": np.zeros((3, 2))}, protocol=4))
    with pytest.raises(O2ODataError, match="has no actions, rewards; it holds"):
        load_offline(path, cache=False)
