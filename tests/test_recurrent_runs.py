"""Recurrent networks through RLlib: runs, checkpoints, opponents, and what is refused."""

import numpy as np
import pytest
import torch
from cue import Cue
from ray.rllib.core.columns import Columns
from ray.tune.registry import register_env
from small_battles import MODULES, OLD, SIZE, same, small_battle, weights
from torch import nn

from rllib_mfq import MFQConfig, magent2
from rllib_mfq.algorithm.match import play_episodes
from rllib_mfq.algorithm.opponents import load_opponent
from rllib_mfq.population.magent2 import MAgent2Population

LSTM = {"use_lstm": True, "lstm_cell_size": 8, "max_seq_len": 4}
BOTH = LSTM | {"lstm_use_prev_action": True, "lstm_use_prev_reward": True}


def recurrent_battle(model_config=BOTH, **training):
    return small_battle(**training).rl_module(model_config=model_config)


def test_the_states_in_a_run_are_those_of_a_loop_over_every_agents_life(build):
    """With the module's own network, over the border of two fragments."""
    runner = build(recurrent_battle()).env_runner
    fragments = [{k: v.copy() for k, v in runner.sample()[0]["red"].items()} for _ in range(2)]
    columns = {k: np.concatenate([f[k] for f in fragments]) for k in fragments[0]}
    network, lives = runner.module["red"].unwrapped().q_net, 0
    for who in {(e, a) for e, a in zip(columns["eps_id"], columns["agent_index"], strict=True)}:
        mine = (columns["eps_id"] == who[0]) & (columns["agent_index"] == who[1])
        life = {k: column[mine & columns["loss_mask"]] for k, column in columns.items()}
        order = np.argsort(life["t"])
        state, before = torch.zeros(1, 2, 8), (0, 0.0)
        for i in order.tolist():
            np.testing.assert_allclose(life["state"][i], state[0].numpy(), atol=1e-6)
            assert (life["previous_actions"][i], life["previous_rewards"][i]) == before
            given = [torch.tensor([[x]]) for x in before]
            with torch.no_grad():
                _, state = network.remember(torch.from_numpy(life["obs"][[i]])[None], state, *given)
            before = (life["actions"][i], life["rewards"][i])
        lives += len(order) > 10
    assert lives >= 2


class Flat(nn.Module):
    """An encoder of the user's."""

    def __init__(self, observation_space):
        super().__init__()
        self.layer = nn.Linear(int(np.prod(observation_space.shape)), 8)

    def forward(self, obs):
        return self.layer(obs.flatten(1))


@pytest.mark.parametrize(
    ("model_config", "training"),
    [
        (BOTH, {"neighborhood": "all", "n_step": 2, "burn_in_len": 2}),
        (BOTH, {"prioritized_replay": True, "self_play": {"opponent": "tracked"}}),
        (BOTH, {"mean_action_iterations": 2, "target": "double_q", "dueling": True}),
        (LSTM | {"encoder": Flat}, {"mean_action_input": "current", "shared_exploration": 1.0}),
    ],
    ids=["steps", "priorities", "double_q", "own encoder"],
)
def test_a_recurrent_network_learns_with_what_others_learn_with(build, model_config, training):
    algo = build(recurrent_battle(model_config, **training))
    before = weights(algo, "red")
    result = algo.train()
    after = weights(algo, "red")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in before if ".lstm." in name} <= moved
    assert np.isfinite(result["learners"]["red"]["qf_loss"]) and result["num_updates"] > 1
    if "prioritized_replay" in training:
        (state,) = algo._memories.states()
        assert len(np.unique(state["red"]["priorities"]["priorities"])) > 10


def test_a_checkpoint_keeps_the_network_and_the_memory(build, tmp_path):
    config = recurrent_battle(prioritized_replay=True, store_replay_in_checkpoints=True)
    algo = build(config)
    algo.train()
    algo.save_to_path(tmp_path)
    other = build(config.copy(copy_frozen=False))
    other.restore_from_path(tmp_path)
    assert same(weights(algo, "red"), weights(other, "red"))
    mine, theirs = (next(iter(each._memories.states()))["red"] for each in (algo, other))
    assert "state" in mine["columns"] and mine["columns"]["state"].any()
    for name, column in mine["columns"].items():
        np.testing.assert_array_equal(column, theirs["columns"][name])
    for each in (algo, other):
        each._learn(3)  # from the same rows, by the same draws
    assert same(weights(algo, "red"), weights(other, "red"))

    # Evaluation, tournaments and films play opponents so: both sides remember.
    groups = algo.config.groups
    plays = load_opponent("old", str(tmp_path), groups).players(torch.Generator())
    assert plays["red"].remembers and plays["red"].carried["state"] == "next_state"
    population = MAgent2Population(magent2("battle_v4", **SIZE).parallel_env)
    (episode,) = play_episodes(lambda index: population, plays, 1, seed=0)
    assert episode.length > 0
    evaluated = build(
        config.copy(copy_frozen=False).evaluation(
            evaluation_interval=1,
            evaluation_duration=2,
            evaluation_opponents={"old": str(tmp_path)},
        )
    ).train()
    assert 0 <= evaluated["evaluation"]["env_runners"]["win_rate"]["old"] <= 1
    assert (tmp_path / MODULES / "red").is_dir()


def test_the_module_takes_and_gives_states_as_rllibs_do(build):
    module = build(recurrent_battle(LSTM)).get_module("red").unwrapped()
    obs = torch.rand(5, *module.observation_space.shape)
    first = module.forward_inference({Columns.OBS: obs})
    start = {k: v.expand(5, -1) for k, v in module.get_initial_state().items()}
    again = module.forward_inference({Columns.OBS: obs, Columns.STATE_IN: start})
    assert torch.equal(first["q"], again["q"])
    after = first[Columns.STATE_OUT]
    second = module.forward_exploration({Columns.OBS: obs, Columns.STATE_IN: after})
    state = torch.stack([after["h"], after["c"]], 1)
    means = torch.zeros(5, module.mean_action_dim)
    assert torch.equal(second["q"], module.q_net.step(obs, means, state)[0])
    assert not torch.equal(second["q"], first["q"])


@pytest.mark.parametrize(
    ("model_config", "training", "message"),
    [
        ({"lstm_cell_size": 8}, {}, "'lstm_cell_size', which has no effect without use_lstm"),
        ({"max_seq_len": 8}, {}, "'max_seq_len', which has no effect without use_lstm"),
        (LSTM | {"max_seq_len": 0}, {}, "max_seq_len is 0; it must be an integer of at least 1"),
        (LSTM | {"use_lstm": 1}, {}, "use_lstm is 1; it must be True or False"),
        (LSTM | {"lstm_bias_initializer": "zeros_"}, {}, "'lstm_bias_initializer', which has no"),
        (LSTM | {"q_network": nn.Identity}, {}, "use_lstm is True, which has no effect on"),
        ({}, {"burn_in_len": 2}, "burn_in_len is 2, which has no effect without use_lstm"),
    ],
)
def test_what_has_no_effect_is_refused(ray_session, model_config, training, message):
    with pytest.raises(ValueError, match=message):
        recurrent_battle(model_config, **training).build_algo()


def test_the_old_stack_refuses_a_network_with_a_memory():
    config = MFQConfig().api_stack(**OLD).rl_module(model_config=LSTM)
    with pytest.raises(ValueError, match="use_lstm is True, which works on the new API stack only"):
        config.validate()


# --- an environment that needs a memory -------------------------------------------------------


def cue_config(seed, **model_config):
    """Every agent must name, ten steps later, a cue of its own; chance is 1 in 4."""
    register_env("cue", Cue)
    return (
        MFQConfig()
        .environment("cue")
        .env_runners(num_envs_per_env_runner=4, rollout_fragment_length=20)
        .rl_module(model_config={"fcnet_hiddens": [64], "fcnet_activation": "relu", **model_config})
        .training(
            neighborhood="none",
            lr=1e-3,
            gamma=0.97,
            temperature=[[0, 0.2], [150_000, 0.02]],
            training_intensity=1.0,
            replay_capacity=50_000,
        )
        .evaluation(evaluation_interval=5, evaluation_duration=8)
        .debugging(seed=seed)
    )


def share_of_right_answers(algo, iterations):
    """The best of all evaluations, which are in the results of every fifth iteration."""
    best = 0.0
    for _ in range(iterations // 5):
        result = [algo.train() for _ in range(5)][-1]["evaluation"]["env_runners"]
        best = max(best, result["episode_return_mean"] / 32)
        if best >= 0.95:
            break
    return best


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_network_with_a_memory_remembers_a_cue(build, seed):
    cells = {"use_lstm": True, "lstm_cell_size": 64, "max_seq_len": 11}
    assert share_of_right_answers(build(cue_config(seed, **cells)), 80) >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_network_without_one_does_not(build, seed):
    assert share_of_right_answers(build(cue_config(seed)), 40) < 0.4
