"""Which module plays which agents, for every environment's own names."""

import copy

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from pettingzoo import ParallelEnv
from small_battles import OLD, SIZE, small_battle

from rllib_mfq import MFQConfig, magent2
from rllib_mfq.algorithm.roster import modules_of_groups
from rllib_mfq.envs.gaussian_squeeze import GaussianSqueezePopulation
from rllib_mfq.population.adapters import as_population
from rllib_mfq.population.population import PopulationError

SPACE, ACTIONS = Box(-9, 9, (2,), np.float32), Discrete(3)


class Crowd(ParallelEnv):
    """Agents of any names; they stay for ten steps."""

    metadata = {"name": "crowd"}  # noqa: RUF012

    def __init__(self, names):
        self.possible_agents = self.there = list(names)

    def observation_space(self, agent):
        return SPACE

    def action_space(self, agent):
        return ACTIONS

    def reset(self, seed=None, options=None):
        self.t, self.agents = 0, list(self.there)
        return self.look(), {}

    def look(self):
        return {agent: np.full(2, self.t, np.float32) for agent in self.agents}

    def step(self, actions):
        self.t += 1
        obs, over = self.look(), dict.fromkeys(self.agents, self.t == 10)
        rewards, going_on = dict.fromkeys(self.agents, 1.0), dict.fromkeys(self.agents, False)
        self.agents = [] if self.t == 10 else self.agents
        return obs, rewards, going_on, over, {}


class RLlibCrowd:
    """The same with RLlib's API."""

    def __init__(self, names):
        self.crowd = Crowd(names)
        self.possible_agents = self.crowd.possible_agents
        self.observation_spaces = dict.fromkeys(names, SPACE)
        self.action_spaces = dict.fromkeys(names, ACTIONS)

    def reset(self, *, seed=None, options=None):
        return self.crowd.reset()

    def step(self, actions):
        obs, rewards, ends, cuts, infos = self.crowd.step(actions)
        return (
            obs,
            rewards,
            ends | {"__all__": False},
            cuts | {"__all__": self.crowd.t == 10},
            infos,
        )


CROWDS = {"PettingZoo": Crowd, "RLlib": RLlibCrowd}
IDS = ["red_0", "red_1", "red_2", "blue_0"]


def modules(env, mapping, policies="AB"):
    config = MFQConfig().multi_agent(policies=list(policies), policy_mapping_fn=mapping)
    config.resolve_groups(lambda: as_population(env))
    return modules_of_groups(config)


@pytest.mark.parametrize("api", CROWDS)
def test_policy_mapping_fn_is_asked_about_the_agents_that_exist_and_about_all(api):
    asked = []

    def mapping(agent, episode, **kwargs):
        asked.append(agent)
        return {"red_7": "A", "red_1": "A", "blue_3": "B", 5: "B"}[agent]

    env = CROWDS[api](["red_7", "red_1", "blue_3", 5])
    assert modules(env, mapping) == {"red": "A", "blue": "B", "agent": "B"}
    assert set(asked) == {"red_7", "red_1", "blue_3", 5}


@pytest.mark.parametrize("api", CROWDS)
def test_a_group_that_the_mapping_divides_is_refused_and_never_merged(api):
    with pytest.raises(ValueError) as error:
        modules(CROWDS[api](IDS), lambda agent, episode: "A" if agent == "red_0" else "B")
    assert str(error.value) == (
        "policy_mapping_fn maps 'red_0' to 'A' and 'red_1' to 'B', but one policy plays all of "
        "group 'red'; give agents of different policies different names before their number."
    )


def test_a_mapping_that_raises_is_one_sentence():
    with pytest.raises(ValueError, match="policy_mapping_fn raised AttributeError") as error:
        modules(Crowd(IDS), lambda agent, episode: "AB"[hash(episode.id_) % 2])
    assert "for agent 'red_0'" in str(error.value) and "None for the episode." in str(error.value)


@pytest.mark.parametrize(
    ("env", "names"),
    [
        (lambda: magent2("battle_v4", **SIZE), {"red": ["red_0", "red_1"], "blue": ["blue_0"]}),
        (lambda: GaussianSqueezePopulation(num_agents=3), None),
        (lambda: gym.make("CartPole-v1"), {"agent": ["agent"]}),
    ],
)
def test_every_kind_of_environment_has_its_own_names(env, names):
    asked = {}

    def mapping(agent, *args):
        asked.setdefault(agent.rpartition("_")[0] or agent, []).append(agent)
        return "A"

    modules(env(), mapping, "A")
    for group, agents in (names or {next(iter(asked)): [f"{next(iter(asked))}_2"]}).items():
        assert set(agents) <= set(asked[group])


def test_an_evaluation_of_its_own_mapping_is_asked_about_the_same_agents():
    config = small_battle().multi_agent(policies=["A", "B"], policy_mapping_fn=red_is("A", "B"))
    turned = {"multiagent": {"policy_mapping_fn": red_is("B", "A")}}
    config = config.evaluation(evaluation_config=turned)
    config.resolve_groups(lambda: magent2("battle_v4", **SIZE))
    assert modules_of_groups(config) == {"red": "A", "blue": "B"}
    evaluation = config.get_evaluation_config_object()
    assert modules_of_groups(evaluation) == {"red": "B", "blue": "A"}


def red_is(red, blue):
    return lambda agent, *args, **kwargs: {"red": red, "blue": blue}[agent.split("_")[0]]


def test_an_environment_that_forgets_to_return_is_refused_before_the_run():
    env = Crowd(IDS)
    env.reset = lambda seed=None, options=None: None
    with pytest.raises(PopulationError, match="population 0, step 0: what reset returned is"):
        modules(env, lambda *args: "A", "A")


# --- whole runs -------------------------------------------------------------------------------


def crowd_config(api, names, old=False, **training):
    settings = {"num_steps_sampled_before_learning_starts": 50, "replay_capacity": 20_000}
    return (
        MFQConfig()
        .api_stack(**(OLD if old else {}))
        .environment(lambda config: CROWDS[api](names))
        .multi_agent(policies=["shared"])
        .env_runners(rollout_fragment_length=5, num_envs_per_env_runner=1)
        .training(train_batch_size_per_learner=32, **(settings | training))
        .reporting(min_sample_timesteps_per_iteration=20)
        .debugging(seed=7)
    )


@pytest.mark.parametrize("old", [False, True], ids=["new stack", "old stack"])
@pytest.mark.parametrize("api", CROWDS)
def test_there_may_be_any_number_of_groups(build, api, old):
    names = [f"agent{i}" for i in range(140)]  # each a group of its own
    results = build(crowd_config(api, names, old)).train()
    assert results["env_runners"]["episode_len_mean"] == 10
    assert results["env_runners"]["group_returns_mean"]["agent139"] == 10
    assert results["learners"]["shared"]["qf_loss"] >= 0


@pytest.mark.parametrize("old", [False, True], ids=["new stack", "old stack"])
def test_modules_cannot_be_added_or_removed(build, old):
    algo = build(small_battle(old=old))
    for change in (algo.add_module, algo.remove_module, algo.add_policy, algo.remove_policy):
        with pytest.raises(NotImplementedError, match=r"no modules during a run.*'pool'"):
            change("red")
    algo.train()


# --- groups of different sizes ------------------------------------------------------------------


@pytest.mark.parametrize("old", [False, True], ids=["new stack", "old stack"])
@pytest.mark.parametrize("api", CROWDS)
def test_a_rare_group_and_one_that_never_acts_hold_up_nobody(build, caplog, api, old):
    class Workers(CROWDS[api]):
        """Twenty workers and one leader; a ghost that is named but never comes."""

        def __init__(self, config):
            names = [f"worker_{i}" for i in range(20)]
            super().__init__([*names, "leader_0", "ghost_0"])
            getattr(self, "crowd", self).there = [*names, "leader_0"]

    config = crowd_config(api, [], old, num_steps_sampled_before_learning_starts=100)
    config = config.environment(Workers).multi_agent(policies=["worker", "leader", "ghost"])
    algo = build(config)
    updates, before = {}, None
    with caplog.at_level("WARNING", "rllib_mfq"):
        while "leader" not in updates:
            results = algo.train()
            state = algo.env_runner.module.get_state()
            for module_id in state if before else ():
                old_, new = before[module_id], state[module_id]
                if any((old_[k] != new[k]).any() for k in new if k.startswith("q_net")):
                    updates.setdefault(module_id, algo._agent_steps)
            before = copy.deepcopy(state)
    assert 100 * 21 / 20 <= updates["worker"] < 1_000
    assert 100 * 21 <= updates["leader"] < 3_000 and "ghost" not in updates
    said = [r.getMessage() for r in caplog.records if "too few rows" in r.getMessage()]
    assert said == ["Modules with too few rows to learn from yet: ['ghost', 'leader']."]
    learners = results["learners"]
    assert learners["leader"]["qf_loss"] >= 0 and "qf_loss" not in learners.get("ghost", {})
