"""Networks by RLlib's keys and of one's own: what is built, and what is refused before work."""

import logging
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.models.base import ENCODER_OUT, Encoder
from ray.rllib.core.models.catalog import Catalog
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModule, RLModuleSpec
from small_battles import memories, small_battle
from torch import nn

from examples.attention import NeighbourAttention, config
from rllib_mfq import MFQConfig, MFQTorchPolicy, MFQTorchRLModule
from rllib_mfq.algorithm.networks import LARGE_LAYER, default_conv_filters, has_channels_first
from rllib_mfq.algorithm.roster import try_networks
from rllib_mfq.population.adapters import as_population

ACTIONS = gym.spaces.Discrete(3)


class Flat(nn.Module):
    """An encoder; it counts how many are made."""

    made = 0

    def __init__(self, space, width=7, shape=None):
        super().__init__()
        type(self).made += 1
        self.shape = shape
        self.layer = nn.Linear(int(np.prod(space.shape)), width)

    def forward(self, obs):
        assert obs.dtype == torch.float32
        features = self.layer(obs.flatten(1))
        return features if self.shape is None else features.reshape(self.shape)


class Whole(nn.Module):
    """A Q network."""

    def __init__(self, space, actions, mean_action_dim, extra=0):
        super().__init__()
        self.flatten = nn.Flatten()
        width = int(np.prod(space.shape)) + mean_action_dim
        self.layer = nn.Linear(width, int(actions.n) + extra)

    def forward(self, obs, mean_actions):
        return self.layer(torch.cat([self.flatten(obs), mean_actions], -1))


class DictEncoder(nn.Module):
    def forward(self, obs):
        return {"features": obs}

    def __init__(self, space):
        super().__init__()


class WidthCatalog(Catalog):
    """As RLlib's documentation shows: the encoder's config is changed."""

    @classmethod
    def _get_encoder_config(cls, observation_space, model_config_dict, action_space=None):
        changed = {**model_config_dict, "fcnet_hiddens": [11]}
        return super()._get_encoder_config(observation_space, changed, action_space)


class BuiltEncoder(nn.Module, Encoder):
    def __init__(self):
        nn.Module.__init__(self)
        self.layer = nn.Linear(4, 9)

    def forward(self, inputs):
        return {ENCODER_OUT: self.layer(inputs[Columns.OBS])}

    get_num_parameters = _set_to_dummy_weights = _forward = None


class BuildingCatalog(Catalog):
    def build_encoder(self, framework):
        assert framework == "torch"
        return BuiltEncoder()


def box(*shape, dtype=np.float32):
    return gym.spaces.Box(0, 255 if dtype == np.uint8 else 1, shape, dtype)


def module(space, model_config=None, seed=0, **kwargs):
    torch.manual_seed(seed)
    spec = RLModuleSpec(MFQTorchRLModule, space, ACTIONS, model_config=model_config or {}, **kwargs)
    return spec.build()


# The default encoder.


@pytest.mark.parametrize(
    ("shape", "filters"),
    [
        ((13, 13, 5), [[16, [3, 3], 2, "valid"], [32, [4, 4], 2, "valid"]]),
        ((10, 10, 3), [[16, [4, 4], 2, "valid"], [32, [4, 4], 2, "valid"]]),
        ((7, 41, 1), [[16, [3, 3], 2, "valid"], [32, [3, 4], 2, "valid"]]),
        ((3, 9, 2), [[32, 3, 1, "valid"]]),
        ((2, 9, 2), [[32, 2, 1, "valid"]]),
        ((84, 84, 4), [[16, [8, 8], 4], [32, [4, 4], 2], [256, [11, 11], 1, "valid"]]),
        ((64, 64, 4), [[16, [4, 4], 2], [32, [4, 4], 2], [64, [4, 4], 2], [128, [4, 4], 2]]),
        ((457, 120, 3), [[16, 8, 4], [32, 4, 2], *2 * [[64, 4, 2]]]),
    ],
)
def test_filters_suit_the_size_of_an_image(shape, filters):
    assert default_conv_filters(shape) == filters


@pytest.mark.parametrize("height", [*range(1, 16), 40, 41])
@pytest.mark.parametrize("width", [1, 6, 7, 8, 9, 10, 13, 38, 41])
def test_every_cell_of_a_small_image_is_seen(height, width):
    encoder = module(box(height, width, 2)).q_net.encoder
    obs = torch.rand(200, height, width, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(encoder(obs).sum(), obs)
    assert (gradient.abs().sum(0) > 0).all()


def test_other_filters_of_ones_own_are_another_network():
    old, new = (
        module(box(13, 13, 5), {"conv_filters": [[16, 3, 2, "valid"], [32, kernel, 2, "valid"]]})
        for kernel in (3, 4)
    )
    with pytest.raises(ValueError, match=r"shape \(32, 16, 3, 3\) there and \(32, 16, 4, 4\)"):
        new.set_state(old.get_state())


@pytest.mark.parametrize(
    ("shape", "most"),
    [
        ((1, 1, 1), 32),
        ((13, 13, 5), 128),
        ((41, 41, 3), 3_000),
        ((42, 42, 3), 256),
        ((43, 43, 3), 3_000),
        ((64, 64, 4), 2_048),
        ((84, 84, 4), 256),
        ((96, 96, 3), 256),
        ((210, 160, 3), 4_096),
        ((457, 120, 3), 4_096),
        ((800, 8, 1), 4_096),
    ],
)
def test_few_enough_features_are_left_of_an_image_for_a_small_layer_behind_them(shape, most):
    made = module(box(*shape))
    assert made.q_net.encoder(torch.zeros(2, *shape)).shape[1] <= most
    assert max(p.numel() for p in made.parameters()) < LARGE_LAYER


def test_a_layer_of_millions_of_parameters_is_said_with_what_to_do(caplog):
    class Images(gym.Env):
        observation_space, action_space = box(457, 120, 3), ACTIONS

        def reset(self, *, seed=None, options=None):
            return np.zeros((457, 120, 3), np.float32), {}

    config = MFQConfig().environment(Images).training(replay_capacity=5_000)
    config.rl_module(model_config={"conv_filters": [[16, 3, 2], [32, 3, 2]]})
    config.resolve_groups(lambda: as_population(Images()))
    with caplog.at_level(logging.WARNING):
        try_networks(config)
    (said,) = [r.message for r in caplog.records if "parameters for observations" in r.message]
    assert (
        "14,135,296 parameters" in said and "ResizeObservation" in said and "conv_filters" in said
    )


def test_bytes_are_scaled_in_the_network():
    images = torch.randint(256, (3, 13, 13, 5), dtype=torch.uint8)
    of_bytes, of_floats = module(box(13, 13, 5, dtype=np.uint8)), module(box(13, 13, 5))
    means = torch.rand(3, 3)
    expected = of_floats.q_net(images.float() / 255, means)
    for same in (images, images.float(), images.to(torch.float16)):
        torch.testing.assert_close(of_bytes.q_net(same, means), expected)


def test_flags_in_bytes_stay_what_they_are():
    flags = gym.spaces.Box(0, 1, (6,), np.uint8)
    seen, means = torch.randint(2, (4, 6), dtype=torch.uint8), torch.rand(4, 3)
    expected = module(box(6)).q_net(seen, means)
    torch.testing.assert_close(module(flags).q_net(seen, means), expected)


@pytest.mark.parametrize(
    ("shape", "first"),
    [
        ((4, 84, 84), True),
        ((3, 210, 160), True),
        ((1, 20, 20), True),
        ((3, 7, 7), True),
        ((16, 31, 31), True),
        ((7, 7, 7), False),
        ((84, 84, 4), False),
        ((13, 13, 5), False),
        ((4, 84, 4), False),
        ((5, 9, 20), False),
        ((16, 31, 30), False),
        ((84,), False),
    ],
)
def test_a_few_large_layers_are_channels_first(shape, first):
    assert has_channels_first(shape) is first


def test_channels_first_is_the_same_network_as_channels_last():
    images, means = torch.rand(3, 84, 84, 4), torch.rand(3, 3)
    last, first = module(box(84, 84, 4)), module(box(4, 84, 84))
    shapes = [[p.shape for p in each.parameters()] for each in (last, first)]
    assert shapes[0] == shapes[1]
    torch.testing.assert_close(first.q_net(images.movedim(-1, 1), means), last.q_net(images, means))


def test_images_stay_bytes_from_the_environment_to_the_learners_batch(build):
    class Frames(gym.Env):
        observation_space = gym.spaces.Box(0, 255, (21, 21), np.uint8)
        action_space = ACTIONS

        def reset(self, *, seed=None, options=None):
            self.time = 0
            return np.full((21, 21), 250, np.uint8), {}

        def step(self, action):
            self.time += 1
            return np.full((21, 21), 250 + self.time, np.uint8), 0.0, self.time == 5, False, {}

    class Stack(gym.wrappers.FrameStackObservation):
        def __init__(self, context):
            super().__init__(Frames(), 4)

    config = MFQConfig().environment(Stack).training(num_steps_sampled_before_learning_starts=20)
    config.evaluation(evaluation_interval=1, evaluation_duration=2)
    algo = build(config.training(train_batch_size_per_learner=16))
    assert algo.train()["num_updates"]
    (memory,) = memories(algo).values()
    batch = memory.sample(50)
    for name in ("obs", "new_obs"):
        assert batch[name].dtype == torch.uint8 and batch[name].shape[1:] == (4, 21, 21)
    assert set(batch["new_obs"].unique().tolist()) <= set(range(250, 256))
    assert algo.evaluate()["env_runners"]["episode_return_mean"] == 0


# Networks of one's own.


@pytest.mark.parametrize("by_path", [False, True])
@pytest.mark.parametrize("shape", [(4,), (3, 2), (13, 13, 5), (2, 5, 5, 3)])
def test_an_encoder_of_ones_own(shape, by_path):
    named = f"{__name__}.Flat" if by_path else Flat
    made = module(box(*shape), {"encoder": named, "encoder_config": {"width": 5}})
    assert type(made.q_net.encoder).__name__ == "Flat"
    assert made.q_net.encoder.layer.out_features == 5
    assert made.q({"obs": torch.rand(6, *shape)}).shape == (6, 3)


def test_an_encoder_of_ones_own_sees_bytes_scaled():
    heard = []
    made = module(box(4, dtype=np.uint8), {"encoder": Flat})
    made.q_net.encoder.register_forward_hook(lambda _, given, __: heard.append(given[0]))
    made.q({"obs": torch.full((1, 4), 51, dtype=torch.uint8)})
    torch.testing.assert_close(heard[0], torch.full((1, 4), 0.2))


def test_a_q_network_of_ones_own_sees_observations_and_mean_actions():
    made = module(box(4), {"q_network": Whole})
    obs, means = torch.rand(5, 4), torch.rand(5, 3)
    expected = made.q_net.network.layer(torch.cat([obs, means], -1))
    torch.testing.assert_close(made.q({"obs": obs, "mean_actions": means}), expected)


@pytest.mark.parametrize(("catalog", "width"), [(WidthCatalog, 11), (BuildingCatalog, 9)])
def test_a_catalog_of_ones_own_makes_the_encoder(catalog, width, tmp_path):
    made = module(box(4), catalog_class=catalog)
    assert made.q_net.encoder(torch.rand(2, 4)).shape == (2, width)
    made.save_to_path(tmp_path)
    again = RLModule.from_checkpoint(tmp_path)
    obs = torch.rand(2, 4)
    torch.testing.assert_close(again.q({"obs": obs}), made.q({"obs": obs}))
    assert RLModuleSpec.from_module(made).catalog_class is catalog  # with which RLlib makes runners


def test_the_catalog_gets_filters_that_suit_the_image():
    assert module(box(13, 13, 5), catalog_class=WidthCatalog).q_net.encoder is not None


@pytest.mark.parametrize("config", [{"encoder": Flat}, {"q_network": f"{__name__}.Whole"}])
def test_a_checkpoint_of_a_module_has_its_own_network(config, tmp_path):
    made = module(box(4), config)
    made.save_to_path(tmp_path)
    obs = torch.rand(2, 4)
    again = RLModule.from_checkpoint(tmp_path)
    torch.testing.assert_close(again.q({"obs": obs}), made.q({"obs": obs}))


@pytest.mark.parametrize("old", [False, True], ids=["new", "old"])
@pytest.mark.parametrize("model_config", [{"encoder": Flat}, {"q_network": Whole}])
def test_a_network_of_ones_own_learns_on_both_stacks(build, model_config, old):
    config = small_battle(old=old).rl_module(model_config=model_config)
    algo = build(config.training(num_steps_sampled_before_learning_starts=100))
    before = {k: v.clone() for k, v in network_of(algo).state_dict().items()}
    while not algo.train()["num_updates"]:
        pass
    after = network_of(algo).state_dict()
    assert all((after[name] != value).any() for name, value in before.items())


def network_of(algo):
    return next(iter(algo.env_runner.module.values())).q_net


def test_an_old_policy_takes_a_network_of_ones_own():
    policy = MFQTorchPolicy(box(4), ACTIONS, {"_model_config": {"encoder": Flat}})
    assert isinstance(policy.model.q_net.encoder, Flat)


def test_module_specs_are_used_for_the_modules_they_name(build):
    spec = MultiRLModuleSpec(
        rl_module_specs={
            "red": RLModuleSpec(model_config={"encoder": Flat}),
            "blue": RLModuleSpec(),
        }
    )
    algo = build(small_battle().rl_module(rl_module_spec=spec))
    modules = algo.env_runner.module
    assert isinstance(modules["red"].q_net.encoder, Flat)
    assert not isinstance(modules["blue"].q_net.encoder, Flat)
    learner = algo.learner_group._learner.module
    assert isinstance(learner["red"].unwrapped().q_net.encoder, Flat)


def test_the_examples_attention_does_not_see_in_which_order_neighbours_come():
    encoder, seen = NeighbourAttention(box(6, 2)), torch.rand(5, 6, 2)
    torch.testing.assert_close(encoder(seen), encoder(seen.flip(1)))
    assert (encoder(seen) - encoder(seen.flip(2))).abs().amax(1).min() > 1e-4


def test_the_example_starts(build):
    algo = build(config().training(num_steps_sampled_before_learning_starts=200))
    while not algo.train()["num_updates"]:
        pass
    assert isinstance(network_of(algo).encoder, NeighbourAttention)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_the_example_learns(build, seed):
    algo = build(config().debugging(seed=seed))
    returns = [algo.train()["env_runners"].get("episode_return_mean", 0.0) for _ in range(12)]
    assert returns[-1] > 70 > 20 > returns[1]


# What is refused.


def refused(config):
    """What is said of a config before any work starts."""
    with pytest.raises(ValueError) as error:
        config.validate()
        config.build_algo()
    return str(error.value)


@pytest.mark.parametrize(
    ("model_config", "sentence"),
    [
        ({"encoder": "os.system"}, "must be a class that derives from torch.nn"),
        ({"encoder": "subprocess.Popen", "encoder_config": {"args": "x"}}, "derives from torch.nn"),
        ({"encoder": dict}, "derives from torch.nn"),
        ({"encoder": "no_such.Thing"}, "cannot be imported"),
        ({"encoder": "Flat"}, "cannot be imported"),
        ({"encoder": f"{__name__}.Flatt"}, "cannot be imported"),
        ({"encoder": 3}, "it must be a class"),
        ({"encoder_config": {"width": 3}}, "no effect without encoder"),
        ({"encoder": Flat, "encoder_config": [3]}, "must be a dict"),
        ({"encoder": Flat, "q_network": Whole}, "must have one of them"),
        ({"encoder": Flat, "fcnet_hiddens": [3]}, "put what it needs into encoder_config"),
        ({"q_network": Whole, "conv_filters": [[3, 3, 3]]}, "q_network_config"),
        ({"encodr": Flat}, "did you mean 'encoder'"),
    ],
)
def test_a_wrong_class_is_refused_and_not_called(model_config, sentence):
    Flat.made = 0
    assert sentence in refused(small_battle().rl_module(model_config=model_config))
    assert Flat.made == 0


@pytest.mark.parametrize(
    ("model_config", "sentence"),
    [
        ({"encoder": Flat, "encoder_config": {"shape": [-1]}}, "Flat returns shape [14]"),
        ({"encoder": Flat, "encoder_config": {"shape": [2, 7, 1]}}, "returns shape [2, 7, 1]"),
        ({"encoder": Flat, "encoder_config": {"wide": 3}}, "'wide'"),
        ({"encoder": DictEncoder}, "DictEncoder returns a dict"),
        ({"q_network": Whole, "q_network_config": {"extra": 1}}, "must return a float tensor of"),
    ],
)
def test_a_wrong_shape_is_one_sentence(ray_session, model_config, sentence):
    said = refused(small_battle().rl_module(model_config=model_config))
    assert sentence in said and "\n" not in said


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (RLModuleSpec(model_config={"dueling": True}), "which MFQ sets"),
        (RLModuleSpec(model_config={"encodr": 1}), "did you mean"),
        (RLModuleSpec(module_class=RLModule), "MFQTorchRLModule"),
        (RLModuleSpec(catalog_class=dict), "Catalog"),
        (RLModuleSpec(learner_only=True), "learner_only"),
        (RLModuleSpec(observation_space=box(3)), "leave it out"),
        (RLModuleSpec(action_space=ACTIONS), "leave it out"),
        (
            RLModuleSpec(model_config={"encoder": Flat}, catalog_class=WidthCatalog),
            "no effect with",
        ),
        (MultiRLModuleSpec(rl_module_specs={"green": RLModuleSpec()}), "'green'"),
        (MultiRLModuleSpec(rl_module_specs={}, model_config={"encoder": Flat}), "model_config"),
        ({"encoder": Flat}, "must be an RLModuleSpec"),
    ],
)
def test_what_a_module_spec_says_is_used_or_refused(ray_session, spec, sentence):
    assert sentence in refused(small_battle().rl_module(rl_module_spec=spec))


@pytest.mark.parametrize(
    ("settings", "model_config", "sentence"),
    [
        ({"dueling": True}, {"q_network": Whole}, "dueling is True"),
        ({"table_levels": 2}, {"encoder": Flat}, "table_levels"),
    ],
)
def test_a_setting_without_effect_on_a_network_of_ones_own(
    ray_session, settings, model_config, sentence
):
    config = small_battle().training(**settings).rl_module(model_config=model_config)
    assert sentence in refused(config)


def test_a_loss_of_ones_own_is_learned_with_as_the_page_shows_it(build):
    page = (Path(__file__).parents[1] / "docs" / "networks.md").read_text()
    code = page.split("## A loss of your own")[1].split("```python\n")[1].split("```")[0]
    scope = {}
    exec(code, scope)
    assert scope["config"].learner_class is scope["SmallValues"]
    plain, own = (
        build(small_battle(learner_class=learner).debugging(seed=0))
        for learner in (None, scope["SmallValues"])
    )
    for algo in (plain, own):
        result = algo.train()
    figures = result["learners"]["red"]
    assert 0 < figures["penalty"] < np.inf
    weights = [algo.get_module("red").q_net.state_dict() for algo in (plain, own)]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
