"""The Q network: what goes in, what comes out, and what it must not know."""

import pytest
import torch
from torch import nn

from rllib_mfq.mean_field.network import MeanFieldQNetwork, TargetUpdate

OBS, FEATURES, MEAN, ACTIONS, BATCH = (3, 4), 16, 7, 5, 64


def network(dueling=False, seed=0):
    torch.manual_seed(seed)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(12, FEATURES), nn.ReLU())
    return MeanFieldQNetwork(encoder, FEATURES, MEAN, ACTIONS, dueling)


def inputs(batch=BATCH):
    generator = torch.Generator().manual_seed(1)
    obs = torch.randn(batch, *OBS, generator=generator)
    return obs, torch.rand(batch, MEAN, generator=generator)


@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("batch", [0, 1, BATCH])
def test_there_is_one_value_per_row_and_action(batch, dueling):
    q = network(dueling)(*inputs(batch))
    assert q.shape == (batch, ACTIONS) and q.dtype == torch.float32


@pytest.mark.parametrize("seed", range(3))
def test_the_value_head_of_a_dueling_network_is_the_mean_of_q(seed):
    net, heard = network(dueling=True, seed=seed), {}
    net.value.register_forward_hook(lambda *call: heard.update(value=call[-1]))
    net.advantage.register_forward_hook(lambda *call: heard.update(advantage=call[-1]))
    q = net(*inputs())
    torch.testing.assert_close(q.mean(-1, keepdim=True), heard["value"])
    differences = heard["advantage"] - heard["advantage"][:, :1]
    torch.testing.assert_close(q - q[:, :1], differences)


@pytest.mark.parametrize("dueling", [False, True])
def test_the_gradient_reaches_every_parameter(dueling):
    net = network(dueling)
    net(*inputs())[:, 0].square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


@pytest.mark.parametrize("dueling", [False, True])
def test_observation_and_mean_action_both_matter_row_by_row(dueling):
    net = network(dueling)
    obs, mean = inputs()
    q = net(obs, mean)
    for changed in ((obs, 1 - mean), (1 + obs, mean)):
        assert ((net(*changed) - q).abs().amax(-1) > 1e-6).all()
    other_mean = mean.clone()
    other_mean[0] = 0
    torch.testing.assert_close(net(obs, other_mean)[1:], q[1:])  # rows do not mix


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float16, torch.float64])
def test_observations_of_any_number_type_are_accepted(dtype):
    obs, mean = torch.arange(2 * 12).reshape(2, *OBS), torch.rand(2, MEAN)
    net = network()
    torch.testing.assert_close(net(obs.to(dtype), mean), net(obs.float(), mean))


def test_no_parameter_depends_on_how_many_agents_there_are():
    """Every size is one of the widths the spaces or the architecture give."""
    known = {1, 12, FEATURES, MEAN, ACTIONS, 32, 64, 128, FEATURES + 32}
    for name, parameter in network(dueling=True).named_parameters():
        assert set(parameter.shape) <= known, name
    net, (obs, mean) = network(), inputs(400)
    torch.testing.assert_close(net(obs[:4], mean[:4]), net(obs, mean)[:4])


@pytest.mark.parametrize("tau", [0.01, 0.5, 1.0])
def test_the_target_moves_by_tau_of_the_way_and_the_online_network_stays(tau):
    target, online = network(), network()
    online.advantage.bias.data += 1.0
    before = {name: value.clone() for name, value in target.state_dict().items()}
    wanted = {name: value.clone() for name, value in online.state_dict().items()}
    TargetUpdate(target, online)(tau)
    for name, value in target.state_dict().items():
        torch.testing.assert_close(value, tau * wanted[name] + (1 - tau) * before[name])
        torch.testing.assert_close(online.state_dict()[name], wanted[name])


def test_buffers_of_the_target_are_copied_not_averaged():
    """A BatchNorm's count of batches is an integer, of which a mean makes no sense."""
    target, online = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    online(torch.randn(8, 2))
    TargetUpdate(target, online)(0.1)
    assert target.num_batches_tracked == 1
    torch.testing.assert_close(target.running_mean, online.running_mean)
