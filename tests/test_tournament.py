"""Tournaments: what is counted, how agents are rated, and what is refused."""

import contextlib
import dataclasses
import json
import math
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from click.testing import CliRunner
from small_battles import SIZE, small_battle
from test_cli import start

from rllib_cli.command import main
from rllib_mfq import magent2
from rllib_mfq.algorithm.opponents import load_opponent
from rllib_mfq.arena import statistics, tournament
from rllib_mfq.arena.output import check_output, replacing, write_json
from rllib_mfq.arena.provenance import provenance
from rllib_mfq.arena.statistics import Pair, rate
from rllib_mfq.arena.tournament import name_agents, play_tournament
from rllib_mfq.population.fragment import Episode

LARGER = {"map_size": 16, "max_cycles": 25}


@pytest.fixture(scope="module")
def agents(ray_session, tmp_path_factory):
    """Random play and two untrained networks, that is three agents that play differently."""
    folder = tmp_path_factory.mktemp("agents")
    for seed in (1, 2):
        algo = small_battle().debugging(seed=seed).build_algo()
        algo.save_to_path(folder / f"net-{seed}")
        algo.stop()
    return {
        "random": "random",
        "net-1": str(folder / "net-1"),
        "net-2": str(folder / "net-2"),
    }


@pytest.fixture(scope="module")
def played(agents):
    return play_tournament(agents, env_config=LARGER, matches=6, seed=3, processes=1)


def pair(a, b, wins, losses, draws=0):
    matches = wins + losses + draws
    rest = dict.fromkeys((field.name for field in dataclasses.fields(Pair)), 0)
    counts = {"a": a, "b": b, "matches": matches, "wins": wins, "draws": draws, "losses": losses}
    return Pair(**(rest | counts))


def mirrored(pair):
    swapped = {
        name: getattr(pair, f"{name[:-1]}{'b' if name[-1] == 'a' else 'a'}")
        for name in ("kills_a", "kills_b", "survivors_a", "survivors_b", "returns_a", "returns_b")
    }
    counts = {"wins": pair.losses, "losses": pair.wins, "win_rate": 1 - pair.win_rate}
    return dataclasses.asdict(pair) | {"a": pair.b, "b": pair.a} | counts | swapped


def play_by_hand(first, second, seed):
    """One match, one group after the other, with the mean actions written out."""
    population = magent2("battle_v4", **LARGER)
    generator = torch.Generator().manual_seed(0)
    rows = population.reset(seed=seed)
    players = {
        group: load_opponent(spec, spec, population.groups).players(generator)[group]
        for group, spec in zip(population.groups, (first, second), strict=True)
    }
    episode = Episode(0, 0, dict.fromkeys(population.groups, 0.0))
    means = {group: np.zeros((len(r.ids), 21), np.float32) for group, r in rows.items()}
    while any(len(r.ids) for r in rows.values()) and episode.length < LARGER["max_cycles"]:
        actions = {}
        for group, player in players.items():
            obs = np.empty(
                (len(means[group]), *population.groups[group].observation_space.shape), np.float32
            )
            population.observe(group, obs)
            actions[group] = player.act(obs, means[group], None) if len(obs) else np.empty(0, int)
        steps = population.step({g: a.astype(np.int32) for g, a in actions.items()})
        for group, step in steps.items():
            episode.returns[group] += float(np.sum(step.rewards))
            one_hot, n = np.eye(21, dtype=np.float32)[actions[group]], len(actions[group])
            mean = [
                np.mean([one_hot[k] for k in range(n) if k != j], axis=0)
                if n > 1
                else one_hot[j] * 0
                for j in range(n)
            ]
            means[group] = np.array(mean, np.float32).reshape(n, 21)[~step.terminated]
            rows[group] = step.rows
        episode.length += 1
    episode.result = population.result()
    return episode


def test_the_counts_equal_a_loop_over_single_matches(agents, played):
    one, other = agents["net-1"], agents["net-2"]
    seeds = np.random.SeedSequence(tournament._seed(3, "net-1", "net-2")).spawn(3)
    wins = losses = draws = wins_first = 0
    kills, returns = [], []
    for mine in (0, 1):  # as the first group, as the second
        for seed in seeds:
            start = int(seed.generate_state(1)[0] >> 1)
            match = play_by_hand(*((one, other) if mine == 0 else (other, one)), start)
            killed = list(match.result["kills"].values())
            wins += killed[mine] > killed[1 - mine]
            losses += killed[mine] < killed[1 - mine]
            draws += killed[0] == killed[1]
            wins_first += mine == 0 and killed[0] > killed[1]
            kills.append((killed[mine], killed[1 - mine]))
            gained = list(match.returns.values())
            returns.append((gained[mine], gained[1 - mine]))
    (found,) = (p for p in played.pairs if (p.a, p.b) == ("net-1", "net-2"))
    assert (found.wins, found.draws, found.losses) == (wins, draws, losses)
    assert (found.matches, found.wins_first) == (6, wins_first)
    assert found.win_rate == pytest.approx((wins + draws / 2) / 6)
    assert (found.kills_a, found.kills_b) == pytest.approx(tuple(np.mean(kills, axis=0)))
    assert (found.returns_a, found.returns_b) == pytest.approx(tuple(np.mean(returns, axis=0)))


def test_a_against_b_is_b_against_a_mirrored(agents):
    sides = [("random", "net-1"), ("net-1", "random")]
    there, back = (
        play_tournament({n: agents[n] for n in names}, env_config=LARGER, matches=8, processes=1)
        for names in sides
    )
    mirror = mirrored(there.pairs[0])
    for name, value in dataclasses.asdict(back.pairs[0]).items():
        if name not in ("wins_first", "wilson_low", "wilson_high"):
            assert value == mirror[name] or value == pytest.approx(mirror[name]), name
    two = {name: agents[name] for name in ("random", "net-1")}
    turned = play_tournament(two, env_config=LARGER, matches=8, processes=1, pairs=[(1, 0)])
    assert turned.pairs == back.pairs
    assert there.pairs[0].distinct > 2  # or the matches would be copies of each other


def test_neither_the_order_nor_the_others_change_a_pair(agents, played):
    turned = {name: agents[name] for name in reversed(list(agents))}
    other = play_tournament(turned, env_config=LARGER, matches=6, seed=3, processes=1)
    of = {frozenset((p.a, p.b)): p for p in played.pairs}
    for found in other.pairs:
        before = of[frozenset((found.a, found.b))]
        expected = dataclasses.asdict(before) if found.a == before.a else mirrored(before)
        assert found.win_rate == pytest.approx(expected["win_rate"])
        assert found.returns_a == pytest.approx(expected["returns_a"])
    two = {name: agents[name] for name in ("net-1", "net-2")}
    (alone,) = play_tournament(two, env_config=LARGER, matches=6, seed=3, processes=1).pairs
    assert alone == of[frozenset(("net-1", "net-2"))]


def test_processes_that_play_end_with_the_one_that_started_them():
    process = start("tournament", "random", "hold", "still", "--matches", 200, "--processes", 2)
    try:
        found = []
        deadline = time.time() + 60
        while len(found) < 2:
            assert time.time() < deadline and process.poll() is None, process.communicate()
            time.sleep(0.2)
            children = psutil.Process(process.pid).children()
            found = [each for each in children if "spawn_main" in str(each.cmdline())]
        process.kill()
        _, alive = psutil.wait_procs(found, timeout=120)  # they notice once they have imported
        assert not alive
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_a_process_that_is_killed_ends_the_tournament_with_one_sentence():
    process = start("tournament", "random", "hold", "--matches", 2000, "--processes", 2)
    try:
        found = []
        deadline = time.time() + 60
        while len(found) < 2:  # one for each half of the only pair
            assert time.time() < deadline and process.poll() is None, process.communicate()
            time.sleep(0.2)
            children = psutil.Process(process.pid).children()
            found = [each for each in children if "spawn_main" in str(each.cmdline())]
        found[0].kill()
        _, said = process.communicate(timeout=60)
        assert process.returncode == 2 and "one of 2 processes that play was ended" in said
        assert "Traceback" not in said
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_equal_agents_rate_equal(agents, tmp_path):
    twin = shutil.copytree(agents["net-1"], tmp_path / "twin")
    found = play_tournament(
        {"one": agents["net-1"], "twin": str(twin)}, env_config=LARGER, matches=8, explore=True
    )
    assert found.pairs[0].win_rate == 0.5
    assert found.ratings == pytest.approx({"one": 0.0, "twin": 0.0}, abs=1e-6)


def test_the_number_of_processes_changes_nothing(agents, played):
    several = play_tournament(agents, env_config=LARGER, matches=6, seed=3, processes=2)
    assert several == played
    other = play_tournament(agents, env_config=LARGER, matches=6, seed=4, processes=1)
    assert other.pairs != played.pairs


def test_only_the_named_pairs_play(agents, played):
    some = play_tournament(
        agents, env_config=LARGER, matches=6, seed=3, processes=1, pairs=[(0, 2)]
    )
    assert some.pairs == [p for p in played.pairs if (p.a, p.b) == ("random", "net-2")]
    assert set(some.ratings) == set(agents)  # also of the one that did not play


def test_an_agent_trained_on_one_size_plays_on_another(agents):
    two = {name: agents[name] for name in ("net-1", "net-2")}
    fights = [
        play_tournament(two, env_config={"map_size": size}, matches=2, processes=1)
        for size in (12, 20)
    ]
    assert [fight.env_config["map_size"] for fight in fights] == [12, 20]
    assert all(fight.env_config["max_cycles"] == SIZE["max_cycles"] for fight in fights)
    assert fights[1].pairs[0].survivors_a > fights[0].pairs[0].survivors_a  # there are more


def test_ratings_recover_known_strengths():
    strengths = {"random": 0.0, "b": 80.0, "c": 200.0, "d": 310.0}
    names = list(strengths)
    played = []
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            share = 1 / (1 + 10 ** ((strengths[b] - strengths[a]) / 400))
            wins = round(1_000_000 * share)
            played.append(pair(a, b, wins, 1_000_000 - wins))
    assert rate(names, played, "random") == pytest.approx(strengths, abs=0.1)
    around_zero = rate(names, played, None)
    assert sum(around_zero.values()) == pytest.approx(0, abs=1e-6)
    assert around_zero["d"] - around_zero["b"] == pytest.approx(230, abs=0.1)


def test_two_agents_are_rated_by_the_odds_with_one_draw_added():
    found = rate(["a", "b"], [pair("a", "b", 13, 5, 2)], "b")
    assert found["a"] == pytest.approx(400 * math.log10((13 + 1 + 0.5) / (5 + 1 + 0.5)))


def test_draws_count_half_for_each():
    drawn = rate(["a", "b"], [pair("a", "b", 2, 4, 10)], None)
    halved = rate(["a", "b"], [pair("a", "b", 7, 9)], None)
    assert drawn == pytest.approx(halved)


def test_the_undefeated_and_the_unconnected_have_finite_ratings():
    ladder = [f"agent-{i}" for i in range(12)]
    played = [pair(a, b, 1000, 0) for i, a in enumerate(ladder) for b in ladder[i + 1 :]]
    found = list(rate(ladder, played, None).values())
    assert np.isfinite(found).all() and found == sorted(found, reverse=True)
    apart = rate(["a", "b", "c", "d"], [pair("a", "b", 9, 1), pair("c", "d", 9, 1)], None)
    assert apart["a"] == pytest.approx(apart["c"]) and apart["a"] > apart["b"]


def test_what_is_counted_by_hand():
    def match(red, blue, length=9):
        kills = {"kills": {"red": red, "blue": blue}}
        return Episode(0, 0, {"red": 10 * red, "blue": 10 * blue}, length, result=kills)

    first = [match(5, 1), match(5, 1), match(2, 2)]
    second = [match(0, 4), match(7, 6), match(7, 6, length=8)]
    found = statistics.count("a", "b", first, second)
    assert (found.wins, found.draws, found.losses, found.wins_first) == (3, 1, 2, 2)
    assert (found.matches, found.distinct) == (6, 2 + 3)
    assert found.win_rate == pytest.approx(3.5 / 6)
    assert (found.kills_a, found.kills_b) == pytest.approx(((12 + 16) / 6, (4 + 14) / 6))
    assert (found.returns_a, found.returns_b) == pytest.approx((280 / 6, 180 / 6))
    assert found.survivors_a is None  # these matches count none


@pytest.mark.parametrize("wins", [0, 1, 3, 6])
def test_the_interval_is_wilsons(wins):
    def match(won):
        return Episode(0, 0, {"red": 1.0, "blue": 0.0} if won else {"red": 0.0, "blue": 1.0})

    found = statistics.count("a", "b", [match(i < wins) for i in range(6)], [])
    n, p, z = 6, wins / 6, 1.959963984540054
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert found.wilson_low == pytest.approx(max(middle - half, 0), abs=1e-12)
    assert found.wilson_high == pytest.approx(min(middle + half, 1))


def test_an_agent_is_named_by_the_part_of_its_path_that_is_in_no_other(tmp_path):
    folders = [tmp_path / run / "checkpoint" for run in ("mfq", "random", "iql")]
    for folder in folders:
        folder.mkdir(parents=True)
    mfq, drawn, iql = map(str, folders)
    assert name_agents(["random", f"{mfq}/", iql]) == {
        "random": "random",
        "mfq": f"{mfq}/",
        "iql": iql,
    }
    assert name_agents(["random", mfq]) == {"random": "random", "checkpoint": mfq}
    assert set(name_agents([drawn, "random", mfq])) == {drawn, "random", "mfq"}
    with pytest.raises(ValueError, match="is given twice"):
        name_agents([mfq, f"{mfq}/"])


def test_the_command_writes_what_it_shows(agents, tmp_path):
    out, picture = tmp_path / "t.json", tmp_path / "t.svg"
    arguments = ["tournament", *agents.values(), "--matches", "4", "--processes", "1"]
    arguments += ["-o", str(out), "--plot", str(picture)]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    content = json.loads(out.read_text())
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [line[0] for line in lines[1:4]] == content["agents"]
    assert [int(line[1]) for line in lines[1:4]] == [
        round(content["ratings"][name]) for name in content["agents"]
    ]
    assert content["ratings"]["random"] == 0
    assert content["env_config"] == SIZE and content["matches"] == 4
    assert {(p["a"], p["b"]) for p in content["pairs"]} == {
        ("random", "net-1"),
        ("random", "net-2"),
        ("net-1", "net-2"),
    }
    assert all(p["wins"] + p["draws"] + p["losses"] == 4 for p in content["pairs"])
    assert {"versions", "commit", "date", "command"} <= set(content)
    assert sorted(tmp_path.iterdir()) == [out, picture]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["random"], "a tournament needs two at least"),
        (["random", "random"], "the agent 'random' is given twice"),
        (["random", "nowhere"], "'nowhere', which is neither one of random, still,"),
        (["random", "NET", "--matches", "3"], "matches is 3; it must be even and at least 2"),
        (["random", "NET", "--matches", "0"], "matches is 0; it must be even and at least 2"),
        (["random", "NET", "--seed", "-1"], "seed is -1; it must be at least 0"),
        (["random", "NET", "--env", "batle_v4"], "env is 'batle_v4' (did you mean 'battle_v4'?)"),
        (["random", "NET", "--env-config", "{map_sise: 9}"], "did you mean 'map_size'"),
        (["random", "NET", "--env", "CartPole-v1"], "has the groups ['agent']; a match is betw"),
        (["random", "NET", "--env", "combined_arms_v6"], "a match is between two"),
        (["random", "NET", "--env", "adversarial_pursuit_v4"], "no module for group 'predator'"),
        (["random", "NET", "--env-config", "{minimap_mode: true}"], "plays Box(0.0, 2.0, (13, 13"),
        (["random", "NET", "--out", "no/t.json"], "--out no/t.json: the folder no does not exist"),
        (["random", "NET", "--out", "."], "--out . is a folder"),
        (["random", "NET", "--out", "/proc/t.json"], "--out /proc/t.json cannot be written"),
        (["random", "NET", "--plot", "t.jpeg"], "--plot t.jpeg must end in .png, .svg or .pdf"),
    ],
)
def test_what_cannot_be_played_is_one_sentence(agents, arguments, words, tmp_path, monkeypatch):
    def play(*arguments):
        raise AssertionError("a match has begun")

    monkeypatch.setattr(tournament, "_play_half", play)
    monkeypatch.chdir(tmp_path)
    arguments = [agents["net-1"] if word == "NET" else word for word in arguments]
    outputs = [] if {"--out", "--plot"} & set(arguments) else ["--out", "x.json"]
    result = CliRunner().invoke(main, ["tournament", *arguments, "--processes", "1", *outputs])
    assert result.exit_code == 2, result.output
    assert words in " ".join(result.output.split())
    assert not list(tmp_path.iterdir())


def test_a_plot_of_groups_that_are_unlike_is_one_sentence(tmp_path, monkeypatch):
    returns = {"deer": {"random": {"hold": 1.0}, "hold": {"random": 2.0}}}
    played = tournament.Tournament(
        ["random", "hold"], [], {}, returns, "tiger_deer_v4", {}, 0, 2, False, 0
    )
    monkeypatch.setattr(tournament, "play_tournament", lambda *a, **given: played)
    out, plot = tmp_path / "t.json", tmp_path / "t.png"
    words = ["tournament", "random", "hold", "--out", str(out), "--plot", str(plot)]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2 and "there are no win rates to draw" in result.output
    assert out.is_file() and not plot.exists()


def test_pairs_that_are_none_are_refused(agents):
    for pairs in ([], [(0, 0)], [(0, 3)], [(0, 1), (1, 0)]):
        with pytest.raises(ValueError, match="pairs"):
            play_tournament(agents, pairs=pairs)


def test_a_match_that_fails_leaves_nothing_behind(agents, tmp_path, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("the environment broke")

    monkeypatch.setattr(tournament, "_play_half", fail)
    arguments = ["tournament", *agents.values(), "--processes", "1", "-o", str(tmp_path / "t.json")]
    assert isinstance(CliRunner().invoke(main, arguments).exception, RuntimeError)
    assert not list(tmp_path.iterdir())


def test_a_file_that_fails_half_way_leaves_the_old_one(tmp_path):
    out = tmp_path / "t.json"
    out.write_text("old")
    with pytest.raises(RuntimeError), replacing(out) as part:
        part.write_text("ha")
        raise RuntimeError
    assert out.read_text() == "old"
    check_output(out)
    assert list(tmp_path.iterdir()) == [out]


def test_a_link_stays_one_and_what_is_no_file_is_not_replaced(tmp_path):
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    write_json(tmp_path / "link.json", {"layout": np.zeros(2), "env": Path, "kills": np.int64(3)})
    assert (tmp_path / "link.json").is_symlink()
    written = json.loads((tmp_path / "real.json").read_text())
    assert written["layout"] == "[0. 0.]" and written["kills"] == 3
    with pytest.raises(ValueError, match="/dev/null is no regular file"):
        check_output(Path("/dev/null"))


def test_the_commit_is_the_packages_own_or_none(tmp_path, monkeypatch):
    from rllib_mfq.arena import provenance as module

    known = module._git("ls-files", "--", "__init__.py")
    assert bool(provenance()["commit"]) == bool(known)
    monkeypatch.setattr(module, "PACKAGE", tmp_path)  # no checkout
    assert provenance()["commit"] is None
    module._git("init")  # one that does not know the package
    (tmp_path / "__init__.py").touch()
    assert provenance()["commit"] is None
    monkeypatch.setenv("PATH", os.devnull)  # no git
    assert provenance()["commit"] is None
