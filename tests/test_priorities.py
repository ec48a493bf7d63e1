"""Priorities: the formulas of Schaul et al. (2016) against plain loops, and who gets which."""

import numpy as np
import pytest
import torch
from small_battles import OLD, same, sample, small_battle, weights
from test_replay import Rows

from rllib_mfq import MFQConfig
from rllib_mfq.replay.memories import Memories
from rllib_mfq.replay.memory import ReplayMemory
from rllib_mfq.replay.priorities import Priorities, of_sequences


def filled(alpha=0.6, eps=0.01, capacity=50, seed=0):
    """Priorities after errors of several sizes; every fourth row cannot be drawn."""
    priorities, rng = Priorities(capacity, alpha, eps), np.random.default_rng(seed)
    drawable = np.arange(capacity) % 4 != 3
    priorities.write(slice(0, capacity), drawable)
    rows = np.flatnonzero(drawable)[:30]
    errors = rng.normal(size=len(rows)) * 3
    priorities.update(rows, priorities.generations(rows), errors)
    expected = {i: 1.0 for i in np.flatnonzero(drawable).tolist()}
    expected |= {int(i): abs(error) + eps for i, error in zip(rows, errors, strict=True)}
    return priorities, expected


@pytest.mark.parametrize("alpha", [0.3, 0.6, 1.0])
def test_rows_are_drawn_as_often_as_the_formula_says(alpha):
    priorities, p = filled(alpha)
    total = sum(value**alpha for value in p.values())
    draws = 200_000
    counts = np.bincount(priorities.draw(draws, np.random.default_rng(1)), minlength=50)
    assert counts.sum() == counts[list(p)].sum() == draws
    expected = np.array([draws * p[i] ** alpha / total for i in p])
    chi_squared = ((counts[list(p)] - expected) ** 2 / expected).sum()
    degrees = len(p) - 1
    assert chi_squared < degrees + 5 * np.sqrt(2 * degrees)


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_importance_weights_are_those_of_a_plain_loop(beta):
    priorities, p = filled()
    rows = priorities.draw(20, np.random.default_rng(2))
    total = sum(value**0.6 for value in p.values())
    plain = [(len(p) * p[row] ** 0.6 / total) ** -beta for row in rows.tolist()]
    priorities.beta = beta
    weights = priorities.weights(rows)
    np.testing.assert_allclose(weights, np.array(plain) / max(plain), rtol=1e-6)
    assert weights.dtype == np.float32 and weights.max() == 1


def test_with_beta_1_the_weighted_mean_is_the_mean_over_all_rows():
    priorities, p = filled()
    values = np.random.default_rng(3).normal(size=50)
    rows = priorities.draw(400_000, np.random.default_rng(4))
    weights = priorities.weights(rows).astype(float)
    found = (weights * values[rows]).sum() / weights.sum()
    assert found == pytest.approx(values[list(p)].mean(), abs=0.02)


def test_a_row_that_is_written_gets_the_largest_priority_so_far():
    priorities, p = filled()
    row = max(p, key=p.get)
    priorities.update(np.array([row]), priorities.generations(np.array([row])), np.zeros(1))
    priorities.write(slice(10, 12), np.array([True, False]))
    draws = np.bincount(priorities.draw(300_000, np.random.default_rng(5)), minlength=50)
    p |= {row: 0.01, 10: max(p.values())}
    p.pop(11, None)
    total = sum(value**0.6 for value in p.values())
    assert draws[10] / 300_000 == pytest.approx(p[10] ** 0.6 / total, rel=0.05)
    assert draws[11] == 0


def test_no_priority_goes_to_a_row_that_was_overwritten_meanwhile():
    priorities, _ = filled()
    rows = np.array([0, 1, 2, 4])
    drawn = priorities.generations(rows)
    priorities.write(slice(1, 3), np.ones(2, bool))
    before = priorities.get_state()["priorities"]
    priorities.update(rows, drawn, np.array([7.0, 8.0, 9.0, 10.0]))
    after = priorities.get_state()["priorities"]
    assert after[[0, 4]].tolist() == [7.01, 10.01]
    np.testing.assert_array_equal(np.delete(after, [0, 4]), np.delete(before, [0, 4]))


def test_of_a_row_that_was_drawn_twice_the_last_error_counts():
    priorities, _ = filled()
    rows = np.array([5, 5])
    priorities.update(rows, priorities.generations(rows), np.array([4.0, -2.0]))
    assert priorities.get_state()["priorities"][5] == 2.01


def test_what_is_restored_goes_on_exactly_and_takes_no_error_of_before():
    first, second = filled()[0], filled(seed=9)[0]
    rows = np.array([0, 1])
    drawn = second.generations(rows)
    second.set_state(first.get_state())
    second.update(rows, drawn, np.array([100.0, 100.0]))
    same = [p.draw(50, np.random.default_rng(6)) for p in (first, second)]
    np.testing.assert_array_equal(*same)
    for each in (first, second):
        each.write(slice(3), np.ones(3, bool))
    states = [each.get_state() for each in (first, second)]
    np.testing.assert_array_equal(states[0]["priorities"], states[1]["priorities"])


def test_the_error_of_a_sequence_by_hand():
    learned = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    found = of_sequences(torch.tensor([1.0, -3.0, 2.0]), learned)
    assert found.tolist() == pytest.approx([0.9 * 3 + 0.1 * 2, 2.0, 0.0])


# --- in the memory ----------------------------------------------------------------------------


def prioritized(capacity=60, alpha=0.6, seed=0, **arguments):
    return ReplayMemory(
        capacity, seed=seed, priorities=Priorities(capacity, alpha, 0.01), **arguments
    )


@pytest.mark.parametrize("n_step", [1, 3])
def test_with_alpha_0_a_memory_gives_the_batches_of_one_without_priorities(n_step):
    """Bit for bit, and weights of 1, whatever the errors were."""
    plain, rows = ReplayMemory(60, seed=4, n_step=n_step), Rows(0)
    memory = prioritized(alpha=0.0, seed=4, n_step=n_step)
    for size in (40, 33, 20):
        columns = rows.fragment(size)
        for each in (memory, plain):
            each.add(columns)
        drawn, expected = sample(memory, 50), sample(plain, 50)
        assert (drawn.pop("weights") == 1).all()
        memory.learned(torch.rand(50))
        assert drawn.keys() == expected.keys()
        assert all(np.array_equal(drawn[name], expected[name]) for name in drawn)


def test_every_row_gets_the_error_that_was_made_on_it():
    memories, rows = Memories(red=prioritized(), blue=ReplayMemory(60, seed=1)), Rows(0)
    for _ in range(3):
        columns = rows.fragment(45)
        memories.add({"red": columns, "blue": columns}, {})
        expected = memories["red"].priorities.get_state()["priorities"]
        for batch in memories.batches(8, 5, ["red", "blue"]):
            errors = batch["red"]["actions"] * 0.1  # rows are known by their actions
            memories.errors["red"].append(errors)
            for row, error in zip(batch["red"]["actions"].tolist(), errors.tolist(), strict=True):
                expected[row % 60] = error + 0.01
        found = memories["red"].priorities.get_state()["priorities"]
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_memory_with_priorities_goes_on_exactly_when_it_is_restored():
    first, second, plain, rows = prioritized(), prioritized(seed=7), ReplayMemory(60), Rows(0)
    for memory in (first, plain):
        memory.add(rows.fragment(50))
    first.draw(20)
    first.learned(torch.rand(20))
    second.set_state(first.get_state())
    for _ in range(3):
        columns = rows.fragment(17)
        batches = []
        for memory in (first, second):
            memory.add(columns)
            batches.append(sample(memory, 30))
            memory.learned(torch.from_numpy(batches[-1]["rewards"]))
        assert all(np.array_equal(*(b[name] for b in batches)) for name in batches[0])
    second.set_state(plain.get_state())  # of a memory without: all rows are new to it
    assert set(sample(second, 500)["weights"]) == {1.0}
    plain.set_state(first.get_state())
    sample(plain, 10)


# --- through the learner ----------------------------------------------------------------------


@pytest.mark.parametrize("n_step", [1, 3])
def test_both_api_stacks_learn_the_same_by_priorities(build, n_step):
    how = {"prioritized_replay": True, "prioritized_replay_beta": [[0, 0.4], [400, 1.0]]}
    algos = [build(small_battle(old=old, n_step=n_step, **how)) for old in (False, True)]
    states = []
    for algo in algos:
        for _ in range(2):
            algo.train()
        states.append(next(iter(algo._memories.states()))["red"])
    mine, theirs = (weights(algo, "red") for algo in algos)
    assert all(torch.allclose(mine[name], theirs[name], rtol=1e-4, atol=1e-6) for name in mine)
    first, second = (state["priorities"]["priorities"] for state in states)
    np.testing.assert_allclose(first, second, rtol=1e-3, atol=1e-5)
    learned = first[(first > 0) & (first != states[0]["priorities"]["largest"])]
    assert len(np.unique(learned)) > 50


def test_alpha_0_learns_bit_for_bit_what_is_learned_without_priorities(build):
    how = {"prioritized_replay": True, "prioritized_replay_alpha": 0.0}
    algos = [build(small_battle(**settings)) for settings in ({}, how)]
    for algo in algos:
        algo.train()
    assert same(*(weights(algo, "red") for algo in algos))
    weighted = build(small_battle(prioritized_replay=True))
    weighted.train()
    assert not same(weights(algos[0], "red"), weights(weighted, "red"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prioritized_replay": "yes"}, "prioritized_replay is 'yes'; it must be True or False"),
        ({"prioritized_replay_alpha": 0.5}, "no effect while prioritized_replay is False"),
        ({"prioritized_replay_alpha": 1.5}, "it must be a number from 0 to 1"),
        ({"prioritized_replay_beta": [[0, 0.4], [9, 1.2]]}, "a number from 0 to 1 or a schedule"),
        ({"prioritized_replay_eps": 0}, "it must be a number above 0"),
    ],
)
@pytest.mark.parametrize("stack", [{}, OLD], ids=["new", "old"])
def test_priorities_that_cannot_be_are_refused(stack, settings, message):
    with pytest.raises(ValueError, match=message):
        MFQConfig().api_stack(**stack).training(**settings).validate()


# --- the blind cliff walk ---------------------------------------------------------------------

STEPS = 12


def cliff_walk():
    """All ways through the "Blind Cliffwalk" of n states as rows: state, action, reward, after.

    Of two actions in each state one, which differs from state to state, leads on; the other ends
    the episode. Only the last right action pays. A way at random comes to state k in one of 2^k
    episodes, and every episode is there as often as random play meets it.
    """
    rows = []
    for way in range(2**STEPS):
        for state in range(STEPS):
            right = way >> state & 1
            last = state == STEPS - 1
            rows.append((state, right ^ (state % 2), float(last and right), right and not last))
            if not right:
                break
    return np.array(rows)


def updates_until_learned(seed, alpha):
    """Updates that Q-learning takes to a mean squared error of 0.001, as in the paper's Fig. 1."""
    rows, gamma = cliff_walk(), 1 - 1 / STEPS
    states, actions = rows[:, 0].astype(int), rows[:, 1].astype(int)
    rng = np.random.default_rng(seed)
    q = rng.normal(0, 0.1, (STEPS + 1, 2))
    q[STEPS] = 0
    right = np.arange(STEPS) % 2 ^ 1
    truth = np.zeros((STEPS, 2))
    truth[np.arange(STEPS), right] = gamma ** (STEPS - 1 - np.arange(STEPS))
    priorities = Priorities(len(rows), alpha, 1e-4)
    priorities.beta = 0.5
    priorities.write(slice(0, len(rows)), np.ones(len(rows), bool))
    for updates in range(1, 2_000_000):
        if updates % 16 == 1:  # one draw for several updates, as the learner draws
            drawn = priorities.draw(16, rng)
            weights = priorities.weights(drawn)
            errors = []
        index = (updates - 1) % 16
        row = drawn[index]
        state, action = states[row], actions[row]
        future = gamma * q[state + 1].max() if rows[row, 3] else 0.0
        errors.append(rows[row, 2] + future - q[state, action])
        q[state, action] += 0.25 * weights[index] * errors[-1]
        if index == 15:
            priorities.update(drawn, priorities.generations(drawn), np.array(errors))
            if ((q[:STEPS] - truth) ** 2).mean() < 1e-3:
                return updates
    raise AssertionError("nothing was learned")


@pytest.mark.slow
def test_the_blind_cliff_walk_takes_at_most_half_of_the_uniform_updates():
    uniform = [updates_until_learned(seed, 0.0) for seed in range(10)]
    prioritized = [updates_until_learned(seed, 0.7) for seed in range(10)]
    assert all(2 * p <= u for p, u in zip(prioritized, uniform, strict=True))
