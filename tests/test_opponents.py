"""Opponents by name: what the scripts do, seen by playing, and what is refused."""

from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from pettingzoo import ParallelEnv
from ray.rllib.utils import force_list
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger
from small_battles import SIZE, small_battle

import rllib_mfq
from rllib_cli.command import main
from rllib_cli.evaluate import _summary
from rllib_cli.hooks import MFQHooks
from rllib_cli.options import Play
from rllib_mfq import MFQConfig, OpponentPolicy, magent2
from rllib_mfq.algorithm.match import play_episodes
from rllib_mfq.algorithm.matches import Matches
from rllib_mfq.algorithm.opponents import NAMES, Opponent, load_opponent
from rllib_mfq.arena.tournament import play_tournament
from rllib_mfq.population import battle_scripts
from rllib_mfq.population.adapters import as_population
from rllib_mfq.population.battle_scripts import ATTACKS, MOVES, SCRIPTS, STAY
from rllib_mfq.population.player import Scene
from rllib_mfq.population.sampler import Sampler

OPEN = {"map_size": 16, "max_cycles": 60}  # 6 against 6


def view(population, group, n):
    out = np.empty((n, *population.groups[group].observation_space.shape), np.float32)
    population.observe(group, out)
    return out


def stay(rows):
    return {group: np.full(len(each.ids), STAY, np.int32) for group, each in rows.items()}


def test_a_move_leads_where_it_says():
    population = magent2("battle_v4", **OPEN)
    moved = 0
    for action, move in enumerate(MOVES):
        rows = population.reset(seed=0)
        actions = stay(rows)
        actions["red"][3] = action  # beside it there is room on most sides
        after = population.step(actions)["red"].rows.positions[3]
        way = after - rows["red"].positions[3]
        assert way.tolist() in (move.tolist(), [0, 0])  # [0, 0] if the cell is taken
        moved += bool(np.any(way))
    assert moved >= 9


def meet(population):
    """Lets everybody run until a red and a blue agent are neighbours; returns the rows."""
    players = {
        group: load_opponent("rush", "rush", population.groups).players(torch.Generator())[group]
        for group in population.groups
    }
    rows = population.reset(seed=0)
    for step in range(30):
        if len(near := neighbours(rows)):
            return rows, near[0]
        actions = {}
        for group, player in players.items():
            scene = scene_of(rows, group, step)
            seen = view(population, group, len(rows[group].ids))
            actions[group] = player.act(seen, None, None, scene=scene).astype(np.int32)
        rows = {group: step.rows for group, step in population.step(actions).items()}
    raise AssertionError("nobody met anybody")


def scene_of(rows, group, step=0):
    n = len(rows[group].ids)
    (other,) = set(rows) - {group}

    def places(of):
        positions = rows[of].positions
        return np.zeros(len(positions), np.int64), positions

    zeros = np.zeros(n, np.int64)
    return Scene(group, zeros + step, zeros, lambda: places(group), lambda: places(other))


def neighbours(rows):
    """Pairs (red, blue) of rows whose agents are next to each other."""
    ways = rows["blue"].positions[None] - rows["red"].positions[:, None]
    return np.argwhere(np.abs(ways).max(axis=2) == 1)


def test_an_attack_takes_health_from_its_target_and_from_nobody_else():
    population = magent2("battle_v4", **OPEN)
    rows, (red, blue) = meet(population)
    way = rows["blue"].positions[blue] - rows["red"].positions[red]
    number = int(np.flatnonzero((way == ATTACKS).all(axis=1))[0])

    def health():
        return view(population, "blue", len(rows["blue"].ids))[:, 6, 6, 2]

    before, actions = health(), stay(rows)
    actions["red"][red] = len(MOVES) + number
    rows = {group: step.rows for group, step in population.step(actions).items()}
    lost = before - health()
    assert lost[blue] == pytest.approx(0.2, abs=0.02)  # 2 of 10 points; 0.1 are recovered
    assert (np.delete(lost, blue) <= 0).all()


def test_the_engine_names_the_same_attacks():
    population = magent2("battle_v4", **OPEN)
    population.reset(seed=0)
    first, cells = population._engine.get_view2attack(population._handles["red"])
    assert first == len(MOVES)
    for number, (x, y) in enumerate(ATTACKS):
        assert cells[6 + y, 6 + x] == number
    assert (cells >= 0).sum() == len(ATTACKS)


def played(red, blue, env="battle_v4", seed=0, **env_config):
    """The first match and the positions at every step, `[{group: [n, 2]}]`."""
    make = lambda index: magent2(env, **(OPEN | env_config))  # noqa: E731 - made at every call
    groups = make(0).groups
    generator = torch.Generator().manual_seed(seed)
    players = {
        group: load_opponent(spec, spec, groups).players(generator)[group]
        for group, spec in zip(groups, (red, blue), strict=True)
    }
    (match,) = play_episodes(make, players, 1, seed=seed)
    return match


def test_rushing_kills_all_who_stand_still_or_run_away_and_those_who_hold_kill_some():
    for victim in ("still", "flee"):
        for red, blue in (("rush", victim), (victim, "rush")):
            match = played(red, blue, max_cycles=300)
            mine, theirs = [match.result["kills"][g] for g in ("red", "blue")][
                :: 1 if red == "rush" else -1
            ]
            assert (mine, theirs) == (6, 0), (red, blue)
    assert played("rush", "hold").result["kills"]["blue"] > 0
    assert played("hold", "still").result["kills"] == {"red": 0, "blue": 0}


def test_who_does_nothing_stays_and_who_flees_gets_farther():
    for name, expected in (("still", 0), ("hold", 0), ("flee", 1), ("rush", -1)):
        sampler = Sampler(
            lambda index: magent2("battle_v4", **(OPEN | {"map_size": 24})),
            2,
            {
                group: load_opponent(who, who, magent2("battle_v4", **OPEN).groups).players(
                    torch.Generator().manual_seed(0)
                )[group]
                for group, who in (("red", name), ("blue", "still"))
            },
            0,
        )
        sampler.sample(num_steps=1)
        start = distance(sampler)
        sampler.sample(num_steps=3)
        assert np.sign(distance(sampler) - start) == expected, name


def distance(sampler):
    """The mean way of red agents to the nearest blue one."""
    reds = [sampler._rows[i, "red"].positions for i in range(2)]
    blues = [sampler._rows[i, "blue"].positions for i in range(2)]
    ways = [
        np.linalg.norm(r[:, None] - b[None], axis=2).min(axis=1).mean()
        for r, b in zip(reds, blues, strict=True)
    ]
    return round(float(np.mean(ways)), 6)


def test_the_way_to_the_nearest_enemy_equals_a_loop_over_agents():
    rng = np.random.default_rng(0)
    population = np.repeat([0, 2, 5], [4, 3, 5])
    theirs = np.repeat([0, 5, 7], [3, 6, 2])  # nobody is left in population 2
    here, there = rng.integers(0, 40, (12, 2)), rng.integers(0, 40, (11, 2))
    scene = Scene(
        "red", population * 0, population, lambda: (population, here), lambda: (theirs, there)
    )
    for row, way in enumerate(scene.to_nearest):
        lengths = [
            np.linalg.norm(there[k] - here[row]) for k in range(11) if theirs[k] == population[row]
        ]
        if lengths:
            assert np.linalg.norm(way) == pytest.approx(min(lengths))
        else:
            assert np.isnan(way).all()


def test_the_weakest_is_hit_first_and_a_taken_cell_is_not_entered():
    obs = np.zeros((1, 13, 13, 5), np.float32)
    for number, health in ((1, 0.8), (4, 0.3), (6, 1.0)):
        x, y = ATTACKS[number]
        obs[0, 6 + y, 6 + x, 3:] = 1.0, health
    groups = magent2("battle_v4", **OPEN).groups
    rush = battle_scripts.Rush("red", groups)
    scene = Scene(
        "red",
        *[np.zeros(1, int)] * 2,
        lambda: (np.zeros(1, int), np.zeros((1, 2))),
        lambda: (np.zeros(1, int), np.array([[9.0, 0.0]])),
    )
    rng = np.random.default_rng(0)
    assert rush.act(obs, None, None, scene, rng) == len(MOVES) + 4
    obs[:] = 0
    assert MOVES[rush.act(obs, None, None, scene, rng)[0]].tolist() == [2, 0]
    obs[0, 6, 8, 1] = 1.0  # a friend
    assert MOVES[rush.act(obs, None, None, scene, rng)[0]].tolist() == [1, 0]


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_a_script_that_does_not_fit_is_one_sentence(name):
    for env, config in (("adversarial_pursuit_v4", {}), ("battle_v4", {"minimap_mode": True})):
        groups = magent2(env, map_size=24, **config).groups
        with pytest.raises(ValueError, match=rf"opponent 'x' is '{name}': it plays MAgent2's batt"):
            load_opponent("x", name, groups)


class Kiter(OpponentPolicy):
    """Sees everything that there is."""

    neighborhood = "all"

    def act(self, obs, mean_actions, action_mask, scene, rng):
        n = len(obs)
        assert mean_actions.shape == (n, 42) and scene.positions.shape == (n, 2)
        assert scene.group == self.group and scene.steps.shape == scene.population.shape == (n,)
        assert (np.diff(scene.population) >= 0).all()
        return rng.integers(0, 21, n)


class Broken(OpponentPolicy):
    def act(self, obs, mean_actions, action_mask, scene, rng):
        return np.full(len(obs), 21)


class Unfit(OpponentPolicy):
    def act(self, obs, mean_actions, action_mask, scene, rng):
        return [0] * len(obs)


class Silent(OpponentPolicy):
    """Has no `act`."""


class Misplaced(OpponentPolicy):
    neighborhood = "grup"

    def act(self, obs, mean_actions, action_mask, scene, rng):
        return np.zeros(len(obs), int)


@pytest.mark.parametrize(
    ("name", "words"),
    [("Silent", "abstract"), ("Misplaced", "neighborhood is 'grup'.*did you mean 'group'")],
)
def test_a_class_that_cannot_play_is_named(name, words):
    path = f"{__name__}:{name}"
    with pytest.raises(ValueError, match=f"opponent 'x' is '{path}': .*{words}"):
        load_opponent("x", path, magent2("battle_v4", **SIZE).groups)


class Walkers(ParallelEnv):
    """Agents that stand on a line; half of their actions are legal, and some enter at step 1."""

    metadata: ClassVar = {"name": "walkers"}

    def __init__(self, groups=("a", "b"), late=False):
        self.late, self.possible_agents = late, [f"{g}_{i}" for g in groups for i in range(2)]

    def observation_space(self, agent):
        return gym.spaces.Box(-1, 1, (2,), np.float32)

    def action_space(self, agent):
        return gym.spaces.Discrete(4)

    def positions(self):
        return {agent: np.array([i, 0.0]) for i, agent in enumerate(self.possible_agents)}

    def told(self):
        observations = {agent: np.zeros(2, np.float32) for agent in self.agents}
        return observations, {agent: {"action_mask": np.arange(4) < 2} for agent in self.agents}

    def reset(self, seed=None, options=None):
        self.steps, self.agents = 0, [] if self.late else [*self.possible_agents]
        return self.told()

    def step(self, actions):
        self.steps += 1
        if self.late and self.steps == 1:
            self.agents = [*self.possible_agents]
        observations, infos = self.told()
        ends, acted = self.steps == 5, dict.fromkeys(actions, 0.0)
        if ends:
            self.agents = []
        return observations, acted, dict.fromkeys(acted, False), dict.fromkeys(acted, ends), infos


class Seeing(OpponentPolicy):
    """Keeps what it sees; draws legal actions, or, if it is told to, an illegal one."""

    seen: ClassVar[list] = []
    shift = 0

    def act(self, obs, mean_actions, action_mask, scene, rng):
        self.seen.append((scene.steps.tolist(), scene.to_nearest.tolist()))
        return rng.integers(0, 2, len(obs)) + self.shift


class Illegal(Seeing):
    shift = 2


def walk(name, **arguments):
    groups = as_population(Walkers(**arguments)).groups
    one = load_opponent("x", f"{__name__}:{name}", groups).players(torch.Generator())
    late = [False, arguments.pop("late", False)]  # the second population, if any
    play_episodes(
        lambda index: as_population(Walkers(late=late[index], **arguments)),
        one,
        2,
        seed=0,
        side_by_side=2,
    )


def test_an_action_that_the_mask_forbids_is_one_sentence():
    walk("Seeing")
    with pytest.raises(ValueError, match=r"returned action [23] for row 0.*allows \[0, 1\] only"):
        walk("Illegal")


def test_the_nearest_is_not_a_number_where_there_is_nobody():
    Seeing.seen.clear()
    walk("Seeing", groups=("a",))
    assert all(np.isnan(way).all() for _, way in Seeing.seen)
    Seeing.seen.clear()
    walk("Seeing", late=True)  # one population is still empty while the other one plays
    assert {len(way) for _, way in Seeing.seen} == {2, 4}
    for _, way in Seeing.seen:
        assert way[:2] in ([[2.0, 0.0], [1.0, 0.0]], [[-1.0, 0.0], [-2.0, 0.0]])
        assert way in (way[:2], way[:2] * 2)


def test_ones_own_draws_from_the_seed_in_a_plain_loop_and_counts_steps_from_zero():
    env = Walkers()
    agents = rllib_mfq.load(f"{__name__}:Seeing", env, seed=1)
    drawn = []
    for _ in range(2):
        Seeing.seen.clear()
        agents.reset(7)
        told = env.reset()
        for _ in range(4):
            observations, infos = told[0], told[-1]
            drawn.append(tuple(agents.act(observations, infos=infos).values()))
            told = env.step(dict.fromkeys(env.agents, 0))
        assert [steps[0] for steps, _ in Seeing.seen[::2]] == [0, 1, 2, 3]
    assert drawn[:4] == drawn[4:] and len(set(drawn)) > 1


@pytest.mark.parametrize(("runners", "duration"), [(1, 20), (2, 10), (3, 10), (4, 20), (10, 10)])
def test_several_runners_together_play_both_sides_equally_often(runners, duration):
    """As RLlib divides the matches of an evaluation."""
    shares = [duration // runners + (i <= duration % runners) for i in range(1, runners + 1)]
    population = as_population(Walkers())
    sampler = Sampler(lambda index: population, 1, random_players(population), 0)
    mine, generator = random_players(population), torch.Generator()
    groups = population.groups
    evaluators = [
        Matches({"x": Opponent("x", groups)}, number=number + 1) for number in range(runners)
    ]
    for _ in range(2):  # evaluations
        played = [
            episode.custom_data["mine"]
            for matches, share in zip(evaluators, shares, strict=True)
            for episode in matches.play(sampler, mine, share, generator, logger()).episodes
        ]
        assert len(played) == duration and played.count("a") == played.count("b")


def logger():
    return MetricsLogger(stats_cls_lookup=MFQConfig().stats_cls_lookup)


def random_players(population):
    return Opponent("random", population.groups).players(torch.Generator())


def test_ones_own_by_path_plays_wherever_a_name_does():
    path = f"{__name__}:Kiter"
    agents = {name: name for name in ("random", "still")} | {"mine": path}
    result = play_tournament(agents, "battle_v4", SIZE, matches=2, processes=1)
    assert {*result.agents} == {"random", "still", "mine"}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("os:system", "must name a class that derives from rllib_mfq.OpponentPolicy"),
        (f"{__name__}:Nobody", "which cannot be imported"),
        ("no.such.module:Kiter", "which cannot be imported"),
        ("rusch", "did you mean 'rush'"),
        ("os.system", "neither one of random, still, rush, hold, flee"),
    ],
)
def test_what_is_no_opponent_is_refused_before_anything_is_called(spec, words):
    with pytest.raises(ValueError, match=words):
        load_opponent("x", spec, magent2("battle_v4", **SIZE).groups)


@pytest.mark.parametrize(
    ("name", "words"),
    [("Broken", "actions from 0 to 21; legal are 0 to 20"), ("Unfit", "type list")],
)
def test_wrong_actions_of_ones_own_are_one_sentence(name, words):
    with pytest.raises(ValueError, match=words):
        play_tournament(
            {"x": f"{__name__}:{name}", "y": "still"}, "battle_v4", SIZE, matches=2, processes=1
        )


@pytest.mark.parametrize("old", [False, True], ids=["new", "old"])
def test_they_evaluate_on_both_stacks(build, old):
    opponents = {name: name for name in NAMES} | {"mine": f"{__name__}:Kiter"}
    config = small_battle(old=old).evaluation(
        evaluation_interval=1, evaluation_duration=2, evaluation_opponents=opponents
    )
    rates = build(config).train()["evaluation"]["env_runners"]["win_rate"]
    assert rates.keys() == opponents.keys()


def test_the_command_knows_them():
    arguments = ["tournament", "rush", "still", "examples.torch_opponent:TorchOpponent"]
    arguments += ["--env", "battle_v4", "--env-config", "{map_size: 16, max_cycles: 100}"]
    arguments += ["--matches", "2", "--processes", "1"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    arguments = ["evaluate", "pretrained:battle-mfq", "--opponent", "rush", "--episodes", "2"]
    arguments += ["--config", f"{{env_config: {SIZE}}}"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "2 episodes: win rate" in result.output


def test_evaluate_plays_a_checkpoint_of_the_old_stack_as_the_opponent(build, tmp_path):
    old = build(small_battle(old=True)).save_to_path(tmp_path / "old")
    new = build(small_battle()).save_to_path(tmp_path / "new")
    for opponent in (old, f"{new}/learner_group/learner/rl_module"):  # or modules alone
        arguments = ["evaluate", new, "--opponent", str(opponent), "--episodes", "2"]
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
        assert "2 episodes: win rate" in result.output


def test_evaluate_plays_in_the_environment_of_training_with_callbacks_too(build, tmp_path):
    config = small_battle().callbacks(on_episode_end=Noted())  # the whole config is read, then
    config.evaluation(evaluation_config={"env_config": SIZE | {"max_cycles": 7}})
    path = build(config).save_to_path(tmp_path)
    for opponent in ([], ["--opponent", "still"]):
        result = CliRunner().invoke(main, ["evaluate", path, *opponent, "--episodes", "1"])
        assert result.exit_code == 0 and "20 steps on average" in result.output, result.output
        changed = ["-c", "{env_config: {map_size: 12, max_cycles: 3}}", *opponent]
        result = CliRunner().invoke(main, ["evaluate", path, *changed, "--episodes", "1"])
        assert "3 steps on average" in result.output, result.output


class Noted:
    """A callback that is no plain data."""

    def __call__(self, **kwargs):
        pass


def test_a_win_rate_is_over_the_matches_in_which_winning_means_something():
    records = [{"return": 1.0, "steps": 3, "share": 1.0}, {"return": 2.0, "steps": 3}]
    for each in (records, records[::-1]):
        assert _summary(each)["win_rate"] == 1.0
    assert "win_rate" not in _summary(records[1:])


def test_random_steps_make_matches_of_greedy_agents_differ_and_end_when_they_should():
    agents = {"still": "still", "mine": f"{__name__}:Counting"}
    for steps in (0, 3):
        Counting.moved.clear()
        result = play_tournament(
            agents, "battle_v4", SIZE, matches=8, random_steps=steps, processes=1
        )
        assert result.random_steps == steps
        assert (result.pairs[0].distinct > 2) == bool(steps)
        for step, moved in Counting.moved.items():
            assert moved == (0 < step <= steps), step


@pytest.mark.parametrize("old", [False, True], ids=["new", "old"])
def test_evaluations_begin_at_random_too(build, old):
    returns = {}
    for steps in (0, 4):
        Counting.moved.clear()
        config = small_battle(old=old).evaluation(
            evaluation_interval=1,
            evaluation_duration=8,
            evaluation_opponents={"mine": f"{__name__}:Counting"},
            evaluation_random_steps=steps,
        )
        runner = build(config).eval_env_runner_group.local_env_runner
        (fragment,) = force_list(runner.sample(num_episodes=8, explore=False))
        returns[steps] = {tuple(episode.returns.values()) for episode in fragment.episodes}
        for step, moved in Counting.moved.items():
            assert moved == (0 < step <= steps), step
    assert len(returns[0]) <= 2 < len(returns[4])


def test_a_checkpoint_is_played_from_the_usual_start_whatever_its_run_evaluated():
    for opponent in (None, "random"):
        config = small_battle().evaluation(evaluation_random_steps=3)
        MFQHooks().configure_play(config, Play(opponent=opponent))
        assert config.evaluation_random_steps == 0
    config.evaluation(evaluation_random_steps=2)
    asked = "{evaluation_random_steps: 2}"
    MFQHooks().configure_play(config, Play(opponent="random", config=asked))
    assert config.evaluation_random_steps == 2


class Counting(OpponentPolicy):
    """Does nothing, and keeps whether anybody of its group has moved, by steps played."""

    moved: ClassVar[dict[int, bool]] = {}
    before: ClassVar[dict[int, np.ndarray]] = {}

    def act(self, obs, mean_actions, action_mask, scene, rng):
        for population in np.unique(scene.population):
            mine = scene.population == population
            step, here = int(scene.steps[mine][0]), scene.positions[mine]
            moved = step and not np.array_equal(here, self.before.get(population))
            self.moved[step] = bool(moved) or self.moved.get(step, False)
            self.before[population] = here
        return np.full(len(obs), STAY)


def test_an_agent_with_a_memory_begins_at_random_too(build, tmp_path):
    algo = build(
        small_battle(replay_capacity=10_000).rl_module(
            model_config={"use_lstm": True, "lstm_cell_size": 8, "max_seq_len": 4}
        )
    )
    algo.save_to_path(tmp_path)
    agents = {"lstm": str(tmp_path), "still": "still"}
    found = play_tournament(agents, "battle_v4", SIZE, matches=4, random_steps=2, processes=1)
    assert found.pairs[0].matches == 4
