"""The examples that are to be copied: each runs, with a tiny budget."""

import pytest

from examples import callbacks, export, population_based_training, tune_optuna


def test_a_metric_of_ones_own_is_reported_by_callbacks(build):
    config = callbacks.config().environment(env_config={"map_size": 20, "max_cycles": 5})
    algo = build(config.env_runners(num_envs_per_env_runner=1))
    assert 1 <= algo.train()["env_runners"]["first_blood"] <= 5


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
