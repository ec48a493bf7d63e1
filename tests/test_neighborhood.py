"""Neighbourhoods against a double loop over agents, and what must hold whoever the agents are."""

import math
import os
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from small_battles import near, same, small_battle, weights

from rllib_mfq import MFQ, MFQConfig
from rllib_mfq.algorithm.checkpoint import load_modules
from rllib_mfq.mean_field.neighborhood import GroupActions, Neighborhood

SEEDS = range(6)
SPECS = ["group", "none", "all", "graph", {"radius": 3.0}, {"nearest": 1}, {"nearest": 3}]
SPATIAL = [{"radius": 3.0}, {"nearest": 3}]


def parse(spec):
    return Neighborhood.parse(spec)


def random_group(rng, sizes, num_actions):
    """Agents of populations of these sizes, at random places, with random directed edges."""
    n = sum(sizes)
    population = np.repeat(np.arange(len(sizes)), sizes)
    same = population[:, None] == population
    linked = (rng.random((n, n)) < 0.4) & same & ~np.eye(n, dtype=bool)
    return GroupActions(
        actions=rng.integers(num_actions, size=n),
        num_actions=num_actions,
        population=population,
        positions=rng.uniform(0, 8, size=(n, 2)),
        edges=np.argwhere(linked),
    )


def neighbours_by_hand(spec, own, j):
    """Who counts for agent j, as one would find out by asking everybody in turn."""
    rest = [k for k in range(len(own.actions)) if k != j and own.population[k] == own.population[j]]
    if spec == "none":
        return []
    if spec in ("group", "all"):
        return rest
    if spec == "graph":
        return [int(k) for agent, k in own.edges if agent == j]
    distance = {k: math.dist(own.positions[j], own.positions[k]) for k in rest}
    if "radius" in spec:
        return [k for k in rest if distance[k] <= spec["radius"]]
    return sorted(rest, key=distance.__getitem__)[: spec["nearest"]]


def average_by_hand(actions, num_actions):
    mean = [0.0] * num_actions
    for action in actions:
        mean[action] += 1 / len(actions)
    return mean


def mean_actions_by_hand(spec, own, others):
    rows = []
    for j in range(len(own.actions)):
        hood = neighbours_by_hand(spec, own, j)
        row = average_by_hand([own.actions[k] for k in hood], own.num_actions)
        for other in others if spec == "all" else ():
            there = [k for k, p in enumerate(other.population) if p == own.population[j]]
            row += average_by_hand([other.actions[k] for k in there], other.num_actions)
        rows.append(row)
    return np.array(rows)


def who_is_near(spec, positions, edges=None):
    """`[n, n]` true where k is j's neighbour: everybody plays an action of their own."""
    n = len(positions)
    everybody = GroupActions(np.arange(n), n, np.zeros(n, int), np.asarray(positions), edges)
    return parse(spec).mean_actions(everybody) > 0


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("seed", SEEDS)
def test_mean_actions_equal_the_double_loop(seed, spec):
    rng = np.random.default_rng(seed)
    own = random_group(rng, rng.permutation([0, 1, 2, 5, 8, 0]), 4)
    others = [random_group(rng, rng.permutation([3, 0, 1, 6, 0, 2]), a) for a in (3, 6)]
    ours = parse(spec).mean_actions(own, others)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, mean_actions_by_hand(spec, own, others), atol=1e-6)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_mean_action_sums_to_one_or_is_all_zero(seed, spec):
    rng = np.random.default_rng(seed)
    own, other = (random_group(rng, [0, 1, 6, 4], a) for a in (4, 3))
    mean = parse(spec).mean_actions(own, [other])
    for block in (mean[:, :4], mean[:, 4:]):
        total = block.sum(1)
        assert np.all(np.isclose(total, 1) | ((total == 0) & ~block.any(axis=1)))
        assert block.min(initial=0) >= 0


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("empty", ["own", "other", "both"])
def test_an_extinct_group_is_no_special_case(spec, empty):
    rng = np.random.default_rng(0)
    sizes = {"own": ([0, 0], [3, 2]), "other": ([3, 2], [0, 0]), "both": ([0, 0], [0, 0])}[empty]
    own, other = (random_group(rng, size, a) for size, a in zip(sizes, (4, 3), strict=True))
    mean = parse(spec).mean_actions(own, [other])
    assert mean.shape == (sum(sizes[0]), 7 if spec == "all" else 4)
    assert not mean[:, 4:].any()


@pytest.mark.parametrize("spec", ["group", "all", *SPATIAL, {"radius": 1e9}], ids=str)
@pytest.mark.parametrize("seed", SEEDS)
def test_nobody_is_their_own_neighbour(seed, spec):
    positions = np.random.default_rng(seed).integers(0, 3, size=(9, 2))  # several share a place
    assert not who_is_near(spec, positions).diagonal().any()


@pytest.mark.parametrize("seed", SEEDS)
def test_an_agents_own_action_never_moves_its_own_mean(seed):
    rng = np.random.default_rng(seed)
    own = random_group(rng, [5, 4], 3)
    for spec in SPECS:
        before = parse(spec).mean_actions(own)
        changed = own.actions.copy()
        changed[2] = (changed[2] + 1) % 3
        after = parse(spec).mean_actions(own._replace(actions=changed))
        np.testing.assert_array_equal(after[2], before[2])


@pytest.mark.parametrize("seed", SEEDS)
def test_the_closed_form_of_group_equals_its_mask(seed):
    own = random_group(np.random.default_rng(seed), [4, 1, 7], 5)
    mask = own.population[:, None] == own.population
    np.fill_diagonal(mask, False)
    expected = mask @ np.eye(5)[own.actions] / np.maximum(mask.sum(1, keepdims=True), 1)
    np.testing.assert_allclose(parse("group").mean_actions(own), expected, atol=1e-6)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("seed", SEEDS)
def test_relabelling_the_agents_relabels_their_mean_actions(seed, spec):
    rng = np.random.default_rng(seed)
    own = random_group(rng, [9], 4)
    p = rng.permutation(9)
    relabelled = own._replace(
        actions=own.actions[p], positions=own.positions[p], edges=np.argsort(p)[own.edges]
    )
    expected = parse(spec).mean_actions(own)[p]
    np.testing.assert_allclose(parse(spec).mean_actions(relabelled), expected, atol=1e-6)


def test_a_radius_includes_those_at_exactly_that_distance():
    positions = [[0, 0], [3, 4], [3, 4.001], [-5, 0], [0, 0]]
    near = who_is_near({"radius": 5}, positions)
    assert near[0].tolist() == [False, True, False, True, True]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_radius_is_mutual_and_a_huge_one_is_the_group(seed):
    rng = np.random.default_rng(seed)
    near = who_is_near({"radius": 3.0}, rng.uniform(0, 8, size=(12, 2)))
    np.testing.assert_array_equal(near, near.T)
    own = random_group(rng, [5, 0, 7, 1], 4)
    huge = parse({"radius": 1e6}).mean_actions(own)
    np.testing.assert_allclose(huge, parse("group").mean_actions(own), atol=1e-6)


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("agents", [6, 7, 30])
def test_nearest_finds_k_others_even_where_all_share_one_place(agents, k):
    near = who_is_near({"nearest": k}, np.full((agents, 2), 1.5))
    assert not near.diagonal().any()
    assert (near.sum(1) == k).all()


def test_nearest_prefers_the_nearer_and_need_not_be_mutual():
    near = who_is_near({"nearest": 1}, [[0.0, 0], [1, 0], [1.5, 0], [9, 0]])
    assert near.argmax(1).tolist() == [1, 2, 1, 2]


@pytest.mark.parametrize("k", [7, 8, 9, 1000])
@pytest.mark.parametrize("seed", SEEDS)
def test_nearest_of_everybody_is_the_group(seed, k):
    own = random_group(np.random.default_rng(seed), [8, 3, 1], 4)
    everybody = parse({"nearest": k}).mean_actions(own)
    np.testing.assert_allclose(everybody, parse("group").mean_actions(own), atol=1e-6)


def test_all_is_the_own_group_first_and_then_the_others_in_their_order():
    own = GroupActions(np.array([0, 1, 1, 0]), 2, np.array([0, 0, 0, 1]))
    blue = GroupActions(np.array([2, 2, 0, 1]), 3, np.array([0, 0, 0, 1]))
    gray = GroupActions(np.array([1]), 2, np.array([0]))
    mean = parse("all").mean_actions(own, [blue, gray])
    np.testing.assert_array_equal(mean[:, :2], parse("group").mean_actions(own))
    np.testing.assert_allclose(mean[0], [0, 1, 1 / 3, 0, 2 / 3, 0, 1], atol=1e-6)
    np.testing.assert_allclose(mean[3], [0, 0, 0, 1, 0, 0, 0])  # alone; no gray in population 1


def torus_edges(height, width):
    moves = ((0, 1), (0, -1), (1, 0), (-1, 0))
    return np.array(
        [
            (y * width + x, (y + dy) % height * width + (x + dx) % width)
            for y in range(height)
            for x in range(width)
            for dy, dx in moves
        ]
    )


def test_an_agent_on_a_torus_has_four_neighbours():
    near = who_is_near("graph", np.zeros((20, 2)), torus_edges(4, 5))
    assert (near.sum(1) == 4).all()
    np.testing.assert_array_equal(near, near.T)
    assert np.flatnonzero(near[0]).tolist() == [1, 4, 5, 15]  # it wraps


def test_on_a_torus_two_cells_high_the_doubled_neighbour_counts_twice():
    own = GroupActions(np.arange(6), 6, np.zeros(6, int), edges=torus_edges(2, 3))
    mean = parse("graph").mean_actions(own)
    np.testing.assert_allclose(mean[0], [0, 1 / 4, 1 / 4, 1 / 2, 0, 0])


def test_an_edge_points_from_the_agent_to_its_neighbour():
    near = who_is_near("graph", np.zeros((3, 2)), np.array([[0, 1], [0, 2]]))
    assert near.tolist() == [[False, True, True], [False] * 3, [False] * 3]
    assert not who_is_near("graph", np.zeros((3, 2)), np.zeros((0, 2), int)).any()


@pytest.mark.parametrize(
    ("spec", "missing"),
    [("graph", "edges"), ({"radius": 1}, "positions"), ({"nearest": 1}, "positions")],
)
def test_what_the_environment_lacks_is_named(spec, missing):
    own = GroupActions(np.zeros(3, int), 2, np.zeros(3, int))
    kind = parse(spec).kind
    assert parse(spec).needs == missing
    with pytest.raises(ValueError, match=f"'{kind}' needs an environment that gives {missing}"):
        parse(spec).mean_actions(own)


@pytest.mark.parametrize(
    ("spec", "kind", "size"),
    [
        *((name, name, None) for name in ("group", "none", "all", "graph")),
        *(({"radius": r}, "radius", r) for r in (6, 0.5, np.float64(2), 10**6)),
        *(({"nearest": k}, "nearest", k) for k in (1, 3, 3.0)),
    ],
)
def test_every_legal_spec_is_read(spec, kind, size):
    assert parse(spec) == Neighborhood(kind, size)
    assert parse(parse(spec)) == parse(spec)


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("grup", r"neighborhood is 'grup' \(did you mean 'group'\?\); legal are 'group'"),
        ("raduis", r"did you mean 'radius'\?.*\{radius: r\}"),
        *((bad, "legal are 'group', 'none'") for bad in (None, 3, [], {}, "", {"group": 1})),
        *((bad, "legal are 'group', 'none'") for bad in ("radius", {"radius": 1, "nearest": 2})),
        *(({"radius": r}, f"radius: {r}.: it must be a positive number") for r in (-1, 0)),
        *(({"radius": r}, "must be a positive number") for r in ("3", None, True, [1])),
        *(({"radius": r}, "must be a positive number") for r in (math.nan, math.inf, -math.inf)),
        *(({"nearest": k}, f"nearest: {k}.: it must be a whole") for k in (0, -2, 2.5, 0.5)),
        *(({"nearest": k}, "a whole number of at least 1") for k in ("2", None, True)),
        *(({"nearest": k}, "a whole number of at least 1") for k in (math.nan, math.inf)),
    ],
    ids=str,
)
def test_every_illegal_spec_is_refused_in_one_sentence(spec, complaint):
    with pytest.raises(ValueError, match=complaint) as refusal:
        parse(spec)
    message = str(refusal.value)
    assert message.startswith("neighborhood ") and message.endswith(".")
    assert "\n" not in message


def test_the_width_is_ones_own_actions_or_for_all_everybodys():
    num_actions = {"red": 3, "blue": 5}
    for spec in SPECS:
        widths = [parse(spec).width(group, num_actions) for group in num_actions]
        assert widths == ([8, 8] if spec == "all" else [3, 5])


@pytest.mark.parametrize("spec", ["group", "all", {"nearest": 8}, {"radius": 1.5}], ids=str)
def test_twenty_thousand_agents_need_no_matrix_of_pairs(spec):
    rng = np.random.default_rng(0)
    n = 20_000
    own = GroupActions(
        rng.integers(21, size=n), 21, np.zeros(n, np.int64), rng.uniform(0, 200, size=(n, 2))
    )
    tracemalloc.start()
    parse(spec).mean_actions(own, [own])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6  # n x n booleans would take 400e6


@pytest.mark.parametrize("seed", SEEDS)
def test_a_function_is_a_neighborhood_as_a_loop_would_have_it(seed):
    rng = np.random.default_rng(seed)
    own = random_group(rng, [5, 0, 9, 1], 4)
    for spec in (near, "small_battles.near"):
        mine = parse(spec)
        assert mine.needs is None and mine.width("red", {"red": 4, "blue": 7}) == 4
        expected = parse({"radius": 3}).mean_actions(own)
        np.testing.assert_array_equal(mine.mean_actions(own), expected)
    # The one in the documentation.
    page = Path(__file__).parents[1].joinpath("docs", "environments.md").read_text()
    (code,) = re.findall(r"```python\n([^`]*def in_front.*?)```", page, re.DOTALL)
    named = {}
    exec(code, named)
    pairs = {
        (j, k)
        for j in range(len(own.actions))
        for k in range(len(own.actions))
        if own.population[j] == own.population[k]
        and 0 < own.positions[k, 0] - own.positions[j, 0] <= 3
    }
    assert set(map(tuple, named["in_front"](own).tolist())) == pairs
    assert parse(named["in_front"]).kind == "in_front"


def test_a_function_may_find_nobody_and_reads_what_there_is():
    own = GroupActions(np.array([0, 1]), 2, np.zeros(2, int))

    def nobody(own: GroupActions):
        assert own.positions is None and own.edges is None
        return []

    assert (parse(nobody).mean_actions(own) == 0).all()


@pytest.mark.parametrize(
    ("pairs", "problem"),
    [
        (np.zeros((1, 2)), r"an array of float64, \[1, 2\]"),
        (np.zeros((1, 3), int), r"an array of int64, \[1, 3\]"),
        (np.array([[0, 3]]), "the rows 0 to 3, of 3"),
        (np.array([[-1, 0]]), "the rows -1 to 0, of 3"),
        (np.array([[0, 1], [1, 1]]), "row 1 as its own neighbour"),
        (np.array([[0, 1], [1, 2]]), r"the rows \[1, 2\], which are of two populations"),
    ],
)
def test_pairs_that_are_none_are_refused(pairs, problem):
    def wrong(own: GroupActions):
        return pairs

    own = GroupActions(np.zeros(3, int), 2, np.array([0, 0, 1]))
    with pytest.raises(ValueError, match=f"wrong' returned {problem}"):
        parse(wrong).mean_actions(own)


def test_only_a_function_of_actions_is_called():
    def plain(own):
        raise AssertionError

    def second(other, own: GroupActions):
        raise AssertionError

    for spec in (plain, second, "os.system", "os.getcwd", os.getcwd, "subprocess.Popen", "no.such"):
        with pytest.raises(ValueError, match=r"first parameter is annotated as rllib_mfq\.Group"):
            MFQConfig().environment("battle_v4").training(neighborhood=spec).validate()


@pytest.mark.parametrize("old", [False, True])
def test_a_function_trains_as_the_neighborhood_that_it_is(build, tmp_path, old):
    trained = []
    for spec in ({"radius": 3}, near, "small_battles.near"):
        algo = build(small_battle(old=old, neighborhood=spec))
        for _ in range(2):
            algo.train()
        trained.append(weights(algo, "red"))
    assert same(trained[0], trained[1]) and same(trained[0], trained[2])
    plain = build(small_battle(old=old))
    for _ in range(2):
        plain.train()
    assert not same(trained[0], weights(plain, "red"))
    algo.save_to_path(str(tmp_path))
    assert load_modules(tmp_path)["red"].neighborhood.function is near
    again = MFQ.from_checkpoint(str(tmp_path))
    assert same(weights(again, "red"), trained[2])
    again.stop()
