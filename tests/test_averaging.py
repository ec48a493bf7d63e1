"""The mean of several checkpoints' networks."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from small_battles import MODULES, small_battle, weights

from rllib_cli.command import main
from rllib_mfq.algorithm.averaging import average_checkpoints
from rllib_mfq.algorithm.checkpoint import load_modules
from rllib_mfq.algorithm.checksums import check_files

pytestmark = pytest.mark.usefixtures("ray_session")
OF_VERSION_0_1 = Path(__file__).parent / "checkpoints" / "new"


def one_network(**training):
    config = small_battle(**training).env_runners(observation_filter="MeanStdFilter")
    return config.multi_agent(policies=["shared"])


@pytest.fixture(scope="module")
def run(ray_session, tmp_path_factory):
    """Three checkpoints of one run, and the learner's weights in each."""
    folder = tmp_path_factory.mktemp("run")
    algo, found = one_network(temperature=[[0, 1.0], [10_000, 0.1]]).build_algo(), []
    for number in range(3):
        algo.train()
        found.append((algo.save_to_path(str(folder / str(number))), weights(algo, "shared")))
    algo.stop()
    return found


@pytest.fixture(scope="module")
def mean(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mean") / "checkpoint"
    average_checkpoints([path for path, _ in run], folder)
    return folder


def test_weights_are_means_and_everything_else_is_the_last_ones(run, mean):
    state = pickle.loads((mean / MODULES / "shared" / "module_state.pkl").read_bytes())
    last = run[-1][1]
    assert state.keys() == last.keys()
    averaged = set()
    for name, value in state.items():
        learned = name.startswith("q_net.") and "observations" not in name
        by_hand = sum(np.asarray(one[name], np.float64) for _, one in run) / len(run)
        expected = by_hand if learned else last[name]
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-7, err_msg=name)
        averaged |= {name} if learned and not np.array_equal(value, last[name]) else set()
    assert len(averaged) > 8
    assert any(name.startswith("_target") for name in state)
    assert any("observations" in name for name in state)
    (module,) = load_modules(mean).values()  # the file that plays
    for name, value in module.get_state().items():
        assert np.array_equal(value, state[name]), name
    check_files(mean)


def test_a_checkpoint_averaged_with_itself_is_itself(run, tmp_path):
    for checkpoint in (run[0][0], OF_VERSION_0_1):
        folder = tmp_path / "same" / str(checkpoint).replace("/", "-")
        average_checkpoints([checkpoint, checkpoint], folder)
        before, after = load_modules(checkpoint), load_modules(folder)
        assert before.keys() == after.keys()
        for name, module in before.items():
            for key, value in module.get_state().items():
                assert np.array_equal(value, after[name].get_state()[key])


def test_the_mean_can_be_trained_on(run, mean, build):
    algo = build(one_network())
    algo.restore_from_path(mean)
    state = pickle.loads((mean / MODULES / "shared" / "module_state.pkl").read_bytes())
    for name, value in weights(algo, "shared").items():
        assert np.array_equal(value, state[name]), name
    assert algo.train()["training_iteration"] == 4


def test_the_command_averages_and_names_what_plays(run, tmp_path):
    out = tmp_path / "mean"
    paths = [path for path, _ in run]
    result = CliRunner().invoke(main, ["average", *paths, "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert result.output == f"mean of 3 checkpoints; play it: rllib evaluate {out}\n"
    played = CliRunner().invoke(main, ["evaluate", str(out), "--episodes", "2"])
    assert played.exit_code == 0, played.output
    again = CliRunner().invoke(main, ["average", *paths, "--out", str(out)])
    assert again.exit_code == 2
    assert f"{out} exists; give the name of a new folder." in again.output
    below_a_file = out / "checksums.json" / "mean"
    again = CliRunner().invoke(main, ["average", *paths, "--out", str(below_a_file)])
    assert again.exit_code == 2 and "Not a directory" in again.output


def test_what_cannot_be_averaged_is_refused_before_anything_is_written(run, build, tmp_path):
    first, last = run[0][0], run[-1][0]
    damaged = shutil.copytree(first, tmp_path / "damaged")
    (damaged / MODULES / "shared" / "module_state.pkl").write_bytes(b"")
    two = build(small_battle()).save_to_path(str(tmp_path / "two"))
    other = build(one_network(neighborhood="all")).save_to_path(str(tmp_path / "other"))
    old = build(small_battle(old=True).multi_agent(policies=["shared"]))
    old = old.save_to_path(str(tmp_path / "old"))
    for checkpoints, sentence in (
        ([last], "takes two checkpoints or more; there are 1"),
        ([damaged, last], "is damaged"),
        ([two, last], r"has the modules \['blue', 'red'\]; .* has \['shared'\]"),
        ([other, last], "'shared': the state is of another network"),
        ([old, last], "which this one cannot load"),
        (["s3://bucket/run", last], "s3://bucket/run has no modules .* on this machine"),
        (["pretrained:battle-mfq", last], "is a network to play with"),
        ([tmp_path / "none", last], "does not exist"),
    ):
        with pytest.raises(ValueError, match=sentence):
            average_checkpoints(checkpoints, tmp_path / "mean")
        assert not (tmp_path / "mean").exists()
