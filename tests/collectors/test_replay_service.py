# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The storage in a process of its own: what it takes and refuses, and over Ray that nothing is lost or doubled."""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.collectors.actors import Numbered, check_numbered, other_version, row
from torchrl_o2o.collectors import Fleet, RayActors, ServedReplayBuffer, serve_replay
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import make_actor
from torchrl_o2o.testing import random_transitions

NUM_OFFLINE = 20
LOAD = partial(random_transitions, NUM_OFFLINE, 3, 1)


def served(**settings: Any) -> ServedReplayBuffer:
    return ServedReplayBuffer(LOAD, 100, **{"batch_size": 8, **settings})


def test_rows_of_actors_are_cut_to_what_is_stored_and_counted():
    buffer = served()
    assert buffer.extend(torch.cat([row(0, step) for step in range(3)])).tolist() == [20, 21, 22]
    assert buffer.write_count == 3
    assert "policy_version" not in buffer[:].keys(True)
    assert int((buffer.sample()["index"] < NUM_OFFLINE).sum()) == 4


def test_a_seed_draws_the_same_rows():
    one, other = served(seed=3), served(seed=3)
    for buffer in (one, other):
        buffer.extend(torch.cat([row(0, step) for step in range(9)]))
    assert torch.equal(one.sample()["index"], other.sample()["index"])


def test_what_a_guard_rejected_is_left_out():
    rows = torch.cat([row(0, step) for step in range(3)])
    rows["next", "rejected"] = torch.tensor([[0.0], [1.0], [0.0]])
    buffer = served()
    buffer.extend(rows)
    assert buffer[NUM_OFFLINE:]["observation"][:, 2].tolist() == [0.0, 2.0]
    assert buffer.extend(rows[:0]).tolist() == [], "an actor may send none"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (("next", "reward"), torch.tensor([[float("nan")]]), r"\('next', 'reward'\) .* not finite, .*; put its env"),
        (
            "steps_to_next_obs",
            torch.tensor([3]),
            r"'steps_to_next_obs' is not stored.*apply n_step\(",
        ),
        ("observation", torch.zeros(1, 4), r"'observation' has shape \[4\] in place of \[3\]"),
        ("package_version", torch.tensor([[*b"0.0.1", 0]], dtype=torch.uint8), "actor with torchrl_o2o 0.0.1"),
    ],
)
def test_rows_that_do_not_fit_are_refused_whole(key: Any, value: torch.Tensor, said: str):
    buffer, bad = served(), row(0, 0)
    bad[key] = value
    with pytest.raises(O2OSpecError, match=said):
        buffer.extend(bad)
    assert buffer.write_count == 0


def test_without_ray_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(O2OSpecError, match="needs Ray, which is not installed; pip install ray, or use a replay"):
        serve_replay(LOAD, 100, batch_size=8)


def test_a_fleet_does_not_take_actors_that_write_elsewhere(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torchrl_o2o.collectors.ray_actors.check_ray", lambda instead: None)
    actors = RayActors(Numbered, make_actor(3, 1), replay_buffer=object())
    with pytest.raises(O2OSpecError, match="leave their replay_buffer out, or start them yourself"):
        Fleet(actors, random_transitions(4, 3, 1), total_frames=10)


# Over Ray.


def until(condition: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def still(service: Any) -> bool:
    """Whether nothing that actors sent before their end is on its way."""
    before = service.write_count
    time.sleep(0.5)
    return service.write_count == before


@pytest.fixture
def service() -> Iterator[Any]:
    pytest.importorskip("ray")
    service = serve_replay(LOAD, 5_000, batch_size=64)
    yield service
    if service.is_alive:
        service.shutdown()


def start(service: Any, make_env: Any, number: int, attempt: int = 0) -> Any:
    actors = RayActors(make_env, make_actor(3, 1), num_cpus=0.1, replay_buffer=service)
    collector: Any = actors.start(number, attempt)
    collector.start()
    return collector


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_several_actors_write_and_one_is_killed(service: Any, tmp_path: Path):
    import ray

    one, other = (start(service, partial(Numbered, sleep=0.01), number) for number in range(2))
    until(lambda: service.write_count > 100)
    ray.kill(one.remote_collectors[0])
    until(lambda: not one._collection_thread.is_alive())
    assert other._collection_thread.is_alive()
    again = start(service, partial(Numbered, sleep=0.01), 0, attempt=1)
    until(lambda: len(service[NUM_OFFLINE:]["observation"][:, 0].unique()) == 3)  # processes
    stands = service.write_count
    until(lambda: service.write_count > stands + 100)
    for each in (other, again):
        each.shutdown()
    until(lambda: still(service))
    rows = service[NUM_OFFLINE:]
    assert len(rows) == service.write_count
    check_numbered(rows)
    service.dumps(tmp_path / "rows")
    ray.kill(service._rb)
    with pytest.raises(ray.exceptions.ActorDiedError):
        service.sample()
    after = serve_replay(LOAD, 5_000, batch_size=64)
    after.loads(tmp_path / "rows")
    assert torch.equal(after[NUM_OFFLINE:]["observation"], rows["observation"])
    assert after.extend(row(9, 0)).tolist() == [NUM_OFFLINE + len(rows)], "the next slot"
    after.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_actors_follow_the_policy_that_is_published(service: Any):
    actor = make_actor(3, 1)
    for weight in actor.parameters():
        weight.detach().zero_()  # what it observes are large numbers
    actors = RayActors(partial(Numbered, sleep=0.01), actor, num_cpus=0.1, replay_buffer=service)
    collector: Any = actors.start(0, 0)
    collector.start()
    until(lambda: service.write_count > 20)
    assert service[NUM_OFFLINE:]["action"].min() < 0.9
    dict(actor.named_parameters())["module.0.module.1.mean.bias"].detach().fill_(50.0)
    actors.publish(1, random=False)
    stands = service.write_count
    until(lambda: service.write_count > stands + 20)
    collector.shutdown()
    assert service[NUM_OFFLINE + stands + 10 :]["action"].min() > 0.9


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make_env", "said"),
    [
        (partial(Numbered, wrong="nan", at=5), "is not finite"),
        (partial(Numbered, wrong="shape"), "shape"),
        (other_version, "torchrl_o2o is 0.0.1"),
    ],
)
def test_an_actor_that_does_not_fit_ends_alone(service: Any, make_env: Any, said: str):
    ended: list[str] = []
    before, threading.excepthook = threading.excepthook, lambda thread: ended.append(str(thread.exc_value))
    try:
        bad, good = start(service, make_env, 0), start(service, partial(Numbered, sleep=0.01), 1)
        until(lambda: not bad._collection_thread.is_alive())
        stands = service.write_count
        until(lambda: service.write_count > stands + 10)
        assert good._collection_thread.is_alive()
    finally:
        threading.excepthook = before
    assert said in ended[0]
    good.shutdown()
    rows = service[NUM_OFFLINE:]
    assert rows["next", "reward"].isfinite().all()


@pytest.mark.slow
def test_ray_of_this_machine_listens_on_this_machine_alone(service: Any):
    import ray

    assert [node["NodeManagerAddress"] for node in ray.nodes()] == ["127.0.0.1"]
    gcs = ray.get_runtime_context().gcs_address
    assert gcs.startswith("127.0.0.1:")
    port = int(gcs.rpartition(":")[2])
    listening = [
        line.split()[1]
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for line in Path(table).read_text().splitlines()[1:]
        if line.split()[3] == "0A" and int(line.split()[1].rpartition(":")[2], 16) == port
    ]
    assert [address.rpartition(":")[0][-8:] for address in listening] == ["0100007F"], "127.0.0.1, as the kernel has it"
