"""The LSTM network and its loss against plain loops over one agent's life."""

import numpy as np
import pytest
import torch
from test_sampler import LAYOUTS, Chooser, Toy
from torch import nn

from rllib_mfq.mean_field.neighborhood import Neighborhood
from rllib_mfq.mean_field.network import MeanFieldQNetwork
from rllib_mfq.mean_field.objective import mfq_loss, n_step_return
from rllib_mfq.mean_field.recurrent import RecurrentQNetwork, learned_rows
from rllib_mfq.population.player import Player
from rllib_mfq.population.sampler import Sampler
from rllib_mfq.replay.memory import ReplayMemory

OBS, ACTIONS, CELL = 3, 4, 5


def network(seed, **arguments):
    torch.manual_seed(seed)
    encoder = nn.Sequential(nn.Linear(OBS, 6), nn.Tanh())
    return RecurrentQNetwork(encoder, 6, CELL, ACTIONS, ACTIONS, **arguments)


def sequences(lengths, steps, n=1, seed=0):
    """Made-up sequences; the first `lengths[i]` steps of the i-th one exist."""
    rng, positions, count = np.random.default_rng(seed), steps + n, len(lengths)
    lengths = torch.tensor(lengths)
    acted = torch.arange(positions) < lengths[:, None]
    num_steps = torch.stack([acted[:, j : j + n].sum(1) for j in range(steps)], 1)
    batch = {
        "obs": rng.normal(size=(count, positions, OBS)),
        "mean_actions": rng.random((count, steps, ACTIONS)),
        "next_mean_actions": rng.random((count, positions, ACTIONS)),
        "rewards": rng.normal(size=(count, steps, n)),
        "previous_rewards": rng.normal(size=(count, positions)),
        "state": rng.normal(size=(count, 2, CELL)) * 0.3,
    }
    batch = {name: torch.tensor(column, dtype=torch.float32) for name, column in batch.items()}
    batch["rewards"] *= torch.arange(n) < num_steps[..., None]
    shape = (count, positions)
    batch |= {
        "actions": torch.from_numpy(rng.integers(ACTIONS, size=(count, steps))),
        "previous_actions": torch.from_numpy(rng.integers(ACTIONS, size=shape)),
        "terminateds": torch.from_numpy(rng.random(shape) < 0.2),
        "action_mask": torch.from_numpy(rng.random((*shape, ACTIONS)) < 0.7),
        "num_steps": num_steps,
        "learned": acted[:, :steps],
        "weights": torch.from_numpy(rng.random(count)).float(),
    }
    return batch


@pytest.mark.parametrize("action", [False, True])
@pytest.mark.parametrize("reward", [False, True])
def test_steps_in_a_row_are_steps_one_by_one(action, reward):
    net, batch = network(0, previous_action=action, previous_reward=reward), sequences([9] * 4, 8)
    names = ("obs", "previous_actions", "previous_rewards")
    obs, actions, rewards = (batch[name] for name in names)
    features, last = net.remember(obs, batch["state"], actions, rewards)
    state = batch["state"]
    for t in range(9):
        h, state = net.remember(
            obs[:, t : t + 1], state, actions[:, t : t + 1], rewards[:, t, None]
        )
        torch.testing.assert_close(h[:, 0], features[:, t])
        torch.testing.assert_close(h[:, 0], state[:, 0])
    torch.testing.assert_close(state, last)
    for given, reads in ((actions, action), (rewards, reward)):
        given[:, 0] = (given[:, 0] + 1) % ACTIONS
        changed = net.remember(obs, batch["state"], actions, rewards)[0]
        assert torch.equal(changed[:, 0], features[:, 0]) != reads
        features = changed


def loss_by_loop(net, target, batch, burn_in, n, gamma):
    """The mean loss over all learned steps, one sequence and one step at a time."""
    losses = []
    for b in range(len(batch["state"])):
        born = not batch["state"][b].any()
        hs, states = {}, {}
        for name, model in (("online", net), ("target", target)):
            state, hs[name] = batch["state"][b : b + 1], []
            for p in range(batch["obs"].shape[1]):
                if p == burn_in and not born:
                    state = state.detach()
                at = (b, slice(p, p + 1))
                given = [batch[k][at][None] for k in ("previous_actions", "previous_rewards")]
                h, state = model.remember(batch["obs"][at][None], state, *given)
                hs[name].append(h[0, 0])
                states[name] = state
        for t in range(batch["actions"].shape[1]):
            if not batch["learned"][b, t] or (t < burn_in and not born):
                continue
            k = int(batch["num_steps"][b, t])
            value = target.head(
                hs["target"][t + k][None], batch["next_mean_actions"][b, t + k - 1][None]
            )
            y = sum(gamma**i * batch["rewards"][b, t, i] for i in range(k))
            if not batch["terminateds"][b, t + k - 1]:
                y = y + gamma**k * value.max().detach()
            q = net.head(hs["online"][t][None], batch["mean_actions"][b, t][None])
            losses.append((y - q[0, batch["actions"][b, t]]) ** 2)
    return torch.stack(losses).mean(), len(losses)


def loss_of(net, target, batch, burn_in, gamma):
    rows, learned = learned_rows(net, target, batch, burn_in)
    q = net.head(rows["obs"], rows["mean_actions"])
    value = target.head(rows["new_obs"], rows["last_mean_actions"]).amax(1)
    rewards, discount = n_step_return(rows["rewards"], rows["num_steps"], gamma)
    loss, _ = mfq_loss(q, rows["actions"], rewards, rows["terminateds"], value, discount)
    return loss, learned


@pytest.mark.parametrize("burn_in", [0, 2])
@pytest.mark.parametrize("n", [1, 3])
def test_loss_and_gradient_are_those_of_a_loop_over_every_life(n, burn_in):
    net, target = (network(seed, previous_action=True, previous_reward=True) for seed in (1, 2))
    batch = sequences([9, 1, 4, 6, 2], 6, n)
    batch["state"][[0, 4]] = 0.0  # agents that have just entered: no burn-in
    loss, learned = loss_of(net, target, batch, burn_in, 0.9)
    plain, count = loss_by_loop(net, target, batch, burn_in, n, 0.9)
    assert int(learned.sum()) == count
    torch.testing.assert_close(loss, plain)
    gradients = []
    for each in (loss, plain):
        net.zero_grad()
        each.backward()
        gradients.append([p.grad.clone() for p in net.parameters()])
    torch.testing.assert_close(*gradients)


def test_masks_weights_and_values_stand_beside_their_rows():
    net, target, batch = network(1), network(2), sequences([7, 1, 3], 5, 2)
    rows, learned = learned_rows(net, target, batch, 0)
    assert learned.tolist() == batch["learned"].tolist()
    i = 0
    for b in range(3):
        for t in range(5):
            if learned[b, t]:
                after = t + int(batch["num_steps"][b, t])
                assert torch.equal(rows["action_mask"][i], batch["action_mask"][b, t])
                assert torch.equal(rows["next_action_mask"][i], batch["action_mask"][b, after])
                assert rows["weights"][i] == batch["weights"][b]
                i += 1
    assert i == len(rows["weights"]) and not rows["new_obs_online"].requires_grad


def forgetful(net):
    """Takes all that it remembers from an LSTM: what is left is a layer of a feed-forward net."""
    with torch.no_grad():
        net.lstm.weight_hh_l0.zero_()
        for weight in (net.lstm.weight_ih_l0, net.lstm.bias_ih_l0, net.lstm.bias_hh_l0):
            weight[CELL : 2 * CELL] = 0
        net.lstm.bias_ih_l0[CELL : 2 * CELL] = -1e9  # the forget gate is closed
    return net


@pytest.mark.parametrize("steps", [1, 4])
def test_without_memory_the_loss_is_the_feed_forward_loss(steps):
    net, target = forgetful(network(1)), forgetful(network(2))
    batch = sequences([steps] * 6, steps)

    def flat(model):
        """The same weights in the network that has no memory."""
        encoder = nn.Sequential(model.encoder, OneStep(model.lstm))
        plain = MeanFieldQNetwork(encoder, CELL, ACTIONS, ACTIONS)
        own = {k: v for k, v in model.head.state_dict().items()}
        plain.load_state_dict(own, strict=False)
        return plain

    loss, _ = loss_of(net, target, batch, 0, 0.9)
    q = flat(net)(batch["obs"][:, :-1].flatten(0, 1), batch["mean_actions"].flatten(0, 1))
    inherited = batch["next_mean_actions"][:, :-1].flatten(0, 1)
    value = flat(target)(batch["obs"][:, 1:].flatten(0, 1), inherited).amax(1)
    ends = batch["terminateds"][:, :-1].flatten()
    rewards = batch["rewards"].flatten()
    plain, _ = mfq_loss(q, batch["actions"].flatten(), rewards, ends, value, 0.9)
    torch.testing.assert_close(loss, plain)


class OneStep(nn.Module):
    """An LSTM's answer to one input, from a state of zero."""

    def __init__(self, lstm):
        super().__init__()
        self.lstm = lstm

    def forward(self, x):
        return self.lstm(x[:, None])[0][:, 0]


def test_an_agent_that_has_just_entered_needs_no_state():
    net, batch = network(3, previous_action=True), sequences([3] * 4, 2)
    obs, means = batch["obs"][:, 0], batch["mean_actions"][:, 0]
    h, _ = net.remember(obs[:, None], torch.zeros(4, 2, CELL))
    assert torch.equal(net(obs, means), net.head(h[:, 0], means))


# --- sampling ---------------------------------------------------------------------------------


REMEMBERED = {"next_memory": ((2,), np.float32)}
CARRIED = {"memory": "next_memory", "last_actions": "actions", "last_rewards": "rewards"}
RENAMED = {"state": "next_memory", "previous_actions": "actions", "previous_rewards": "rewards"}


class Rememberer:
    """Plays by what it has seen since it entered: a running sum of all that goes in."""

    def __call__(self, obs, means, mask, **carried):
        memory, last_actions, last_rewards = carried.values()
        new = 0.5 * memory
        new[:, 0] += obs.reshape(len(obs), -1).sum(1) + 0.1 * last_actions
        new[:, 1] += np.sin(last_rewards) + 0.1
        legal = np.where(mask, np.abs(np.cos(new.sum(1, keepdims=True) * [1, 2, 3, 4])), -1)
        return legal.argmax(1), {"next_memory": new}


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_an_agent_remembers_its_own_life_and_nothing_else(layout, iterations):
    """Through births, deaths, cuts, several populations, borders of fragments, fresh starts."""
    act, hood = Rememberer(), Neighborhood.parse("group")
    players = {
        name: Player(name, act, hood, iterations, carried=CARRIED, remembers=REMEMBERED)
        for name in layout.values()
    }
    sampler = Sampler(Toy, 3, {group: players[name] for group, name in layout.items()}, 0)
    lives, rows, cut = {}, 0, 0  # (fragment of the start, episode, group, agent): what it knows
    for number, steps in enumerate((1, 17, 2, 20, 6, 5)):
        fragment = sampler.sample(num_steps=steps, fresh=number == 4)
        if number == 4:
            lives.clear()  # every agent of before is gone
        for columns in fragment.columns.values():
            assert "next_memory" not in columns
            for i in np.lexsort((columns["t"], columns["eps_id"])).tolist():
                row = {name: column[i] for name, column in columns.items()}
                who = (int(row["eps_id"]), int(row["group"]), int(row["agent_index"]))
                known = lives.get(who)
                expected = np.zeros(2, np.float32) if known is None else known[0]
                np.testing.assert_allclose(row["memory"], expected, rtol=1e-5, atol=1e-6)
                if not row["loss_mask"]:
                    cut += 1
                    continue
                last = (0, np.float32(0)) if known is None else known[1:]
                assert (row["last_actions"], row["last_rewards"]) == last
                given = {"memory": expected[None], "last_actions": np.array([last[0]])}
                given["last_rewards"] = np.array([last[1]])
                action, new = act(row["obs"][None], None, row["action_mask"][None], **given)
                assert action[0] == row["actions"]
                lives[who] = (new["next_memory"][0], row["actions"], row["rewards"])
                rows += 1
    assert rows > 500 and cut > 50


def test_in_matches_every_player_remembers_for_itself():
    """`assign` gives the groups to other players: they begin without memory, on both sides."""
    act, hood, seen = Rememberer(), Neighborhood.parse("group"), []

    def watched(obs, means, mask, **given):
        seen.append(given["memory"].copy())
        return act(obs, means, mask, **given)

    mine = Player("mine", watched, hood, carried=CARRIED, remembers=REMEMBERED)
    theirs = Player("theirs", Chooser(4), hood)
    sampler = Sampler(Toy, 2, {"red": mine, "blue": theirs}, 0)
    for side in ("red", "blue", "red"):
        other = "blue" if side == "red" else "red"
        sampler.assign({side: mine, other: theirs})
        seen.clear()
        sampler.sample(num_episodes=3, keep=False)
        assert not seen[0].any() and any(memory.any() for memory in seen[1:])


# --- in the memory ----------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "burn_in", "n"), [(1, 0, 1), (4, 0, 1), (3, 2, 1), (4, 2, 3)])
def test_a_drawn_row_opens_a_sequence_along_its_agents_life(steps, burn_in, n):
    """Against a walk over the rows by agent and time, over the borders of fragments, too."""
    act, hood = Rememberer(), Neighborhood.parse("group")
    player = Player("shared", act, hood, carried=RENAMED, remembers=REMEMBERED)
    sampler = Sampler(Toy, 3, {"red": player, "blue": player}, 0)
    memory, table = (
        ReplayMemory(5_000, seed=0, n_step=n, max_seq_len=steps, burn_in_len=burn_in),
        {},
    )
    for length in (1, 6, 2, 9, 3):
        fragment = sampler.sample(num_steps=length)
        columns = fragment.columns["shared"]
        memory.add(columns, fragment.links["shared"])
        for i in range(len(columns["t"])):
            key = tuple(int(columns[k][i]) for k in ("eps_id", "group", "agent_index", "t"))
            if columns["loss_mask"][i] or key not in table:
                table[key] = {name: column[i].copy() for name, column in columns.items()}
    by_obs = {row["obs"].tobytes(): key for key, row in table.items()}
    rows = np.flatnonzero(memory._acted)
    batch = {name: column.numpy() for name, column in memory.read(rows).items()}
    existed = 0
    for i in range(len(rows)):
        *who, t = by_obs[batch["obs"][i, 0].tobytes()]
        life = [table.get((*who, t + p)) for p in range(steps + burn_in + n)]
        np.testing.assert_array_equal(batch["state"][i], life[0]["state"])
        acted = [bool(row is not None and row["loss_mask"]) for row in life]
        acted = [all(acted[: p + 1]) for p in range(len(acted))]
        for p in range(steps + burn_in):
            assert batch["learned"][i, p] == acted[p]
            if not acted[p]:
                continue
            existed += 1
            for name in ("actions", "terminateds", "obs", "previous_actions", "previous_rewards"):
                np.testing.assert_array_equal(batch[name][i, p], life[p][name])
            for name in ("action_mask", "mean_actions", "next_mean_actions"):
                np.testing.assert_array_equal(batch[name][i, p], life[p][name])
            k = sum(acted[p : p + n])
            paid = [life[p + j]["rewards"] if j < k else 0.0 for j in range(n)]
            assert batch["num_steps"][i, p] == k
            np.testing.assert_array_equal(batch["rewards"][i, p], paid)
            if not life[p + k - 1]["terminateds"]:
                np.testing.assert_array_equal(batch["obs"][i, p + k], life[p + k]["obs"])
    assert existed > 200 * (steps > 1) + 200
