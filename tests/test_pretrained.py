"""Agents that come with the package."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from ray.rllib.core.rl_module.rl_module import RLModule

from rllib_cli.command import main
from rllib_mfq import magent2
from rllib_mfq.algorithm import pretrained
from rllib_mfq.algorithm.opponents import load_opponent
from rllib_mfq.algorithm.rl_module import MFQTorchRLModule
from rllib_mfq.arena.tournament import play_tournament
from rllib_mfq.population.population import Group

# Without it `rllib evaluate` starts Ray here, and leaves it to the files that come after.
pytestmark = pytest.mark.usefixtures("ray_session")
SMALL = {"map_size": 12, "max_cycles": 20}
AGENTS = ("battle-iql", "battle-iql-0.1", "battle-mfq", "battle-mfq-0.1")


def test_both_methods_have_one_and_together_they_take_little_room():
    assert set(AGENTS) <= set(pretrained.names())
    files = list(pretrained.FOLDER.iterdir())
    assert sum(file.stat().st_size for file in files) <= 1_100_000


@pytest.mark.parametrize("name", AGENTS)
def test_an_agent_says_what_it_is_and_how_it_was_made(name):
    about = pretrained.header(f"pretrained:{name}")
    assert about["env"] == "battle_v4" and about["actions"] == 21
    expected = "none" if "iql" in name else "all"
    assert about["model_config"]["neighborhood"] == expected
    assert about["origin"]["agent_steps"] > 1_000_000 and about["origin"]["commit"]


def test_what_is_saved_is_loaded_and_acts_the_same(tmp_path, monkeypatch):
    module = MFQTorchRLModule(
        observation_space=gym.spaces.Box(-1.0, 2.0, (9, 9, 2), np.float32),
        action_space=gym.spaces.Discrete(5),
        model_config={"neighborhood": "group", "temperature": 0.3, "dueling": True},
    )
    module.make_target_networks()
    module.save_to_path(tmp_path / "module")
    assert isinstance(RLModule.from_checkpoint(tmp_path / "module"), MFQTorchRLModule)
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    pretrained.save_pretrained(
        tmp_path / "module",
        tmp_path / "mine.safetensors",
        {"env": "battle_v4", "env_config": SMALL},
        {"note": "a test"},
    )
    loaded = pretrained.load_pretrained("pretrained:mine")
    obs, means = np.random.rand(20, 9, 9, 2).astype(np.float32), np.eye(5, dtype=np.float32)
    played = [
        each.act(
            obs,
            means.repeat(4, axis=0),
            None,
            explore=True,
            generator=torch.Generator().manual_seed(0),
        )
        for each in (module, loaded)
    ]
    assert np.array_equal(*played)
    assert loaded.observation_space == module.observation_space
    assert pretrained.header("pretrained:mine")["origin"] == {"note": "a test"}
    (tmp_path / "plain").touch()  # whoever may read that may read the network
    modes = {(tmp_path / name).stat().st_mode for name in ("plain", "mine.safetensors")}
    assert len(modes) == 1


def test_an_agent_plays_wherever_a_checkpoint_does_and_populations_of_other_sizes():
    agents = {name: f"pretrained:{name}" for name in AGENTS} | {"random": "random"}
    played = play_tournament(agents, "battle_v4", SMALL, matches=2, processes=1)
    assert len(played.pairs) == 10
    assert play_tournament(agents, matches=2, processes=1, pairs=[(1, 2)]).env_config == {
        "map_size": 40,
        "max_cycles": 400,
    }


def test_evaluate_plays_an_agent_by_itself():
    arguments = ["evaluate", "pretrained:battle-mfq", "--opponent", "pretrained:battle-iql"]
    arguments += ["--episodes", "2", "--config", f"{{env_config: {SMALL}}}", "--seed", "0"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "2 episodes: win rate" in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tournament", "pretrained:battle-mfk", "random"], "did you mean 'battle-mfq'?"),
        (["evaluate", "pretrained:nobody"], "there are pretrained:battle-iql"),
        (
            ["train", "--run", "MFQ", "--env", "battle_v4", "--restore", "pretrained:battle-mfq"],
            "is a network to play with, no checkpoint to train on from",
        ),
    ],
)
def test_what_there_is_not_is_one_sentence(arguments, words):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert words in " ".join(result.output.split())


def test_an_agent_of_another_environment_is_refused():
    groups = dict(magent2("gather_v5").groups)
    assert all(isinstance(group, Group) for group in groups.values())
    with pytest.raises(ValueError, match="battle-mfq' plays"):
        load_opponent("rival", "pretrained:battle-mfq", groups)
