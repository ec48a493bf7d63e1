"""Trained agents in a plain loop: they act as the sampler of training and evaluation lets them."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from cue import CUES, Cue
from magent2.environments import battle_v4
from magent2.environments.magent_env import magent_parallel_env
from pettingzoo import ParallelEnv
from pettingzoo.utils import BaseParallelWrapper
from ray.rllib.env.multi_agent_env import MultiAgentEnv
from ray.rllib.env.wrappers.pettingzoo_env import ParallelPettingZooEnv
from small_battles import SIZE, small_battle

import rllib_mfq
from rllib_mfq import MFQConfig, PopulationError, magent2
from rllib_mfq.algorithm.match import play_episodes
from rllib_mfq.algorithm.opponents import load_opponent

MAP = {"map_size": 16, "max_cycles": 60}
PRETRAINED = "pretrained:battle-mfq"
LSTM = {"use_lstm": True, "lstm_cell_size": 8, "max_seq_len": 4}
READS_BOTH = LSTM | {"lstm_use_prev_action": True, "lstm_use_prev_reward": True}


def match(agent, seed=3, explore=False, env_config=MAP):
    """What every step of a match plays, by the agents' names, as the match player plays it."""
    population, steps = magent2("battle_v4", **env_config), []
    play, ids = population.step, {}

    def step(actions):
        names = {g: [f"{g}_{i - starts[g]}" for i in ids[g].tolist()] for g in actions}
        steps.append(
            {n: int(a) for g in actions for n, a in zip(names[g], actions[g], strict=True)}
        )
        found = play(actions)
        ids.update({g: s.rows.ids[~s.truncated[~s.terminated]] for g, s in found.items()})
        return found

    reset = population.reset

    def reset_(*, seed):
        found = reset(seed=seed)
        ids.update({group: rows.ids for group, rows in found.items()})
        starts.update({group: int(rows.ids.min()) for group, rows in found.items()})
        seeds.append(seed)
        return found

    starts, seeds = {}, []
    population.step, population.reset = step, reset_
    generator = torch.Generator().manual_seed(seed)
    players = load_opponent("a", agent, population.groups, explore).players(generator)
    play_episodes(lambda _: population, players, 1, seed=seed)
    return steps, seeds[0]


def loop(agents, env, seed, what="observations"):
    """A loop of the user's: hands over observations alone, or everything that `step` returned."""
    agents.reset()
    seen, steps = (env.reset(seed=seed)[0],), []
    if isinstance(core := env.unwrapped, magent_parallel_env):
        # It counts the teams before it places them: all would play the first one's actions.
        core.team_sizes = [core.env.get_num(handle) for handle in core.handles]
    while env.agents:
        steps.append(agents.act(*(seen if what == "everything" else seen[:1])))
        seen = env.step(steps[-1])
    return steps


@pytest.mark.parametrize("what", ["observations", "everything"])
def test_a_plain_loop_plays_what_a_match_plays(what):
    expected, seed = match(PRETRAINED)
    env = battle_v4.parallel_env(**MAP)
    agents = rllib_mfq.load(PRETRAINED, env)
    found = loop(agents, env, seed, what)
    assert found == expected
    assert len({len(step) for step in found}) > 3  # some died
    assert loop(agents, env, seed, what) == expected  # another episode


def test_exploring_agents_draw_what_a_match_draws_with_the_same_seed():
    expected, seed = match(PRETRAINED, explore=True)
    env = battle_v4.parallel_env(**MAP)
    agents = rllib_mfq.load(PRETRAINED, env, explore=True, seed=3)
    assert loop(agents, env, seed) == expected != match(PRETRAINED)[0]
    assert loop(agents, env, seed) != expected
    agents.reset(3)
    assert loop(agents, env, seed) == expected


def test_without_the_environment_flags_say_who_ended():
    expected, seed = match(PRETRAINED)
    env = battle_v4.parallel_env(**MAP)
    assert loop(rllib_mfq.load(PRETRAINED), env, seed, "everything") == expected


@pytest.fixture(scope="module")
def trained(ray_session, tmp_path_factory):
    """Checkpoints of networks that nobody has trained, by a name for what they need."""
    folder = tmp_path_factory.mktemp("trained")
    made = {
        "nearest": small_battle(neighborhood={"nearest": 2}, mean_action_iterations=2),
        "memory": small_battle().rl_module(model_config=READS_BOTH),
        "mapped": small_battle().multi_agent(
            policies=["one", "two"],
            policy_mapping_fn=lambda agent, *_: "one" if agent.startswith("blue") else "two",
        ),
    }
    for name, config in made.items():
        algo = config.build_algo()
        algo.train()
        algo.save_to_path(folder / name)
        algo.stop()
    return folder


@pytest.mark.parametrize("name", ["nearest", "memory"])
def test_positions_and_memories_are_those_of_a_match(trained, name):
    expected, seed = match(str(trained / name), env_config=SIZE)
    env = battle_v4.parallel_env(**SIZE)
    agents = rllib_mfq.load(str(trained / name), env)
    assert loop(agents, env, seed, "everything") == expected


@pytest.mark.parametrize("name", ["nearest", "memory"])
def test_the_env_runner_plays_the_same_when_it_is_greedy(trained, build, name):
    algo = rllib_mfq.MFQ.from_checkpoint(str(trained / name))
    (population, *_), seeds = algo.env_runner._sampler.populations, []
    reset = population.reset
    population.reset = lambda *, seed: (seeds.append(seed), reset(seed=seed))[1]
    columns = algo.env_runner.sample(num_episodes=1, explore=False)[0]
    env = battle_v4.parallel_env(**SIZE)
    found = loop(rllib_mfq.load(str(trained / name), env), env, seeds[0], "everything")
    for group in ("red", "blue"):
        acted = {key: columns[group][key][columns[group]["loss_mask"]] for key in ("t", "actions")}
        for t, step in enumerate(found):
            mine = [action for agent, action in step.items() if agent.startswith(group)]
            assert mine == acted["actions"][acted["t"] == t].tolist(), (group, t)
    algo.stop()


def test_the_module_that_played_a_group_plays_it(trained):
    agents = rllib_mfq.load(str(trained / "mapped"))
    env = battle_v4.parallel_env(**SIZE)
    assert loop(agents, env, 0, "everything")


def test_rewards_are_asked_for_where_the_network_reads_them(trained):
    env = battle_v4.parallel_env(**SIZE)
    agents = rllib_mfq.load(str(trained / "memory"), env)
    observations = env.reset(seed=0)[0]
    observations = env.step(agents.act(observations))[0]
    with pytest.raises(ValueError, match=r"^the network reads the last reward: give act\(\)"):
        agents.act(observations)


class Traffic(ParallelEnv):
    """Walkers are born, die, come back and skip observations; observations are dicts with masks.

    Actions are numbered from 5; `seen` has the mean action of everybody, kept by a plain loop.
    """

    metadata = {"name": "traffic"}  # noqa: RUF012
    possible_agents = [f"walker_{i}" for i in range(4)]  # noqa: RUF012

    def __init__(self, config=None):
        self.config = config

    def observation_space(self, agent):
        parts = {
            "action_mask": gym.spaces.MultiBinary(3),
            "where": gym.spaces.Box(0, 9, (2,)),
            "kind": gym.spaces.Discrete(2),
        }
        return gym.spaces.Dict(parts)

    def action_space(self, agent):
        return gym.spaces.Discrete(3, start=5)

    def reset(self, seed=None, options=None):
        self.t, self.agents = 0, ["walker_0", "walker_1", "walker_2"]
        return self._see(), {}

    def step(self, actions):
        assert all(actions[a] != 5 + (self.t + int(a[-1])) % 3 for a in actions)  # the mask
        self.t += 1
        dead = {2: ["walker_1"], 4: ["walker_0"]}.get(self.t, [])
        before = list(self.agents)
        enters = {3: ["walker_3"], 5: ["walker_1"]}.get(self.t, [])
        self.agents = [a for a in before if a not in dead] + enters
        seen = self._see(before)
        ends = {a: a in dead for a in before}
        late = dict.fromkeys(before, self.t == 7)
        if self.t == 7:
            self.agents = []
        return seen, dict.fromkeys(before, 1.0), ends, late, {}

    def _see(self, more=()):
        there = dict.fromkeys([*more, *self.agents])
        skips = {"walker_2"} if self.t in (3, 4) else set()
        return {
            agent: {
                "action_mask": np.array([(self.t + int(agent[-1])) % 3 != a for a in range(3)]),
                "where": np.array([self.t, int(agent[-1])], np.float32),
                "kind": int(agent[-1]) % 2,
            }
            for agent in there
            if agent not in skips
        }


@pytest.fixture(scope="module")
def walkers(ray_session, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("walkers"))
    config = MFQConfig().environment(Traffic).training(num_steps_sampled_before_learning_starts=10)
    algo = config.reporting(min_sample_timesteps_per_iteration=50).build_algo()
    algo.save_to_path(folder)
    algo.stop()
    return folder


def watch(agents):
    """The mean actions that every call of the network gets."""
    block, seen = agents._turns._block(0, "walker"), []
    act = block.player.act

    def watched(obs, means, mask):
        seen.append(means.copy())
        return act(obs, means, mask)

    block.player = dataclasses.replace(block.player, act=watched)
    return seen


@pytest.mark.parametrize("what", ["observations", "everything"])
def test_who_is_born_dies_and_skips_carries_what_a_plain_loop_over_agents_says(walkers, what):
    env = Traffic()
    agents = rllib_mfq.load(walkers, env)
    means, carried = watch(agents), {}
    seen, turns = (env.reset()[0],), 0
    while env.agents:
        before = set(env.agents)
        actions = agents.act(*(seen if what == "everything" else seen[:1]))
        assert {*actions} == before & {*seen[0]}
        assert set(actions.values()) <= {5, 6, 7}
        for agent, mean in zip(actions, means[-1], strict=True):
            np.testing.assert_allclose(mean, carried.get(agent, np.zeros(3)), atol=1e-6)
        chosen = np.array(list(actions.values())) - 5
        for row, agent in enumerate(actions):
            others = np.delete(chosen, row)
            carried[agent] = np.eye(3)[others].mean(0) if len(others) else np.zeros(3)
        seen, turns = env.step(actions), turns + 1
        for agent in before - {*env.agents}:
            carried.pop(agent, None)
    assert turns == 7


def test_agents_of_an_rllib_environment_act_too(walkers):
    class Wrapped(MultiAgentEnv):
        def __init__(self):
            super().__init__()
            self.inner = Traffic()
            self.possible_agents = self.inner.possible_agents
            self.observation_spaces, self.action_spaces = (
                {a: get(a) for a in self.possible_agents}
                for get in (self.inner.observation_space, self.inner.action_space)
            )

        def reset(self, *, seed=None, options=None):
            seen = self.inner.reset()
            self.agents = self.inner.agents
            return seen

        def step(self, actions):
            seen, rewards, ends, cuts, infos = self.inner.step(actions)
            over, self.agents = not self.inner.agents, self.inner.agents
            return seen, rewards, {**ends, "__all__": False}, {**cuts, "__all__": over}, infos

    ours, theirs = Traffic(), Wrapped()
    expected = loop(rllib_mfq.load(walkers, ours), ours, 0, "everything")
    for env in (theirs, ParallelPettingZooEnv(Traffic())):
        agents, found = rllib_mfq.load(walkers, env), []
        actions = agents.act(env.reset()[0])
        while actions:
            found.append(actions)
            actions = agents.act(*env.step(actions))
        assert found == expected


def test_a_wrapper_around_magent2_still_says_who_lives_and_where():
    expected, seed = match(PRETRAINED)
    env = BaseParallelWrapper(battle_v4.parallel_env(**MAP))
    assert loop(rllib_mfq.load(PRETRAINED, env), env, seed) == expected


def test_a_gymnasium_agent_acts_under_its_groups_name(ray_session, tmp_path):
    algo = MFQConfig().environment("CartPole-v1").build_algo()
    algo.save_to_path(tmp_path)
    algo.stop()
    agents = rllib_mfq.load(str(tmp_path))
    assert agents.act({"agent": np.zeros(4, np.float32)})["agent"] in (0, 1)


@pytest.mark.parametrize(
    ("observations", "message"),
    [
        ({"green_0": np.zeros((13, 13, 5))}, "agent 'green_0' is of group 'green', but"),
        ({"red_0": np.zeros((13, 5))}, r"the observation of 'red_0' has the shape \(13, 5\); it"),
        ({"red_0": None}, r"group 'red': the observation of 'red_0' has the shape \(\)"),
        ({"red_0": np.full((13, 13, 5), np.nan, np.float32)}, "group 'red'.* is not finite"),
        (None, "^observations are a NoneType; they must be a dict by agents"),
    ],
)
def test_what_cannot_be_observed_is_one_sentence_and_the_agents_start_anew(observations, message):
    agents = rllib_mfq.load(PRETRAINED)
    with pytest.raises(PopulationError, match=message) as raised:
        agents.act(observations)
    assert "\n" not in str(raised.value)
    assert "population 0" not in str(raised.value)
    assert {*agents.act({"red_0": np.zeros((13, 13, 5), np.float32)})} == {"red_0"}


def test_an_environment_that_the_loop_does_not_step_is_noticed():
    env, other = Traffic(), Traffic()
    agents = rllib_mfq.load("random", env)
    with pytest.raises(ValueError, match="'walker_0' observes and nobody who does is in `agents`"):
        agents.act(other.reset()[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "^agent is 'nowhere'; it must be the folder of a checkpoint"),
        ((Path("nowhere"),), "^agent is 'nowhere'; it must be the folder of a checkpoint"),
        (("pretrained:battle-mqf",), "did you mean 'battle-mfq'"),
        (("random",), r"^'random' does not say what it plays: give load\(\) the environment"),
        ((PRETRAINED, Traffic()), "plays .* but group 'walker' has"),
        ((PRETRAINED, 7), "^env is a int; legal are"),
    ],
)
def test_what_cannot_be_loaded_is_one_sentence(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        rllib_mfq.load(*arguments)


def test_no_ray_is_started():
    script = (
        "import numpy as np, rllib_mfq, ray\n"
        f"agents = rllib_mfq.load({PRETRAINED!r})\n"
        "agents.act({'red_0': np.zeros((13, 13, 5), np.float32)})\n"
        "print('started', ray.is_initialized())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "started False" in done.stdout, done.stderr


def test_a_cue_that_was_seen_is_remembered_until_reset(ray_session, tmp_path):
    """A population of arrays has no dicts, but its agents act by their names all the same."""
    config = MFQConfig().environment(Cue, env_config={"agents": 2}).rl_module(model_config=LSTM)
    algo = config.build_algo()
    algo.save_to_path(tmp_path)
    algo.stop()
    agents, blank = rllib_mfq.load(str(tmp_path)), np.zeros(CUES + 1, np.float32)
    cue = blank.copy()
    cue[1] = 50.0

    def state():
        block = agents._turns._block(0, "red")
        return block.data["state"][block.slices["red"]].copy()

    agents.act({"red_0": cue})
    agents.act({"red_0": blank})
    assert np.abs(state()).sum() > 0
    agents.reset()
    agents.act({"red_0": blank})
    assert np.abs(state()).sum() == 0
