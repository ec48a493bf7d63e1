"""Reproductions: their statistics by hand, and a small one from end to end."""

import csv
import fcntl
import json
import math
import os
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from ray.tune.search.variant_generator import generate_variants
from scipy import stats
from test_cli import start

from rllib_cli import session, train
from rllib_cli.command import main
from rllib_cli.experiments import BadInput
from rllib_cli.reproduce import spread
from rllib_mfq import MFQConfig
from rllib_mfq.arena.statistics import over_seeds
from rllib_mfq.experiments import battle, gaussian_squeeze, ising, magent2
from rllib_mfq.experiments.runs import Run, finished, read_rows, write_rows


def test_the_interval_of_cross_play_by_hand():
    rates = np.array([[1.0, 0.5], [0.8, 0.3], [0.9, 0.1]])
    rows, columns = [0.75, 0.55, 0.5], [0.9, 0.3]
    variance = np.var(rows, ddof=1) / 3 + np.var(columns, ddof=1) / 2
    mean, half = over_seeds(rates)
    assert mean == pytest.approx(0.6)
    assert half == pytest.approx(stats.t.ppf(0.975, 1) * math.sqrt(variance))


def test_agreement_of_all_seeds_leaves_no_interval():
    assert over_seeds(np.full((3, 4), 0.7)) == (pytest.approx(0.7), pytest.approx(0.0))


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(600):
        rates = 0.5 + 0.1 * (rng.normal(size=(5, 1)) + rng.normal(size=(1, 5)))
        mean, half = over_seeds(rates)
        hits += abs(mean - 0.5) <= half
    assert hits / 600 >= 0.94


def test_a_spread_is_the_mean_and_the_t_interval():
    values = [0.9, 1.0, 0.8]
    half = stats.t.ppf(0.975, 2) * np.std(values, ddof=1) / math.sqrt(3)
    assert spread(values) == f"0.900 ± {half:.3f}"


def test_cross_play_picks_the_seeds_of_both_methods():
    pairs = [
        {"a": "mfq-0", "b": "iql-0", "win_rate": 0.9},
        {"a": "iql-1", "b": "mfq-0", "win_rate": 0.2},
        {"a": "mfq-1", "b": "iql-0", "win_rate": 0.6},
        {"a": "mfq-1", "b": "iql-1", "win_rate": 0.7},
        {"a": "mfq-0", "b": "mfq-1", "win_rate": 0.5},
    ]
    content = {"agents": ["iql-1", "mfq-0", "random", "iql-0", "mfq-1"], "pairs": pairs}
    found = battle.cross_play(content, "mfq", "iql")
    np.testing.assert_allclose(found, [[0.9, 0.8], [0.6, 0.7]])


def test_the_order_falls_through_a_half_between_two_temperatures():
    assert ising.crossing([1.0, 1.2, 1.4], [0.9, 0.6, 0.2]) == pytest.approx(1.25)
    assert math.isnan(ising.crossing([1.0, 1.2], [0.9, 0.6]))


def test_a_crowd_of_another_size_gets_as_many_steps():
    config = {
        "temperature": [[0, 10.0], [1_000, 1.0]],
        "shared_exploration": [[0, 5.0], [2_000, 0.1]],
        "train_batch_size_per_learner": 100,
        "replay_capacity": 300,
    }
    scaled = gaussian_squeeze._scaled(config, 0.1, 2.0)
    assert scaled["temperature"] == [[0, 20.0], [100, 2.0]]
    assert scaled["shared_exploration"] == [[0, 5.0], [200, 0.1]]
    assert (scaled["train_batch_size_per_learner"], scaled["replay_capacity"]) == (10, 30)


@pytest.fixture
def planned(monkeypatch):
    """The configs of the trials that Tune would run, by variant; nothing is trained."""
    configs = {}

    def plan(experiment, *unused):
        for _, variant in generate_variants({"config": experiment.spec["config"]}):
            configs[variant["config"][train.VARIANT]] = variant["config"]
        return []

    monkeypatch.setattr(train, "_tune", plan)
    monkeypatch.setattr(session, "start_ray", lambda options: None)
    monkeypatch.setattr(session.ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(session.ray, "shutdown", lambda: None)  # other tests still need their Ray
    return configs


def test_every_variant_differs_from_the_example_and_not_from_another_variant(tmp_path, planned):
    variants = {"warm": {"temperature": 1.0, "seed": 0}, "cold": {"seed": 1}}
    with pytest.raises(BadInput, match="warm, cold"):  # nothing was trained
        train.train_variants("ising", variants, tmp_path / "runs")
    assert [planned[name]["seed"] for name in variants] == [0, 1]
    assert planned["warm"]["temperature"] == 1.0
    example = train.read_experiments(train.find_example("ising"))
    (config,) = (each["config"] for each in example.values())
    assert planned["cold"]["temperature"] == config["temperature"]


def test_a_run_is_one_process_also_where_the_example_has_a_runner(tmp_path, planned):
    """With a runner each, one run at a time would wait for a second core for ever."""
    (example,) = train.read_experiments(train.find_example("adversarial_pursuit")).values()
    assert example["config"]["num_env_runners"] == 1
    with pytest.raises(BadInput, match="cold"):
        train.train_variants("adversarial_pursuit", {"cold": {"seed": 1}}, tmp_path / "runs")
    assert planned["cold"]["num_env_runners"] == 0


def test_a_variant_may_play_another_environment(tmp_path, planned):
    other = {"env": "battlefield_v5", "env_config": {"map_size": 46}}
    variants = {"other": other, "same": {"seed": 1}}
    with pytest.raises(BadInput, match="other, same"):
        train.train_variants("battle_crossplay", variants, tmp_path / "runs")
    assert {key: planned["other"][key] for key in other} == other
    example = example_config("battle_crossplay")
    assert all(planned["same"][key] == example[key] for key in other)


def test_runs_that_need_more_than_there_is_are_refused(tmp_path, planned):
    """They would wait for ever for cores that this machine has not."""
    with pytest.raises(BadInput, match="needs 3 CPU, Ray has 2"):
        train.train_variants("ising", {"many": {"num_learners": 2}}, tmp_path / "runs")
    assert not planned


def test_a_run_has_its_rows_however_long_they_take(tmp_path, monkeypatch, planned):
    plan, stops = train._tune, []

    def keep(experiment, *rest):
        stops.append(experiment.spec["stop"])
        return plan(experiment, *rest)

    monkeypatch.setattr(train, "_tune", keep)
    stop = {"agent_steps_sampled_lifetime": 7.0}
    with pytest.raises(BadInput, match="cold"):
        train.train_variants("tiger_deer", {"cold": {"seed": 1}}, tmp_path / "runs", stop)
    assert stops == [stop]


def test_a_run_that_was_trained_otherwise_is_refused(tmp_path, planned):
    folder = tmp_path / "runs" / "cold"
    (folder / "checkpoint_000000").mkdir(parents=True)
    rows = {"training_iteration": 8, "agent_steps_sampled_lifetime": 9}
    (folder / "result.json").write_text(json.dumps(rows))
    variant = {"cold": {"seed": 1, "temperature": 0.5}}
    for config, words in (
        ({"temperature": 0.5, "seed": 2}, "seed 2, which is 1 now"),
        ({"temperature": 0.5, "seed": 1, "lr": 1.0}, "lr 1.0, which is"),
    ):
        (folder / "params.json").write_text(json.dumps(example_config("ising") | config))
        with pytest.raises(BadInput, match=words):
            train.train_variants("ising", variant, tmp_path / "runs")
    same = example_config("ising") | variant["cold"] | {"__variant__": "cold"}
    (folder / "params.json").write_text(json.dumps(same))
    assert train.train_variants("ising", variant, tmp_path / "runs").keys() == variant.keys()
    assert not planned


def example_config(name):
    (example,) = train.read_experiments(train.find_example(name)).values()
    return example["config"] | {"num_env_runners": 0, "env": example["env"]}


def test_figures_name_the_state_that_trained_their_run(tmp_path, monkeypatch, planned):
    """A run is trained once, and its matches are played, and written, by what comes later."""
    monkeypatch.setattr(train, "provenance", lambda: {"commit": "abc1234"})
    with pytest.raises(BadInput, match="did not end"):
        train.train_variants("ising", {"cold": {"seed": 1}}, tmp_path / "runs")
    folder = tmp_path / "runs" / "cold"
    (folder / "checkpoint_000000").mkdir()
    rows = {"training_iteration": 8, "agent_steps_sampled_lifetime": 9, "time_total_s": 2.4}
    (folder / "result.json").write_text(json.dumps(rows))
    (folder / "params.json").write_text(json.dumps(example_config("ising") | {"seed": 1}))
    monkeypatch.setattr(train, "provenance", lambda: {"commit": "later"})
    run = train.train_variants("ising", {"cold": {"seed": 1}}, tmp_path / "runs")["cold"]
    assert run.cost() == {"agent_steps": 9, "seconds": 2, "trained_at": "abc1234"}
    (folder / "provenance.json").unlink()  # runs of before have none
    assert finished(folder).cost()["trained_at"] == ""


def test_two_reproductions_do_not_train_in_one_folder(tmp_path, planned):
    folder = tmp_path / "runs"
    folder.mkdir()
    with (folder / ".lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(BadInput, match="already trains in"):
            train.train_variants("ising", {"cold": {"seed": 1}}, folder)
    assert not planned


def test_a_crowd_of_a_few_can_be_trained(tmp_path, planned):
    (base,) = train.read_experiments(train.find_example("gaussian_squeeze")).values()
    with pytest.raises(BadInput, match="did not end"):  # nothing was trained
        gaussian_squeeze.reproduce(train.train_variants, base, tmp_path, [3], seeds=1)
    assert len(planned) == 4


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_reproduction_in_one_sentence(number, code, tmp_path):
    process = start("reproduce", "ising", "--temperature", 2, "--seeds", 2, "--out", tmp_path)
    try:
        deadline = time.time() + 120
        while not list(tmp_path.rglob("params.json")):
            assert time.time() < deadline and process.poll() is None, process.communicate()
            time.sleep(0.1)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == code, err
    assert "Runs that have finished are kept" in err
    assert "Traceback" not in err and "Fatal" not in err and "Stack trace" not in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ising", "--temperature", "0"], "--temperature is 0.0; it must be above 0"),
        (["gaussian_squeeze", "--sigma", "-1"], "--sigma is -1.0; it must be above 0"),
        (["battle", "--matches", "5"], "--matches is 5; it must be even"),
        (["ising", "--out", "taken"], "--out taken"),
        (["battle", "--seeds", "1"], "1 is not in the range x>=2"),
    ],
)
def test_what_cannot_be_reproduced_is_one_sentence(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("a file")
    result = CliRunner().invoke(main, ["reproduce", *arguments])
    assert result.exit_code == 2
    assert words in " ".join(result.output.split())


@pytest.mark.slow
def test_a_small_phase_curve_from_end_to_end_is_written_once_and_not_trained_again(tmp_path):
    arguments = ["reproduce", "ising", "--size", "8", "--seeds", "2", "--out", str(tmp_path)]
    arguments += ["--temperature", "0.7", "--temperature", "3"]
    first = CliRunner().invoke(main, arguments)
    assert first.exit_code == 0, first.output
    assert "training 4 runs" in first.output
    rows = list(csv.DictReader((tmp_path / "ising.csv").open()))
    assert len(rows) == 8  # 2 temperatures, 2 seeds, 2 methods
    for row in rows:
        cold = row["temperature"] == "0.7"
        assert (float(row["order_parameter"]) > 0.9) == cold, row
        if row["method"] == "MFQ":
            assert float(row["q_mse"]) < 1e-3
    assert (tmp_path / "ising.png").stat().st_size > 5_000
    assert "training" not in CliRunner().invoke(main, arguments).output


def test_groups_that_fight_together_are_one_side():
    assert magent2.sides(["redmelee", "redranged", "bluemelee", "blueranged"]) == [
        ["redmelee", "redranged"],
        ["bluemelee", "blueranged"],
    ]
    assert magent2.sides(["predator", "prey"]) == [["predator"], ["prey"]]
    assert magent2.sides(["omnivore"]) == [["omnivore"]]


PURSUIT = {"env": "adversarial_pursuit_v4", "env_config": {"map_size": 12, "max_cycles": 10}}
GATHER = {"env": "gather_v5", "env_config": {"max_cycles": 2}}


def test_every_seed_plays_every_side_against_independent_learners(build, tmp_path):
    """Untrained networks stand for those that a run leaves."""
    asked, runs = {}, {}

    def train(example, variants, storage, stop, processes):
        asked[example] = stop, variants
        runs.clear()
        for name, changes in variants.items():
            algo = build(
                MFQConfig()
                .update_from_dict(examples[example]["config"] | changes)
                .environment(examples[example]["env"])
                .env_runners(num_envs_per_env_runner=1)
            )
            algo.save_to_path(storage / name)
            algo.stop()
            result = {"agent_steps_sampled_lifetime": 7, "time_total_s": 1.2}
            runs[name] = Run(result, storage / name, {})
        return dict(runs)

    schedule = [[0, 0.5], [1_000, 0.05]]
    examples = {
        name: {
            "env": each["env"],
            "config": {"env_config": each["env_config"], "temperature": schedule},
            "stop": {"agent_steps_sampled_lifetime": 2_000, "time_total_s": 9},
        }
        for name, each in {"gather": GATHER, "adversarial_pursuit": PURSUIT}.items()
    }
    for name in examples:  # as where a run is interrupted between two environments
        magent2.reproduce(train, {name: examples[name]}, tmp_path, seeds=2, episodes=3, rows=1_000)
    rows = read_rows(tmp_path / magent2.FILE)
    found = {(row["env"], row["side"]) for row in rows}
    assert found == {
        ("adversarial_pursuit", "predator"),
        ("adversarial_pursuit", "prey"),
        ("gather", "omnivore"),
    }
    assert len(rows) == 3 * 4 * 2  # sides, methods, seeds
    assert {row["episodes"] for row in rows} == {"3"}
    stop, variants = asked["adversarial_pursuit"]
    assert stop == {"agent_steps_sampled_lifetime": 1_000.0}  # and no limit of time, which varies
    assert variants["IQL-1"] == {
        "neighborhood": "none",
        "seed": 1,
        "temperature": [[0, 0.5], [500, 0.05]],
        "evaluation_interval": None,  # all are compared once they are trained
        "evaluation_opponents": {},
    }
    lines = magent2.summary(rows)
    assert len(lines) == 3 * 4 and {line["play"] for line in lines} == {"greedy"}

    # The same agents draw their actions: further rows, beside those of greedy play.
    one = {"adversarial_pursuit": examples["adversarial_pursuit"]}
    magent2.reproduce(train, one, tmp_path, seeds=2, episodes=3, rows=1_000, explore=True)
    both = read_rows(tmp_path / magent2.FILE)
    assert [row for row in both if row["play"] == "greedy"] == rows
    drawn = [row["return"] for row in both if row["play"] == "drawn"]
    greedy = [row["return"] for row in rows if row["env"] == "adversarial_pursuit"]
    assert len(drawn) == len(greedy) == 2 * 4 * 2 and drawn != greedy
    assert len(magent2.summary(both)) == 5 * 4
    assert all(bool(line["lead over IQL"]) == (line["method"] != "IQL") for line in lines)

    # A method that has learned the same as independent learners leads them by nothing at all.
    same = {name: run for name, run in runs.items() if name.startswith("IQL")}
    same |= {f"twin-{seed}": runs[f"IQL-{seed}"] for seed in range(2)}
    measured = magent2._measure("x", PURSUIT["env"], PURSUIT["env_config"], same, 3)
    assert len({row["return"] for row in measured}) == 4  # two sides, two seeds
    twins = [row for row in magent2.summary(measured) if row["method"] == "twin"]
    assert [row["lead over IQL"] for row in twins] == ["0.0 ± 0.0"] * 2


def test_a_lead_is_over_the_seeds_of_independent_learners():
    rows = [
        {"env": "x", "side": "a", "method": method, "seed": seed, "return": value}
        for method, values in {"MFQ, all": [3.0, 5.0], "IQL": [1.0, 2.0]}.items()
        for seed, value in enumerate(values)
    ]
    mfq, iql = magent2.summary(rows)
    half = stats.t.ppf(0.975, 1) * np.std([2.0, 3.0], ddof=1) / math.sqrt(2)
    assert mfq["return"].startswith("4.0 ± ") and iql["lead over IQL"] == ""
    assert mfq["lead over IQL"] == f"2.5 ± {half:.1f}"


def test_a_sweep_plays_every_change_against_both_methods_scripts_and_random(tmp_path, monkeypatch):
    played = {}

    def play(agents, **options):
        names = list(agents)
        played.update(options, names=names)
        pairs = [
            {
                "a": names[a],
                "b": names[b],
                "win_rate": 1.0 if "random" in (names[a], names[b]) else 0.75,
            }
            for a, b in options["pairs"]
        ]
        return SimpleNamespace(content=lambda: {"agents": names, "pairs": pairs})

    def train(example, variants, storage, stop, processes):
        result = {"agent_steps_sampled_lifetime": 7, "time_total_s": 1.2}
        return {name: Run(result, tmp_path / name, {}) for name in variants}

    monkeypatch.setattr(battle, "play_tournament", play)
    rows = battle.sweep(train, tmp_path, seeds=2, changes=["dueling"], random_steps=5)
    assert [row["method"] for row in rows] == ["mfq", "mfq", "dueling", "dueling"]
    assert {row["win_rate_iql"] for row in rows} == {0.75}
    assert {row["win_rate_random"] for row in rows} == {1.0}
    assert {row["win_rate_mfq"] for row in rows[2:]} == {0.75}
    assert {row["win_rate_rush"] for row in rows} == {0.75}
    # Two seeds against iql (2), mfq (2), random and four scripts; mfq's own meet once.
    assert played["random_steps"] == 5 and len(played["pairs"]) == 2 * 9 + 2 * 7 + 1
    with pytest.raises(ValueError, match="random_steps 5, which say nothing beside"):
        battle.sweep(train, tmp_path, seeds=2, changes=["LSTM"])  # after three random steps
    battle.sweep(train, tmp_path, seeds=2, changes=["priorities"], random_steps=5)
    recorded = [row["method"] for row in read_rows(tmp_path / "battle_variations.csv")]
    assert recorded == ["dueling"] * 2 + ["mfq"] * 2 + ["priorities"] * 2


def test_a_run_that_failed_says_why(planned, monkeypatch, tmp_path, capsys):
    trial = SimpleNamespace(
        status="ERROR", trial_id="1", path=str(tmp_path), get_error=lambda: "ValueError: too small"
    )
    trial.storage = SimpleNamespace(experiment_dir_name="tiger_deer")
    trial.config = trial.evaluated_params = {train.VARIANT: "cold"}
    monkeypatch.setattr(train, "_tune", lambda *unused: [trial])
    with pytest.raises(BadInput, match="cold"):
        train.train_variants("tiger_deer", {"cold": {"seed": 1}}, tmp_path / "runs")
    assert "cold" in (said := capsys.readouterr().out) and "failed: ValueError: too small" in said


def test_figures_of_another_lattice_or_squeeze_are_refused_before_anything_is_trained(tmp_path):
    write_rows(tmp_path / "ising.csv", [{"temperature": 1.0, "size": 20}])
    with pytest.raises(ValueError, match=r"ising.csv has figures of size 20, .* size 16"):
        ising.reproduce(None, tmp_path, size=16)
    write_rows(tmp_path / "gaussian_squeeze.csv", [{"num_agents": 5, "mu": 400.0, "sigma": 200.0}])
    with pytest.raises(ValueError, match=r"figures of mu 400.0, .* mu 300.0"):
        gaussian_squeeze.reproduce(None, {}, tmp_path, mu=300.0)


def test_figures_of_other_runs_stay_in_a_file(tmp_path):
    file = tmp_path / "x.csv"
    write_rows(file, [{"name": "a", "value": 1}, {"name": "b", "value": 2}])
    write_rows(file, [{"name": "b", "value": 3}], keep=lambda row: row["name"] != "b")
    assert [(row["name"], row["value"]) for row in read_rows(file)] == [("a", "1"), ("b", "3")]
    write_rows(file, [{"name": "c", "value": 4}])
    assert [row["name"] for row in read_rows(file)] == ["c"]
