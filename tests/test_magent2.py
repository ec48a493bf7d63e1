"""MAgent2's native calls against its own PettingZoo interface, over whole episodes."""

import importlib

import numpy as np

from rllib_mfq.population.magent2 import ENVIRONMENTS, magent2

SMALL = {  # with these, and actions biased towards attacks, agents die within few steps
    "battle_v4": {"map_size": 12, "max_cycles": 60},
    "battlefield_v5": {"max_cycles": 40},
    "adversarial_pursuit_v4": {"map_size": 14, "max_cycles": 25},
    "tiger_deer_v4": {"map_size": 14, "max_cycles": 60},
    "combined_arms_v6": {"map_size": 16, "max_cycles": 60},
    "gather_v5": {"max_cycles": 8},
}
DEADLY = [name for name in ENVIRONMENTS if name != "adversarial_pursuit_v4"]


def dict_env(name, **arguments):
    return importlib.import_module(f"magent2.environments.{name}").parallel_env(**arguments)


def dict_reset(env, seed):
    """Resets, and repairs MAgent2: it counts the teams before it places them (see below)."""
    obs, _ = env.reset(seed=seed)
    env.team_sizes = [env.env.get_num(handle) for handle in env.handles]
    return obs


def choose(rng, population, rows):
    """One group hits whomever it can reach; otherwise everybody acts at random."""
    actions = {
        g: rng.integers(population.groups[g].action_space.n, size=len(r.ids))
        for g, r in rows.items()
    }
    hunters = "tiger" if "tiger" in rows else next(iter(rows))
    engine, handle = population._engine, population._handles[hunters]
    base, table = engine.get_view2attack(handle)  # [view, view] the attack on a cell, or -1
    reach = {
        (y - len(table) // 2, x - len(table[0]) // 2): base + table[y, x]
        for y, x in np.argwhere(table >= 0)
    }
    enemies = [r.positions for g, r in rows.items() if g != hunters or len(rows) == 1]
    for row, place in enumerate(rows[hunters].positions):
        for dx, dy in np.concatenate(enemies) - place:
            actions[hunters][row] = reach.get((dy, dx), actions[hunters][row])
    return actions


def observations(population, group, n):
    out = np.empty((n, *population.groups[group].observation_space.shape), np.float32)
    population.observe(group, out)
    return out


def play_both(name, seed, population=None, env=None, **arguments):
    """Plays one episode on both interfaces; returns (deaths, steps, how it ended)."""
    arguments = SMALL[name] | arguments
    population = population or magent2(name, **arguments)
    env = env or dict_env(name, **arguments)
    rng = np.random.default_rng(seed)
    rows = population.reset(seed=seed)
    obs = dict_reset(env, seed)
    names = env.possible_agents
    deaths = steps = 0
    while True:
        for group, r in rows.items():
            agents = [names[i] for i in r.ids]
            assert agents == [a for a in env.agents if a.rsplit("_", 1)[0] == group]
            if agents:
                seen = observations(population, group, len(agents))
                np.testing.assert_array_equal(seen, np.stack([obs[a] for a in agents]))
            handle = population._handles[group]
            np.testing.assert_array_equal(r.positions, population._engine.get_pos(handle))
        assert sum(len(r.ids) for r in rows.values()) == len(env.agents)
        actions = choose(rng, population, rows)
        flat = {
            names[i]: int(a) for g in rows for i, a in zip(rows[g].ids, actions[g], strict=True)
        }
        obs, rewards, terminations, truncations, _ = env.step(flat)
        result = population.step(actions)
        steps += 1
        for group, step in result.items():
            agents = [names[i] for i in rows[group].ids]
            for mine, theirs in (
                (step.rewards, rewards),
                (step.terminated, terminations),
                (step.truncated, truncations),
            ):
                np.testing.assert_array_equal(mine, [theirs[a] for a in agents])
            deaths += step.terminated.sum()
            if step.truncated.any():
                last = [a for a in agents if not terminations[a]]
                seen = observations(population, group, len(last))
                np.testing.assert_array_equal(seen, np.stack([obs[a] for a in last]))
                np.testing.assert_array_equal(step.rows.ids, [names.index(a) for a in last])
        rows = {group: step.rows for group, step in result.items()}
        if not env.agents:
            extinct = not any(len(r.ids) for r in rows.values())
            assert extinct or all(s.truncated.all() for s in result.values())
            return deaths, steps, "extinction" if extinct else "max_cycles"
