"""Returns of several steps: the memory against a plain walk, the loss by hand, both stacks."""

import numpy as np
import pytest
import torch
from small_battles import sample, small_battle, weights
from test_replay import Rows

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
        assert algo._memories["red"].n_step == 3
    mine, theirs = (weights(algo, "red") for algo in (new, old))
    assert all(torch.allclose(mine[name], theirs[name], rtol=1e-4) for name in mine)


@pytest.mark.parametrize("value", [0, 1.5, "3"])
def test_a_number_of_steps_that_cannot_be_is_refused(value):
    with pytest.raises(ValueError, match="n_step"):
        small_battle(n_step=value).validate()


def test_steps_do_not_reach_across_fragments():
    memory, source = ReplayMemory(40, seed=0, n_step=4), Rows(1)
    for _ in range(2):
        memory.add(source.fragment(20))
    batch = sample(memory, 500)
    fragment = batch["actions"] // 20
    assert np.array_equal(fragment, batch["new_obs"][:, 0, 0].astype(int) // 20)
