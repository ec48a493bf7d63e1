"""MFQTorchPolicy by itself, and under RLlib's own per-agent sampler."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.env.multi_agent_env import MultiAgentEnv
from ray.rllib.evaluation.rollout_worker import RolloutWorker
from ray.rllib.policy.policy import Policy
from ray.rllib.policy.sample_batch import SampleBatch

from rllib_mfq import MFQTorchPolicy, Neighborhood, postprocess_mean_actions
from rllib_mfq.algorithm.old_stack import policy as torch_policy

SPACE = gym.spaces.Box(-1, 1, (4,), np.float32)
ACTIONS = gym.spaces.Discrete(3)
SIZES = {"blue": 3, "red": 3}


class Teams(MultiAgentEnv):
    """Two teams; `red_1` dies at step 3, `blue_2` enters at step 2; 8 steps."""

    def __init__(self, config=None):
        super().__init__()
        names = ["red_0", "red_1", "red_2", "blue_0", "blue_1", "blue_2"]
        self.possible_agents = self.agents = names
        self.observation_spaces = dict.fromkeys(names, SPACE)
        self.action_spaces = dict.fromkeys(names, ACTIONS)
        self.played = []  # [{agent: action}] of all episodes

    def present(self):
        gone = {"red_1"} if self.t >= 3 else set()
        gone |= {"blue_2"} if self.t < 2 else set()
        return [agent for agent in self.possible_agents if agent not in gone]

    def observe(self, agents):
        return {agent: np.full(4, self.t / 10, np.float32) for agent in agents}

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return self.observe(self.present()), {}

    def step(self, actions):
        self.t += 1
        self.played.append(dict(actions))
        agents = set(self.present()) | set(actions)
        dead = {"red_1": True} if self.t == 3 else {}
        over = self.t == 8
        rewards = dict.fromkeys(actions, 1.0)
        return self.observe(agents), rewards, dead | {"__all__": False}, {"__all__": over}, {}


def mean_of(actions):
    return np.bincount(actions, minlength=3) / max(1, len(actions))


def by_hand(played):
    """`{(step, agent): (mean action acted on, mean action produced)}` over one episode."""
    means, last = {}, {}
    for t, actions in enumerate(played):
        for agent in actions:
            team = agent.split("_")[0]
            others = [a for b, a in actions.items() if b != agent and b.startswith(team)]
            means[t, agent] = (last.get(agent, np.zeros(3)), mean_of(others))
        last = {agent: means[t, agent][1] for agent in actions}
    return means


def rllib_worker(policies, length, **evaluation):
    """RLlib's own RolloutWorker, which postprocesses one agent at a time."""
    config = (
        AlgorithmConfig()
        .api_stack(enable_rl_module_and_learner=False, enable_env_runner_and_connector_v2=False)
        .env_runners(rollout_fragment_length=length, exploration_config={"type": "Random"})
        .multi_agent(
            policies=policies,
            policy_mapping_fn=lambda agent, *args, **kwargs: (
                "shared" if policies == {"shared"} else agent.split("_")[0]
            ),
        )
        .debugging(seed=3)
    )
    config.in_evaluation = bool(evaluation)
    return RolloutWorker(env_creator=Teams, config=config, default_policy_class=MFQTorchPolicy)


def policy(**config):
    return MFQTorchPolicy(SPACE, ACTIONS, config)


def columns(steps=4, seed=0):
    """Rows of two teams of three over some steps of two episodes."""
    rng = np.random.default_rng(seed)
    eps_id, t, group, agent = np.array(list(np.ndindex(2, steps, 2, 3))).T
    return {
        "eps_id": eps_id,
        "t": t,
        "group": group,
        "agent_index": agent,
        "actions": rng.integers(3, size=len(t)),
        "obs": rng.normal(size=(len(t), 4)).astype(np.float32),
    }


@pytest.mark.parametrize("length", [8, 3])
@pytest.mark.parametrize("policies", [{"shared"}, {"red", "blue"}])
def test_rllibs_sampler_gets_the_mean_actions_of_the_whole_population(policies, length):
    worker = rllib_worker(policies, length)
    batches = [worker.sample() for _ in range(24 // length)]  # three episodes, also in chunks
    steps = sum(batch.env_steps() for batch in batches)
    got = {}
    for row in (row for b in batches for c in b.policy_batches.values() for row in c.rows()):
        key = tuple(int(row[name]) for name in ("eps_id", "t", "agent_index"))
        means = [*row["mean_actions"], *row["next_mean_actions"]]
        assert got.setdefault(key, means) == means  # RLlib repeats what the dead did last
    expected = [
        [*before, *after]
        for first in range(0, steps, 8)
        for before, after in by_hand(worker.env.played[first : min(first + 8, steps)]).values()
    ]
    assert steps >= 24
    np.testing.assert_allclose(sorted(got.values()), sorted(expected), rtol=1e-6)


def test_mean_actions_are_computed_once_per_chunk_and_not_once_per_agent(monkeypatch):
    worker = rllib_worker({"red", "blue"}, 4)
    calls = []
    original = torch_policy.postprocess_mean_actions
    monkeypatch.setattr(
        torch_policy,
        "postprocess_mean_actions",
        lambda *args: calls.append(len(args[0]["actions"])) or original(*args),
    )
    for _ in range(4):
        worker.sample()
    assert calls == [21, 20, 21, 20]  # rows of four steps; those of the dead are not repeated


def test_policies_with_other_neighborhoods_get_their_own_mean_actions():
    red, blue = policy(), policy(neighborhood="none")
    batches = {
        f"{team}_{i}": SampleBatch(
            eps_id=np.full(2, 7), t=np.arange(2), agent_index=np.full(2, index), actions=[i, 1]
        )
        for index, (team, i) in enumerate([("red", 0), ("red", 2), ("blue", 0), ("blue", 1)])
    }
    chunk = {a: (a, red if a.startswith("red") else blue, b) for a, b in batches.items()}
    for agent, (_, own, batch) in chunk.items():
        own.postprocess_trajectory(batch, {a: v for a, v in chunk.items() if a != agent})
    assert batches["red_0"]["next_mean_actions"].tolist() == [[0, 0, 1], [0, 1, 0]]
    assert batches["red_0"]["mean_actions"].tolist() == [[0, 0, 0], [0, 0, 1]]
    assert not batches["blue_0"]["next_mean_actions"].any()


def test_evaluation_batches_without_actions_get_zeros():
    batch = SampleBatch(obs=np.zeros((5, 4), np.float32), t=np.arange(5))
    other = SampleBatch(obs=np.zeros((5, 4), np.float32))
    out = policy().postprocess_trajectory(batch, {"red_1": ("red", policy(), other)}, None)
    for name in ("mean_actions", "next_mean_actions"):
        assert out[name].shape == (5, 3) and not out[name].any()


def test_rllibs_sampler_evaluates_with_the_policy():
    worker = rllib_worker({"red", "blue"}, 8, in_evaluation=True)
    assert worker.sample().env_steps() == 8


def test_rows_of_whole_populations_are_postprocessed_as_the_package_does():
    groups = {name: (SPACE, ACTIONS) for name in SIZES}
    out = policy(groups=groups).postprocess_trajectory(SampleBatch(columns()))
    expected = postprocess_mean_actions(columns(), Neighborhood("group"), SIZES)
    for name in ("mean_actions", "next_mean_actions"):
        np.testing.assert_array_equal(out[name], expected[name])


def test_missing_mean_actions_count_as_zero_and_given_ones_matter():
    own = policy()
    obs, mean_actions = columns()["obs"], np.eye(3)[columns()["actions"]]

    def values(**given):
        return own.compute_actions(obs, explore=False, **given)[2]["action_dist_inputs"]

    zero = values(mean_actions=np.zeros_like(mean_actions))
    np.testing.assert_array_equal(values(), zero)
    assert not np.allclose(values(mean_actions=mean_actions), zero)
    with torch.no_grad():
        q = own.model.q_net(torch.tensor(obs), torch.tensor(mean_actions, dtype=torch.float32))
    chosen = own.compute_actions(obs, mean_actions=mean_actions, explore=False)[0]
    assert chosen.tolist() == q.argmax(1).tolist()
    given = {"obs": obs, "mean_actions": mean_actions}
    assert own.compute_actions_from_input_dict(given, explore=False)[0].tolist() == chosen.tolist()
    for row in range(3):
        one = own.compute_single_action(obs[row], mean_actions=mean_actions[row], explore=False)
        assert one[0] == chosen[row]


def test_exploration_is_the_boltzmann_policy_and_respects_masks():
    own = policy(temperature=0.7)
    obs = np.repeat(columns()["obs"][:1], 4_000, axis=0)
    drawn, _, out = own.compute_actions(obs, explore=True)
    share = np.bincount(drawn, minlength=3) / len(drawn)
    expected = torch.softmax(torch.tensor(out["action_dist_inputs"][0]), 0).numpy()
    np.testing.assert_allclose(share, expected, atol=0.04)
    with torch.no_grad():
        q = own.model.q({"obs": obs[:1]})[0] / 0.7
    np.testing.assert_allclose(out["action_dist_inputs"][0], q, rtol=1e-5)
    mask = np.tile([True, False, True], (len(obs), 1))
    assert set(own.compute_actions(obs, action_mask=mask)[0]) == {0, 2}


def test_the_temperature_follows_its_schedule_in_agent_steps():
    own = policy(temperature=[[0, 1.0], [100, 0.5]])
    assert own.model.temperature.item() == 1.0
    own.on_global_var_update({"timestep": 50})
    assert own.model.temperature.item() == 0.75


def test_a_policy_from_a_checkpoint_acts_and_learns_like_the_one_saved(tmp_path):
    own = policy(target_network_update_freq=2, tau=0.5)
    rng = np.random.default_rng(0)

    def learn(learner):
        batch = columns() | {
            "new_obs": rng.normal(size=(48, 4)).astype(np.float32),
            "rewards": np.ones(48, np.float32),
            "terminateds": np.zeros(48, bool),
            "mean_actions": np.zeros((48, 3), np.float32),
            "next_mean_actions": np.ones((48, 3), np.float32) / 3,
        }
        learner.learn_on_batch(SampleBatch(batch))

    learn(own)
    own.export_checkpoint(str(tmp_path))
    again = Policy.from_checkpoint(str(tmp_path))
    for _ in range(2):  # before and after an update in which the target moves
        first, second = own.model.state_dict(), again.model.state_dict()
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
        obs = columns()["obs"]
        chosen = [p.compute_actions(obs, explore=False)[0].tolist() for p in (own, again)]
        assert chosen[0] == chosen[1]
        for learner in (own, again):
            rng = np.random.default_rng(1)
            learn(learner)
    target = own.model.state_dict()["_target_q_net.advantage.weight"]
    assert not torch.equal(target, own.model.q_net.advantage.weight)


def test_a_neighborhood_that_sample_batches_cannot_hold_is_refused_in_one_sentence():
    own = policy(neighborhood={"radius": 2.0})
    batch = SampleBatch({k: v for k, v in columns().items() if k != "group"})
    with pytest.raises(ValueError, match="needs an environment that gives positions"):
        own.postprocess_trajectory(batch, {"red_1": ("red", own, batch.copy())})
