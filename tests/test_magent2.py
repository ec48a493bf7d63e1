"""MAgent2's native calls against its own PettingZoo interface, over whole episodes."""

import importlib

import numpy as np
import pytest

from rllib_mfq.population.adapters import AgentDictPopulation
from rllib_mfq.population.magent2 import ENVIRONMENTS, magent2

SMALL = {  # agents meet, and some die, within few steps
    "battle_v4": {"map_size": 20, "max_cycles": 40},
    "battlefield_v5": {"map_size": 46, "max_cycles": 150},
    "adversarial_pursuit_v4": {"map_size": 20, "max_cycles": 25},
    "tiger_deer_v4": {"map_size": 20, "max_cycles": 60},
    "combined_arms_v6": {"map_size": 24, "max_cycles": 50},
    "gather_v5": {"max_cycles": 5},
}
MODES = {
    "plain": {},
    "minimap": {"minimap_mode": True},
    "features": {"extra_features": True},
    "both": {"minimap_mode": True, "extra_features": True},
}


class DictEnv:
    """MAgent2's PettingZoo interface, with its `reset` mended.

    It counts the teams before it places them, so that all teams read the actions of the first one
    in the first step of an episode.
    """

    def __init__(self, name, **arguments):
        module = importlib.import_module(f"magent2.environments.{name}")
        self.env = module.parallel_env(**arguments)

    def __getattr__(self, name):
        return getattr(self.env, name)

    def reset(self, seed=None):
        obs, infos = self.env.reset(seed=seed)
        self.env.team_sizes = [self.env.env.get_num(handle) for handle in self.env.handles]
        return obs, infos

    def positions(self):
        """Of everybody alive; MAgent2's own interface has no such thing."""
        engine, names = self.env.env, self.env.possible_agents
        return {
            names[i]: place
            for handle in self.env.handles
            for i, place in zip(engine.get_agent_id(handle), engine.get_pos(handle), strict=True)
        }


def offsets(radius):
    """The cells within a radius, in the order in which MAgent2 numbers its moves."""
    r = range(-3, 4)
    return np.array([(dx, dy) for dy in r for dx in r if dx * dx + dy * dy <= radius * radius])


def team(group):
    """The colour, where it has two groups."""
    return group.removesuffix("melee").removesuffix("ranged")


class Hunt:
    """Everybody chases the nearest agent of another team; one group also hits."""

    def __init__(self, name, seed, **arguments):
        self.rng = np.random.default_rng(seed)
        env = DictEnv(name, **arguments).env
        groups = list(dict.fromkeys(a.rsplit("_", 1)[0] for a in env.possible_agents))
        killer = {"adversarial_pursuit_v4": "predator", "tiger_deer_v4": "tiger"}
        self.hits, self.moves = {}, {}
        for group, handle in zip(groups, env.handles, strict=True):
            base, table = env.env.get_view2attack(handle)  # [view, view] the attack, or -1
            self.moves[group] = next(o for o in map(offsets, (1, 1.5, 2, 3)) if len(o) >= base)
            if group == killer.get(name, groups[0]):
                middle = np.array(table.shape) // 2
                self.hits[group] = {
                    tuple((cell - middle)[::-1]): base + table[tuple(cell)]
                    for cell in np.argwhere(table >= 0)
                }

    def __call__(self, rows):
        return {group: self.play(group, rows) for group in rows}

    def play(self, group, rows):
        moves, hits = self.moves[group], self.hits.get(group, {})
        actions = self.rng.integers(len(moves), size=len(rows[group].ids))
        prey = [r.positions for g, r in rows.items() if team(g) != team(group) or len(rows) == 1]
        prey = np.concatenate(prey)
        for row, place in enumerate(rows[group].positions):
            ways = prey[(prey != place).any(1)] - place
            if len(ways) and self.rng.random() < 0.5:  # chance leads around walls
                way = ways[np.abs(ways).sum(1).argmin()]
                closest = np.abs(way - moves).sum(1).argmin()
                actions[row] = hits.get(tuple(way), closest)
        return actions


def observations(population, group, n):
    out = np.empty((n, *population.groups[group].observation_space.shape), np.float32)
    population.observe(group, out)
    return out


def compare(population, env, hunt, seed):
    """Plays one episode on both.

    Returns:
        (deaths that others survived, steps, whether it ended by extinction).
    """
    rows = population.reset(seed=seed)
    obs, _ = env.reset(seed=seed)
    names = env.possible_agents
    deaths = steps = 0
    while True:
        places = env.positions()
        for group, r in rows.items():
            agents = [names[i] for i in r.ids]
            assert agents == [a for a in env.agents if a.rsplit("_", 1)[0] == group]
            np.testing.assert_array_equal(r.positions, [places[a] for a in agents] or r.positions)
            seen = observations(population, group, len(agents))
            np.testing.assert_array_equal(seen, [obs[a] for a in agents] or seen)
        actions = hunt(rows)
        acting = {group: [names[i] for i in r.ids] for group, r in rows.items()}
        flat = {
            a: int(action)
            for group, agents in acting.items()
            for a, action in zip(agents, actions[group], strict=True)
        }
        obs, rewards, terminations, truncations, _ = env.step(flat)
        result = population.step(actions)
        steps += 1
        for group, step in result.items():
            agents = acting[group]
            assert step.rewards.tolist() == [np.float32(rewards[a]) for a in agents]
            assert step.terminated.tolist() == [terminations[a] for a in agents]
            assert step.truncated.tolist() == [truncations[a] for a in agents]
            deaths += int(step.terminated.sum()) if env.agents else 0
            rows[group] = step.rows
        if not env.agents:  # the truncated ones are still seen once
            for group, r in rows.items():
                living = [a for a in acting[group] if not terminations[a]]
                assert [names[i] for i in r.ids] == living
                seen = observations(population, group, len(living))
                np.testing.assert_array_equal(seen, [obs[a] for a in living] or seen)
            extinct = not any(len(r.ids) for r in rows.values())
            assert extinct or all(step.truncated.all() for step in result.values())
            return deaths, steps, extinct


def both(name, **arguments):
    """(native population, dict environment, who plays)."""
    arguments = SMALL[name] | arguments
    return magent2(name, **arguments), DictEnv(name, **arguments), Hunt(name, 0, **arguments)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_arrays_equal_the_dicts_over_several_episodes_of_one_environment(name, mode):
    short = {"max_cycles": 3} if name == "gather_v5" and mode != "plain" else {}
    population, env, hunt = both(name, **MODES[mode], **short)
    assert list(population.groups) == list(hunt.moves)
    for group, (observation_space, action_space) in population.groups.items():
        agent = next(a for a in env.possible_agents if a.rsplit("_", 1)[0] == group)
        assert observation_space == env.observation_space(agent)
        assert action_space == env.action_space(agent)
    # The second episode lets the random numbers run on, the third restarts them.
    seeds = (5, None, 6) if mode == "plain" else (5, None)
    episodes = [compare(population, env, hunt, seed) for seed in seeds]
    deaths = sum(dead for dead, _, _ in episodes)
    assert deaths > 0 or name == "adversarial_pursuit_v4"  # in which nobody can die


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("battle_v4", {"step_reward": 0.25, "dead_penalty": -3.0, "attack_opponent_reward": 1.5}),
        ("battlefield_v5", {"step_reward": 0.125}),
        ("adversarial_pursuit_v4", {"tag_penalty": -7.0}),
        ("tiger_deer_v4", {"tiger_step_recover": -0.5, "deer_attacked": -4.0}),
        ("combined_arms_v6", {"step_reward": 0.75}),
        ("gather_v5", {"step_reward": 0.5, "max_cycles": 2}),
    ],
)
def test_custom_arguments_reach_the_environment(name, arguments):
    population, env, hunt = both(name, **arguments)
    compare(population, env, hunt, seed=2)
    totals = []
    for extra in ({}, arguments):
        population = magent2(name, **SMALL[name] | {"max_cycles": 30} | extra)
        played = play(population, Hunt(name, 0, **SMALL[name]), seed=2, steps=30)
        totals.append(sum(step.rewards.sum() for p in played for step in p.values()))
    assert totals[0] != totals[1]


def test_an_attack_on_nobody_costs_the_attack_penalty():
    population = magent2("battle_v4", map_size=20, step_reward=0.5, attack_penalty=-2.0)
    rows = population.reset(seed=0)
    attack = population.groups["red"].action_space.n - 1
    actions = {group: np.full(len(r.ids), attack) for group, r in rows.items()}
    step = population.step(actions | {"blue": np.full(len(rows["blue"].ids), 6)})  # 6 stays
    assert set(step["red"].rewards) == {-1.5} and set(step["blue"].rewards) == {0.5}


def play(population, hunt, seed=0, steps=10_000):
    """Plays one episode; returns its steps."""
    rows, played = population.reset(seed=seed), []
    while any(len(r.ids) for r in rows.values()) and len(played) < steps:
        played.append(population.step(hunt(rows)))
        rows = {group: step.rows for group, step in played[-1].items()}
        if all(step.truncated.all() for step in played[-1].values()):
            break
    return played


def test_extinction_terminates_everybody_and_max_cycles_truncates_the_living():
    arguments = SMALL["battle_v4"] | {"max_cycles": 500}
    hunt = Hunt("battle_v4", 0, **arguments)
    played = play(magent2("battle_v4", **arguments), hunt)
    assert len(played) < 500
    last = played[-1]
    assert len(last["red"].rewards) > 0 and last["red"].terminated.all()  # the winners, too
    assert all(len(step.rows.ids) == 0 for step in last.values())
    assert not any(step.truncated.any() for p in played for step in p.values())

    played = play(magent2("battle_v4", **arguments | {"max_cycles": 12}), hunt)
    assert len(played) == 12
    assert not any(step.truncated.any() for p in played[:-1] for step in p.values())
    for step in played[-1].values():
        assert step.truncated.all() and len(step.rows.ids) == np.count_nonzero(~step.terminated) > 0


@pytest.mark.parametrize(("name", "max_cycles"), [("battle_v4", 500), ("battlefield_v5", 150)])
def test_kills_are_the_enemys_losses_of_the_episode_and_survivors_what_is_left(name, max_cycles):
    arguments = SMALL[name] | {"max_cycles": max_cycles}
    population, hunt = magent2(name, **arguments), Hunt(name, 0, **arguments)
    for seed in (0, 1):
        began = {group: len(rows.ids) for group, rows in population.reset(seed=seed).items()}
        play(population, hunt, seed)
        result = population.result()
        assert result["kills"]["red"] == began["blue"] - result["survivors"]["blue"] > 0
        assert result["kills"]["blue"] == began["red"] - result["survivors"]["red"]
        assert name != "battle_v4" or result["survivors"]["blue"] == 0


def test_only_battles_have_kills():
    for name in ENVIRONMENTS[2:]:
        arguments = SMALL[name] | {"max_cycles": 2}
        population = magent2(name, **arguments)
        last = play(population, Hunt(name, 0, **arguments))[-1]
        alive = {group: len(step.rows.ids) for group, step in last.items()}
        assert population.result() == {"survivors": alive}


def test_a_seed_restarts_the_random_numbers_and_none_lets_them_run_on():
    population = magent2("adversarial_pursuit_v4", map_size=20)
    places = [population.reset(seed=seed)["prey"].positions for seed in (3, None, 4, 3)]
    np.testing.assert_array_equal(places[0], places[3])
    for other in places[1:3]:
        assert (places[0] != other).any()


@pytest.mark.parametrize("mode", ["plain", "both"])
def test_observing_twice_or_not_at_all_changes_nothing(mode):
    arguments = SMALL["battle_v4"] | MODES[mode]
    seen = []
    for often in (0, 1, 3):
        population, hunt = magent2("battle_v4", **arguments), Hunt("battle_v4", 0, **arguments)
        rows = population.reset(seed=1)
        for _ in range(15):
            for _ in range(often):
                observations(population, "blue", len(rows["blue"].ids))
            rows = {group: step.rows for group, step in population.step(hunt(rows)).items()}
        seen.append([observations(population, g, len(r.ids)) for g, r in rows.items()])
    for other in seen[1:]:
        for mine, theirs in zip(seen[0], other, strict=True):
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("mode", ["plain", "both"])
def test_after_extinction_nobody_observes(mode):
    """MAgent2 still has the winners, and would write their observations anywhere."""
    arguments = SMALL["battle_v4"] | MODES[mode] | {"max_cycles": 500}
    population = magent2("battle_v4", **arguments)
    play(population, Hunt("battle_v4", 0, **arguments))
    assert population.result()["survivors"]["red"] > 0
    beside = np.full((20, *population.groups["red"].observation_space.shape), 7, np.float32)
    population.observe("red", beside[:0])
    assert (beside == 7).all()


@pytest.mark.parametrize("name", ["battle_v4", "tiger_deer_v4", "combined_arms_v6"])
def test_the_generic_adapter_gives_the_same_rows_as_the_native_calls(name):
    native, env, hunt = both(name)
    generic = AgentDictPopulation(env)
    assert generic.groups == native.groups
    for seed in (0, None):
        rows = [population.reset(seed=seed) for population in (native, generic)]
        over = False
        while not over:
            for group, mine in rows[0].items():
                theirs, n = rows[1][group], len(mine.ids)
                assert mine.ids.tolist() == theirs.ids.tolist()
                np.testing.assert_array_equal(mine.positions, theirs.positions)
                np.testing.assert_array_equal(
                    observations(native, group, n), observations(generic, group, n)
                )
            over = all(len(r.ids) == 0 for r in rows[0].values())
            if over:
                break
            actions = hunt(rows[0])
            steps = [native.step(actions), generic.step(actions)]
            for group, mine in steps[0].items():
                theirs = steps[1][group]
                np.testing.assert_array_equal(mine.rewards, np.float32(theirs.rewards))
                np.testing.assert_array_equal(mine.terminated, theirs.terminated)
                np.testing.assert_array_equal(mine.truncated & ~mine.terminated, theirs.truncated)
            rows = [{group: step.rows for group, step in s.items()} for s in steps]
            over = all(step.truncated.all() for step in steps[0].values())


@pytest.mark.parametrize(
    ("name", "near"), [("battle_v3", "battle_v4"), ("gather", "gather_v5"), ("chess_v6", None)]
)
def test_an_unknown_environment_is_refused_with_the_nearest_name(name, near):
    with pytest.raises(ValueError) as error:
        magent2(name)
    message = str(error.value)
    assert repr(name) in message and message.count(".") == 1 and message.endswith(".")
    assert ("did you mean" in message) == (near is not None)
    assert near is None or f"did you mean {near!r}" in message


@pytest.mark.parametrize(
    ("name", "argument", "near"),
    [
        ("battle_v4", "mapsize", "map_size"),
        ("tiger_deer_v4", "deer_attack", "deer_attacked"),
        ("adversarial_pursuit_v4", "attack_penalty", None),  # battle has it
        ("gather_v5", "map_size", None),
    ],
)
def test_an_unknown_argument_is_refused_with_the_nearest_name(name, argument, near):
    with pytest.raises(ValueError) as error:
        magent2(name, **{argument: 1})
    message = str(error.value)
    assert name in message and repr(argument) in message and message.endswith(".")
    assert near is None or f"did you mean {near!r}" in message


@pytest.mark.parametrize(("argument", "value"), [("step_reward", "1e-3"), ("map_size", "20")])
def test_text_where_a_number_belongs_is_refused(argument, value):
    with pytest.raises(ValueError, match=f"battle_v4: {argument} is the string '{value}'"):
        magent2("battle_v4", **{argument: value})


def test_what_a_step_returned_is_not_overwritten_by_the_next_one():
    population = magent2("battle_v4", map_size=12, max_cycles=20)
    rows = population.reset(seed=0)
    kept, copies = [], []
    for action in range(8):
        steps = population.step({g: np.full(len(r.ids), 2 * action + 5) for g, r in rows.items()})
        rows = {group: step.rows for group, step in steps.items()}
        for step in steps.values():
            kept += [step.rewards, step.terminated, step.rows.ids, step.rows.positions]
        copies += [array.copy() for array in kept[len(copies) :]]
    for array, copy in zip(kept, copies, strict=True):
        np.testing.assert_array_equal(array, copy)
    assert len({each.tobytes() for each in copies[0::8]}) > 1  # rewards change
