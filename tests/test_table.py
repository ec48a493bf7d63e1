"""The tabular form: the paper's iteration, by gradient descent, on both API stacks."""

import numpy as np
import pytest
import torch
from small_battles import OLD, memories

from rllib_mfq import MFQConfig
from rllib_mfq.mean_field.objective import mfq_loss
from rllib_mfq.mean_field.table import QTable, make_optimizer

ALPHA = 0.3


def random_rows(seed, n=40, states=3, levels=2, actions=2):
    """Rows of states, mean actions that are multiples of 1 / levels, actions and targets."""
    rng = np.random.default_rng(seed)
    obs = rng.integers(5, 5 + states, size=(n, 1)).astype(np.float32)
    share = rng.integers(levels + 1, size=n) / levels
    means = np.stack([1 - share, share], axis=1).astype(np.float32)
    return obs, means, rng.integers(actions, size=n), rng.normal(size=n).astype(np.float32)


def descend(table, obs, means, actions, targets):
    """One step of gradient descent on the loss, as the learners make it."""
    obs, means, actions, targets = map(torch.from_numpy, (obs, means, actions, targets))
    optimizer = make_optimizer(table, ALPHA)
    loss, _ = mfq_loss(
        table(obs, means),
        actions,
        targets,
        torch.ones(len(targets), dtype=torch.bool),  # the target is the reward
        torch.zeros(len(targets)),
        0.0,
        weights=table.weights(obs, means, actions),
    )
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@pytest.mark.parametrize("seed", range(4))
def test_one_row_at_a_time_is_the_papers_iteration(seed):
    table, by_hand = QTable(5, 3, 2, 2, 2), {}
    for obs, mean, action, target in zip(*random_rows(seed), strict=True):
        descend(table, obs[None], mean[None], action[None], target[None])
        entry = (int(obs[0]), float(mean[1]), int(action))
        by_hand[entry] = (1 - ALPHA) * by_hand.get(entry, 0.0) + ALPHA * float(target)
    for (state, up, action), value in by_hand.items():
        q = table(torch.tensor([[float(state)]]), torch.tensor([[1 - up, up]]))
        assert q[0, action].item() == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_a_batch_moves_every_entry_by_the_mean_of_its_rows_and_no_other(seed):
    table, rows = QTable(5, 3, 2, 2, 2), random_rows(seed)
    with torch.no_grad():
        table.entries.normal_(generator=torch.Generator().manual_seed(seed))
    before = table.entries.detach().clone()
    descend(table, *rows)
    expected = {}
    for obs, mean, action, target in zip(*rows, strict=True):
        states, cells = table.cells(torch.from_numpy(obs[None]), torch.from_numpy(mean[None]))
        expected.setdefault((int(states), int(cells), int(action)), []).append(float(target))
    for entry in np.ndindex(*before.shape):
        moved = before[entry].item()
        if entry in expected:
            moved += ALPHA * (np.mean(expected[entry]) - moved)
        assert table.entries[entry].item() == pytest.approx(moved, abs=1e-5)


def test_mean_actions_of_k_neighbours_have_entries_of_their_own_and_so_has_having_none():
    table = QTable(0, 1, 4, 2, 2)
    up = torch.arange(5) / 4
    fields = torch.cat([torch.stack([1 - up, up], dim=1), torch.zeros(1, 2)])
    _, cells = table.cells(torch.zeros(6, 1), fields)
    assert len(set(cells.tolist())) == 6


def test_a_table_that_would_not_fit_is_refused_by_its_levels():
    with pytest.raises(ValueError, match="table_levels is 4, which makes"):
        QTable(0, 1, 4, 21, 21)


def lattice(**training):
    return (
        MFQConfig()
        .environment("ising_v0", env_config={"size": 4, "max_cycles": 20})
        .env_runners(num_envs_per_env_runner=2, rollout_fragment_length=5)
        .training(
            neighborhood="graph",
            mean_action_input="current",
            table_levels=4,
            gamma=0.0,
            lr=0.2,
            temperature=3.0,
            train_batch_size_per_learner=64,
            num_steps_sampled_before_learning_starts=50,
            training_intensity=4.0,
            **training,
        )
        .reporting(min_sample_timesteps_per_iteration=40)
        .debugging(seed=3)
    )


def entries(algo):
    module = (
        algo.get_policy("spin").model
        if not algo.config.enable_rl_module_and_learner
        else algo.env_runner.module["spin"]
    )
    return module.q_net.entries.detach().clone()


def test_both_api_stacks_learn_the_same_table(build):
    new = build(lattice())
    old = build(lattice().api_stack(**OLD))
    for algo in (new, old):
        for _ in range(3):
            algo.train()
    assert entries(new).abs().max() > 0.5
    torch.testing.assert_close(entries(new), entries(old))


def test_every_site_may_learn_a_table_of_its_own(build):
    config = lattice().environment(env_config={"size": 4, "max_cycles": 20, "observe_site": True})
    algo = build(config)
    algo.train()
    learned = entries(algo)
    assert learned.shape[0] == 16
    assert len(np.unique(learned.numpy().reshape(16, -1), axis=0)) > 8


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"table_levels": 0}, "table_levels is 0"),
        ({"table_levels": 2.5}, "table_levels is 2.5"),
        ({"dueling": True}, "dueling is True, which has no effect with table_levels"),
    ],
)
def test_settings_that_make_no_table_are_refused(build, changes, words):
    with pytest.raises(ValueError, match=words):
        build(lattice().training(**changes))


def test_observations_that_number_no_states_are_refused(build):
    with pytest.raises(ValueError, match="table_levels is 4, but group 'red' observes"):
        build(MFQConfig().environment("battle_v4").training(table_levels=4))


def test_short_fragments_in_a_small_memory_are_learned_from(build):
    """Of fragments of one step nearly half of the rows only close the fragment."""
    config = lattice(replay_capacity=200).training(num_steps_sampled_before_learning_starts=150)
    algo = build(config.env_runners(num_envs_per_env_runner=4, rollout_fragment_length=1))
    for _ in range(3):
        algo.train()
    assert len(memories(algo)["spin"]) < 150
    assert entries(algo).abs().max() > 0.5
