"""Battles so small that a test can train on them, and what to look at afterwards."""

import itertools
import sys

import numpy as np
import torch
from ray import cloudpickle

from rllib_mfq import GroupActions, MFQConfig, magent2
from rllib_mfq.population.magent2 import MAgent2Population

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests

OLD = {"enable_rl_module_and_learner": False, "enable_env_runner_and_connector_v2": False}
SIZE = {"map_size": 12, "max_cycles": 20}
MODULES = "learner_group/learner/rl_module"


def small_battle(env="battle_v4", env_config=None, *, old=False, **training):
    """12x12 cells, 2 against 2, episodes of 20 steps; updates in nearly every fragment."""
    settings = {
        "train_batch_size_per_learner": 32,
        "num_steps_sampled_before_learning_starts": 50,
        "replay_capacity": 5_000,
        "training_intensity": 2.0,
    }
    return (
        MFQConfig()
        .api_stack(**(OLD if old else {}))
        .environment(env, env_config=SIZE if env_config is None else env_config)
        .env_runners(num_envs_per_env_runner=2, rollout_fragment_length=10)
        .training(**(settings | training))
        .reporting(min_sample_timesteps_per_iteration=80)
        .debugging(seed=7)
    )


class FaultyBattle(MAgent2Population):
    """A small battle that misbehaves at the step that `raise_at` or `nan_at` names."""

    def __init__(self, faults):
        super().__init__(magent2("battle_v4", **SIZE).parallel_env)
        self.faults, self.steps = dict(faults), 0

    def step(self, actions):
        self.steps += 1
        if self.steps == self.faults.get("raise_at"):
            raise RuntimeError("the environment broke")
        steps = super().step(actions)
        if self.steps == self.faults.get("nan_at"):
            steps["blue"].rewards[0] = np.nan
        return steps


def near(own: GroupActions):
    """A neighborhood of one's own: `{radius: 3}` by a plain loop."""
    places = enumerate(zip(own.population, own.positions, strict=True))
    return [
        (row, other)
        for (row, (where, place)), (other, (there, its)) in itertools.product(places, repeat=2)
        if row != other and where == there and ((place - its) ** 2).sum() <= 9
    ]


def weights(algo, module_id):
    """A copy of all weights that learn, target network included."""
    if not algo.config.enable_rl_module_and_learner:
        module = algo.get_policy(module_id).model
    else:
        module = algo.learner_group._learner.module[module_id].unwrapped()
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def bytes_per_row(memory):
    """What a row takes in a memory, over all columns."""
    columns = [*memory._columns.values(), memory._acted, memory._distance]
    return sum(column.nbytes for column in columns) / memory.capacity


def memories(algo):
    """The memories of the learner in this process."""
    return algo.learner_group._learner.memories


def sample(memory, size):
    """A draw as arrays of its own."""
    return {name: column.numpy().copy() for name, column in memory.sample(size).items()}


def requests_while_learning(algo):
    """A list that gets, at every call of the learner, how many fragments are under way."""
    in_flight = []
    learn = algo._learn

    def watched(updates):
        in_flight.append(algo.env_runner_group.num_in_flight_async_reqs("sample"))
        learn(updates)

    algo._learn = watched
    return in_flight
