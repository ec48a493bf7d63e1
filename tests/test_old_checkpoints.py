"""Checkpoints that version 0.1 wrote, before modules were moved, still load and go on."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from small_battles import memories, small_battle

from rllib_mfq import MFQ
from rllib_mfq.algorithm import networks
from rllib_mfq.algorithm.checkpoint import find_modules, load_modules, saved_settings
from rllib_mfq.algorithm.self_play import TrackedOpponent

FOLDER = Path(__file__).parent / "checkpoints"
KINDS = ["new", "new_pool", "old_pool"]
NEXT = {  # sum of |weights| after one more iteration of the version that wrote them
    "new": {"squeeze": 972.1558912298751},
    "new_pool": {"squeeze0": 0.5204186627524905, "squeeze1": 0.5142668408807367},
    "old_pool": {"squeeze0": 0.5214136809254342, "squeeze1": 0.5150066416754271},
}


def sums(algo):
    return {
        module_id: sum(float(np.abs(np.asarray(x, float)).sum()) for x in tensors.values())
        for module_id, tensors in algo.env_runner.module.get_state().items()
    }


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_from_an_old_checkpoint_with_its_memory_and_its_opponent(kind, tmp_path):
    folder = shutil.copytree(FOLDER / kind, tmp_path / kind)
    algo = MFQ.from_checkpoint(str(folder))
    assert algo.iteration == 3 and algo._agent_steps == 216
    assert all(len(memory) > 0 for memory in memories(algo).values())
    has_pool = kind.endswith("pool")
    assert (algo._self_play.KIND == "pool") == has_pool
    assert algo._self_play.opponents == 2 * has_pool
    results = algo.train()
    assert results["agent_steps_sampled_lifetime"] == 288
    # Restored draws, memory and opponent: the run goes on as it would have in the old version.
    assert sums(algo) == pytest.approx(NEXT[kind], rel=1e-5)
    algo.stop()


@pytest.mark.parametrize("kind", KINDS)
def test_the_modules_of_an_old_checkpoint_can_be_played(kind):
    modules = load_modules(FOLDER / kind)
    assert sorted(modules) == sorted(find_modules(FOLDER / kind)) == sorted(NEXT[kind])
    for module in modules.values():
        obs, mean_actions = np.zeros((3, 1), np.float32), np.zeros((3, 2), np.float32)
        assert module.act(obs, mean_actions, None, explore=False).shape == (3,)
    if kind != "old_pool":  # which holds no config
        assert saved_settings(FOLDER / kind)["env"] == "gaussian_squeeze_v0"


def moments(algo):
    """The state of the optimizer, by parameter, and the parameters."""
    if algo.config.enable_rl_module_and_learner:
        learner = algo.learner_group._learner
        optimizer = learner._named_optimizers["shared_default_optimizer"]
    else:
        (optimizer,) = algo.get_policy("shared")._optimizers
    return [(optimizer.state[p], p) for group in optimizer.param_groups for p in group["params"]]


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("old", [False, True])
def test_a_network_that_did_not_see_the_edge_goes_on_and_sees_it(old, tmp_path, monkeypatch):
    config = small_battle(old=old).multi_agent(policies=["shared"])
    with monkeypatch.context() as before:
        filters = [[16, 3, 2, "valid"], [32, 3, 2, "valid"]]
        before.setattr(networks, "default_conv_filters", lambda shape: filters)
        algo = config.build_algo()
        algo.train()
        algo.save_to_path(str(tmp_path))
        (module,) = load_modules(tmp_path).values()
        algo.stop()
    obs = np.random.default_rng(0).random((50, 13, 13, 5), dtype=np.float32)
    (loaded,) = load_modules(tmp_path).values()
    q, again = (m.q({"obs": obs}).detach().numpy() for m in (module, loaded))
    assert q == pytest.approx(again, abs=1e-6) and q.std() > 1e-3
    algo = MFQ.from_checkpoint(str(tmp_path))
    kernels = {
        name: tensor
        for name, tensor in algo.env_runner.module["shared"].get_state().items()
        if np.ndim(tensor) == 4
    }
    assert {k.shape[2:] for k in kernels.values()} == {(3, 3), (4, 4)}
    for kernel in (k for k in kernels.values() if k.shape[2:] == (4, 4)):  # old: the target's, too
        assert not kernel[..., 3, :].any() and not kernel[..., 3].any() and kernel.any()
    for state, parameter in moments(algo):
        assert state["exp_avg"].shape == parameter.shape and state["exp_avg"].any()
    algo.train()
    (kernel,) = (p for _, p in moments(algo) if p.shape[2:] == (4, 4))
    assert kernel[..., 3, :].any() and kernel[..., 3].any()
    algo.stop()


def test_an_opponent_that_did_not_see_the_edge_moves_towards_a_learner_that_does():
    old, new = ({"shared": {"kernel": np.full((2, 1, k, k), k, np.float32)}} for k in (3, 4))
    opponent = TrackedOpponent({"tau": 0.25}, None, 10, lambda: new)
    state = TrackedOpponent({"tau": 0.25}, None, 10, lambda: old).get_state()
    opponent.set_state(state)
    opponent.end_round([1.0], 0)
    kernel = opponent.weights["shared"]["kernel"]
    assert (kernel[..., :3, :3] == 3.25).all() and (kernel[..., 3, :] == 1.0).all()
