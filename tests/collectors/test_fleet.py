# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Fleet: every transition once, counts within their bounds, and faults of actors with a sentence each."""

from __future__ import annotations

import copy
import importlib.util
import itertools
import multiprocessing
import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torchrl.data import TensorDictReplayBuffer

from tests.collectors import learner
from tests.collectors.actors import Numbered, Scripted, check_numbered, one_slow, other_version, row
from tests.scripts.phases import assert_equal
from torchrl_o2o.collectors import ActingPolicy, FastActor, Fleet, ProcessActors, RayActors, fleet
from torchrl_o2o.data import OnlineWriter, offline_online_storage
from torchrl_o2o.envs import EnvFaultError, GuardedEnv
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import make_actor, make_deterministic_actor
from torchrl_o2o.testing import random_transitions

LIKE = random_transitions(4, 3, 1)
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "_HEARTBEAT", 0.05)


def scripted(script: Any, **settings: Any) -> Fleet:
    return Fleet(Scripted(script), LIKE, **{"total_frames": 30, **settings})


def endless(number: int, attempt: int, **settings: Any) -> Iterator[TensorDict]:
    for step in itertools.count():
        yield row(number, step, attempt=attempt, **settings)


def collect(crew: Fleet) -> TensorDict:
    with crew:
        return torch.cat(list(crew))


def test_every_transition_arrives_once_and_in_order():
    rows = collect(scripted(endless, num_actors=3))
    assert len(rows) == 30, "exactly total_frames"
    for number in range(3):
        own = rows[rows["observation"][:, 0] == number]
        assert torch.equal(own["observation"][:, 2], torch.arange(len(own)).float())


def test_batches_are_taken_apart_and_the_end_is_exact():
    def batches(number: int, attempt: int) -> Iterator[TensorDict]:
        rows = endless(number, attempt)
        while True:
            yield torch.cat([next(rows) for _ in range(7)])
            yield row(number, 0)[:0]  # an actor may send none

    assert torch.equal(collect(scripted(batches))["observation"][:, 2], torch.arange(30.0))


def test_an_episode_that_ends_is_not_held_back():
    crew = scripted(lambda number, attempt: iter([row(0, step, done=step == 4) for step in range(5)]), total_frames=5)
    rows = collect(crew)
    assert rows["next", "truncated"].sum() == 0, "the end is the environment's"
    assert len(rows) == 5


def test_a_dying_actor_begins_again_and_its_last_row_is_truncated():
    def dying(number: int, attempt: int) -> Iterator[TensorDict]:
        yield from itertools.islice(endless(number, attempt), 5)
        raise RuntimeError("killed")

    crew = scripted(dying)
    with pytest.warns(UserWarning, match="actor 0 has died and is started again: killed"):
        rows = collect(crew)
    assert torch.equal(rows["observation"][:, 1], torch.arange(30) // 5 + 0.0)
    assert torch.equal(rows["observation"][:, 2], torch.arange(30) % 5 + 0.0)
    assert torch.equal(rows["next", "done"].flatten(), torch.arange(30) % 5 == 4)
    assert torch.equal(rows["next", "done"], rows["next", "truncated"])
    assert crew.restarts >= 5


@pytest.mark.filterwarnings("ignore:actor")
def test_actors_that_never_deliver_are_given_up():
    def broken(number: int, attempt: int) -> Iterator[TensorDict]:
        if number == 0:
            raise RuntimeError("no robot")
        return endless(number, attempt)

    crew = scripted(broken, num_actors=2, max_restarts=2)
    assert (collect(crew)["observation"][:, 0] == 1).all()
    with pytest.raises(EnvFaultError, match=r"no actor is left: .*died 3 times in a row without a transition"):
        collect(scripted(broken, max_restarts=2))


def faulty(which: str) -> TensorDict:
    bad = row(0, 2)
    if which == "not finite":
        bad["next", "reward"] = torch.tensor([[float("nan")]])
    elif which == "guard":
        bad["next", "rejected"] = torch.ones(1, 1)
    elif which == "unknown policy":
        bad["policy_version"] = torch.tensor([[5]])
    elif which == "stale":
        bad["policy_version"] = torch.tensor([[-4]])
    elif which == "steps":
        bad["steps_to_next_obs"] = torch.tensor([3])
    elif which == "shape":
        bad["observation"] = torch.zeros(1, 4)
    elif which == "version":
        bad["package_version"] = torch.tensor([[*b"0.0.1", 0]], dtype=torch.uint8)
    return bad


SENTENCES = {
    "not finite": r"\('next', 'reward'\) of a transition is not finite; put its environment into a GuardedEnv",
    "guard": "its guard rejected the step",
    "unknown policy": "it acted by policy 5, expected at most 0",
    "stale": "its policy was 4 versions old, expected at most 3",
}
FINAL = {
    "steps": r"its transitions have 'steps_to_next_obs', expected single steps; sum them in the learner's",
    "shape": r"'observation' has shape \[4\] in place of \[3\]; give it the learner's task",
    "version": "its torchrl_o2o is 0.0.1, expected .*; install the same version everywhere",
}


@pytest.mark.parametrize("which", SENTENCES)
def test_one_bad_row_is_left_out_and_ends_the_episode(which: str):
    def script(number: int, attempt: int) -> Iterator[TensorDict]:
        yield from (row(0, 0), row(0, 1), faulty(which), row(0, 3), row(0, 4))
        yield from endless(0, 1)

    crew = scripted(script, total_frames=8, max_staleness=3)
    with pytest.warns(UserWarning, match=f"actor 0: .*{SENTENCES[which]}"):
        rows = collect(crew)
    assert rows["observation"][:4, 2].tolist() == [0, 1, 3, 4]
    assert rows["next", "truncated"].flatten().tolist() == [False, True] + [False] * 6
    assert crew.refused == {which: 1}


@pytest.mark.filterwarnings("ignore:actor")
@pytest.mark.parametrize("which", FINAL)
def test_an_actor_that_does_not_fit_is_given_up_and_the_others_go_on(which: str):
    def script(number: int, attempt: int) -> Iterator[TensorDict]:
        if number == 1:
            return endless(1, attempt)
        return iter([row(0, 0), row(0, 1), *[faulty(which)] * 5])

    crew = scripted(script, num_actors=2)
    with pytest.warns(UserWarning, match="actor 0 is given up"):
        rows = collect(crew)
    with pytest.raises(EnvFaultError, match=f"no actor is left.*{FINAL[which]}"):
        collect(scripted(script))
    assert crew.refused == {which: 1}
    own = rows[rows["observation"][:, 0] == 0]
    assert own["next", "truncated"].flatten().tolist() == [False, True], "what was delivered before stays"


def test_a_full_queue_makes_actors_wait_and_loses_nothing():
    made: list[int] = []

    def counted(number: int, attempt: int) -> Iterator[TensorDict]:
        for data in endless(number, attempt):
            made.append(1)
            yield data

    crew = scripted(counted, queue_size=2)
    with crew:
        delivered = iter(crew)
        first = next(delivered)
        time.sleep(0.3)
        assert len(made) <= 2 + 1 + 2, "queue, the one in hand, and those taken out"
        rows = torch.cat([first, *delivered])
    assert torch.equal(rows["observation"][:, 2], torch.arange(30.0))


def test_a_slow_actor_holds_nobody_up_and_the_learner_hears_so():
    def slow(number: int, attempt: int) -> Iterator[TensorDict]:
        for data in endless(number, attempt):
            time.sleep(0.0 if number else 0.4)
            yield data

    rows = collect(scripted(slow, num_actors=2))
    assert (rows["observation"][:, 0] == 1).sum() >= 28
    crew = scripted(slow, total_frames=2)
    with crew:
        sizes = [len(data) for data in crew]
    assert sum(sizes) == 2
    assert sizes.count(0) >= 5, "an empty batch a heartbeat"
    assert crew.waited > 0.5


@pytest.mark.parametrize("slack", [0, 1, 4])
def test_updates_stay_within_the_bound(slack: int):
    crew, draw = scripted(endless, slack=slack), random.Random(0)
    stored = made = 0
    for _ in range(300):
        arrived = draw.choice([0, 0, 1, 1, 1, 7])
        if draw.random() < 0.5:  # something is waiting
            crew._queue.put((0, RuntimeError()))
        stored += arrived
        before, waiting = stored - made, not crew._queue.empty()
        for owed in crew.updates(arrived):
            made += 1
            assert owed == stored - made
            assert made - stored <= slack
        assert abs(stored - made) <= slack
        if waiting:
            assert stored - made == min(before, slack), "what waits is taken before further updates"
            crew._queue.get()
    assert stored > 300
    assert crew.state_dict()["owed"] == stored - made


def test_no_update_is_made_before_the_first_transition():
    """A batch would be of the data alone, of which a balanced sampler warns."""
    crew = scripted(endless, slack=4)
    assert list(crew.updates(0)) == []
    assert list(crew.updates(1)) == [0, -1, -2, -3, -4]
    other = scripted(endless, slack=4)
    other.load_state_dict({**crew.state_dict(), "frames": 1, "owed": 0})
    assert list(other.updates(0)) == [-1, -2, -3, -4], "a resumed run has rows of its own"


def test_random_actions_come_first_and_versions_go_up():
    crew = scripted(endless, init_random_frames=10)
    with crew:
        for _ in crew:
            if crew.frames == 20:
                crew.publish()
    assert crew.actors.published == [(0, True), (0, False), (1, False)]
    assert crew.actors.closed


def test_a_fleet_goes_on_from_its_state():
    crew = scripted(endless)
    with crew:
        for _ in crew:
            crew.publish()
            if crew.frames == 12:
                break
    for _ in crew.updates(3):
        break
    other = scripted(endless)
    other.load_state_dict(crew.state_dict())
    assert_equal(other.state_dict(), crew.state_dict(), "state")
    assert (other.frames, other.version, other.owed) == (12, crew.version, 2)
    assert len(collect(other)) == 18
    assert other.actors.published[0] == (crew.version, False)


@pytest.mark.parametrize("how", ["saved while it collects", "saved when it is shut down", "iterated again"])
def test_a_resumed_fleet_ends_the_episodes_that_were_cut_off(how: str):
    """Each actor's episode has its last row, once and truncated, before the first of a new one."""
    crew = scripted(endless, num_actors=3, total_frames=100)
    stored = []
    with crew:
        for data in crew:
            stored.append(data)
            if crew.frames >= 40:
                state = copy.deepcopy(crew.state_dict())
                break
    if how != "iterated again":
        resumed = scripted(endless, num_actors=3, total_frames=100)
        resumed.load_state_dict(state if how == "saved while it collects" else crew.state_dict())
        crew = resumed
    rows = torch.cat([*stored, collect(crew)])
    assert len(rows) == 100
    for number in range(3):
        own = rows[rows["observation"][:, 0] == number]
        for attempt in range(2):
            episode = own[own["observation"][:, 1] == attempt]
            assert torch.equal(episode["observation"][:, 2], torch.arange(len(episode)).float())
            last = torch.arange(len(episode)) == len(episode) - 1
            assert torch.equal(episode["next", "truncated"].flatten(), last & (attempt == 0))
            assert torch.equal(episode["next", "done"].flatten(), last & (attempt == 0))


def test_a_resumed_fleet_repeats_no_random_stream():
    """Streams go by number and attempt, so none is started twice: neither after a resume, nor if iterated again."""
    started: list[tuple[int, int]] = []

    def noted(number: int, attempt: int) -> Iterator[TensorDict]:
        started.append((number, attempt))
        return endless(number, attempt)

    crew = scripted(noted, num_actors=2, total_frames=20)
    collect(crew)
    crew.total_frames = 40
    collect(crew)
    assert sorted(started) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    resumed = scripted(noted, num_actors=3, total_frames=60)
    resumed.load_state_dict(crew.state_dict())
    collect(resumed)
    assert sorted(started[4:]) == [(0, 2), (1, 2), (2, 0)]
    older = scripted(noted, num_actors=1, total_frames=60)
    older.load_state_dict({name: value for name, value in crew.state_dict().items() if name != "starts"})
    assert older.frames == 40


def test_metrics_say_how_old_policies_were():
    crew = scripted(endless, total_frames=5, queue_size=1)
    with crew:
        for _ in crew:
            crew.publish()
    measured = crew.metrics()
    assert measured["staleness_max"] == 5.0, "the last row arrived after five were published"
    assert measured["staleness"] == sum(range(6)) / 6, "six have arrived, of which the last waits for the next"


@pytest.mark.parametrize("bad", [{"num_actors": 0}, {"queue_size": 0}, {"slack": -1}, {"max_staleness": -1}])
def test_numbers_out_of_range(bad: dict[str, int]):
    with pytest.raises(O2OSpecError, match=f"got {next(iter(bad))}="):
        scripted(endless, **bad)


def test_interventions_are_not_dropped_because_the_offline_rows_lack_their_entry():
    actors = ProcessActors(partial(gymnasium.make, "Pendulum-v1"), make_actor(3, 1), intervened=True)
    with pytest.raises(O2OSpecError, match="expected the entry, because what the transitions lack is not delivered"):
        Fleet(actors, LIKE, total_frames=1)
    like = LIKE.clone()
    like["next", "intervened"] = torch.full_like(like["action"], torch.nan)
    Fleet(actors, like, total_frames=1)


def test_a_script_that_starts_actors_while_it_is_imported_hears_what_to_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(O2OSpecError, match="__main__"):
        ProcessActors(partial(gymnasium.make, "Pendulum-v1"), make_actor(3, 1)).start(0, 0)


# How actors act.


def observed(count: int) -> TensorDict:
    return TensorDict({"observation": torch.randn(count, 3)}, [count])


def test_an_actor_acts_by_the_policy_that_was_published():
    actor = make_actor(3, 1)
    policy = ActingPolicy(actor)
    own = policy.for_actor(0)
    data = observed(5)
    noise = own(data.clone())  # starts it
    expected = FastActor(actor, deterministic=False, generator=torch.Generator())
    with torch.no_grad():
        for value in actor.parameters():
            value.add_(torch.randn_like(value) * 0.1)
    still = own._fast.decide(data["observation"].numpy(), np.ones((5, 1), np.float32))
    policy.publish(actor, 3)
    after = own(data.clone())
    now = own._fast.decide(data["observation"].numpy(), np.ones((5, 1), np.float32))
    assert noise["policy_version"].unique().tolist() == [0]
    assert after["policy_version"].unique().tolist() == [3]
    want = expected.decide(data["observation"].numpy(), np.ones((5, 1), np.float32))
    np.testing.assert_array_equal(now, want)
    assert not np.allclose(still, want)


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_actor_in_float64_delivers_float32(wrapped: bool):
    actor = make_deterministic_actor(3, 1).double()
    data = ActingPolicy(TensorDictSequential(actor) if wrapped else actor).for_actor(0)(observed(5))
    expected = actor(TensorDict({"observation": data["observation"].double()}, [5]))["action"]
    torch.testing.assert_close(data["action"], expected.float())


def test_weights_that_are_being_written_are_not_taken():
    actor = make_actor(3, 1)
    policy = ActingPolicy(actor)
    policy.publish(actor, 1)
    own = policy.for_actor(0)
    assert own(observed(1))["policy_version"].item() == 1
    policy.publish(actor, 2)
    policy._weights[3] += 1.0  # half of the next version is there
    assert own(observed(1))["policy_version"].item() == 1
    policy.publish(actor, 3)
    assert own(observed(1))["policy_version"].item() == 3


def test_each_actor_and_attempt_has_its_own_noise_and_a_seed_repeats_it():
    def first(seed: int, number: int, attempt: int) -> float:
        torch.manual_seed(0)
        actor = make_actor(3, 1)
        return (
            ActingPolicy(actor, seed=seed)
            .for_actor(number, attempt)(TensorDict({"observation": torch.ones(3)}))["action"]
            .item()
        )

    drawn = [first(*which) for which in ((0, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 0))]
    assert len(set(drawn)) == 4
    assert first(0, 1, 0) == drawn[1]


def test_random_actions_fill_the_box():
    actor = make_actor(3, 1)
    policy = ActingPolicy(actor)
    policy.publish(actor, 0, random=True)
    actions = policy.for_actor(0)(observed(2000))["action"]
    assert actions.min() < -0.99
    assert actions.max() > 0.99
    assert abs(actions.mean()) < 0.05


def test_an_action_that_is_not_finite_is_refused_whatever_the_actor():
    actors = make_actor(3, 1), TensorDictModule(torch.nn.Linear(3, 1), in_keys=["observation"], out_keys=["action"])
    for actor in actors:
        for value in actor.parameters():
            value.data.fill_(torch.nan)
        with pytest.raises(O2OSpecError, match="expected finite numbers"):
            ActingPolicy(actor)(observed(1))


def test_weights_as_buffers_are_what_torchrl_sends():
    actor = make_actor(3, 1)
    policy = ActingPolicy(actor)
    own = policy.for_actor(1).with_buffers()
    assert {name for name, _ in own.named_buffers()} == {"_weights", "_stamp"}
    assert not list(policy.named_buffers()), "the one it is made from stays as it is"
    policy.publish(actor, 4)
    assert own(observed(1))["policy_version"].item() == 4


def test_without_ray_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(O2OSpecError, match="needs Ray, which is not installed; pip install ray, or use ProcessActors"):
        RayActors(Numbered, make_actor(3, 1))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_actors_over_ray_lose_and_double_nothing_when_one_is_killed():
    ray = pytest.importorskip("ray")
    actors = RayActors(partial(Numbered, sleep=0.01), make_actor(3, 1), num_cpus=0.5)
    crew, rows, killed = Fleet(actors, LIKE, num_actors=2, total_frames=60), [], False
    with crew:
        for data in crew:
            rows.append(data)
            crew.publish()
            if crew.frames >= 30 and not killed and len(crew._sources) == 2:
                ray.kill(crew._sources[0].remote_collectors[0])
                killed = True
    assert crew.restarts == 1
    check_numbered(torch.cat(rows))


# The writer.


def test_several_producers_write_every_row_once():
    """A buffer's lock guards its writer: threads may write at once."""
    offline = random_transitions(10, 3, 1)
    storage = offline_online_storage(offline, 800)
    buffer = TensorDictReplayBuffer(storage=storage, writer=OnlineWriter(10), batch_size=4)
    own = random_transitions(1, 3, 1)

    def produce(number: int) -> None:
        for step in range(100):
            data = own.clone()
            data["observation"] = torch.tensor([[number, step, 0.0]])
            if step % 2:
                buffer.extend(data)
            else:
                buffer.add(data[0])

    threads = [threading.Thread(target=produce, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    written = storage[10:]["observation"]
    assert len({tuple(each) for each in written[:, :2].tolist()}) == len(written) == 800
    assert buffer.writer.total_written == 800
    assert torch.equal(storage[:10]["observation"], offline["observation"])


# Real processes.


def processes(make_env: Any, **settings: Any) -> Fleet:
    torch.manual_seed(0)
    actors = ProcessActors(make_env, make_actor(3, 1), frames_per_batch=settings.pop("frames_per_batch", 1))
    return Fleet(actors, LIKE, **{"total_frames": 200, "num_actors": 2, **settings})


def kill_often(times: int, between: int) -> None:
    """Kill an actor at random again and again: what was stored stays, once."""
    draw = random.Random(0)
    crew = processes(partial(Numbered, sleep=0.002), total_frames=(times + 2) * between, max_restarts=5)
    killed, rows = 0, []
    with crew:
        for data in crew:
            rows.append(data)
            crew.publish()
            if killed < times and crew.frames >= (killed + 1) * between:
                alive = [each.procs[0] for each in list(crew._sources.values()) if each.procs[0].is_alive()]
                if alive:  # those that died before may not be there again yet
                    time.sleep(draw.random() * 0.01)
                    os.kill(draw.choice(alive).pid, signal.SIGKILL)
                    killed += 1
    assert (killed, crew.frames) == (times, (times + 2) * between)
    assert crew.restarts >= times - 2
    check_numbered(torch.cat(rows))


@pytest.mark.filterwarnings("ignore:actor")
def test_killed_actors_lose_and_double_nothing():
    kill_often(2, 30)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:actor")
def test_actors_killed_fifty_times():
    kill_often(50, 20)


@pytest.mark.filterwarnings("ignore:actor")
def test_a_real_actor_of_another_version_delivers_nothing():
    crew = processes(other_version, num_actors=1, total_frames=20)
    with pytest.raises(EnvFaultError, match=r"its torchrl_o2o is 0\.0\.1"):
        collect(crew)
    assert crew.frames == 0


@pytest.mark.filterwarnings("ignore:actor")
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("type", r"'observation' is torch\.float64 in place of torch\.float32.*; give it the learner's task"),
        ("shape", r"got observations of shape \(4,\), expected \[3\].*; fix the actors"),
    ],
)
def test_a_real_actor_of_another_task_delivers_nothing(wrong: str, said: str):
    crew = processes(partial(Numbered, wrong=wrong), num_actors=1, total_frames=20)
    with pytest.raises(EnvFaultError, match=said):
        collect(crew)
    assert crew.frames == 0


def test_real_actors_wait_while_the_queue_is_full():
    """They are far quicker than the learner, and yet what arrives is no older than what may be on its way."""
    crew, rows = processes(Numbered, num_actors=1, total_frames=60, queue_size=2), []
    with crew:
        for data in crew:
            rows.append(data)
            time.sleep(0.02)
            if len(data):
                crew.publish()
    check_numbered(torch.cat(rows))
    assert crew.metrics()["staleness_max"] <= 2 + 1 + 2 + 1 + 1, "queue, in hand, the actor's two, its step, and held"


@pytest.mark.slow
def test_a_slow_real_actor_holds_nobody_up(tmp_path: Path):
    rows = collect(processes(partial(one_slow, str(tmp_path)), total_frames=300))
    check_numbered(rows)
    counts = rows["observation"][:, 0].unique(return_counts=True)[1].tolist()
    assert max(counts) > 200


def test_a_real_actors_nan_is_left_out():
    crew = processes(partial(Numbered, wrong="nan"), num_actors=1, total_frames=20)
    with pytest.warns(UserWarning, match="GuardedEnv"):
        rows = collect(crew)
    assert rows["next", "reward"].isfinite().all()
    assert rows["observation"][:5, 2].tolist() == [0, 1, 2, 3, 5], "the fifth is left out"
    assert rows["next", "truncated"][3]
    assert crew.refused == {"not finite": 1}


@pytest.mark.filterwarnings("ignore")
def test_a_guards_rejected_steps_do_not_arrive():
    crew = processes(partial(GuardedEnv, partial(Numbered, wrong="nan")), num_actors=1, total_frames=10)
    rows = collect(crew)
    assert crew.refused == {"guard": 1}
    assert rows["next", "truncated"].flatten().nonzero().flatten().tolist() == [3]


# The learner dies.


def numbered_by_process(number: int, attempt: int) -> Iterator[TensorDict]:
    for step in itertools.count():
        data = row(0, step)
        for entries in (data, data["next"]):
            entries["observation"][:, :2] = torch.tensor([os.getpid(), number])
        yield data


def test_a_killed_learner_goes_on_from_its_checkpoint(tmp_path: Path):
    """What is stored after it is what its checkpoint held, and new rows; the counts continue from there."""
    if (child := os.fork()) == 0:
        die = partial(lambda step, crew: os.kill(os.getpid(), signal.SIGKILL) if step >= 37 else None)
        learner.learn(tmp_path, Scripted(numbered_by_process), total=60, at_step=die)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    crew, stored = learner.learn(tmp_path, Scripted(numbered_by_process), total=60)
    before = stored["observation"][:, 0] == child
    assert 20 <= before.sum() < 37
    assert before[: int(before.sum())].all(), "the checkpoint's rows, then others"
    for process, number in itertools.product((child, os.getpid()), range(2)):
        own = stored["observation"][:, :2] == torch.tensor([process, number])
        steps = stored["observation"][own.all(-1)][:, 2]
        assert torch.equal(steps, torch.arange(float(len(steps)))), "none lost, none doubled"
    assert crew.frames == 60


def ends(pid: int) -> bool:
    """Wait for the end of a process; one that has just begun first imports torch, for a minute on a busy machine."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], 300.0)[0])
    finally:
        os.close(handle)


@pytest.mark.slow
def test_learners_killed_twenty_times(tmp_path: Path):
    """Real actors: they end with their learner; the next one continues, and in the end every count is exact."""
    draw, said, last = random.Random(0), tmp_path / "said", 0
    command = [sys.executable, "-m", "tests.collectors.learner", str(tmp_path)]
    where: dict[str, Any] = {"cwd": ROOT, "env": {**os.environ, "PYTHONPATH": str(ROOT)}}
    for kill in range(20):
        said.unlink(missing_ok=True)
        child = subprocess.Popen([*command, "5000", str(kill)], **where)
        goal = last + 10 + draw.randrange(60)
        while not said.exists() or int(said.read_text().split()[0]) < goal:
            assert child.poll() is None
            time.sleep(0.01)
        child.kill()
        child.wait()
        step, *actors = map(int, said.read_text().split())
        assert step > last - 10, "it continued from the last checkpoint"
        last = step
        assert all(map(ends, actors)), "actors end with their learner"
    done = subprocess.run([*command, str(last + 100), "99"], **where, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"\ncomplete {last + 100}, of " in done.stdout
