"""That it learns: what only the mean action shows in seconds, and the tuned examples (slow)."""

import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from rllib_mfq import Group, MFQConfig, Population, Rows, Step

ROOT = Path(__file__).parents[1]
AGENTS, ACTIONS, STEPS = 20, 4, 15


class Round(Population):
    """A crowd that is paid for playing the action after the one most of them played last.

    Nothing of that can be observed: whoever does not see what the others did cannot know which
    action is next, and a crowd that always plays the same one is never paid.
    """

    def __init__(self, config=None):
        self.groups = {"all": Group(gym.spaces.Box(0, 1, (1,)), gym.spaces.Discrete(ACTIONS))}

    def reset(self, *, seed=None):
        self.time, self.last = 0, None
        return {"all": Rows(np.arange(AGENTS))}

    def step(self, actions):
        played = actions["all"]
        right = np.zeros(AGENTS) if self.last is None else played == (self.last + 1) % ACTIONS
        self.last = np.bincount(played, minlength=ACTIONS).argmax()
        self.time += 1
        nobody, end = np.zeros(AGENTS, bool), np.full(AGENTS, self.time == STEPS)
        return {"all": Step(right.astype(float), nobody, end, Rows(np.arange(AGENTS)))}

    def observe(self, group, out):
        out[:] = 0


def return_per_agent(neighborhood):
    config = (
        MFQConfig()
        .environment(Round)
        .training(
            neighborhood=neighborhood,
            temperature=[[0, 0.5], [30_000, 0.02]],
            gamma=0.5,
            lr=2e-3,
            train_batch_size_per_learner=64,
            num_steps_sampled_before_learning_starts=500,
        )
        .evaluation(evaluation_interval=1, evaluation_duration=2)
        .reporting(min_sample_timesteps_per_iteration=2_000)
        .debugging(seed=0)
    )
    algo = config.build_algo()
    results = algo.train()
    algo.stop()
    return results["evaluation"]["env_runners"]["episode_return_mean"] / AGENTS


def test_mfq_follows_a_crowd_that_only_the_mean_action_shows(ray_session):
    assert return_per_agent("group") >= 0.9 * (STEPS - 1)


def test_independent_learners_cannot_follow_it(ray_session):
    assert return_per_agent("none") <= 0.1 * (STEPS - 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("example", "phrase", "least"),
    [
        ("battle_small", "win rate against random", 0.95),
        ("battle", "win rate against random", 0.99),
        ("cartpole", "return", 475),
    ],
)
def test_a_tuned_example_reaches_what_its_header_says(example, phrase, least, tmp_path):
    command = Path(sys.executable).with_name("rllib")
    path = ROOT / "tuned_examples" / f"{example}.yaml"
    run = subprocess.run(
        [command, "train", "file", path, "--seed", "3", "--storage-path", tmp_path],
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = [line for line in run.stdout.splitlines() if "checkpoint" in line and phrase in line]
    assert float(line.split(phrase)[1].split()[0].strip(",;")) >= least
