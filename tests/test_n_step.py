"""Returns of several steps: the memory against a plain walk, the loss by hand, both stacks."""

import itertools

import numpy as np
import pytest
import torch
from small_battles import memories, sample, small_battle, weights
from test_replay import Rows
from test_sampler import LAYOUTS, Flaky, Toy, by_hand, sampler_of

from rllib_mfq.mean_field.objective import n_step_return
from rllib_mfq.replay.memory import ReplayMemory


def walk(rows, number, n_step):
    """One agent's next steps, one row at a time: rewards, the last row, and the row after it."""
    rewards = []
    while True:
        row = rows[number]
        rewards.append(row["reward"])
        after = number if row["after"] is None else row["after"]
        if after == number or len(rewards) == n_step or not rows[after]["acted"]:
            return rewards, number, after
        number = after


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("n_step", [2, 3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_a_drawn_row_spans_the_steps_a_walk_along_its_agents_life_finds(seed, n_step, masks):
    source, memory, rows = Rows(seed, masks), ReplayMemory(60, seed=seed, n_step=n_step), {}
    for size in (20, 25, 5, 30, 17):
        columns = source.fragment(size)
        first = source.written - size
        for i in range(size):
            after = int(columns["next_row"][i])
            rows[first + i] = {
                "reward": columns["rewards"][i],
                "after": None if after < 0 else first + after,
                "acted": columns["loss_mask"][i],
                "terminated": columns["terminateds"][i],
            }
        memory.add(columns)
        batch = sample(memory, 200)
        spans = set()
        for i, number in enumerate(batch["actions"].tolist()):
            rewards, last, after = walk(rows, number, n_step)
            assert batch["num_steps"][i] == len(rewards)
            padded = rewards + [0.0] * (n_step - len(rewards))
            assert batch["rewards"][i].tolist() == padded
            assert batch["terminateds"][i] == rows[last]["terminated"]
            assert batch["obs"][i].flat[0] == number and batch["new_obs"][i].flat[0] == after
            assert batch["next_mean_actions"][i, 1] == number  # what the first step produced
            assert batch["last_mean_actions"][i, 1] == last
            if masks:
                assert batch["action_mask"][i].tolist() == [number % p == 0 for p in (2, 3, 5)]
                assert batch["next_action_mask"][i].tolist() == [after % p == 0 for p in (2, 3, 5)]
            spans.add(len(rewards))
        assert len(spans) > 1


def test_the_return_is_discounted_by_hand():
    rewards = torch.tensor([[1.0, 2.0, 4.0], [3.0, 0.0, 0.0]])
    total, discount = n_step_return(rewards, torch.tensor([3, 1]), 0.5)
    assert total.tolist() == [1 + 0.5 * 2 + 0.25 * 4, 3.0]
    assert discount.tolist() == [0.125, 0.5]


def test_one_step_is_left_as_it_is():
    rewards = torch.tensor([1.0, 2.0])
    total, discount = n_step_return(rewards, None, 0.9)
    assert total is rewards and discount == 0.9


def test_both_api_stacks_learn_the_same_from_several_steps(build):
    new, old = build(small_battle(n_step=3)), build(small_battle(old=True, n_step=3))
    for algo in (new, old):
        algo.train()
        assert memories(algo)["red"].n_step == 3
    mine, theirs = (weights(algo, "red") for algo in (new, old))
    assert all(torch.allclose(mine[name], theirs[name], rtol=1e-4) for name in mine)


@pytest.mark.parametrize("value", [0, 1.5, "3"])
def test_a_number_of_steps_that_cannot_be_is_refused(value):
    with pytest.raises(ValueError, match="n_step"):
        small_battle(n_step=value).validate()


# --- over the borders of fragments ------------------------------------------------------------


def lives_of(table):
    """`{observation: (rewards to the end of its life, row by row)}` of a loop over whole lives."""
    return {row["obs"].tobytes(): row for row in table if row["loss_mask"]}


def span_in_table(row, n_step):
    """The plain loop: rewards of up to n steps, the last row, and what it observes then."""
    rewards = [row["rewards"]]
    while len(rewards) < n_step and row["successor"] and row["successor"]["loss_mask"]:
        row = row["successor"]
        rewards.append(row["rewards"])
    return rewards, row


@pytest.mark.parametrize("lengths", [[1], [3], [7, 1, 2], [40]], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_returns_run_over_whole_lives_however_long_fragments_are(lengths, layout):
    """Two runners in turn, three populations each, one memory for every player."""
    n_step, steps = 5, 40
    samplers = [sampler_of(lambda i, f=first: Toy(f + i), 3, layout) for first in (0, 3)]
    tables = [by_hand(lambda i, f=first: Toy(f + i), 3, "group", 1, steps) for first in (0, 3)]
    memories = {name: ReplayMemory(20_000, seed=0, n_step=n_step) for name in layout.values()}
    played = 0
    for length in itertools.cycle(lengths):
        for sampler in samplers:
            fragment = sampler.sample(num_steps=min(length, steps - played))
            for name, memory in memories.items():
                memory.add(fragment.columns[name], fragment.links[name])
        played += length
        if played >= steps:
            break
    table = {key: row for part in tables for key, row in lives_of(part).items()}
    seen = 0
    for memory in memories.values():
        rows = np.flatnonzero(memory._acted)
        batch = {name: column.numpy() for name, column in memory.read(rows).items()}
        seen += len(rows)
        for i in range(len(rows)):
            rewards, last = span_in_table(table[batch["obs"][i].tobytes()], n_step)
            k = len(rewards)
            assert batch["num_steps"][i] == k
            np.testing.assert_allclose(batch["rewards"][i], rewards + [0.0] * (n_step - k))
            assert batch["terminateds"][i] == last["terminateds"]
            mean = batch["last_mean_actions"][i]
            np.testing.assert_allclose(mean, last["next_mean_actions"], atol=1e-6)
            if last["successor"]:
                np.testing.assert_array_equal(batch["new_obs"][i], last["successor"]["obs"])
    assert seen == len(table) > 900


def linked(memory, sampler, fragments):
    """Adds fragments of `(steps, fresh, whether it arrives)`; how many borders a walk crosses."""
    for steps, fresh, arrives in fragments:
        fragment = sampler.sample(num_steps=steps, fresh=fresh)
        if arrives:
            memory.add(fragment.columns["shared"], fragment.links["shared"])
    return int(np.count_nonzero(memory._distance[~memory._acted]))


def test_only_what_follows_is_joined():
    def fresh():
        return sampler_of(Toy, 2, LAYOUTS["one player"]), ReplayMemory(5_000, n_step=3)

    sampler, memory = fresh()
    assert linked(memory, sampler, [(5, False, True)]) == 0
    assert linked(memory, sampler, [(5, False, True)]) > 0
    sampler, memory = fresh()  # a fresh start
    assert linked(memory, sampler, [(5, False, True), (5, True, True)]) == 0
    sampler, memory = fresh()  # a fragment was lost
    assert linked(memory, sampler, [(5, False, True), (5, False, False), (5, False, True)]) == 0
    sampler, memory = fresh()  # other players
    linked(memory, sampler, [(5, False, True)])
    sampler.assign(sampler.players)
    assert linked(memory, sampler, [(5, False, True)]) == 0
    sampler, memory = fresh()  # a runner that was started again
    linked(memory, sampler, [(5, False, True)])
    assert linked(memory, fresh()[0], [(5, False, True), (5, False, False)]) == 0
    sampler, memory = fresh()  # a memory that was restored
    linked(memory, sampler, [(5, False, True)])
    memory.set_state(memory.get_state())
    assert linked(memory, sampler, [(5, False, True)]) == 0


def test_an_episode_that_broke_ends_where_the_last_fragment_ended():
    """Rows of an episode that failed are not learned from: earlier ones see their first only."""
    n_step = 4
    made, fails = {}, {(0, 0): ("step", 0, 4)}
    sampler = sampler_of(
        lambda i: Flaky(i, made, fails), 3, LAYOUTS["one player"], restart_failed=True
    )
    memory = ReplayMemory(5_000, n_step=n_step)
    closing = {}
    for number in range(2):
        fragment = sampler.sample(num_steps=3)
        assert fragment.failures == number
        columns = fragment.columns["shared"]
        if number == 0:
            broken = columns["eps_id"] == 0
            closing = {c.tobytes() for c in columns["obs"][broken & ~columns["loss_mask"]]}
        memory.add(columns, fragment.links["shared"])
    rows = np.flatnonzero(memory._acted)
    batch = {name: column.numpy() for name, column in memory.read(rows).items()}
    ends = [batch["new_obs"][i].tobytes() in closing for i in range(len(rows))]
    assert sum(ends) >= len(closing) > 0
    assert (batch["num_steps"][ends] < n_step).any()


@pytest.mark.parametrize("capacity", [110, 150, 400])
def test_rows_that_were_overwritten_are_never_walked_into(capacity):
    """In a small ring: every step of a walk is one of the agent's own, and later than the last."""
    layout = LAYOUTS["one player"]
    samplers = [sampler_of(lambda i, f=first: Toy(f + i), 2, layout) for first in (0, 2)]
    tables = [by_hand(lambda i, f=first: Toy(f + i), 2, "group", 1, 55) for first in (0, 2)]
    table = {key: row for part in tables for key, row in lives_of(part).items()}
    memory, crossed = ReplayMemory(capacity, n_step=4), 0
    for steps in (2, 1, 4, 3, 1, 1, 5, 2, 4, 1, 3, 6, 2, 2, 1, 4, 3, 2, 4, 4):
        for sampler in samplers:
            fragment = sampler.sample(num_steps=steps)
            memory.add(fragment.columns["shared"], fragment.links["shared"])
            rows = np.flatnonzero(memory._acted)
            batch = {name: column.numpy() for name, column in memory.read(rows).items()}
            for i in range(len(rows)):
                row, k = table[batch["obs"][i].tobytes()], int(batch["num_steps"][i])
                rewards, last = span_in_table(row, k)
                np.testing.assert_allclose(batch["rewards"][i, :k], rewards)
                assert batch["terminateds"][i] == last["terminateds"]
                if last["successor"]:
                    np.testing.assert_array_equal(batch["new_obs"][i], last["successor"]["obs"])
            crossed += int(np.count_nonzero(memory._distance[~memory._acted]))
    assert crossed > 100


def test_steps_do_not_reach_across_fragments_that_do_not_follow_each_other():
    memory, source = ReplayMemory(40, seed=0, n_step=4), Rows(1)
    for _ in range(2):
        memory.add(source.fragment(20))
    batch = sample(memory, 500)
    fragment = batch["actions"] // 20
    assert np.array_equal(fragment, batch["new_obs"][:, 0, 0].astype(int) // 20)
