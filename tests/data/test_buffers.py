# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The buffer that online training starts from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torchrl.data.replay_buffers.samplers import RandomSampler

from tests import golden_vectors as golden
from torchrl_o2o.data import TRANSITION, ChunkSampler, n_step, offline_online_storage
from torchrl_o2o.data.buffers import offline_buffer, starting_buffer, top_episodes
from torchrl_o2o.data.transforms import add_mc_return, episode_returns
from torchrl_o2o.errors import O2ODataError, O2OSpecError
from torchrl_o2o.testing import random_transitions

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


def double_transitions(number: int) -> TensorDict:
    return random_transitions(number, 5, 3).apply(lambda x: x.double() if x.is_floating_point() else x)


def toy_dataset() -> TensorDict:
    """The golden file's toy episodes with all their transitions."""
    tree = golden.load("aca/init_A")
    lengths = tree["dataset/episode_length"]
    data = double_transitions(int(lengths.sum()))
    data["observation"], data["action"] = tree["dataset/observation"], tree["dataset/action"]
    data["next", "reward"] = tree["dataset/reward"].unsqueeze(-1)
    data["next", "terminated"] = tree["dataset/terminated"].bool().unsqueeze(-1)
    data["next", "truncated"] = tree["dataset/truncated"].bool().unsqueeze(-1)
    data["next", "done"] = data["next", "terminated"] | data["next", "truncated"]
    data["episode"] = torch.arange(len(lengths)).repeat_interleave(lengths)
    return data


class TestData:
    def test_golden_ranking_of_episodes(self) -> None:
        tree, data = golden.load("aca/init_A"), toy_dataset()
        golden.assert_close(episode_returns(data), tree["out/episode_return_full"], "returns", rtol=1e-6)
        best = top_episodes(data, int(golden.hp(tree, "n_top")))
        expected = tree["out/top_episode_index_by_full_return_ascending"]
        assert best["episode"].unique_consecutive().tolist() == expected.tolist()

    @pytest.mark.parametrize(("number", "episodes"), [(0, 0), (2, 2), (6, 6), (99, 6)])
    def test_top_episodes_are_whole(self, number: int, episodes: int) -> None:
        data = toy_dataset()
        best = top_episodes(data, number)
        assert len(best["episode"].unique()) == episodes
        for index in best["episode"].unique():
            assert (best["episode"] == index).sum() == (data["episode"] == index).sum()

    @pytest.mark.parametrize(("data", "rows"), [("none", 0), ("all", 29), ("symmetric", 29)])
    def test_buffers_start_with_the_rows_they_name(self, data: Any, rows: int) -> None:
        buffer = starting_buffer(toy_dataset(), 10, data=data)
        assert len(buffer) == rows
        assert buffer.storage.max_size == rows + 10

    def test_only_symmetric_buffers_never_overwrite_offline_rows(self) -> None:
        data = toy_dataset()
        online = double_transitions(13).select(*TRANSITION)
        for kind, intact in (("symmetric", True), ("all", False)):
            buffer = starting_buffer(data, 10, data=kind)
            for row in range(13):
                buffer.extend(online[row : row + 1])
            assert torch.equal(buffer.storage[:29]["observation"], data["observation"]) == intact, kind
            if not intact:
                assert torch.equal(buffer.storage[:3]["observation"], online["observation"][10:]), "oldest first"

    def test_steps_of_rows_over_several_steps_are_kept(self) -> None:
        rows = n_step(toy_dataset(), n=2, gamma=0.9)
        buffer = starting_buffer(rows, 10, data="all")
        assert torch.equal(buffer.storage[:]["steps_to_next_obs"], rows["steps_to_next_obs"])

    @pytest.mark.parametrize("data", ["all", "top"])
    def test_no_chunk_leads_from_an_unfinished_offline_episode_into_online_rows(self, data: Any) -> None:
        """The first rows of a data set end in the middle of an episode, which no flag says."""
        offline = toy_dataset()[:3]
        assert not offline["next", "done"].any()
        buffer = starting_buffer(offline, 10, data=data, **({"num_top_episodes": 1} if data == "top" else {}))
        chunks = ChunkSampler(RandomSampler(), 3, gamma=0.9)
        buffer.set_sampler(chunks)
        buffer.extend(double_transitions(6).select(*TRANSITION))
        valid = chunks.chunks(buffer.storage, torch.arange(3))["valid"]
        assert valid.tolist() == [[1.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
        assert not offline["next", "done"].any(), "the data stay as they are"

    @pytest.mark.parametrize("flag", [None, "terminated", "truncated", "done"])
    def test_the_last_offline_row_is_truncated_by_the_writer_unless_a_flag_ends_its_episode(self, flag: Any) -> None:
        offline = toy_dataset()[:3].clone()
        if flag is not None:
            offline["next", flag][-1] = True
        last = starting_buffer(offline, 10).storage[2]
        expected = offline[2].clone()
        if flag is None:
            expected["next", "truncated"], expected["next", "done"] = torch.ones(2, 1, dtype=torch.bool)
        assert bool((last == expected.select(*TRANSITION)).all())
        kept = starting_buffer(offline, 10, data="symmetric").storage[2]  # the online rows have a ring of their own
        assert bool((kept == offline[2].select(*TRANSITION)).all())

    def test_top_buffer_is_filled_best_last_and_symmetric_keeps_its_fraction(self) -> None:
        data = toy_dataset()
        buffer = starting_buffer(data, 10, data="top", num_top_episodes=2)
        assert torch.equal(buffer.storage[:]["observation"], top_episodes(data, 2)["observation"])
        buffer = starting_buffer(data, 10, data="symmetric", batch_size=8, offline_fraction=0.25)
        buffer.extend(double_transitions(10).select(*TRANSITION))
        assert (buffer.sample()["index"] < 29).sum() == 2

    def test_more_entries_go_along(self) -> None:
        data = add_mc_return(toy_dataset(), gamma=0.99)
        buffer = starting_buffer(data, 10, data="symmetric", keys=(*TRANSITION, "mc_return"))
        assert torch.equal(buffer.storage[:]["mc_return"], data["mc_return"])
        with pytest.raises(O2OSpecError, match=r"without .*mc_return"):
            starting_buffer(toy_dataset(), 10, keys=(*TRANSITION, "mc_return"))

    def test_refusals(self) -> None:
        data = toy_dataset()
        for settings, message in (
            ({"data": "some"}, "got data='some'"),
            ({"num_top_episodes": 2}, "got num_top_episodes=2 and data='all', expected data='top'"),
            ({"data": "top", "offline_fraction": 0.25}, "got offline_fraction=0.25 and data='top', expected data='sym"),
            ({"online_capacity": 0}, "got online_capacity=0"),
            ({"data": "top", "num_top_episodes": -1}, "got number=-1"),
            ({"make_storage": offline_online_storage, "scratch_dir": "a"}, "got scratch_dir and make_storage"),
            ({"make_storage": offline_online_storage, "data": "none"}, "got data='none' and make_storage"),
            ({"make_storage": offline_online_storage, "device": "meta"}, "got device='meta' and make_storage"),
            ({"scratch_dir": "a", "device": "meta"}, "got scratch_dir with device='meta'"),
        ):
            with pytest.raises(O2OSpecError, match=message):
                starting_buffer(data, **{"online_capacity": 5, **settings})
        with pytest.raises(O2ODataError, match="no 'episode'"):
            top_episodes(data.exclude("episode"), 1)


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_has_rows(size: int) -> None:
    for make in (lambda: starting_buffer(random_transitions(9, 3, 1), 5, batch_size=size),
                 lambda: offline_buffer(random_transitions(9, 3, 1), batch_size=size)):  # fmt: skip
        with pytest.raises(O2OSpecError, match=f"got batch_size={size}, expected a whole number of at least 1"):
            make()
