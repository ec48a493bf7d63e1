"""The examples that are to be copied: each runs, with a tiny budget."""

import socket
from pathlib import Path

import nbformat
import numpy as np
import pytest
from magent2.environments import battle_v4
from mlflow.tracking import MlflowClient
from nbclient import NotebookClient
from pettingzoo.test import parallel_api_test
from ray import serve as ray_serve

import rllib_mfq
from examples import (
    callbacks,
    crowd,
    export,
    generations,
    play,
    population,
    population_based_training,
    serve,
    track_mlflow,
    tune_optuna,
)
from rllib_mfq import MFQConfig

ROOT = Path(__file__).parents[1]


def test_a_trained_agent_plays_in_a_loop_of_ones_own():
    earned = play.play("pretrained:battle-mfq", 16, 40)
    assert {*earned} == {"red", "blue"} and max(earned.values()) > 0  # somebody hit somebody


def test_a_metric_of_ones_own_is_reported_by_callbacks(build):
    config = callbacks.config().environment(env_config={"map_size": 20, "max_cycles": 5})
    algo = build(config.env_runners(num_envs_per_env_runner=1))
    assert 1 <= algo.train()["env_runners"]["first_blood"] <= 5


def test_a_class_of_ones_own_has_deaths_births_and_masks_and_is_trained(build):
    for walkers in (crowd.Crowd, generations.Walkers):
        parallel_api_test(walkers(size=5, steps=15), 40)
    env = generations.Walkers(size=5, steps=40)
    seen, infos = env.reset(seed=0)
    names, ended, masked = {*seen}, set(), False
    while env.agents:
        actions = {
            agent: int(np.flatnonzero(infos[agent]["action_mask"])[0]) for agent in env.agents
        }
        masked |= 1 in actions.values()  # who may not go left stays
        seen, _, deaths, _, infos = env.step(actions)
        names |= {*seen}
        ended |= {agent for agent, dead in deaths.items() if dead}
    assert masked and ended and len(names) == 5 + 40 // 4
    config = MFQConfig().environment(generations.Walkers, env_config={"size": 4, "steps": 10})
    config.training(num_steps_sampled_before_learning_starts=100, replay_capacity=1_000)
    config.training(train_batch_size_per_learner=32)
    found = build(config.reporting(min_sample_timesteps_per_iteration=80)).train()
    assert found["num_updates"] > 0 and np.isfinite(found["env_runners"]["episode_return_mean"])


def test_optuna_proposes_settings_and_the_best_ones_are_told(ray_session, tmp_path):
    best = tune_optuna.sweep(2, 1, str(tmp_path)).get_best_result()
    assert 1e-4 <= best.config["lr"] <= 1e-2


def test_population_based_training_ends_every_trial_with_settings(ray_session, tmp_path):
    results = population_based_training.train(2, 2, str(tmp_path))
    assert not results.errors
    assert [result.metrics["training_iteration"] for result in results] == [2, 2]


def test_an_exported_agent_acts_as_the_agent_does(tmp_path):
    assert export.export("pretrained:battle-iql", tmp_path) == 256
    assert {path.name for path in tmp_path.iterdir()} >= {"q.pt2", "q.onnx"}


def test_an_export_that_acts_otherwise_is_noticed(tmp_path, monkeypatch):
    save = export.torch.export.save

    def save_another(program, path):
        for tensor in program.state_dict.values():
            tensor.data.normal_()
        save(program, path)

    monkeypatch.setattr(export.torch.export, "save", save_another)
    with pytest.raises(ValueError, match="chooses other actions"):
        export.export("pretrained:battle-iql", tmp_path)


def test_a_crowd_in_arrays_is_fed_starves_and_has_lambs(build):
    algo = build(population.config().environment(env_config={"sheep": 20, "steps": 60}))
    found = algo.train()["env_runners"]
    assert found["born"]["sheep"] > 0
    assert found["survivors"]["sheep"] < 20 + found["born"]["sheep"]  # some starved


def test_mlflow_has_the_settings_and_the_results(ray_session, tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    results = track_mlflow.train(uri, 2, str(tmp_path))
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("squeeze")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params["neighborhood"] == "group"
    name = "env_runners/episode_return_mean"
    last = results[0].metrics["env_runners"]["episode_return_mean"]
    assert run.data.metrics[name] == pytest.approx(last)
    assert len(client.get_metric_history(run.info.run_id, name)) == 2


def test_a_service_plays_what_the_agent_plays(ray_session):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    try:
        serve.start("pretrained:battle-mfq", "127.0.0.1", port)
        played = serve.play(f"127.0.0.1:{port}", 12, 15, seed=1)
        again = serve.play(f"127.0.0.1:{port}", 12, 15, seed=1)
    finally:
        ray_serve.shutdown()
    env, expected = battle_v4.parallel_env(map_size=12, max_cycles=15), []
    agents = rllib_mfq.load("pretrained:battle-mfq", env)
    observations, _ = env.reset(seed=1)
    while env.agents:
        expected.append(agents.act(observations))
        observations, *_ = env.step(expected[-1])
    assert played == again == expected


def test_the_notebook_runs_and_shows_a_film(monkeypatch):
    monkeypatch.setenv("MFQ_NOTEBOOK_ITERATIONS", "2")
    monkeypatch.setenv("MFQ_NOTEBOOK_MAP_SIZE", "12")
    notebook = nbformat.read(ROOT / "examples" / "battle.ipynb", 4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # none are kept in the project
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/gif" in output.get("data", {}) for output in shown)
    assert "win rate against random" in str(shown)
