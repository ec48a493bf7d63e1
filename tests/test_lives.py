"""Agents that enter, skip observations, end, and are observed all the same; ends of episodes.

What a sampler returns is held against what the environments themselves write down, one agent at a
time, for PettingZoo's and RLlib's API.
"""

import logging
from collections import deque

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from pettingzoo import ParallelEnv
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from rllib_cli.evaluate import _summary
from rllib_mfq.algorithm.figures import log_recent
from rllib_mfq.envs import ising
from rllib_mfq.mean_field.neighborhood import Neighborhood
from rllib_mfq.population import guard
from rllib_mfq.population.adapters import as_population
from rllib_mfq.population.player import Player
from rllib_mfq.population.population import PopulationError
from rllib_mfq.population.sampler import Sampler

SPACE, ACTIONS = Box(-1e6, 1e6, (2,), np.float32), Discrete(3)


class Street:
    """Agents of two groups that do all that either API allows; every life is written down.

    Attributes:
        lives: every step of an agent that is complete: observation, action, reward, whether it was
            terminated, and the next observation (None if terminated).
        lengths: of the episodes.
    """

    def __init__(self, seed=0, length=20):
        self.possible_agents = [f"{g}_{i}" for g in ("car", "light") for i in range(4)]
        self.rng, self.length = np.random.default_rng(seed), length
        self.lives, self.lengths = [], []

    def observation_space(self, agent):
        return SPACE

    def action_space(self, agent):
        return ACTIONS

    def reset(self, *, seed=None, options=None):
        self.t, self.ended, self.open = 0, [], {}
        # Some come under names that `possible_agents` lacks, one when all others have ended.
        self.to_come = [*self.possible_agents[:5], "car_99", "light_77", "car_100"]
        self.to_act, self.there = {}, []
        return self.enter(0.6), {}

    def enter(self, share):
        names = self.to_come[: int(self.rng.binomial(max(0, len(self.to_come) - 1), share))]
        self.to_come = self.to_come[len(names) :]
        self.there += names
        self.to_act |= {name: self.look(name) for name in names}
        return {name: self.to_act[name] for name in names}

    def look(self, name):
        return np.array([self.rng.integers(1_000_000), self.t], np.float32)

    def step(self, actions):
        assert actions.keys() == self.to_act.keys()
        self.t += 1
        for name, action in actions.items():
            self.open[name] = [self.to_act[name], action, 0.0]
        self.to_act = {}
        last = self.t == self.length
        quiet = 8 < self.t < 12  # everybody who is there has ended
        obs, rewards = {}, {name: float(self.rng.integers(-9, 9)) for name in self.there}
        ends, cuts = {}, {}
        for name in list(self.there):
            chance = self.rng.random()
            if last or (name != "car_100" and (quiet or chance < 0.15)):
                ends[name] = last or self.rng.random() < 0.7
                cuts[name] = not ends[name]
            if chance < 0.6 or cuts.get(name):
                obs[name] = self.look(name)
            if name in self.open:
                self.open[name][2] += rewards[name]
            if ends.get(name):
                self.close(name, None)
            elif name in obs:
                self.close(name, obs[name])
                self.to_act[name] = obs[name]
            if name in ends:
                self.there.remove(name)
                self.ended.append(name)
                self.to_act.pop(name, None)
        if self.t > 12 and not last:
            obs |= self.enter(1.0 if self.t > 15 else 0.2)
            if self.t == 17 and self.to_come:  # the last one comes late
                self.there += self.to_come
                self.to_act[self.to_come[0]] = obs[self.to_come[0]] = self.look(self.to_come[0])
                self.to_come = []
        for name in self.ended:  # some are observed after they ended
            if name not in ends and self.rng.random() < 0.3:
                obs[name] = self.look(name)
        if last:
            self.lengths.append(self.t)
        return obs, rewards, ends, cuts, {name: {} for name in obs}

    def close(self, name, after):
        if name in self.open:
            before, action, reward = self.open.pop(name)
            ended = after is None
            after = () if ended else tuple(after)
            self.lives.append((tuple(before), action, reward, ended, after))


class ParallelStreet(Street, ParallelEnv):
    """Its `agents` are those that are there, and one that has not come yet."""

    @property
    def agents(self):
        waiting = self.to_come[-1:] if self.t < self.length else []
        return [*self.there, *waiting]


class RLlibStreet(Street):
    """Says `__all__`, leaves out rewards of 0, and has no list of those that are there."""

    get_observation_space, get_action_space = Street.observation_space, Street.action_space

    def step(self, actions):
        obs, rewards, ends, cuts, infos = super().step(actions)
        over = {"__all__": self.t == self.length}
        rewards = {name: reward for name, reward in rewards.items() if reward}
        return obs, rewards, ends | over, cuts | {"__all__": False}, infos


STREETS = {"PettingZoo": ParallelStreet, "RLlib": RLlibStreet}


def crowd(seed=0):
    """Plays all groups at random."""
    rng = np.random.default_rng(seed)
    return Player("all", lambda obs, *_: rng.integers(3, size=len(obs)), Neighborhood("all"))


def sampler_of(streets, player=None):
    player = player or crowd()
    players = {"car": player, "light": player}
    return Sampler(lambda index: as_population(streets[index]), len(streets), players, seed=0)


def transitions(data):
    """What a fragment's rows say, in the form of `Street.lives`."""
    found = []
    for row in np.flatnonzero(data["loss_mask"]):
        after = data["next_row"][row]
        ended = bool(data["terminateds"][row])
        assert ended == (after < 0)
        after = () if ended else tuple(data["obs"][after])
        what = (tuple(data["obs"][row]), int(data["actions"][row]), float(data["rewards"][row]))
        found.append((*what, ended, after))
    return found


@pytest.mark.parametrize("api", STREETS)
@pytest.mark.parametrize("steps", [1, 3, 7, 45])
def test_every_step_of_every_agent_is_learned_from_once(api, steps):
    streets = [STREETS[api](seed) for seed in range(3)]
    sampler, found, rows = sampler_of(streets), [], 0
    for _ in range(135 // steps):
        fragment = sampler.sample(num_steps=steps)
        found += transitions(fragment.columns["all"])
        rows += sum(fragment.agent_steps.values())
    expected = [life for street in streets for life in street.lives]
    skipped = [life for life in expected if not life[3] and life[4][1] - life[0][1] > 1]
    assert len(skipped) > 20 and len(expected) > 200
    assert sorted(found) == sorted(expected) and rows == len(expected)


@pytest.mark.parametrize("api", STREETS)
def test_an_episode_is_over_when_the_environment_says_so(api):
    streets = [STREETS[api](seed) for seed in range(2)]
    fragment = sampler_of(streets).sample(num_episodes=7)
    assert [e.length for e in fragment.episodes] == [20] * 7
    assert [street.lengths for street in streets] == [[20] * 4, [20] * 3]
    total = sum(e.get_return() for e in fragment.episodes)
    assert total == sum(life[2] for street in streets for life in street.lives)


@pytest.mark.parametrize("api", STREETS)
def test_who_skips_observations_carries_on_from_its_last_step(api):
    sampler = sampler_of([STREETS[api](seed) for seed in range(2)])
    before, chained = {}, 0
    for _ in range(20):
        data = sampler.sample(num_steps=3).columns["all"]
        for row in np.lexsort((data["t"], data["loss_mask"])):
            agent = tuple(data[key][row] for key in ("eps_id", "group", "agent_index"))
            if data["loss_mask"][row]:
                expected = before.get(agent, np.zeros(6))
                chained += agent in before
                np.testing.assert_array_equal(data["mean_actions"][row], expected)
                before[agent] = data["next_mean_actions"][row].copy()
    assert chained > 50


@pytest.mark.parametrize("api", STREETS)
def test_without_keeping_rows_the_same_is_counted(api):
    counts = []
    for keep in (True, False):
        sampler = sampler_of([STREETS[api](seed) for seed in range(2)])
        fragments = [sampler.sample(num_steps=70, keep=keep) for _ in range(3)]
        counts.append([f.agent_steps for f in fragments])
    assert counts[0] == counts[1]


@pytest.mark.parametrize("api", STREETS)
def test_an_environment_that_breaks_loses_its_own_rows_only(api):
    class Broken(STREETS[api]):
        def step(self, actions):
            result = super().step(actions)
            if self.t == 5:
                raise OSError("lost the game server")
            return result

    streets = [STREETS[api](0), Broken(1), STREETS[api](2)]
    player = crowd()
    sampler = Sampler(
        lambda index: as_population(streets[index]),
        3,
        {"car": player, "light": player},
        seed=0,
        restart_failed=True,
    )
    fragment = sampler.sample(num_steps=7)
    assert fragment.failures == 1
    found = transitions(fragment.columns["all"])
    for street in (streets[0], streets[2]):
        assert set(street.lives) <= set(found)
    assert len(found) == sum(fragment.agent_steps.values())


# --- the end of an episode ---------------------------------------------------------------------


def moment(obs="", ends="", cuts="", agents=None):
    """What one step gives: who observes, who is flagged, and what `agents` is from now on."""
    return obs.split(), ends.split(), cuts.split(), agents if agents is None else agents.split()


class Script:
    """An environment that plays moments, the first one at `reset`."""

    def __init__(self, *moments, possible="a_0 a_1"):
        self.moments, self.possible_agents = moments, possible.split()
        self.observation_spaces = dict.fromkeys(self.possible_agents, SPACE)
        self.action_spaces = dict.fromkeys(self.possible_agents, ACTIONS)
        self.acted = []

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return self.now()[0], {}

    def now(self):
        obs, *flags, agents = self.moments[self.t]
        if agents is not None:
            self.agents = agents
        rewards = dict.fromkeys("a_0 a_1 a_2".split(), 1.0)
        obs = {agent: np.full(2, self.t, np.float32) for agent in obs}
        return obs, rewards, *(dict.fromkeys(flag, True) for flag in flags), {}

    def step(self, actions):
        self.acted.append(" ".join(actions))
        self.t += 1
        return self.now()


class RLlibScript(Script):
    """Says `__all__: False` unless the moment says otherwise."""

    def now(self):
        obs, rewards, ends, cuts, infos = super().now()
        return obs, rewards, {"__all__": False} | ends, {"__all__": False} | cuts, infos


class ParallelScript(Script, ParallelEnv):
    def observation_space(self, agent):
        return SPACE

    def action_space(self, agent):
        return ACTIONS


def played(env):
    """Who acted in the steps of an episode, which must end with the last moment and not before."""
    player = Player("a", lambda obs, *_: np.zeros(len(obs), int), Neighborhood("none"))
    sampler = Sampler(lambda index: as_population(env), 1, {"a": player}, seed=0)
    steps = len(env.moments) - 1
    assert not sampler.sample(num_steps=steps - 1).episodes
    (episode,) = sampler.sample(num_steps=1).episodes
    assert episode.length == steps
    return [" ".join(sorted(agents.split())) for agents in env.acted]


def test_rllibs_all_ends_an_episode_and_nothing_else_does():
    start, gone = moment("a_0"), moment(ends="a_0")
    env = RLlibScript(start, gone, moment(), moment("a_1"), moment("a_1"), moment("", "__all__"))
    assert played(env) == ["a_0", "", "", "a_1", "a_1"]
    env = RLlibScript(start, moment("a_0 a_1", cuts="a_0 __all__"))  # nobody enters any more
    assert played(env) == ["a_0"]


def test_nobody_may_be_there_at_first():
    assert played(RLlibScript(moment(), moment("a_0"), moment("", "__all__"))) == ["", "a_0"]


def test_if_all_whom_rllibs_environment_may_name_have_ended_nobody_comes():
    # Some were terminated, the others cut off: its `__all__` is true of neither.
    both = moment("a_0 a_1"), moment("a_1", ends="a_0"), moment("a_1", cuts="a_1")
    assert played(RLlibScript(*both)) == ["a_0 a_1", "a_1"]
    one_more = RLlibScript(*both, moment(), moment("", "__all__"), possible="a_0 a_1 a_2")
    assert played(one_more) == ["a_0 a_1", "a_1", "", ""]


def test_an_environment_without_all_and_without_a_list_ends_with_its_last_agent():
    env = Script(moment("a_0 a_1"), moment("a_1", ends="a_0"), moment("a_1", cuts="a_1"))
    assert played(env) == ["a_0 a_1", "a_1"]


def test_an_empty_list_ends_pettingzoos_episode_and_nothing_else_does():
    start, gone = moment("a_0", agents="a_0"), moment(ends="a_0", agents="a_1")
    late = moment("a_1"), moment("a_1"), moment("a_1", cuts="a_1", agents="")
    assert played(ParallelScript(start, gone, moment(), *late)) == ["a_0", "", "", "a_1", "a_1"]


def test_agents_that_never_leave_pettingzoos_list_keep_no_episode_going():
    zombies = moment("a_0 a_1", ends="a_0"), moment("a_0 a_1"), moment("a_0 a_1", ends="a_0 a_1")
    env = ParallelScript(moment("a_0 a_1", agents="a_0 a_1"), *zombies)
    assert played(env) == ["a_0 a_1", "a_1", "a_1"]


def test_who_is_not_in_pettingzoos_list_does_not_act(caplog):
    """Observations may have further keys, such as one for all agents together."""
    start, end = moment("a_0 common", agents="a_0"), moment("common", ends="a_0", agents="")
    env = ParallelScript(start, moment("a_0 common a_1"), end)
    assert played(env) == ["a_0", "a_0"] and not caplog.records


@pytest.mark.parametrize("kind", [ParallelScript, RLlibScript])
def test_who_is_observed_after_it_ended_is_nobody_and_that_is_said_once(kind, caplog):
    steps = moment("a_0 a_1", ends="a_0"), moment("a_0 a_1"), moment("a_0 a_1")
    end = moment("a_0", ends="a_1 __all__", agents="")
    with caplog.at_level(logging.WARNING):
        env = kind(moment("a_0 a_1", agents="a_0 a_1"), *steps, end)
        assert played(env) == ["a_0 a_1", "a_1", "a_1", "a_1"]
    assert [record.getMessage() for record in caplog.records] == [
        "Agent 'a_0' is observed after it ended; it plays no more."
    ]


@pytest.mark.parametrize("kind", [ParallelScript, RLlibScript])
def test_who_was_dropped_from_the_list_and_is_named_again_comes_back(kind):
    env = kind(
        moment("a_0 a_1", agents="a_0 a_1"),
        moment("a_0 a_1", ends="a_0", agents="a_1"),
        moment("a_0 a_1"),  # observed, but nobody
        moment("a_0 a_1", agents="a_0 a_1"),
        moment("", ends="a_0 a_1 __all__", agents=""),
    )
    assert played(env) == ["a_0 a_1", "a_1", "a_1", "a_0 a_1"]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("kind", [ParallelScript, RLlibScript])
def test_a_name_that_the_environment_does_not_know_has_the_spaces_of_its_group(kind, known):
    env = kind(
        moment("a_0", agents="a_0"),
        moment("a_0 a_77", agents="a_0 a_77"),
        moment("", ends="a_0 a_77 __all__", agents=""),
    )
    if known:
        env.observation_spaces["a_77"], env.action_spaces["a_77"] = SPACE, ACTIONS
    if kind is ParallelScript:
        env.observation_space = env.observation_spaces.__getitem__
        env.action_space = env.action_spaces.__getitem__
    env.step_ = env.step

    def step(actions):
        obs, rewards, *rest = env.step_(actions)
        return obs, rewards | {"a_77": 1.0}, *rest

    env.step = step
    assert played(env) == ["a_0", "a_0 a_77"]


def test_rllibs_one_space_of_all_agents_is_that_of_nobody_else():
    from gymnasium.spaces import Dict
    from ray.rllib.env.multi_agent_env import MultiAgentEnv

    class Old(RLlibScript, MultiAgentEnv):
        def __init__(self, *moments):
            super().__init__(*moments)
            del self.observation_spaces, self.action_spaces
            self.observation_space = Dict({"a_0": SPACE})
            self.action_space = Dict({"a_0": ACTIONS})

    env = Old(moment("a_0"), moment("a_0 a_77"), moment("", ends="__all__"))
    env.possible_agents = ["a_0"]
    assert played(env) == ["a_0", "a_0 a_77"]


def refused(env):
    with pytest.raises(PopulationError) as error:
        played(env)
    message = str(error.value)
    assert message.endswith(".") and ". " not in message and "\n" not in message
    return message


def test_what_neither_api_allows_is_refused_with_the_step_and_the_agent():
    both = moment("a_0 a_1", agents="a_0 a_1")
    message = refused(ParallelScript(both, both, moment("a_0", agents="a_0"), moment()))
    assert message == (
        "population 0, step 2: group 'a': agent 'a_1' left `agents` but is neither terminated nor "
        "truncated."
    )
    for late in ([], [moment("a_0")]):  # at once, or after it has skipped an observation
        message = refused(RLlibScript(both, *late, moment("a_0", cuts="a_1"), moment()))
        assert "agent 'a_1' was truncated without a last observation" in message
        assert f"step {1 + len(late)}:" in message


def test_an_episode_that_never_ends_is_noticed(monkeypatch):
    monkeypatch.setattr(guard, "NOBODY", 5)
    message = refused(RLlibScript(moment("a_0"), moment(ends="a_0"), *[moment()] * 9))
    assert "step 5: in 5 steps nobody has acted" in message


# --- figures of episodes -------------------------------------------------------------------------


@pytest.mark.parametrize("result", [None, {"kills": 3}, {"kills": {"a": "3"}}, {"kills": {"b": 3}}])
def test_figures_that_are_no_numbers_of_all_groups_are_refused(result):
    population = as_population(RLlibScript(moment("a_0"), moment("", "__all__")))
    population.result = lambda: result
    player = Player("a", lambda obs, *_: np.zeros(len(obs), int), Neighborhood("none"))
    sampler = Sampler(lambda index: population, 1, {"a": player}, seed=0)
    with pytest.raises(PopulationError, match=r"step 1: result must return a number for each of"):
        sampler.sample(num_steps=1)


def test_means_are_over_the_episodes_that_have_a_figure():
    metrics, recent = MetricsLogger(root=True), deque()
    for episode in ({"wins": 1.0}, {"wins": 3.0, "flags": 5.0}, {"flags": 7.0}):
        recent.append({(name, "red"): value for name, value in episode.items()})
        log_recent(metrics, recent)
    found = {name: metrics.peek(("env_runners", name, "red")) for name in ("wins", "flags")}
    assert found == {"wins": 2.0, "flags": 6.0}


def test_the_summary_of_an_evaluation_is_over_the_agents_of_every_episode():
    records = [{"return": 1.0, "steps": 2, "returns": who} for who in ({"a": 1.0}, {"b": 3.0}, {})]
    summary = _summary([*records, {"return": 0.0, "steps": 2, "returns": {"b": 5.0}}])
    assert summary["return_mean/a"] == 1 and summary["return_mean/b"] == 4


def test_a_population_as_a_parallel_env_keeps_its_own_seed():
    lattices = (ising.parallel_env(size=6, seed=seed) for seed in (5, 5, 6))
    free = []
    for env in lattices:
        env.reset()
        infos = env.step(dict.fromkeys(env.agents, 1))[-1]
        free.append([info["action_mask"].tolist() for info in infos.values()])
    assert free[0] == free[1] != free[2]
