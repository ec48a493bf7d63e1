"""Where published implementations of mean field Q-learning went wrong: one test per defect.

Each test plays a toy population through the sampler, with the network and objective of the
package, and fails on an implementation with that defect.
"""

import gymnasium as gym
import numpy as np
import pytest
import torch
from small_battles import bytes_per_row
from torch import nn

from rllib_mfq.mean_field import objective
from rllib_mfq.mean_field.neighborhood import Neighborhood
from rllib_mfq.mean_field.network import MeanFieldQNetwork
from rllib_mfq.population.player import Player
from rllib_mfq.population.population import Group, Rows, Step
from rllib_mfq.population.sampler import Sampler
from rllib_mfq.replay.memory import ReplayMemory

DEATH_REWARD = -7.0


class Skirmish:
    """Teams of agents that die when told to; everybody sees the same, and nobody's number.

    Args:
        teams: per group how many agents, the shape of an observation and how many actions.
        deaths: per step, which agent dies of it in every group.
        length: steps after which the episode is truncated.
    """

    def __init__(self, teams, deaths=None, length=6):
        self.teams, self.deaths, self.length = teams, deaths or {}, length
        self.groups = {
            name: Group(gym.spaces.Box(-9, 9, shape, np.float32), gym.spaces.Discrete(actions))
            for name, (_, shape, actions) in teams.items()
        }
        self.executed = []

    def reset(self, *, seed=None):
        self.t = 0
        self.ids = {name: np.arange(n) for name, (n, _, _) in self.teams.items()}
        return {name: Rows(ids) for name, ids in self.ids.items()}

    def step(self, actions):
        self.executed.append({name: a.copy() for name, a in actions.items()})
        steps = {}
        for name, ids in self.ids.items():
            dead = ids == self.deaths.get(self.t, -1)
            last = np.full(len(ids), self.t == self.length - 1) & ~dead
            self.ids[name] = ids[~dead]
            steps[name] = Step(np.where(dead, DEATH_REWARD, 0.0), dead, last, Rows(ids[~dead]))
        self.t += 1
        return steps

    def observe(self, group, out):
        out[:] = self.t


class Boltzmann:
    """Acts as the package's modules do; the temperature may be changed at any time."""

    def __init__(self, space, width, num_actions, temperature=1.0):
        torch.manual_seed(0)
        size = int(np.prod(space))
        self.network = MeanFieldQNetwork(nn.Flatten(), size, width, num_actions)
        self.temperature = temperature
        self.generator = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def __call__(self, obs, mean_actions, action_mask):
        q = self.network(torch.as_tensor(obs), torch.as_tensor(mean_actions))
        return objective.sample_actions(q, self.temperature, None, self.generator).numpy()


def skirmish(teams, spec="group", deaths=None, length=6, num_envs=1):
    """Returns (sampler, who plays each group)."""
    hood = Neighborhood.parse(spec)
    sizes = {name: actions for name, (_, _, actions) in teams.items()}
    acts = {
        name: Boltzmann(shape, hood.width(name, sizes), sizes[name])
        for name, (_, shape, _) in teams.items()
    }
    players = {name: Player(name, act, hood) for name, act in acts.items()}
    make = lambda index: Skirmish(teams, deaths, length)  # noqa: E731
    return Sampler(make, num_envs, players, seed=0), acts


def shares(actions, num_actions):
    return np.bincount(actions, minlength=num_actions) / len(actions)


def test_acting_explores_and_a_later_change_of_the_temperature_takes_effect():
    """The authors' code takes an argmax and has the temperature baked into its graph."""
    sampler, acts = skirmish({"red": (2000, (2,), 4)}, "none", length=1000)
    act = acts["red"]
    with torch.no_grad():  # nobody interacts, so all agents of the first step share these values
        q = act.network(torch.zeros(1, 2), torch.zeros(1, 4))[0]
    spread = float(q.max() - q.min())
    for temperature in (100 * spread, spread / 3, spread / 1000, 100 * spread):
        act.temperature = temperature
        sampler.sample(num_steps=1, fresh=True)
        played = shares(sampler.populations[0].executed[-1]["red"], 4)
        policy = torch.softmax(q.double() / temperature, -1).numpy()
        five_sigma = 5 * np.sqrt(policy * (1 - policy) / 2000)
        assert (np.abs(played - policy) <= five_sigma + 1e-3).all()


def test_the_default_target_is_the_mean_field_value_and_not_double_dqn():
    """The authors' battle code bootstraps from the double-DQN value instead."""
    q_target, q_online = torch.tensor([[0.0, 2.0, 1.0]]), torch.tensor([[0.0, 1.0, 2.0]])
    value = objective.next_value("mean_field", q_target, 1.0, q_online)
    weights = np.exp([0.0, 2.0, 1.0])
    assert value.item() == pytest.approx(weights @ [0, 2, 1] / weights.sum())  # 1.576
    assert value.item() not in (1.0, 2.0)  # double-DQN, plain DQN
    assert objective.TARGETS[0] == "mean_field"


def test_the_death_reward_is_learned():
    """The authors' code masks terminal transitions out of the loss."""
    sampler, acts = skirmish({"red": (3, (2,), 4)}, deaths={1: 2}, length=2)
    memory = ReplayMemory(100, seed=0)
    memory.add(sampler.sample(num_episodes=1).columns["red"])
    batch = memory.sample(64)
    network = acts["red"].network
    q = network(batch["obs"], batch["mean_actions"])
    q.retain_grad()
    value_next = torch.full((64,), 1e6)  # were it used at a death, nobody would miss it
    columns = (batch[k] for k in ("actions", "rewards", "terminateds"))
    loss, td_error = objective.mfq_loss(q, *columns, value_next, 0.9)
    died = batch["terminateds"]
    assert 0 < died.sum() < 64 and (batch["rewards"][died] == DEATH_REWARD).all()
    taken = q.gather(1, batch["actions"].long()[:, None])[:, 0]
    torch.testing.assert_close(td_error[died], DEATH_REWARD - taken[died])
    assert (td_error[~died] > 8e5).all()  # the truncated ones bootstrap
    loss.backward()
    assert q.grad[died].any(dim=1).all()


def test_the_mean_action_leaves_out_the_agent_itself():
    """The authors' code averages over the whole team."""
    sampler, _ = skirmish({"red": (2, (2,), 4)})
    data = sampler.sample(num_steps=50).columns["red"]
    acted = data["loss_mask"]
    actions = data["actions"][acted].reshape(-1, 2)
    assert (actions[:, 0] != actions[:, 1]).any()
    of_the_other = np.eye(4)[actions[:, ::-1].ravel()]
    np.testing.assert_array_equal(data["next_mean_actions"][acted], of_the_other)


@pytest.mark.parametrize("spec", ["group", "all"])
def test_the_mean_is_over_the_living_and_the_dead_give_no_nan(spec):
    """XuanCe divides by N - 1: with one of four dead, a mean sums to 0.667 or is NaN."""
    sampler, _ = skirmish({"red": (4, (2,), 3)}, spec, deaths={0: 1, 2: 3, 3: 0})
    data = sampler.sample(num_episodes=3).columns["red"]
    acted = data["loss_mask"]
    alive = np.array([4, 3, 3, 2, 1, 1])[data["t"][acted]]
    total = data["next_mean_actions"][acted].sum(1)
    np.testing.assert_allclose(total, alive > 1, atol=1e-6)  # the last one has no neighbours
    for column in ("mean_actions", "next_mean_actions", "rewards", "obs"):
        assert np.isfinite(data[column]).all()
    assert (data["rewards"][acted] == DEATH_REWARD).sum() == 3 * 3


def test_the_mean_is_of_the_actions_executed_after_exploration():
    """XuanCe averages the greedy actions and replaces some of them by random ones afterwards."""
    sampler, _ = skirmish({"red": (5, (2,), 6)}, length=4)
    data = sampler.sample(num_episodes=1).columns["red"]
    executed = [step["red"] for step in sampler.populations[0].executed]
    assert len({tuple(step) for step in executed}) > 1  # they do explore
    for t, actions in enumerate(executed):
        one_hot = np.eye(6)[actions]
        expected = (one_hot.sum(0) - one_hot) / 4
        here = data["loss_mask"] & (data["t"] == t)
        np.testing.assert_allclose(data["next_mean_actions"][here], expected, atol=1e-6)
        following = data["loss_mask"] & (data["t"] == t + 1)
        if following.any():
            np.testing.assert_allclose(data["mean_actions"][following], expected, atol=1e-6)


def test_one_network_plays_four_agents_and_four_hundred():
    """XuanCe feeds a one-hot id of size N, which fixes the population."""
    inputs = []
    act = skirmish({"red": (4, (2,), 3)})[1]["red"]

    def spy(obs, mean_actions, action_mask):
        inputs.append((obs.shape[1:], mean_actions.shape[1:], len(obs)))
        assert (obs == obs[0]).all()  # the agents see no number of their own
        return act(obs, mean_actions, action_mask)

    player = Player("red", spy, Neighborhood.parse("group"))
    for agents in (4, 400):
        teams = {"red": (agents, (2,), 3)}
        sampler = Sampler(lambda index, teams=teams: Skirmish(teams), 1, {"red": player}, seed=0)
        assert sampler.sample(num_episodes=1).agent_steps["red"] == 6 * agents
    assert {shapes[:2] for shapes in inputs} == {((2,), (3,))}
    assert {n for *_, n in inputs} == {4, 400}


@pytest.mark.parametrize("deaths", [{}, {1: 0, 3: 2}])
def test_every_observation_is_kept_once(deaths):
    """XuanCe keeps each observation twice, as a next observation too."""
    shape = (13, 13, 5)
    sampler, _ = skirmish({"red": (8, shape, 21)}, deaths=deaths, length=100)
    memory = ReplayMemory(400, seed=0)
    memory.add(sampler.sample(num_steps=20).columns["red"])
    observation = 4 * int(np.prod(shape))
    assert observation < bytes_per_row(memory) <= 1.2 * observation + 200
    batch = memory.sample(64)  # and yet the next one is at hand: it shows the time
    elapsed = batch["new_obs"][:, 0, 0, 0] - batch["obs"][:, 0, 0, 0]
    np.testing.assert_array_equal(elapsed, ~batch["terminateds"])


@pytest.mark.parametrize("spec", ["group", "none", "all"])
def test_teams_with_different_spaces_play_each_other(spec):
    """XuanCe's teams must have the same observations and actions."""
    teams = {"red": (5, (2,), 3), "blue": (3, (4, 4, 2), 6)}
    sampler, acts = skirmish(teams, spec, deaths={2: 1}, num_envs=2)
    fragment = sampler.sample(num_episodes=4)
    for name, (agents, shape, actions) in teams.items():
        data = fragment.columns[name]
        assert data["obs"].shape[1:] == shape
        assert data["next_mean_actions"].shape[1] == (9 if spec == "all" else actions)
        assert fragment.agent_steps[name] == 4 * (3 * agents + 3 * (agents - 1))
        assert set(data["actions"][data["loss_mask"]]) == set(range(actions))
        q = acts[name].network(
            torch.as_tensor(data["obs"]), torch.as_tensor(data["next_mean_actions"])
        )
        assert q.shape == (len(data["obs"]), actions) and q.isfinite().all()
