"""Groups that differ in size or spaces: what is shown in place of a win rate; and episodes."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from small_battles import small_battle

from rllib_cli import command, hooks, progress
from rllib_mfq import Rows, Step, magent2
from rllib_mfq.algorithm.match import play_episodes
from rllib_mfq.algorithm.opponents import load_opponent
from rllib_mfq.population.fragment import Episode, are_alike

PURSUIT = {"map_size": 12, "max_cycles": 15}
EVALUATED = "evaluation/env_runners"


@pytest.fixture(scope="module")
def pursuit(ray_session, tmp_path_factory):
    """A tiny run of predators and prey, and its checkpoint."""
    config = small_battle("adversarial_pursuit_v4", PURSUIT)
    config.env_runners(num_envs_per_env_runner=2)
    config.evaluation(
        evaluation_interval=1, evaluation_duration=4, evaluation_opponents={"random": "random"}
    )
    algo = config.build_algo()
    folder = tmp_path_factory.mktemp("pursuit")
    results = algo.train()
    algo.save_to_path(folder / "saved")
    algo.stop()
    return results, folder / "saved"


@pytest.fixture(scope="module")
def random_returns():
    """The returns of each group in 60 episodes of random against random."""
    groups = magent2("adversarial_pursuit_v4", **PURSUIT).groups
    players = load_opponent("random", "random", groups).players(torch.Generator().manual_seed(5))
    episodes = play_episodes(
        lambda index: magent2("adversarial_pursuit_v4", **PURSUIT), players, 60, seed=9
    )
    return {group: np.array([each.returns[group] for each in episodes]) for group in groups}


def test_unlike_groups_have_returns_beside_those_of_random_play_and_no_win_rate(
    pursuit, random_returns
):
    results, _ = pursuit
    played = results["evaluation"]["env_runners"]
    assert "win_rate" not in played and "win_rate" not in results["env_runners"]
    figures = played["opponents"]["random"]
    assert set(figures["group_returns_mean"]) == set(figures["baseline_returns_mean"])
    # Random against random, played here: the same mean within its error.
    for group, values in random_returns.items():
        error = values.std() * np.sqrt(1 / 20 + 1 / 60)
        assert abs(figures["baseline_returns_mean"][group] - values.mean()) < 5 * error


def test_the_command_shows_returns_of_unlike_groups(pursuit):
    _, saved = pursuit
    config = small_battle("adversarial_pursuit_v4", PURSUIT)
    config.evaluation(evaluation_interval=1, evaluation_opponents={"random": "random"})
    run = hooks.MFQHooks().run(config)
    assert not run.win_rates and not run.reports(f"{EVALUATED}/win_rate/random")
    for key in run.beside:
        assert run.reports(key)
    names = [progress.short_name(key) for key in run.beside]
    assert set(names) == {
        f"{group} vs random" if own else f"random as {group}"
        for group in ("predator", "prey")
        for own in (True, False)
    }
    told = CliRunner().invoke(
        command.main, ["evaluate", str(saved), "--opponent", "random", "--episodes", "2"]
    )
    assert told.exit_code == 0, told.output
    assert "won" not in told.output and "win rate" not in told.output
    assert "as predator: mean return" in told.output and "random in its place" in told.output


def test_a_tournament_of_unlike_groups_shows_the_returns_of_each(pursuit, random_returns, tmp_path):
    _, saved = pursuit
    words = ["tournament", str(saved), "random", "--matches", "4", "--processes", "1"]
    told = CliRunner().invoke(
        command.main, [*words, "--explore", "--out", str(tmp_path / "x.json")]
    )
    assert told.exit_code == 0, told.output
    assert "rating" not in told.output and "won" not in told.output
    content = json.loads((tmp_path / "x.json").read_text())
    assert content["pairs"] == [] and content["ratings"] == {}
    returns = content["returns"]
    assert set(returns) == {"predator", "prey"}
    for by_player in returns.values():
        assert set(by_player[saved.name]) == {"random"}
        assert set(by_player["random"]) == {saved.name, "random"}
    # Of the same two matches: what the predators get is what they got from the prey that they met.
    for group, values in random_returns.items():
        error = values.std() * np.sqrt(1 / 2 + 1 / 60)
        assert abs(returns[group]["random"]["random"] - values.mean()) < 5 * error
        shown = f"{round(returns[group][saved.name]['random'], 1) + 0.0:.1f}"
        (line,) = [
            line
            for line in told.output.split(f"{group} played by")[1].split("\n\n")[0].splitlines()
            if line.split()[:1] == [saved.name]
        ]
        assert shown in line
    plotted = CliRunner().invoke(command.main, ["plot", str(tmp_path / "x.json"), "-o", "x.png"])
    assert plotted.exit_code == 2 and "there are no win rates to draw" in plotted.output


def test_groups_are_alike_if_spaces_and_sizes_are():
    battle = magent2("battle_v4", map_size=12, max_cycles=5)
    rows = battle.reset(seed=0)
    assert are_alike(battle.groups, rows)
    fewer = {**rows, "red": rows["red"].select(np.arange(len(rows["red"].ids)) > 0)}
    assert not are_alike(battle.groups, fewer)
    hunt = magent2("adversarial_pursuit_v4", **PURSUIT)
    assert not are_alike(hunt.groups, hunt.reset(seed=0))
    unlike = Episode(0, 0, {"cat": 1.0, "mouse": 0.0}, alike=False)
    assert not unlike.has_winner
    unlike.result = {"score": {"cat": 1.0, "mouse": 2.0}}  # the population says who won
    assert unlike.has_winner


def test_an_episode_answers_to_the_names_of_rllibs_episodes(build):
    """The sums are those of a loop over what the population paid."""
    seen = []

    def on_episode_step(*, episode, **kwargs):
        assert len(episode) == episode.env_steps() == episode.length > 0 and episode
        assert not episode.is_done
        episode.custom_data["steps"] = len(episode)

    def on_episode_end(*, episode, **kwargs):
        returns = episode.agent_returns
        for group, total in episode.returns.items():
            assert sum(returns[group].values()) == pytest.approx(total, abs=1e-3)
        assert episode.get_return() == pytest.approx(sum(episode.returns.values()))
        assert episode.is_done and episode.custom_data["steps"] == len(episode)
        assert len(episode) < episode.agent_steps() <= len(episode) * 20
        seen.append(episode)

    config = small_battle("battle_v4", None)
    config.callbacks(on_episode_step=on_episode_step, on_episode_end=on_episode_end)
    algo = build(config.env_runners(num_envs_per_env_runner=2))
    algo.train()
    assert seen
    with pytest.raises(ValueError, match="agent_returns are kept only while"):
        _ = seen[0].agent_returns


def test_agent_returns_are_the_sums_of_a_loop():
    episode = Episode(0, 0, {"red": 0.0, "blue": 0.0})
    episode.keep_agent_returns(True)
    expected = {}
    random = np.random.default_rng(0)
    for _ in range(20):
        ids = random.choice(10, 4, replace=False)
        rewards = random.normal(size=4)
        live = np.zeros(4, bool)
        episode.pay("red", ids, Step(rewards, live, live, Rows(ids)))
        for agent, reward in zip(ids.tolist(), rewards.tolist(), strict=True):
            expected[agent] = expected.get(agent, 0.0) + reward
    assert episode.agent_returns == {"red": pytest.approx(expected), "blue": {}}
    assert episode.returns["red"] == pytest.approx(sum(expected.values()))
    assert episode.agent_steps() == 80
