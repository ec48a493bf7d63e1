"""The sampler against a plain loop that keeps one dict per agent and step."""

import functools

import gymnasium as gym
import numpy as np
import pytest

from rllib_mfq.mean_field.neighborhood import Neighborhood
from rllib_mfq.population.fragment import Episode
from rllib_mfq.population.magent2 import magent2
from rllib_mfq.population.player import Player
from rllib_mfq.population.population import Group, PopulationError, Rows, Step
from rllib_mfq.population.sampler import Sampler

SPECS = ["group", "none", "all", {"radius": 2.0}, {"nearest": 2}, "graph"]
LAYOUTS = {  # which player plays each group
    "one player": {"red": "shared", "blue": "shared"},
    "two players": {"red": "red", "blue": "blue"},
}


SIZES = {"red": 4, "blue": 4}


class Toy:
    """A script drawn from the index: deaths, births, cuts of single agents and of episodes.

    Args:
        index: of the population; different ones live differently.
        sizes: per group how many actions.
        masks: the groups for whom some actions are illegal.
        mean_length: of an episode.
    """

    def __init__(self, index=0, sizes=SIZES, masks=SIZES, mean_length=8):
        self.index, self.masks, self.mean_length = index, masks, mean_length
        self.sizes = sizes
        box = gym.spaces.Box(-np.inf, np.inf, (2, 2), np.float32)
        self.groups = {g: Group(box, gym.spaces.Discrete(a)) for g, a in self.sizes.items()}
        self.seeds, self.episode, self.closed = [], -1, False

    def reset(self, *, seed=None):
        self.seeds.append(seed)
        self.episode += 1
        self.rng = np.random.default_rng([self.index, self.episode])
        self.t, self.born, self.obs = 0, 0, {}
        self.ids = {group: self.births(4) for group in self.sizes}
        return {group: self.rows(group, self.ids[group]) for group in self.sizes}

    def births(self, most):
        n = int(self.rng.integers(1, most + 1))
        self.born += n
        return np.arange(self.born - n, self.born)

    def rows(self, group, ids):
        n = len(ids)
        self.obs[group] = self.rng.normal(size=(n, 2, 2)).astype(np.float32)
        mask = self.rng.random((n, self.sizes[group])) < 0.6
        mask[np.arange(n), self.rng.integers(self.sizes[group], size=n)] = True
        return Rows(
            ids,
            self.rng.uniform(0, 4, size=(n, 2)),
            mask if group in self.masks else None,
            np.argwhere(self.rng.random((n, n)) < 0.5),
        )

    def step(self, actions):
        self.t += 1
        over = self.rng.random() < 1 / self.mean_length
        kind = self.rng.random()  # of the end: everybody dies, is cut off, or some of each
        steps = {}
        for group, ids in self.ids.items():
            assert actions[group].shape == ids.shape
            n = len(ids)
            dead, cut = self.rng.random((2, n)) < 0.15
            if over:
                dead = np.full(n, kind < 0.3) | (dead & (kind > 0.6))
                cut = ~dead
            staying = ids[~dead]
            acting = ids[~dead & ~cut]
            born = self.births(2) if not over and self.rng.random() < 0.3 else ids[:0]
            rewards = self.rng.normal(size=n) + actions[group]
            rows = self.rows(group, np.append(staying, born))
            steps[group] = Step(rewards, dead, cut, rows)
            self.ids[group] = np.append(acting, born)
        return steps

    def observe(self, group, out):
        out[:] = self.obs[group]

    def result(self):
        return {"score": {group: float(self.t) for group in self.sizes}}

    def close(self):
        self.closed = True


class Chooser:
    """Plays a legal action that depends on everything it sees."""

    def __init__(self, num_actions):
        self.num_actions = num_actions

    def __call__(self, obs, mean_actions, action_mask):
        n, width = mean_actions.shape
        sums = obs.reshape(n, -1).astype(float).sum(1) + mean_actions @ np.arange(1.0, width + 1)
        number = np.round(100 * sums).astype(np.int64)
        if action_mask is None:
            return number % self.num_actions
        legal = [np.flatnonzero(mask) for mask in action_mask]
        return np.array([those[k % len(those)] for those, k in zip(legal, number, strict=True)])


def sampler_of(make, num_envs=1, layout=None, spec="group", iterations=1, sizes=SIZES, **arguments):
    hood = Neighborhood.parse(spec)
    layout = layout or LAYOUTS["two players"]
    players = {
        g: Player(name, Chooser(sizes[g]), hood, iterations_of(g, iterations))
        for g, name in layout.items()
    }
    return Sampler(make, num_envs, players, **{"seed": 0} | arguments)


# --- the reference --------------------------------------------------------------------------


def iterations_of(group, iterations):
    return iterations[group] if isinstance(iterations, dict) else iterations


def mean_over(actions, num_actions):
    mean = np.zeros(num_actions)
    for action in actions:
        mean[action] += 1 / len(actions)
    return mean


def neighbours_mean(agent, here, groups, spec):
    """The mean action of one agent, by asking all `here` who act in its population."""
    own = [o for o in here if o["group"] == agent["group"]]
    others = [o for o in own if o is not agent]
    if spec == "none":
        others = []
    elif spec == "graph":
        acting = {id(other) for other in own}
        others = [other for other in agent["neighbours"] if id(other) in acting]
    elif isinstance(spec, dict):
        distance = {id(o): np.linalg.norm(o["position"] - agent["position"]) for o in others}
        others = sorted(others, key=lambda o: distance[id(o)])
        if "radius" in spec:
            others = [o for o in others if distance[id(o)] <= spec["radius"]]
        else:
            others = others[: spec["nearest"]]
    mean = [mean_over([o["actions"] for o in others], groups[agent["group"]])]
    for name, size in groups.items():
        if spec == "all" and name != agent["group"]:
            mean.append(mean_over([o["actions"] for o in here if o["group"] == name], size))
    return np.concatenate(mean)


def by_hand(make, num_envs, spec, iterations, num_steps):
    """The table of rows of one long call: a list of dicts, each linked to its successor."""
    table, populations = [], [make(index) for index in range(num_envs)]
    groups = {g: int(v.action_space.n) for g, v in populations[0].groups.items()}
    acts = {group: Chooser(size) for group, size in groups.items()}
    width = {g: sum(groups.values()) if spec == "all" else groups[g] for g in groups}
    episodes, living = 0, [None] * num_envs

    def enter(index, rows_of, before):
        """The agents that observe; `before` maps (group, id) to the row they come from."""
        arrived = []
        for group, rows in rows_of.items():
            obs = np.empty((len(rows.ids), *populations[index].groups[group][0].shape), np.float32)
            populations[index].observe(group, obs)
            for i, agent_id in enumerate(rows.ids):
                source = before.get((group, int(agent_id)))
                row = {
                    "group": group,
                    "agent_index": int(agent_id),
                    "obs": obs[i],
                    "mean_actions": source["next_mean_actions"]
                    if source
                    else np.zeros(width[group]),
                    "next_mean_actions": np.zeros(width[group]),
                    "eps_id": episode_of[index],
                    "t": clock[index],
                    "position": None if rows.positions is None else rows.positions[i],
                    "neighbours": [],
                    "action_mask": None if rows.action_mask is None else rows.action_mask[i],
                    "actions": 0,
                    "rewards": 0.0,
                    "terminateds": False,
                    "loss_mask": False,
                    "successor": None,
                }
                if source:
                    source["successor"] = row
                arrived.append(row)
            for j, k in [] if rows.edges is None else rows.edges:
                first = len(arrived) - len(rows.ids)
                arrived[first + j]["neighbours"].append(arrived[first + k])
        table.extend(arrived)
        return arrived

    episode_of, clock = [None] * num_envs, [0] * num_envs

    def begin(index):
        nonlocal episodes
        episode_of[index], clock[index] = episodes, 0
        episodes += 1
        living[index] = enter(index, populations[index].reset(seed=None), {})

    for index in range(num_envs):
        begin(index)
    for _ in range(num_steps):
        for index in range(num_envs):
            for iteration in range(3):
                for agent in living[index]:
                    if iteration >= iterations_of(agent["group"], iterations):
                        continue
                    if iteration:
                        agent["mean_actions"] = agent["next_mean_actions"]
                    mask = agent["action_mask"]
                    seen = np.float32(agent["mean_actions"])[None]
                    (action,) = acts[agent["group"]](
                        agent["obs"][None], seen, None if mask is None else mask[None]
                    )
                    agent["actions"] = int(action)
                for agent in living[index]:
                    agent["next_mean_actions"] = neighbours_mean(agent, living[index], groups, spec)
            actions = {
                g: np.array([a["actions"] for a in living[index] if a["group"] == g], int)
                for g in groups
            }
            steps = populations[index].step(actions)
            clock[index] += 1
            before, last = {}, set()
            for group, step in steps.items():
                mine = [a for a in living[index] if a["group"] == group]
                for agent, reward, dead, cut in zip(
                    mine, step.rewards, step.terminated, step.truncated, strict=True
                ):
                    agent["loss_mask"] = True
                    agent["rewards"], agent["terminateds"] = float(reward), bool(dead)
                    before[group, agent["agent_index"]] = agent
                    if cut:
                        last.add((group, agent["agent_index"]))
            arrived = enter(index, {g: step.rows for g, step in steps.items()}, before)
            living[index] = [a for a in arrived if (a["group"], a["agent_index"]) not in last]
            if not living[index]:
                begin(index)
    return table


KEY = ("eps_id", "t", "group", "agent_index")
VALUES = ("actions", "rewards", "terminateds", "loss_mask", "mean_actions", "next_mean_actions")


def same_rows(fragments, table, layout, groups):
    """Asserts that fragments, joined, are the table: equal rows with equal successors."""
    numbers = {group: index for index, group in enumerate(groups)}
    expected = {
        tuple(numbers[row[k]] if k == "group" else row[k] for k in KEY): row for row in table
    }
    assert len(expected) == len(table)
    found = set()
    for columns in fragments:
        for name, data in columns.items():
            for i in range(len(data["actions"])):
                key = tuple(int(data[k][i]) for k in KEY)
                row = expected[key]
                assert layout[row["group"]] == name
                np.testing.assert_array_equal(data["obs"][i], row["obs"])
                if "action_mask" in data:
                    mask = True if row["action_mask"] is None else row["action_mask"]
                    np.testing.assert_array_equal(data["action_mask"][i], mask)
                # At the end of a fragment a row is known by its observation only.
                if not data["loss_mask"][i]:
                    assert not data["next_mean_actions"][i].any() and data["next_row"][i] == -1
                    continue
                assert key not in found
                found.add(key)
                for column in VALUES:
                    np.testing.assert_allclose(data[column][i], row[column], atol=1e-6)
                after = data["next_row"][i]
                if row["successor"] is None:
                    assert after == -1 and data["terminateds"][i]
                else:
                    assert i < after < len(data["actions"])
                    successor = row["successor"]
                    np.testing.assert_array_equal(data["obs"][after], successor["obs"])
                    for k in KEY:
                        value = successor[k] if k != "group" else numbers[successor[k]]
                        assert data[k][after] == value
                    if not data["loss_mask"][after]:
                        mean = data["mean_actions"][after]
                        np.testing.assert_allclose(mean, row["next_mean_actions"], atol=1e-6)
    assert found == {key for key, row in expected.items() if row["loss_mask"]}


def copied(fragment):
    return {
        name: {key: column.copy() for key, column in data.items()}
        for name, data in fragment.columns.items()
    }


# --- fragments ------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize(("num_envs", "iterations"), [(1, 1), (3, 1), (3, 3)])
def test_fragments_equal_the_loop_over_dicts(spec, layout, num_envs, iterations):
    sampler = sampler_of(Toy, num_envs, layout, spec, iterations)
    fragments = [copied(sampler.sample(num_steps=n)) for n in (1, 17, 2, 20)]
    same_rows(fragments, by_hand(Toy, num_envs, spec, iterations, 40), layout, Toy().groups)


def test_where_one_group_of_a_player_has_masks_the_other_may_do_everything():
    def make(index):
        return Toy(index, masks=["blue"])

    layout = LAYOUTS["one player"]
    fragments = [copied(sampler_of(make, 2, layout).sample(num_steps=30))]
    same_rows(fragments, by_hand(make, 2, "group", 1, 30), layout, SIZES)
    assert not fragments[0]["shared"]["action_mask"].all()


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_agents_carry_what_their_player_names_from_step_to_step(layout):
    """Against a loop over every agent's life: a row holds what its agent did the step before."""
    carried = {"last_actions": "actions", "last_rewards": "rewards"}
    sampler, hood = sampler_of(Toy, 3), Neighborhood.parse("group")
    players = {name: Player(name, Chooser(4), hood, carried=carried) for name in layout.values()}
    sampler.assign({group: players[name] for group, name in layout.items()})
    numbers = {group: index for index, group in enumerate(SIZES)}

    def key_of(row):
        return row["eps_id"], row["t"], numbers[row["group"]], row["agent_index"]

    table = by_hand(Toy, 3, "group", 1, 40)
    before = {key_of(row["successor"]): row for row in table if row["successor"]}
    found, met = set(), set()
    for steps in (1, 17, 2, 20):
        for data in sampler.sample(num_steps=steps).columns.values():
            assert data["last_actions"].dtype == np.int32
            assert data["last_rewards"].dtype == np.float32
            for i in range(len(data["actions"])):
                key = tuple(int(data[k][i]) for k in KEY)
                source = before.get(key, {"actions": 0, "rewards": 0.0})
                assert data["last_actions"][i] == source["actions"]
                assert data["last_rewards"][i] == np.float32(source["rewards"])
                found.add(key)
                met.add((key in before, key[1] > 0, i in data["next_row"]))
    assert found == {key_of(row) for row in table}
    entered, born, over_a_border = (False, False, False), (False, True, False), (True, True, False)
    assert met == {entered, born, over_a_border, (True, True, True)}


def test_players_may_differ_in_their_mean_action_iterations():
    iterations, layout = {"red": 1, "blue": 3}, LAYOUTS["two players"]
    sampler = sampler_of(Toy, 2, layout, "all", iterations)
    fragments = [copied(sampler.sample(num_steps=30))]
    same_rows(fragments, by_hand(Toy, 2, "all", iterations, 30), layout, SIZES)


def test_the_script_holds_every_kind_of_life():
    table = by_hand(Toy, 3, "group", 1, 40)
    acting = [row for row in table if row["loss_mask"]]
    assert any(row["terminateds"] for row in acting)
    ends = {row["eps_id"]: 0 for row in acting}
    for row in acting:
        ends[row["eps_id"]] = max(ends[row["eps_id"]], row["t"])
    assert len(ends) > 9
    cut = [row for row in acting if row["successor"] and not row["successor"]["loss_mask"]]
    assert any(row["t"] < ends[row["eps_id"]] for row in cut)  # an agent
    assert any(row["t"] == ends[row["eps_id"]] for row in cut)  # an episode
    entered = {id(row["successor"]) for row in acting}
    assert any(id(row) not in entered and row["t"] > 0 for row in acting)
    moments = {(row["eps_id"], row["t"]) for row in acting}
    both = [{r["group"] for r in acting if (r["eps_id"], r["t"]) == m} for m in moments]
    assert any(len(groups) == 1 for groups in both)  # the other one is extinct


@pytest.mark.parametrize("masks", [["red", "blue"], ["blue"], []], ids=str)
@pytest.mark.parametrize("spec", ["all", "group"])
def test_groups_may_differ_in_their_actions(masks, spec):
    sizes = {"red": 2, "blue": 5}

    def make(index):
        return Toy(index, sizes, masks)

    sampler = sampler_of(make, 2, spec=spec, sizes=sizes)
    fragments = [copied(sampler.sample(num_steps=20)) for _ in range(2)]
    same_rows(fragments, by_hand(make, 2, spec, 1, 40), LAYOUTS["two players"], sizes)
    for name, data in fragments[0].items():
        assert ("action_mask" in data) == (name in masks)
        assert data["mean_actions"].shape[1] == (7 if spec == "all" else sizes[name])


class Battle:
    """A small battle that ignores the sampler's seeds."""

    def __init__(self, index):
        self.battle = magent2("battle_v4", map_size=16, max_cycles=9)
        self.groups, self.seed = self.battle.groups, index
        self.step, self.observe = self.battle.step, self.battle.observe

    def reset(self, *, seed=None):
        seed, self.seed = self.seed, None
        return self.battle.reset(seed=seed)


@pytest.mark.parametrize("spec", ["group", {"radius": 3}], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_fragments_of_battles_equal_the_loop_over_dicts(spec, layout):
    sampler = sampler_of(Battle, 2, layout, spec, sizes={"red": 21, "blue": 21})
    fragments = [copied(sampler.sample(num_steps=n)) for n in (12, 13)]
    same_rows(fragments, by_hand(Battle, 2, spec, 1, 25), layout, Battle(0).groups)


@pytest.mark.parametrize("num_envs", [1, 3])
def test_the_counts_are_those_of_the_rows(num_envs):
    sampler = sampler_of(Toy, num_envs, LAYOUTS["one player"])
    for steps in (1, 9, 30):
        fragment = sampler.sample(num_steps=steps)
        assert fragment.env_steps == steps * num_envs
        data = fragment.columns["shared"]
        acted = np.bincount(data["group"][data["loss_mask"]], minlength=2)
        assert list(fragment.agent_steps.values()) == acted.tolist()


def test_memory_is_reused_between_calls():
    sampler = sampler_of(Toy, 2)
    for _ in range(3):
        first = sampler.sample(num_steps=30).columns["red"]
    second = sampler.sample(num_steps=1).columns["red"]
    for name, column in second.items():
        assert np.shares_memory(column, first[name])


def test_the_dtypes_and_shapes_are_those_of_the_contract():
    data = sampler_of(Toy).sample(num_steps=5).columns["red"]
    n = len(data["actions"])
    assert {name: (c.dtype.name, c.shape[1:]) for name, c in data.items()} == {
        "obs": ("float32", (2, 2)),
        "actions": ("int32", ()),
        "rewards": ("float32", ()),
        "terminateds": ("bool", ()),
        "mean_actions": ("float32", (4,)),
        "next_mean_actions": ("float32", (4,)),
        "next_row": ("int32", ()),
        "eps_id": ("int64", ()),
        "t": ("int32", ()),
        "group": ("int32", ()),
        "agent_index": ("int32", ()),
        "loss_mask": ("bool", ()),
        "action_mask": ("bool", (4,)),
    }
    assert all(len(column) == n for column in data.values())


# --- episodes -------------------------------------------------------------------------------


def figures(fragment):
    return [(e.id_, e.env_index, e.length, e.returns, e.result) for e in fragment.episodes]


def test_episodes_carry_what_happened():
    fragment = sampler_of(Toy, 3).sample(num_steps=40)
    table = by_hand(Toy, 3, "group", 1, 40)
    assert len(fragment.episodes) > 9
    for episode in fragment.episodes:
        rows = [row for row in table if row["eps_id"] == episode.id_ and row["loss_mask"]]
        assert episode.is_done
        assert episode.length == episode.env_steps() == max(row["t"] for row in rows) + 1
        for group, value in episode.returns.items():
            mine = sum(row["rewards"] for row in rows if row["group"] == group)
            assert value == pytest.approx(mine, abs=1e-4)
        assert episode.get_return() == pytest.approx(sum(r["rewards"] for r in rows), abs=1e-4)
        assert episode.result == {"score": dict.fromkeys(("red", "blue"), episode.length)}


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize(
    ("num_episodes", "shares"), [(7, [3, 2, 2]), (3, [1, 1, 1]), (1, [1, 0, 0]), (2, [1, 1, 0])]
)
def test_exactly_so_many_whole_episodes_spread_evenly(num_episodes, shares, keep):
    sampler = sampler_of(Toy, 3)
    sampler.sample(num_steps=3)  # whose episodes are abandoned
    fragment = sampler.sample(num_episodes=num_episodes, keep=keep)
    assert len(fragment.episodes) == num_episodes
    played = [e.env_index for e in fragment.episodes]
    assert np.bincount(played, minlength=3).tolist() == shares
    assert fragment.env_steps == sum(e.length for e in fragment.episodes)
    ids = {e.id_ for e in fragment.episodes}
    for data in fragment.columns.values():
        acted = data["loss_mask"]
        assert set(data["eps_id"]) == ids
        first = {i: data["t"][data["eps_id"] == i].min() for i in ids}
        assert set(first.values()) == {0}
        assert (data["terminateds"] | (data["next_row"] >= 0))[acted].all()
    later = sampler.sample(num_steps=1)
    for data in later.columns.values():
        assert (data["t"][data["loss_mask"]] == 0).all() and not ids & set(data["eps_id"])


def test_without_keeping_rows_the_episodes_are_the_same_and_memory_stays_small():
    kept, sizes = sampler_of(Toy, 3), []
    thrown = sampler_of(Toy, 3)
    chooser = Chooser(4)

    def act(obs, mean_actions, action_mask):
        sizes.append((len(obs), len(obs.base)))
        return chooser(obs, mean_actions, action_mask)

    player = Player("all", act, Neighborhood.parse("group"))
    thrown.assign({"red": player, "blue": player})
    for call in ({"num_steps": 5}, {"num_steps": 200}, {"num_episodes": 8}, {"num_steps": 5}):
        with_rows, without = kept.sample(**call), thrown.sample(**call, keep=False)
        assert figures(with_rows) == figures(without)
        assert with_rows.agent_steps == without.agent_steps
        assert without.columns == {}
    most, held = np.array(sizes).max(0)
    assert held <= 8 * most < sum(n for n, _ in sizes) / 10


def test_fresh_starts_all_episodes_anew():
    sampler = sampler_of(Toy, 3)
    before = copied(sampler.sample(num_steps=2))["red"]
    data = sampler.sample(num_steps=1, fresh=True).columns["red"]
    assert (data["t"][data["loss_mask"]] == 0).all()
    assert not set(data["eps_id"]) & set(before["eps_id"])
    assert not data["mean_actions"][data["loss_mask"]].any()


def test_assign_hands_the_groups_to_other_players_from_a_fresh_start():
    sampler = sampler_of(Toy, 2)
    ids = set(sampler.sample(num_steps=4).columns["red"]["eps_id"])
    hood = Neighborhood.parse("none")
    calls = []

    def constant(obs, mean_actions, action_mask):
        calls.append(len(obs))
        return action_mask.argmax(1)

    sampler.assign({"red": Player("mine", constant, hood), "blue": Player("its", constant, hood)})
    fragment = sampler.sample(num_steps=10)
    assert list(fragment.columns) == ["mine", "its"]
    data = fragment.columns["mine"]
    assert not ids & set(data["eps_id"]) and data["t"].min() == 0
    assert sum(calls) == sum(fragment.agent_steps.values())
    acted = data["loss_mask"]
    np.testing.assert_array_equal(data["actions"][acted], data["action_mask"][acted].argmax(1))
    assert not data["next_mean_actions"].any()


def test_every_population_gets_its_own_seed_once():
    samplers = [sampler_of(Toy, 3, seed=seed) for seed in (7, 7, 8)]
    for sampler in samplers:
        sampler.sample(num_episodes=6)
    seeds = [[p.seeds for p in sampler.populations] for sampler in samplers]
    assert seeds[0] == seeds[1]
    firsts = [own[0] for sampler in (seeds[0], seeds[2]) for own in sampler]
    assert len(set(firsts)) == 6
    assert all(own[1:] == [None] and 0 <= own[0] < 2**31 for own in seeds[0])


def test_events_come_in_order():
    events = []
    sampler = sampler_of(Toy, on_event=lambda event, episode: events.append((event, episode.id_)))
    lengths = [e.length for e in sampler.sample(num_episodes=3).episodes]
    expected = []
    for i, length in enumerate(lengths):
        names = ["created", "start", *["step"] * length, "end"]
        expected += [(name, i) for name in names]
    assert events == expected


def test_closing_the_sampler_closes_the_populations():
    sampler = sampler_of(Toy, 2)
    sampler.close()
    assert all(population.closed for population in sampler.populations)
    sampler_of(Battle).close()  # which has no `close`


@pytest.mark.parametrize(
    ("result", "shares"),
    [
        ({"score": {"red": 2, "blue": 1}, "kills": {"red": 0, "blue": 9}}, [1, 0]),
        ({"kills": {"red": 3, "blue": 3}}, [0.5, 0.5]),
        ({}, [0, 1]),  # by the returns
    ],
)
def test_the_win_goes_to_the_best_score_kills_or_return(result, shares):
    episode = Episode(0, 0, {"red": -1.0, "blue": 2.0}, result=result)
    assert list(episode.shares().values()) == shares


# --- what cannot be learned from --------------------------------------------------------------


class Spoilt(Toy):
    """Spoils what the third step of its first episode, which is a long one, returns."""

    def __init__(self, index, spoil):
        super().__init__(index, mean_length=1000)
        self.spoil = spoil

    def step(self, actions):
        steps = super().step(actions)
        if self.t == 3 and self.episode == 0:
            self.spoil(steps, self.obs)
        return steps


def value(column, row, value):
    def spoil(steps, obs):
        (obs["blue"] if column == "obs" else getattr(steps["blue"], column))[row] = value

    return spoil


def last(spoil):
    """The same where it is the last observation: everybody is cut off."""

    def spoil_last(steps, obs):
        for step in steps.values():
            step.truncated = np.ones_like(step.truncated)
            step.rows = step.rows.select(np.arange(len(step.rows.ids)) < np.sum(~step.terminated))
        for group, step in steps.items():
            obs[group] = obs[group][: len(step.rows.ids)]
        spoil(steps, obs)

    return spoil_last


def change(column, make):
    def spoil(steps, obs):
        step = steps["blue"]
        holder = step if hasattr(step, column) else step.rows
        setattr(holder, column, make(getattr(holder, column)))

    return spoil


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (value("rewards", 1, np.nan), "reward of row 1 is nan"),
        (value("rewards", 0, -np.inf), "reward of row 0 is -inf"),
        (value("rewards", 0, 1e39), "reward of row 0 is 1e"),
        (value("obs", (0, 1, 1), np.nan), "row 0 is not finite"),
        (value("obs", (0, 0, 0), np.inf), "row 0 is not finite"),
        (last(value("obs", (0, 0, 0), np.nan)), "row 0 is not finite"),
        (change("rewards", lambda r: r[:-1]), "rewards has shape"),
        (change("rewards", lambda r: r[:, None]), "rewards has shape"),
        (change("rewards", lambda r: 1.0), "rewards is of type float, expected an array of real"),
        (change("rewards", lambda r: r.tolist()), "rewards is of type list"),
        (change("rewards", lambda r: r.astype(str)), "rewards is of type <U"),
        (change("rewards", lambda r: r.astype(complex)), "rewards is of type complex128"),
        (change("rewards", lambda r: r.astype(object)), "rewards is of type object"),
        (change("terminated", lambda r: np.append(r, True)), "terminated has shape"),
        (change("terminated", lambda r: r.astype(int)), "terminated is of type int64, .* of bool"),
        (change("terminated", lambda r: r.astype(str)), "terminated is of type <U5"),
        (change("truncated", lambda r: True), "truncated is of type bool, .* an array of bool"),
        (change("truncated", lambda r: None), "truncated is of type NoneType"),
        (change("ids", lambda i: i[:0]), "positions has shape"),
        (change("ids", lambda i: i[:, None]), "ids has shape"),
        (change("rows", lambda r: Rows(np.zeros(0, int))), "are to observe but only 0 do"),
        (change("ids", lambda i: i + 0.5), "ids is of type float64, expected an array of integers"),
        (change("positions", lambda p: p[:, 0]), "positions has shape"),
        (change("positions", lambda p: p.astype(str)), "positions is of type <U32"),
        (change("action_mask", lambda m: m.astype(str)), "action_mask is of type <U5"),
        (change("edges", lambda e: e.astype(float)), "edges is of type float64"),
        (change("action_mask", lambda m: m[:, :-1]), "action_mask has shape"),
        (change("action_mask", lambda m: m[0]), "action_mask has shape"),
        (change("action_mask", np.zeros_like), "row 0 has no legal action"),
        (change("edges", lambda e: np.array([[0, 99]])), "edges has row numbers from 0 to 99"),
        (change("edges", lambda e: np.array([[-1, 0]])), "edges has row numbers from -1 to 0"),
        (change("edges", lambda e: np.array([0, 1, 0])), "edges has shape"),
    ],
)
def test_nothing_that_cannot_be_learned_from_gets_out(spoil, message, keep):
    sampler = sampler_of(lambda i: Spoilt(i, spoil), 2, restart_failed=True)
    sampler.sample(num_steps=2, keep=keep)
    with pytest.raises(PopulationError, match=message) as error:
        sampler.sample(num_steps=5, keep=keep)
    assert "'blue'" in str(error.value) and "step 3" in str(error.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, None])
@pytest.mark.parametrize("spec", [{"radius": 2.0}, {"nearest": 2}])
def test_positions_that_a_neighborhood_needs_must_be_there_and_finite(spec, bad):
    def spoil(steps, obs):
        rows = steps["blue"].rows
        if bad is None:
            rows.positions = None
        else:
            rows.positions[-1, 1] = bad

    sampler = sampler_of(lambda i: Spoilt(i, spoil), 2, spec=spec)
    with pytest.raises(PopulationError, match=r"0, group 'blue', step 3: positions is .*finite"):
        sampler.sample(num_steps=5)
    sampler_of(lambda i: Spoilt(i, spoil), 2, spec="group").sample(num_steps=5)  # nobody needs them


@pytest.mark.parametrize(
    ("method", "result", "message"),
    [
        ("step", None, "step 1: step must return a Step for each of .* returned a NoneType"),
        ("step", {}, r"step 1: step must return a Step .* but returned \[\]"),
        ("step", {"red": 1}, r"step 1: step .* but returned \['red'\]"),
        ("step", {"red": None, "blue": None}, "step 1: step .* but 'red' is a NoneType"),
        ("reset", None, "step 0: reset must return a Rows for each of .* returned a NoneType"),
        ("reset", {"red": 0, "blue": 0, "grey": 0}, "step 0: reset .*, but returned .*'grey'"),
        ("reset", {"red": [0], "blue": [1]}, "step 0: reset .* but 'red' is a list"),
    ],
)
@pytest.mark.parametrize("restart_failed", [False, True])
def test_what_a_population_forgets_to_return_is_no_signal(method, result, message, restart_failed):
    def make(index):
        toy = Toy(index)
        setattr(toy, method, lambda *args, **kwargs: result)
        return toy

    with pytest.raises(PopulationError, match=f"population 0, {message}"):
        sampler_of(make, restart_failed=restart_failed).sample(num_steps=3)


def test_an_observation_of_another_type_names_population_group_and_step():
    class Words(Toy):
        def observe(self, group, out):
            out[:] = "high"

    with pytest.raises(PopulationError, match="population 0, group 'red', step 0: observe raised"):
        sampler_of(Words).sample(num_steps=1)


def test_misshapen_rows_of_a_reset_are_refused():
    class Misshapen(Toy):
        def reset(self, *, seed=None):
            rows = super().reset(seed=seed)
            rows["blue"].action_mask = rows["blue"].action_mask[:, :2]
            return rows

    with pytest.raises(PopulationError, match="population 0, group 'blue', step 0: action_mask"):
        sampler_of(Misshapen).sample(num_steps=1)


def test_a_population_that_says_what_is_wrong_with_it_is_not_made_anew():
    made = []

    def make(index):
        def spoil(steps, obs):
            raise PopulationError("agent 'blue_3' has no reward.")

        made.append(index)
        return Spoilt(index, spoil)

    with pytest.raises(PopulationError, match="blue_3"):
        sampler_of(make, restart_failed=True).sample(num_steps=5)
    assert made == [0]


def test_after_an_error_all_episodes_start_anew():
    spoil = value("rewards", 0, np.nan)
    sampler = sampler_of(lambda i: Spoilt(i, spoil) if i == 1 else Toy(i), 2)
    before = set(sampler.sample(num_steps=2).columns["red"]["eps_id"])
    with pytest.raises(PopulationError):
        sampler.sample(num_steps=5)
    data = sampler.sample(num_steps=3).columns["red"]
    assert not before & set(data["eps_id"]) and data["t"].min() == 0


# --- populations that raise ----------------------------------------------------------------------


class Flaky(Toy):
    """Raises where it is told to; `made` counts how often each population was made."""

    def __init__(self, index, made, fails):
        super().__init__(index, mean_length=6)
        self.number = made[index] = made.get(index, -1) + 1
        self.fails = fails.get((index, self.number))  # (method, episode, step)

    def reset(self, *, seed=None):
        self.fail("reset", self.episode + 1, 0)
        return super().reset(seed=seed)

    def step(self, actions):
        self.fail("step", self.episode, self.t)
        return super().step(actions)

    def fail(self, *here):
        if here == self.fails:
            raise OSError("lost the game server")

    def close(self):
        super().close()
        raise OSError("lost the game server")


class Steady(Toy):
    """Nobody dies; the first of the populations with the number 1 breaks after 60 steps."""

    def __init__(self, index, made):
        super().__init__(index)
        made.append(index)
        self.breaks = made.count(1) == 1 and index == 1

    def step(self, actions):
        self.t += 1
        if self.t == 60 and self.breaks:
            raise OSError("lost the game server")
        steps = {}
        for group, ids in self.ids.items():
            nobody = np.zeros(len(ids), bool)
            steps[group] = Step(np.zeros(len(ids)), nobody, nobody, self.rows(group, ids))
        return steps


def flaky(fails, **arguments):
    made = {}
    return sampler_of(lambda i: Flaky(i, made, fails), 3, restart_failed=True, **arguments), made


@pytest.mark.parametrize("method", ["reset", "step"])
def test_a_population_that_raises_is_passed_on_unless_restarts_are_wanted(method):
    made = {}
    fails = {(1, 0): (method, 0, 0)}
    with pytest.raises(OSError, match="game server"):
        sampler_of(lambda i: Flaky(i, made, fails), 3).sample(num_steps=3)
    assert set(made.values()) == {0}


def test_a_population_that_raises_is_made_anew_and_its_rows_are_dropped():
    events = []
    fails = {(1, 0): ("step", 1, 2)}
    sampler, made = flaky(fails, on_event=lambda *event: events.append(event))
    first = sampler.populations[1]
    fragment = sampler.sample(num_steps=30)
    assert fragment.failures == 1 and made == {0: 0, 1: 1, 2: 0}
    assert sampler.populations[1] is not first and first.closed
    lost = [e.id_ for event, e in events if event == "start" and e.env_index == 1][1]
    for group, data in fragment.columns.items():
        acted = data["loss_mask"]
        assert lost not in data["eps_id"][acted] and lost in data["eps_id"]
        assert fragment.agent_steps[group] == np.count_nonzero(acted)
        assert (data["terminateds"] | (data["next_row"] >= 0))[acted].all()
    assert lost not in [e.id_ for e in fragment.episodes]
    assert first.seeds[0] is not None and sampler.populations[1].seeds[0] is not None
    assert first.seeds[0] != sampler.populations[1].seeds[0]
    later = sampler.sample(num_steps=30)
    assert later.failures == 0 and {e.env_index for e in later.episodes} == {0, 1, 2}


def test_only_the_rows_of_the_population_that_raised_are_lost():
    fragments = [flaky(fails)[0].sample(num_steps=9) for fails in ({}, {(1, 0): ("step", 0, 2)})]
    whole, partial = (copied(fragment)["red"] for fragment in fragments)
    for t in range(9):
        kept = [data["loss_mask"] & (data["t"] == t) for data in (whole, partial)]
        others = [
            k & np.isin(d["eps_id"], (0, 2)) for k, d in zip(kept, (whole, partial), strict=True)
        ]
        np.testing.assert_array_equal(whole["obs"][others[0]], partial["obs"][others[1]])
    assert (whole["eps_id"][whole["loss_mask"]] == 1).any()
    assert not (partial["eps_id"][partial["loss_mask"]] == 1).any()


def test_what_earlier_fragments_hold_of_a_failed_episode_stays_and_is_not_counted_again():
    sampler, _ = flaky({(1, 0): ("step", 0, 3)}, layout=LAYOUTS["one player"])
    sampler.sample(num_steps=2)
    fragment = sampler.sample(num_steps=40)
    assert fragment.failures == 1
    data = fragment.columns["shared"]
    assert sum(fragment.agent_steps.values()) == np.count_nonzero(data["loss_mask"])
    played = [e.env_index for e in fragment.episodes]
    assert min(np.bincount(played, minlength=3)) > 1  # it goes on after the failure


def test_without_keeping_rows_a_dropped_episode_is_not_counted_either():
    """The first rows of the episode are gone from memory when it fails."""
    counts = []
    for keep in (True, False):
        make = functools.partial(Steady, made=[])
        sampler = sampler_of(make, 3, restart_failed=True)
        fragment = sampler.sample(num_steps=90, keep=keep)
        assert fragment.failures == 1
        counts.append(fragment.agent_steps)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize(
    "fails", [("reset", 0, 0), ("reset", 1, 0), ("step", 0, 0), ("step", 1, 1)]
)
def test_the_number_of_episodes_is_exact_even_if_a_population_raises(fails, keep):
    sampler, made = flaky({(1, 0): fails})
    fragment = sampler.sample(num_episodes=8, keep=keep)
    assert fragment.failures == 1 and made[1] == 1
    played = [e.env_index for e in fragment.episodes]
    assert np.bincount(played, minlength=3).tolist() == [3, 3, 2]


@pytest.mark.parametrize("second", [("reset", 0, 0), ("step", 0, 1)])
def test_one_that_fails_twice_in_a_fragment_is_broken(second):
    fails = {(1, 0): ("step", 0, 1), (1, 1): second}
    sampler, made = flaky(fails)
    with pytest.raises(OSError, match="game server"):
        sampler.sample(num_steps=30)
    assert made[1] == 1


def test_one_failure_in_each_of_two_fragments_is_borne():
    sampler, made = flaky({(1, 0): ("step", 0, 1), (1, 1): ("step", 0, 1)})
    assert [sampler.sample(num_steps=2).failures for _ in range(3)] == [1, 1, 0]
    assert made[1] == 2


def test_a_callback_that_raises_is_no_failure_of_the_population():
    def on_event(event, episode):
        if event == "step":
            raise RuntimeError("a mistake in the callback")

    sampler, made = flaky({}, on_event=on_event)
    with pytest.raises(RuntimeError, match="mistake"):
        sampler.sample(num_steps=3)
    assert set(made.values()) == {0}
