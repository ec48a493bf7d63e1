"""The objective against plain loops, and against properties that must hold for every input."""

import math

import numpy as np
import pytest
import torch

from rllib_mfq.mean_field import objective

SEEDS = range(6)
TEMPERATURES = (0.05, 0.7, 3.0)
FALSE = torch.zeros(3, dtype=torch.bool)


def random_q(seed, rows=8, actions=5):
    """Returns (q [rows, actions], mask); every row has a legal action, row 0 only one."""
    generator = torch.Generator().manual_seed(seed)
    q = 2 * torch.randn(rows, actions, generator=generator)
    mask = torch.rand(rows, actions, generator=generator) < 0.6
    mask[:, seed % actions] = True
    mask[0] = torch.arange(actions) == seed % actions
    return q, mask


def boltzmann_by_hand(q, temperature, legal):
    weights = [math.exp(x / temperature) if ok else 0.0 for x, ok in zip(q, legal, strict=True)]
    return [w / sum(weights) for w in weights]


def value_by_hand(q, temperature, legal):
    policy = boltzmann_by_hand(q, temperature, legal)
    return sum(p * x for p, x in zip(policy, q, strict=True))


def rows_by_hand(formula, q, temperature, mask):
    mask = torch.ones_like(q, dtype=torch.bool) if mask is None else mask
    rows = zip(q.double().tolist(), mask.tolist(), strict=True)
    return torch.tensor([formula(row, temperature, legal) for row, legal in rows])


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_policy_and_value_equal_the_loop(seed, masked, temperature):
    q, mask = random_q(seed)
    mask = mask if masked else None
    for ours, formula in (
        (objective.boltzmann, boltzmann_by_hand),
        (objective.mean_field_value, value_by_hand),
    ):
        expected = rows_by_hand(formula, q, temperature, mask)
        torch.testing.assert_close(ours(q, temperature, mask), expected, atol=1e-5, rtol=1e-5)
        as_tensor = ours(q, torch.tensor(temperature), mask)
        torch.testing.assert_close(as_tensor, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_each_target_equals_the_loop(seed, masked):
    q_target, mask = random_q(seed)
    q_online, _ = random_q(seed + 100)
    mask = mask if masked else torch.ones_like(mask)
    for row in range(len(q_target)):
        legal = [a for a in range(q_target.shape[1]) if mask[row, a]]
        best = max(legal, key=lambda a: q_online[row, a])
        expected = {
            "mean_field": value_by_hand(q_target[row].tolist(), 0.7, mask[row].tolist()),
            "double_q": q_target[row, best].item(),
            "max": max(q_target[row, a].item() for a in legal),
        }
        for target in objective.TARGETS:
            ours = objective.next_value(target, q_target, 0.7, q_online, mask if masked else None)
            assert ours[row].item() == pytest.approx(expected[target], abs=1e-5)


def test_the_three_targets_differ_on_literal_numbers():
    q_target, q_online = torch.tensor([[0.0, math.log(3.0)]]), torch.tensor([[5.0, 1.0]])
    values = [objective.next_value(t, q_target, 1.0, q_online) for t in objective.TARGETS]
    mean_field, double_q, best = (value.item() for value in values)
    assert mean_field == pytest.approx(0.75 * math.log(3))  # policy 1/4, 3/4
    assert double_q == 0.0  # the online network prefers action 0
    assert best == pytest.approx(math.log(3))


@pytest.mark.parametrize(("target", "q_online"), [("sarsa", torch.zeros(1, 2)), ("double_q", None)])
def test_an_unknown_target_or_one_without_its_network_is_refused(target, q_online):
    with pytest.raises(ValueError, match=f"target.*'{target}'"):
        objective.next_value(target, torch.zeros(1, 2), 1.0, q_online)


@pytest.mark.parametrize("temperature", [0, 0.0, -1.0, math.nan, torch.tensor(0.0)])
@pytest.mark.parametrize(
    "function", [objective.boltzmann, objective.mean_field_value, objective.sample_actions]
)
def test_a_temperature_that_is_not_positive_is_refused(function, temperature):
    with pytest.raises(ValueError, match=r"temperature is (-?\d\.0|nan); it must be positive\."):
        function(torch.zeros(2, 3), temperature)


@pytest.mark.parametrize("seed", SEEDS)
def test_cold_agents_are_greedy_and_hot_ones_uniform(seed):
    q, mask = random_q(seed)
    greedy = objective.greedy_actions(q, mask)
    one_hot = torch.nn.functional.one_hot(greedy, q.shape[1]).float()
    torch.testing.assert_close(objective.boltzmann(q, 1e-4, mask), one_hot)
    torch.testing.assert_close(
        objective.mean_field_value(q, 1e-4, mask), q.masked_fill(~mask, -torch.inf).amax(-1)
    )
    uniform = mask / mask.sum(-1, keepdim=True)
    torch.testing.assert_close(objective.boltzmann(q, 1e7, mask), uniform)
    torch.testing.assert_close(objective.mean_field_value(q, 1e7, mask), (uniform * q).sum(-1))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_value_lies_between_the_legal_mean_and_maximum_and_grows_as_it_cools(seed):
    q, mask = random_q(seed)
    low = (q * mask).sum(-1) / mask.sum(-1)
    high = q.masked_fill(~mask, -torch.inf).amax(-1)
    previous = low
    for temperature in (100.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.01):
        value = objective.mean_field_value(q, temperature, mask)
        assert (value >= previous - 1e-5).all()
        previous = value
    assert (previous <= high + 1e-5).all()
    assert (objective.mean_field_value(q, 1.0, mask) > low)[mask.sum(-1) > 1].all()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_constant_added_to_q_shifts_the_value_and_leaves_the_policy(seed):
    q, mask = random_q(seed)
    policy, value = (f(q, 0.7, mask) for f in (objective.boltzmann, objective.mean_field_value))
    torch.testing.assert_close(objective.boltzmann(q + 50, 0.7, mask), policy, atol=1e-4, rtol=0)
    shifted = objective.mean_field_value(q + 50, 0.7, mask)
    torch.testing.assert_close(shifted, value + 50, atol=1e-3, rtol=0)


@pytest.mark.parametrize("seed", SEEDS)
def test_illegal_actions_have_probability_zero_and_are_never_played(seed):
    q, mask = random_q(seed)
    q = torch.where(mask, q, 1e3)  # the illegal ones look best
    assert (objective.boltzmann(q, 0.7, mask)[~mask] == 0).all()
    generator = torch.Generator().manual_seed(seed)
    for temperature in (1e-3, 1.0, 1e6):
        for _ in range(200):
            actions = objective.sample_actions(q, temperature, mask, generator)
            assert mask.gather(1, actions[:, None]).all()
    assert mask.gather(1, objective.greedy_actions(q, mask)[:, None]).all()
    high = q.masked_fill(~mask, -torch.inf).amax(-1)
    assert (objective.mean_field_value(q, 0.7, mask) <= high + 1e-5).all()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_draws_follow_the_boltzmann_policy(temperature, masked):
    draws = 20_000
    q, mask = random_q(1, rows=4)
    mask = mask if masked else None
    many = None if mask is None else mask.expand(draws, -1, -1)
    generator = torch.Generator().manual_seed(0)
    actions = objective.sample_actions(q.expand(draws, -1, -1), temperature, many, generator)
    assert actions.shape == (draws, 4)
    share = torch.nn.functional.one_hot(actions, 5).double().mean(0)
    policy = rows_by_hand(boltzmann_by_hand, q, temperature, mask).double()
    five_sigma = 5 * (policy * (1 - policy) / draws).sqrt()
    assert ((share - policy).abs() <= five_sigma + 1e-6).all()


def test_draws_are_reproducible_and_rows_are_drawn_independently():
    q = torch.zeros(4000, 2)
    first, again, other = (
        objective.sample_actions(q, 1.0, generator=torch.Generator().manual_seed(seed))
        for seed in (3, 3, 4)
    )
    assert first.dtype == torch.int64
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    agree = (first[1:] == first[:-1]).double().mean()  # neighbouring rows: a fair coin
    assert abs(agree - 0.5) < 5 * math.sqrt(0.25 / 4000)


def test_greedy_actions_are_the_first_of_the_best_legal_ones():
    q = torch.tensor([[3.0, 5.0, 5.0], [9.0, 1.0, 2.0]])
    mask = torch.tensor([[True, True, True], [False, True, True]])
    assert objective.greedy_actions(q, mask).tolist() == [1, 2]
    assert objective.greedy_actions(q).tolist() == [1, 0]


@pytest.mark.parametrize("scale", [1.0, 1e6, 1e30, 1e38])
@pytest.mark.parametrize("temperature", [1e-30, 1e-6, 1.0, 1e30])
def test_neither_tiny_temperatures_nor_huge_values_give_nan(scale, temperature):
    q = scale * torch.tensor([[1.0, -1.0, 0.5], [2.0, 2.0, 3.0], [-1.0, 1.0, 3.0]])
    mask = torch.tensor([[True, True, True], [True, True, False], [False, True, False]])
    policy = objective.boltzmann(q, temperature, mask)
    torch.testing.assert_close(policy.sum(-1), torch.ones(3))
    assert (policy[~mask] == 0).all()
    value = objective.mean_field_value(q, temperature, mask)
    assert value.isfinite().all()
    torch.testing.assert_close(value[1:], scale * torch.tensor([2.0, 1.0]))
    actions = objective.sample_actions(q, temperature, mask)
    assert mask.gather(1, actions[:, None]).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_the_loss_equals_the_loop(seed):
    rng = np.random.default_rng(seed)
    q, _ = random_q(seed, rows=12)
    actions = rng.integers(5, size=12)
    rewards, value_next = rng.normal(size=(2, 12)).astype(np.float32)
    terminated = rng.random(12) < 0.3
    weights = rng.random(12).astype(np.float32)
    value_next[terminated] = np.nan  # nobody needs to know what comes after a death
    errors = []
    for row in range(12):
        y = rewards[row] + (0 if terminated[row] else 0.9 * value_next[row])
        errors.append(y - q[row, actions[row]].item())
    columns = [torch.as_tensor(x) for x in (actions, rewards, terminated, value_next)]
    loss, td_error = objective.mfq_loss(q, *columns, 0.9)
    np.testing.assert_allclose(td_error, errors, atol=1e-5)
    assert loss.item() == pytest.approx(sum(e**2 for e in errors) / 12, rel=1e-4)
    loss, td_error = objective.mfq_loss(q, *columns, 0.9, torch.as_tensor(weights))
    np.testing.assert_allclose(td_error, errors, atol=1e-5)
    weighted = [w * e**2 for w, e in zip(weights, errors, strict=True)]
    assert loss.item() == pytest.approx(sum(weighted), rel=1e-4)


def test_the_loss_and_its_gradient_by_hand():
    q = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    value_next = torch.tensor([4.0, 4.0], requires_grad=True)
    loss, td_error = objective.mfq_loss(
        q,
        actions=torch.tensor([1, 0]),
        rewards=torch.tensor([1.0, 1.0]),
        terminated=torch.tensor([False, True]),
        value_next=value_next,
        gamma=0.5,
    )
    assert td_error.tolist() == [1.0, -2.0]  # 1 + .5*4 - 2,  1 - 3
    assert not td_error.requires_grad
    assert loss.item() == (1 + 4) / 2
    loss.backward()
    assert q.grad.tolist() == [[0.0, -1.0], [2.0, 0.0]]  # -2 (y - Q) / 2
    assert value_next.grad is None  # the target is a constant


def test_a_truncated_episode_bootstraps_and_a_terminated_one_does_not():
    zeros, ones = torch.zeros(2), torch.ones(2)
    terminated = torch.tensor([False, True])  # a truncated row is simply not terminated
    _, td_error = objective.mfq_loss(
        torch.zeros(2, 3), torch.tensor([0, 0]), zeros, terminated, ones, 0.9
    )
    assert td_error.tolist() == [pytest.approx(0.9), 0.0]


@pytest.mark.parametrize("name", ["rewards", "terminated", "value_next", "weights", "q"])
@pytest.mark.parametrize("shape", [(3, 1), (1, 3), (1,), (2,), ()])
def test_shapes_that_would_broadcast_are_refused(name, shape):
    columns = {
        "q": torch.zeros(3, 4),
        "actions": torch.zeros(3, dtype=torch.long),
        "rewards": torch.zeros(3),
        "terminated": FALSE,
        "value_next": torch.zeros(3),
        "weights": torch.ones(3),
    }
    bad = torch.zeros((*shape, 4) if name == "q" else shape, dtype=columns[name].dtype)
    with pytest.raises(ValueError, match=f"^{name} has shape .*expected"):
        objective.mfq_loss(**(columns | {name: bad}), gamma=0.9)


def test_actions_of_another_length_than_the_values_are_refused():
    two = torch.zeros(2)
    with pytest.raises(ValueError, match=r"q has shape \(3, 4\), expected \(2, 4\)"):
        objective.mfq_loss(torch.zeros(3, 4), two.long(), two, two.bool(), two, 0.9)


def test_a_schedule_equals_numpys_interpolation():
    points = [[10, 4.0], [20, 2.0], [20, 1.0], [50, 0.5]]  # with a jump at 20
    for steps in [0, 9.9, 10, 12.5, 19.9, 20.1, 35, 49, 50, 51, 1e9]:
        expected = np.interp(steps, *zip(*points, strict=True))
        assert objective.schedule_value(points, steps) == pytest.approx(expected)
    assert objective.schedule_value(points, 15) == 3.0
    assert objective.schedule_value(points, 20) == 1.0  # a jump has happened when it is reached
    assert objective.schedule_value([[10, 4.0]], 0) == objective.schedule_value([[10, 4.0]], 99)


@pytest.mark.parametrize("number", [0.3, 2])
def test_a_number_is_a_schedule_that_never_changes(number):
    for steps in (0, 1, 1e9):
        value = objective.schedule_value(number, steps)
        assert value == number and isinstance(value, float)
