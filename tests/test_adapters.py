"""Environments of PettingZoo, RLlib and Gymnasium as populations, against their own dicts."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, Sequence, Tuple
from magent2.environments import battle_v4
from pettingzoo import AECEnv, ParallelEnv
from pettingzoo.utils import BaseParallelWrapper

from rllib_mfq.mean_field.neighborhood import Neighborhood
from rllib_mfq.population.adapters import AgentDictPopulation, as_population
from rllib_mfq.population.magent2 import MAgent2Population
from rllib_mfq.population.player import Player
from rllib_mfq.population.population import GYM_GROUP, Group, PopulationError
from rllib_mfq.population.sampler import Sampler

PLAIN = Box(-9, 9, (2,), np.float32)


class Crowd(ParallelEnv):
    """Agents that enter, die and are cut off at random; what they play is kept.

    Args:
        seed: of what happens.
        space: of an observation.
        first_action: where the three actions start.
        position: where positions are: `method`, `infos` or None.
        masks: where masks are: `obs` (then the space is a Dict), `infos` or None.
    """

    def __init__(self, seed=0, space=PLAIN, first_action=0, position=None, masks=None):
        self.seed, self.space, self.place, self.masks = seed, space, position, masks
        self.possible_agents = [f"{g}_{i}" for g in ("wolf", "big_sheep") for i in range(9)]
        self.actions = Discrete(3, start=first_action)
        self.played, self.seeds, self.closed = [], [], False
        if position == "method":
            self.positions = lambda: self.places

    def observation_space(self, agent):
        return self.space

    def action_space(self, agent):
        return self.actions

    def reset(self, seed=None, options=None):
        self.seeds.append(seed)
        self.rng = np.random.default_rng(self.seed)
        self.waiting = list(self.rng.permutation(self.possible_agents))
        self.agents = [str(self.waiting.pop()) for _ in range(6)]
        return self.observed(self.agents)

    def observed(self, agents):
        self.space.seed(int(self.rng.integers(2**31)))
        obs = {a: self.space.sample() for a in agents}
        self.places = {a: self.rng.uniform(size=2) for a in agents}
        infos = {a: {} for a in agents}
        for agent in agents:
            mask = (self.rng.random(3) < 0.5).astype(np.int8)
            mask[self.rng.integers(3)] = 1
            if self.masks == "obs":
                obs[agent]["action_mask"] = mask
            if self.masks == "infos" and self.rng.random() < 0.7:
                infos[agent]["action_mask"] = mask
            if self.place == "infos":
                infos[agent]["position"] = self.places[agent]
        return obs, infos

    def step(self, actions):
        assert set(actions) == set(self.agents)
        assert all(self.actions.contains(action) for action in actions.values())
        self.played.append(actions)
        fate = {a: self.rng.random() for a in self.agents}
        ends = {a: fate[a] < 0.2 for a in self.agents}
        cuts = {a: fate[a] > 0.85 for a in self.agents}
        rewards = {a: float(self.rng.integers(-1, 2)) for a in self.agents}
        seen = [a for a in self.agents if not ends[a] or self.rng.random() < 0.5]
        self.agents = [a for a in self.agents if not ends[a] and not cuts[a]]
        while self.waiting and self.rng.random() < 0.4:
            seen.append(str(self.waiting.pop()))
            self.agents.append(seen[-1])
        obs, infos = self.observed([str(a) for a in self.rng.permutation(seen)])
        return obs, rewards, ends, cuts, infos

    def render(self):
        return np.zeros((4, 4, 3), np.uint8)

    def close(self):
        self.closed = True


class Duck:
    """A Crowd with the interface of RLlib's MultiAgentEnv: `__all__`, and no rewards of 0."""

    def __init__(self, **arguments):
        self.crowd = Crowd(**arguments)
        self.possible_agents = self.crowd.possible_agents
        self.get_observation_space = self.crowd.observation_space
        self.get_action_space = self.crowd.action_space
        self.render, self.close = self.crowd.render, self.crowd.close

    def __getattr__(self, name):
        return getattr(self.crowd, name)

    def reset(self, *, seed=None, options=None):
        return self.crowd.reset(seed=seed)

    def step(self, actions):
        obs, rewards, ends, cuts, infos = self.crowd.step(actions)
        rewards = {agent: reward for agent, reward in rewards.items() if reward}
        over = {"__all__": not self.crowd.agents}
        return obs, rewards, ends | over, cuts | {"__all__": False}, infos | {"__common__": {}}


def rllib_crowd(**arguments):
    from ray.rllib.env.multi_agent_env import MultiAgentEnv

    class RLlibCrowd(MultiAgentEnv):
        def __init__(self):
            super().__init__()
            self.duck = Duck(**arguments)
            self.possible_agents = list(self.duck.possible_agents)
            self.observation_spaces = {a: self.duck.space for a in self.possible_agents}
            self.action_spaces = {a: self.duck.actions for a in self.possible_agents}
            self.reset, self.step = self.duck.reset, self.duck.step
            self.render, self.close = self.duck.render, self.duck.close

        def __getattr__(self, name):
            if name == "duck":
                raise AttributeError(name)
            return getattr(self.duck, name)

    return RLlibCrowd()


KINDS = {"ParallelEnv": Crowd, "duck": lambda **a: Duck(**a), "MultiAgentEnv": rllib_crowd}


def observations(population, group, n):
    space = population.groups[group].observation_space
    out = np.full((n, *space.shape), 77, space.dtype)
    population.observe(group, out)
    return out


def group_of(agent):
    return agent.rsplit("_", 1)[0]


def one_sentence(error):
    """The message, which must be one sentence."""
    message = str(error.value)
    assert message.endswith(".") and ". " not in message and "\n" not in message
    return message


def check_rows(population, rows, expected, names, obs, infos, places):
    """Asserts that rows are those of the `expected` agents."""
    for group, r in rows.items():
        agents = [a for a in expected if group_of(a) == group]
        assert agents == [names.setdefault(i, a) for i, a in zip(r.ids, agents, strict=True)]
        seen = observations(population, group, len(agents))
        assert seen.dtype == np.float32
        for i, agent in enumerate(agents):
            raw = obs[agent]["state"] if isinstance(obs[agent], dict) else obs[agent]
            np.testing.assert_array_equal(seen[i], np.float32(raw))
            if places:
                np.testing.assert_array_equal(r.positions[i], places[agent])
            if r.action_mask is not None:
                holder = obs[agent] if isinstance(obs[agent], dict) else infos[agent]
                mask = holder.get("action_mask", np.ones(3))
                assert r.action_mask[i].tolist() == mask.astype(bool).tolist()
        assert places or r.positions is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"first_action": 5, "space": Box(-9, 9, (3, 2), np.float64)},
        {"position": "method", "masks": "infos"},
        {"position": "infos", "masks": "obs"},
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", range(3))
def test_the_rows_are_those_of_the_dicts_while_agents_enter_and_leave(kind, options, seed):
    space = options.get("space", PLAIN)
    if options.get("masks") == "obs":
        space = Dict({"action_mask": MultiBinary(3), "state": PLAIN})
    options = {"seed": seed, **options, "space": space}
    population, crowd = as_population(KINDS[kind](**options)), Crowd(**options)
    assert set(population.groups) == {"wolf", "big_sheep"}
    assert all(group.action_space == Discrete(3) for group in population.groups.values())
    names = {}  # of the agents' numbers
    rng = np.random.default_rng(seed)
    entered_late = 0
    for _ in range(2):
        rows = population.reset(seed=9)
        obs, infos = crowd.reset()
        alive = list(obs)
        while alive:
            places = crowd.places if options.get("position") else None
            check_rows(population, rows, alive, names, obs, infos, places)
            assert (rows["wolf"].action_mask is not None) == ("masks" in options)
            acting = {g: [a for a in alive if group_of(a) == g and a in crowd.agents] for g in rows}
            actions = {g: rng.integers(3, size=len(a)) for g, a in acting.items()}
            flat = {
                a: int(action) + options.get("first_action", 0)
                for g in acting
                for a, action in zip(acting[g], actions[g], strict=True)
            }
            obs, rewards, ends, cuts, infos = crowd.step(flat)
            steps = population.step(actions)
            alive = []
            for group, step in steps.items():
                agents = acting[group]
                assert step.rewards.tolist() == [rewards[a] for a in agents]
                assert step.terminated.tolist() == [ends[a] for a in agents]
                assert step.truncated.tolist() == [cuts[a] for a in agents]
                newcomers = [a for a in obs if a not in flat and group_of(a) == group]
                entered_late += len(newcomers)
                alive += [a for a in agents if not ends[a]] + newcomers
            rows = {group: step.rows for group, step in steps.items()}
    assert entered_late > 2 and len(set(names.values())) == len(names)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sampler_plays_them(kind):
    population = as_population(KINDS[kind](position="infos", masks="infos"))

    def act(obs, mean_actions, action_mask):
        return action_mask.argmax(1)

    player = Player("all", act, Neighborhood.parse({"nearest": 2}))
    sampler = Sampler(lambda i: population, 1, {"wolf": player, "big_sheep": player}, seed=0)
    fragment = sampler.sample(num_episodes=3)
    crowd = population.env if kind == "ParallelEnv" else population.env.crowd
    assert fragment.env_steps == len(crowd.played)
    assert sum(fragment.agent_steps.values()) == sum(map(len, crowd.played))
    assert crowd.seeds[0] is not None and crowd.seeds[1:] == [None, None]
    sampler.close()
    assert crowd.closed and population.render().shape == (4, 4, 3)


# --- what is taken, and as what ---------------------------------------------------------------


def test_a_population_is_taken_as_it_is():
    population = as_population(Crowd())
    assert as_population(population) is population

    class Mine:  # no base class is needed
        def __init__(self):
            self.groups, self.reset, self.step, self.observe = {}, dict, dict, dict

    mine = Mine()
    assert as_population(mine) is mine


class Transparent(BaseParallelWrapper):
    pass


class Scaled(BaseParallelWrapper):
    def step(self, actions):
        obs, rewards, *rest = super().step(actions)
        return obs, {agent: 10 * reward for agent, reward in rewards.items()}, *rest


class Resettled(BaseParallelWrapper):
    def reset(self, seed=None, options=None):
        return super().reset(seed=1)


def test_magent2_is_played_natively_unless_a_wrapper_changes_what_happens():
    def battle():
        return battle_v4.parallel_env(map_size=12)

    for env in (battle(), Transparent(battle()), Transparent(Transparent(battle()))):
        assert isinstance(as_population(env), MAgent2Population)
    for env in (Scaled(battle()), Transparent(Scaled(battle())), Resettled(battle())):
        assert isinstance(as_population(env), AgentDictPopulation)


def test_rllibs_wrapper_of_a_parallel_env_is_unwrapped():
    from ray.rllib.env.wrappers.pettingzoo_env import ParallelPettingZooEnv

    crowd = Crowd()
    assert as_population(ParallelPettingZooEnv(crowd)).env is crowd
    battle = ParallelPettingZooEnv(battle_v4.parallel_env(map_size=12))
    assert isinstance(as_population(battle), MAgent2Population)


def test_gymnasiums_environments_are_populations_of_one():
    population, env = as_population(gym.make("CartPole-v1")), gym.make("CartPole-v1")
    assert list(population.groups) == [GYM_GROUP]
    assert population.groups[GYM_GROUP] == Group(env.observation_space, env.action_space)
    rng = np.random.default_rng(0)
    for seed in (3, None, 3):
        rows = population.reset(seed=seed)
        raw, _ = env.reset(seed=seed)
        over = False
        while not over:
            assert rows[GYM_GROUP].ids.shape == (1,) and rows[GYM_GROUP].action_mask is None
            np.testing.assert_array_equal(observations(population, GYM_GROUP, 1), [raw])
            actions = rng.integers(2, size=1)
            raw, reward, terminated, truncated, _ = env.step(int(actions[0]))
            step = population.step({GYM_GROUP: actions})[GYM_GROUP]
            assert (step.rewards, step.terminated, step.truncated) == (
                reward,
                terminated,
                truncated,
            )
            assert len(step.rows.ids) == (not terminated)
            rows, over = {GYM_GROUP: step.rows}, terminated or truncated
    population.close()


def test_a_time_limit_truncates_with_a_last_observation():
    population = as_population(gym.make("CartPole-v1", max_episode_steps=3))
    population.reset(seed=0)
    for t in range(3):
        step = population.step({GYM_GROUP: np.zeros(1, np.int32)})[GYM_GROUP]
        assert step.truncated.tolist() == [t == 2] and not step.terminated.any()
    assert np.isfinite(observations(population, GYM_GROUP, 1)).all()


class Turns(AECEnv):
    metadata = {}  # noqa: RUF012

    def __init__(self):
        pass


def test_anything_else_is_refused():
    for env, words in [
        (Turns(), ("Turns", "take turns (AEC)")),
        (type("Holder", (), {"env": Turns()})(), ("Holder", "take turns (AEC)")),
        ("battle_v4", ("env is a str", "legal are a Population")),
        (None, ("env is a NoneType", "a PettingZoo ParallelEnv")),
    ]:
        with pytest.raises(TypeError) as error:
            as_population(env)
        assert all(word in one_sentence(error) for word in words)


# --- groups and spaces ------------------------------------------------------------------------


class Script(ParallelEnv):
    """Plays moments `(obs, rewards, ends, cuts, infos)`; the first one is the reset's."""

    def __init__(self, agents, moments=(), space=PLAIN, actions=None, **spaces):
        self.possible_agents, self.moments = agents, moments
        self.observation_spaces = {a: spaces.get(a, space) for a in agents}
        self.action_spaces = {a: actions or Discrete(2) for a in agents}
        self.played = []

    def observation_space(self, agent):
        return self.observation_spaces[agent]

    def action_space(self, agent):
        return self.action_spaces[agent]

    def reset(self, seed=None, options=None):
        self.now = 0
        obs, *_, infos = self.moments[0]
        return obs, infos

    def step(self, actions):
        self.played.append(actions)
        self.now += 1
        return self.moments[self.now]


def moment(obs, rewards=None, ends=(), cuts=(), infos=None):
    """Agents observe their number, or what `obs` says."""
    if not isinstance(obs, dict):
        obs = {agent: np.full(2, i, np.float32) for i, agent in enumerate(obs)}
    rewards = dict.fromkeys("abcdefgh", 1.0) if rewards is None else rewards
    return obs, rewards, dict.fromkeys(ends, True), dict.fromkeys(cuts, True), infos or {}


class RLlibScript:
    """A Script with the interface of RLlib's MultiAgentEnv."""

    def __init__(self, *args, **kwargs):
        script = Script(*args, **kwargs)
        self.possible_agents = script.possible_agents
        self.observation_spaces, self.action_spaces = (
            script.observation_spaces,
            script.action_spaces,
        )
        self.reset, self.step = script.reset, script.step


def play(env, actions=()):
    """Plays a script with group `a`'s and so on given actions; returns what happens."""
    population = as_population(env)
    happened = [population.reset()]
    for action in actions:
        happened.append(population.step(action))
    return happened


def test_groups_are_what_stands_before_the_number():
    agents = ["red_0", "red_11", "big_blue_3", "solo", "_7", "x_1a", 5, ("pair", 2)]
    population = as_population(Script(agents, [moment(agents)]))
    assert list(population.groups) == ["red", "big_blue", "solo", "_7", "x_1a", GYM_GROUP]
    rows = population.reset()
    assert [len(r.ids) for r in rows.values()] == [2, 1, 1, 1, 1, 2]
    assert sorted(i for r in rows.values() for i in r.ids) == list(range(8))


def test_rllibs_sets_of_agents_are_numbered_the_same_in_every_process():
    for order in (["b_1", "a_0", "b_0"], ["b_0", "b_1", "a_0"]):  # it is random for strings
        env = RLlibScript(order, [moment(["a_0", "b_0", "b_1"])])
        env._agent_ids = set(order)
        rows = as_population(env).reset()
        assert {group: r.ids.tolist() for group, r in rows.items()} == {"a": [0], "b": [1, 2]}
        assert list(rows) == ["a", "b"]


@pytest.mark.parametrize("hidden", ["possible_agents", "everything", "single"])
def test_agents_are_found_where_possible_agents_are_not_named(hidden):
    env = RLlibScript(["a_0", "b_0"], [moment(["a_0", "b_0"])])
    env.get_observation_space = env.observation_spaces.get
    env.get_action_space = env.action_spaces.get
    if hidden == "possible_agents":
        del env.possible_agents
    else:
        env.possible_agents = []
        del env.observation_spaces, env.action_spaces
        if hidden == "single":
            env.observation_space = PLAIN
    population = as_population(env)
    assert list(population.groups) == ["a", "b"]


def test_spaces_may_be_methods_mappings_or_one_for_all():
    agents = ["a_0", "a_1"]
    one = RLlibScript(agents)
    del one.observation_spaces, one.action_spaces
    one.observation_space, one.action_space = PLAIN, Discrete(4)
    mapped = RLlibScript(agents)
    del mapped.observation_spaces, mapped.action_spaces
    mapped.observation_space = Dict({a: PLAIN for a in agents})
    mapped.action_space = Dict({a: Discrete(4) for a in agents})
    methods = Script(agents, actions=Discrete(4))
    for env in (one, mapped, methods):
        assert as_population(env).groups == {"a": Group(PLAIN, Discrete(4))}


@pytest.mark.parametrize(
    ("space", "raw", "flat"),
    [
        (Discrete(3), 2, [0, 0, 1]),
        (Discrete(3, start=-1), 0, [0, 1, 0]),
        (MultiBinary(3), np.array([1, 0, 1], np.int8), [1, 0, 1]),
        (Box(-1, 1, (), np.float64), np.float64(0.5), [0.5]),
        (Tuple((Discrete(2), Box(0, 9, (2,)))), (1, np.array([4.0, 5.0])), [0, 1, 4, 5]),
        (Dict({"x": Box(0, 9, (1,)), "y": Discrete(2)}), {"y": 0, "x": np.array([3.0])}, [3, 1, 0]),
    ],
    ids=str,
)
def test_other_observations_are_flattened_to_float32(space, raw, flat):
    population = as_population(Script(["a"], [moment({"a": raw})], space))
    mine = population.groups["a"].observation_space
    assert mine.shape == (len(flat),) and mine.dtype == np.float32
    population.reset()
    assert observations(population, "a", 1).tolist() == [flat]


def test_a_box_stays_what_it_is_but_float64_becomes_float32():
    for kind, becomes in [("float64", "float32"), ("float32", "float32"), ("uint8", "uint8")]:
        raw = np.arange(4).reshape(2, 2).astype(kind)
        env = Script(["a"], [moment({"a": raw})], Box(0, 200, (2, 2), kind))
        population = as_population(env)
        assert population.groups["a"].observation_space == Box(0, 200, (2, 2), becomes)
        population.reset()
        assert observations(population, "a", 1).tolist() == [raw.tolist()]
    huge = as_population(Script(["a"], space=Box(-1e300, 1e300, (2,), np.float64)))
    assert np.isinf(huge.groups["a"].observation_space.high).all()


@pytest.mark.parametrize(
    ("rest", "raw", "flat"),
    [
        ({"state": Box(0, 9, (2, 1))}, {"state": np.array([[1.0], [2.0]])}, [[1], [2]]),
        (
            {"x": Box(0, 9, (1,)), "y": Discrete(2)},
            {"x": np.array([7.0]), "y": 1},
            [7, 0, 1],
        ),
    ],
    ids=["one part", "several"],
)
def test_the_mask_is_taken_out_of_a_dict_observation(rest, raw, flat):
    space = Dict({**rest, "action_mask": MultiBinary(2)})
    env = Script(["a"], [moment({"a": {"action_mask": np.array([0, 1], np.int8), **raw}})], space)
    population = as_population(env)
    rows = population.reset()
    assert rows["a"].action_mask.tolist() == [[False, True]]
    assert observations(population, "a", 1).tolist() == [flat]


def test_an_agent_without_a_mask_in_its_info_may_do_everything():
    mask = {"action_mask": np.array([0, 1])}
    infos = {"a_0": mask, "a_1": {}}
    agents = ["a_0", "a_1", "a_2"]
    (rows,) = play(Script(agents, [moment(agents, infos=infos)]))
    assert rows["a"].action_mask.tolist() == [[False, True], [True, True], [True, True]]


def test_a_last_observation_may_have_no_legal_action():
    space = Dict({"state": PLAIN, "action_mask": MultiBinary(2)})
    masked = [
        {"a": {"state": np.zeros(2, np.float32), "action_mask": np.array([0, k])}} for k in (1, 0)
    ]
    env = Script(["a"], [moment(masked[0]), moment(masked[1], cuts=["a"])], space)
    step = play(env, [{"a": np.ones(1, int)}])[1]["a"]
    assert step.truncated.all() and step.rows.action_mask.tolist() == [[True, True]]


# --- lives ------------------------------------------------------------------------------------


ONE = {"a": np.zeros(1, int)}


@pytest.mark.parametrize("flag", ["ends", "cuts"])
def test_all_ends_those_that_are_left_and_nobody_enters(flag):
    said = moment(["a_0", "a_1", "a_2", "a_3"], ends=["a_0"], cuts=["a_1"])
    (said[2] if flag == "ends" else said[3])["__all__"] = True
    env = RLlibScript(["a_0", "a_1", "a_2", "a_3"], [moment(["a_0", "a_1", "a_2"]), said])
    step = play(env, [{"a": np.zeros(3, int)}])[1]["a"]
    assert step.terminated.tolist() == [True, False, flag == "ends"]
    assert step.truncated.tolist() == [False, True, flag == "cuts"]
    assert step.rows.ids.tolist() == ([1] if flag == "ends" else [1, 2])


def test_who_is_both_terminated_and_truncated_is_terminated():
    both = moment(["a"], ends=["a"], cuts=["a"])
    step = play(Script(["a"], [moment(["a"]), both]), [ONE])[1]["a"]
    assert step.terminated.all() and not step.truncated.any() and not len(step.rows.ids)


def test_one_that_comes_only_to_end_at_once_does_not_enter():
    agents = ["a_0", "a_1", "a_2"]
    said = moment(agents, {"a_0": 1.0}, ends=["a_1"], cuts=["a_2"])
    step = play(Script(agents, [moment(["a_0"]), said]), [ONE])[1]["a"]
    assert step.rows.ids.tolist() == [0]


@pytest.mark.parametrize("rewards", [{}, {"a": None}], ids=str)
def test_a_multi_agent_env_may_leave_out_rewards_of_zero(rewards):
    env = RLlibScript(["a"], [moment(["a"]), moment(["a"], rewards)])
    assert play(env, [ONE])[1]["a"].rewards.tolist() == [0.0]


@pytest.mark.parametrize("kind", [Script, RLlibScript])
def test_infos_may_be_none(kind):
    moments = [(*moment(["a"])[:4], infos) for infos in (None, {"a": None}, {}, None)]
    rows, *steps = play(kind(["a"], moments), [ONE] * 3)
    assert rows["a"].action_mask is None and len(steps) == 3


@pytest.mark.parametrize("kind", [Script, RLlibScript])
@pytest.mark.parametrize("where", ["infos", "observation", "infos of a Dict observation"])
def test_masks_may_begin_at_any_step_and_for_any_agent(kind, where):
    agents = ["a_0", "a_1"]
    space = PLAIN if where == "infos" else SPACE

    def masked_moment(**masks):
        state = np.zeros(2, np.float32)
        obs = {agent: state if where == "infos" else {"state": state} for agent in agents}
        holder = {agent: {"action_mask": mask} for agent, mask in masks.items()}
        if where == "observation":
            obs = {agent: part | holder.get(agent, {}) for agent, part in obs.items()}
            holder = {}
        return (*moment(obs, dict.fromkeys(agents, 0.0))[:4], holder)

    masks = {}, {"a_1": np.array([1, 0], np.int8)}, {"a_0": [False, True]}, {"a_0": None}
    env = kind(agents, [masked_moment(**each) for each in masks], space)
    rows, *steps = play(env, [{"a": np.zeros(2, int)}] * 3)
    assert rows["a"].action_mask is None or rows["a"].action_mask.all()
    assert [step["a"].rows.action_mask.tolist() for step in steps] == [
        [[True, True], [True, False]],
        [[False, True], [True, True]],
        [[True, True], [True, True]],
    ]


def test_agents_that_possible_agents_do_not_name_may_enter_a_known_group():
    moments = [moment(["a_0"]), moment(["a_0", "a_99"], {"a_0": 1.0})]
    env = Script(["a_0"], moments)
    env.observation_spaces["a_99"], env.action_spaces["a_99"] = PLAIN, Discrete(2)
    step = play(env, [ONE])[1]["a"]
    assert step.rows.ids.tolist() == [0, 1]


@pytest.mark.parametrize("place", [3.0, np.array([3.0]), np.array([1.0, 2.0, 3.0])], ids=str)
def test_positions_have_any_number_of_dimensions(place):
    (rows,) = play(Script(["a"], [moment(["a"], infos={"a": {"position": place}})]))
    assert rows["a"].positions.tolist() == [np.atleast_1d(place).tolist()]


def test_positions_that_only_some_agents_have_are_none():
    env = Script(["a_0", "a_1"], [moment(["a_0", "a_1"], infos={"a_0": {"position": [1, 2]}})])
    assert play(env)[0]["a"].positions is None


# --- what is wrong with an environment ----------------------------------------------------------


def wrong(env, actions=()):
    with pytest.raises(PopulationError) as error:
        for rows in play(env, actions):
            assert rows
    return one_sentence(error)


def test_actions_must_be_discrete():
    message = wrong(Script(["a"], actions=PLAIN))
    assert "group 'a'" in message and str(PLAIN) in message and "Discrete" in message


@pytest.mark.parametrize("space", [Sequence(Discrete(2)), Dict({"action_mask": MultiBinary(2)})])
def test_observations_must_become_a_box(space):
    message = wrong(Script(["a"], space=space))
    assert "group 'a'" in message and "must be a Box" in message


def test_a_space_that_gymnasium_cannot_flatten_is_refused():
    class Own(gym.Space):
        pass

    assert "must be a Box" in wrong(Script(["a"], space=Own()))


@pytest.mark.parametrize("kind", ["observation", "action"])
def test_an_agent_without_a_space_is_refused(kind):
    env = RLlibScript(["a", "b"])
    del getattr(env, f"{kind}_spaces")["a"]
    assert f"no {kind} space for 'a'" in wrong(env)


def test_within_a_group_the_spaces_are_equal():
    other = Box(-9, 9, (3,), np.float32)
    message = wrong(Script(["a_0", "a_1"], a_1=other))
    assert all(word in message for word in ("'a'", "'a_0'", "'a_1'", str(PLAIN), str(other)))
    env = Script(["a_0"], [moment(["a_0"]), moment(["a_0", "a_1"], {"a_0": 1.0})])
    env.observation_spaces["a_1"], env.action_spaces["a_1"] = PLAIN, Discrete(3)
    message = wrong(env, [ONE])  # found when it enters
    assert "'a_1'" in message and str(Discrete(3)) in message


def test_an_agent_of_an_unknown_group_is_refused():
    message = wrong(Script(["a_0"], [moment(["b_0"])]))
    assert "'b_0'" in message and "'b'" in message and "['a']" in message


SPACE = Dict({"state": PLAIN, "action_mask": MultiBinary(2)})


def masked(mask):
    return {"a": {"state": np.zeros(2, np.float32), "action_mask": np.array(mask)}}


@pytest.mark.parametrize(
    ("moments", "space", "words"),
    [
        ([moment(["a"]), moment(["a"], {})], PLAIN, ["acted but has no reward"]),
        ([moment(["a"]), moment([], cuts=["a"])], PLAIN, ["truncated without a last observation"]),
        ([moment(masked([0, 0]))], SPACE, ["has no legal action"]),
        ([moment(["a"], infos={"a": {"action_mask": [0, 0]}})], PLAIN, ["has no legal action"]),
        (
            [moment(["a"], infos={"a": {"position": [1, 2]}}), moment(["a"])],
            PLAIN,
            ["has no position"],
        ),
        ([moment(masked([1, 1, 1]))], SPACE, ["action_mask of", "shape (3,)", "must be (2,)"]),
        ([moment(masked(1))], SPACE, ["action_mask of", "shape ()", "must be (2,)"]),
    ],
)
def test_a_broken_promise_names_group_and_agent(moments, space, words):
    message = wrong(Script(["a"], moments, space), [ONE] * (len(moments) - 1))
    assert all(word in message for word in ["group 'a'", "'a'", *words])


@pytest.mark.parametrize("kind", [Script, RLlibScript])
@pytest.mark.parametrize(
    ("part", "value", "words"),
    [
        (1, "1.5", "the reward of 'a' is '1.5'; it must be a number"),
        (1, 1 + 2j, "the reward of 'a' is (1+2j)"),
        (1, np.array([1.0]), "the reward of 'a' is array([1.])"),
        (1, [1.0, [2.0]], "the reward of 'a' is [1.0, [2.0]]"),
        (2, "False", "the terminated flag of 'a' is 'False'; it must be True or False"),
        (2, None, "the terminated flag of 'a' is None"),
        (3, 0.5, "the truncated flag of 'a' is 0.5"),
        (3, [False], "the truncated flag of 'a' is [False]"),
        (4, ["mask"], "the info of 'a' is ['mask']; it must be a dict"),
        (4, {"action_mask": ["1", "1"]}, "the action_mask of 'a' is dtype('<U1')"),
        (4, {"action_mask": [0.0, -1e9]}, "the action_mask of 'a' is [0.0, -1000000000.0]"),
        (4, {"position": [1, "2"]}, "the position of 'a' is dtype("),
    ],
    ids=str,
)
def test_a_value_of_another_type_is_refused_and_not_trained_on(kind, part, value, words):
    said = [*moment(["a"])]
    said[part] = said[part] | {"a": value}
    first = moment(["a"], infos={"a": {"position": [1, 2]}} if "position" in words else None)
    message = wrong(kind(["a"], [first, said]), [ONE])
    assert message.startswith("group 'a': ") and words in message


def test_true_and_numbers_of_numpy_are_what_they_are():
    said = moment(["a"], {"a": np.float32(2.5)})
    said[2]["a"], said[3]["a"] = np.bool_(True), 0
    step = play(Script(["a"], [moment(["a"]), said]), [ONE])[1]["a"]
    assert step.rewards.tolist() == [2.5] and step.terminated.all() and not step.truncated.any()


@pytest.mark.parametrize("kind", [Script, RLlibScript])
@pytest.mark.parametrize(
    ("result", "words"),
    [
        (None, "is of type NoneType; it must be 5 dicts, of observations, rewards, terminations"),
        (({}, 0.0, False, {}), "is of type (dict, float, bool, dict)"),
        (({}, 1.0, False, False, {}), "is of type (dict, float, bool, bool, dict)"),
        (({}, {}, {}, {}), "is of type (dict, dict, dict, dict)"),
        ("done", "is of type str"),
    ],
    ids=str,
)
def test_a_step_that_returns_something_else_is_refused(kind, result, words):
    message = wrong(kind(["a"], [moment(["a"]), result]), [ONE])
    assert message.startswith("what step returned ") and words in message


@pytest.mark.parametrize("kind", [Script, RLlibScript])
@pytest.mark.parametrize("result", [None, {"a": np.zeros(2)}, [1, 2, 3]], ids=str)
def test_a_reset_that_returns_something_else_is_refused(kind, result):
    env = kind(["a"])
    env.reset = lambda seed=None, options=None: result
    assert wrong(env).startswith("what reset returned is of type ")
    env.possible_agents = []
    if kind is RLlibScript:  # it is reset to find the agents
        del env.observation_spaces
        assert wrong(env).startswith("what reset returned is of type ")


def test_a_gymnasium_environment_that_returns_something_else_is_refused():
    class Forgets(gym.Env):
        observation_space, action_space = PLAIN, Discrete(2)

        def reset(self, *, seed=None, options=None):
            return np.zeros(2, np.float32), {}

        def step(self, action):
            pass

    message = wrong(Forgets(), [{GYM_GROUP: np.zeros(1, int)}])
    assert message.startswith("what step returned is of type NoneType")


@pytest.mark.parametrize(
    ("space", "raw", "words"),
    [
        (PLAIN, np.array(["1", "2"]), "is dtype('<U1'); it must be of real numbers"),
        (PLAIN, np.array([1j, 2]), "is dtype('complex128')"),
        (PLAIN, np.array([None, 1.0]), "is dtype('O')"),
        (PLAIN, [[1], [2, 3]], "is [[1], [2, 3]]; it must be an array of shape (2,)"),
        (PLAIN, None, "has the shape ()"),
        (Box(0, 255, (2,), np.uint8), np.array([0.5, 1.0]), "is dtype('float64'); its space is of"),
        (Box(0, 255, (2,), np.uint8), [300, 1], "is dtype('int64'); its space is of uint8"),
        (Discrete(3), 3, "is 3; its space is Discrete(3)"),
        (Discrete(3), -1, "is -1"),
        (Discrete(3), "1", "is '1'"),
        (MultiBinary(2), [1, 2], "is [1, 2]"),
        (Tuple((Discrete(2), Box(0, 9, (1,)))), (1, ["4"]), "is (1, ['4'])"),
        (Dict({"x": PLAIN, "y": Discrete(2)}), {"y": 1}, "is {'y': 1}"),
        (Dict({"x": PLAIN, "action_mask": MultiBinary(2)}), {"y": 1}, "it must have the key 'x'"),
    ],
    ids=str,
)
def test_an_observation_of_another_type_is_refused_and_not_trained_on(space, raw, words):
    population = as_population(Script(["a"], [moment({"a": raw})], space))
    with pytest.raises(PopulationError) as error:
        population.reset()
        observations(population, "a", 1)
    message = one_sentence(error)
    assert message.startswith("group 'a': the observation of 'a' ") and words in message


@pytest.mark.parametrize("raw", [[1, 2], np.array([1.0, 2.0]), np.array([True, False])], ids=str)
def test_whole_numbers_of_another_type_are_whole_numbers(raw):
    env = Script(["a"], [moment({"a": raw})], Box(0, 255, (2,), np.uint8))
    population = as_population(env)
    population.reset()
    assert observations(population, "a", 1).tolist() == [[int(x) for x in raw]]


@pytest.mark.parametrize("raw", [np.zeros(3), np.zeros(1), 0.0, np.zeros((1, 2))], ids=np.shape)
def test_an_observation_of_another_shape_is_refused(raw):
    """NumPy would repeat a smaller one."""
    population = as_population(Script(["a_0", "a_1"], [moment({"a_0": np.zeros(2), "a_1": raw})]))
    population.reset()
    with pytest.raises(PopulationError) as error:
        observations(population, "a", 2)
    message = one_sentence(error)
    assert f"observation of 'a_1' has the shape {np.shape(raw)}; it must be (2,)" in message


@pytest.mark.parametrize("place", [[1, 2, 3], [[1, 2]], [5], 5], ids=str)
def test_a_position_of_another_size_is_refused(place):
    infos = {"a_0": {"position": [1, 2]}, "a_1": {"position": place}}
    message = wrong(Script(["a_0", "a_1"], [moment(["a_0", "a_1"], infos=infos)]))
    assert f"position of 'a_1' has the shape {np.shape(place)}" in message
