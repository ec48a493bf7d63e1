"""The learners' memories as the driver knows them: dealing, losing, cutting and dealing anew."""

import itertools

import numpy as np
import pytest
import ray
import small_battles
import torch
from gymnasium.spaces import Box, Discrete
from ray.rllib.utils.actor_manager import CallResult, ResultOrError
from test_replay import Rows

from rllib_mfq.algorithm import learner_memories, replay
from rllib_mfq.algorithm.learner_memories import LearnerError, LearnerMemories
from rllib_mfq.population.fragment import Link
from rllib_mfq.population.population import Group as Spaces
from rllib_mfq.replay.memories import Memories, pieces
from rllib_mfq.replay.memory import ReplayMemory, bytes_per_row

CAPACITY = 60


class OneLearner:
    def __init__(self, index, capacity, modules=("m",)):
        self._learner_index, self.capacity, self.modules = index, capacity, modules
        self.make_memories()

    def make_memories(self):
        made = {m: ReplayMemory(self.capacity, seed=[0, self._learner_index]) for m in self.modules}
        self.memories = Memories(made)


class Group:
    """Learners in this process, asked as RLlib's LearnerGroup asks remote ones."""

    def __init__(self, num, capacity=CAPACITY, modules=("m",)):
        self.learners = [OneLearner(i, capacity // num, modules) for i in range(num)]
        self.dead = set()

    def __len__(self):
        return len(self.learners)

    def foreach_learner(self, func, remote_actor_ids=None, **kwargs):
        for i in reversed(range(len(self)) if remote_actor_ids is None else remote_actor_ids):
            error = ray.exceptions.ActorDiedError() if i in self.dead else None
            result = None if error else func(self.learners[i], **kwargs)
            yield CallResult(i, ResultOrError(result, error), None)


class Batch:
    """A fragment of one module, `m`."""

    def __init__(self, columns, module_id="m", link=None):
        self.columns, self.rows = {module_id: columns}, int(columns["loss_mask"].sum())
        self.links = {} if link is None else {module_id: link}

    def agent_steps(self):
        return self.rows


def rows_of(memories, module_id="m"):
    """Every row to learn from, with the row of its next observation, by their numbers."""
    memory = memories[module_id]
    if not len(memory):
        return {}
    batch = memory.read(np.flatnonzero(memory._acted))
    after = batch["new_obs"].reshape(len(batch["new_obs"]), -1)[:, 0].int()
    return dict(zip(batch["actions"].tolist(), after.tolist(), strict=True))


def filled(fragments, num=1, capacity=CAPACITY, seed=0):
    """A group of learners that were given fragments of 15 rows, one by one."""
    group, source = Group(num, capacity), Rows(seed)
    memories = LearnerMemories(group, ["m"])
    for _ in range(fragments):
        memories.give([[Batch(source.fragment(15))]])
    return group, memories


@pytest.mark.parametrize("num", [1, 2, 3])
def test_every_fragment_goes_to_one_learner_and_all_learners_get_their_share(num):
    group, source = Group(num, 3_000), Rows(0)
    memories = LearnerMemories(group, ["m"])
    given = {}
    for _ in range(7):
        played = [[Batch(source.fragment(20))] for _ in range(4)]
        for batch in (batch for fragments in played for batch in fragments):
            columns = batch.columns["m"]
            acted = columns["loss_mask"]
            given |= dict.fromkeys(columns["actions"][acted].tolist())
        assert memories.give(played) == played
    held = [set(rows_of(learner.memories)) for learner in group.learners]
    assert set().union(*held) == set(given) and sum(map(len, held)) == len(given)
    assert len(memories) == len(given)
    assert max(map(len, held)) - min(map(len, held)) <= 20


def test_the_fragments_of_one_runner_stay_together():
    """Else one learner would get all red rows and the other all blue ones."""
    group = Group(2, modules=("red", "blue"))
    memories, source = LearnerMemories(group, ["red", "blue"]), Rows(0)
    for _ in range(4):
        played = [Batch(source.fragment(5), "red"), Batch(source.fragment(5), "blue")]
        memories.give([played])
    for learner in group.learners:
        assert all(len(memory) for memory in learner.memories.values())


@pytest.mark.parametrize("runners", [1, 2, 3, 5])
def test_fragments_that_follow_each_other_stay_with_a_learner_while_all_get_as_much(runners):
    group, source = Group(2, 60_000), Rows(0)
    memories, went = LearnerMemories(group, ["m"]), {}
    for step in range(40):
        played = []
        for runner in range(runners):
            link = Link(f"{runner}/{step}", f"{runner}/{step - 1}" if step else "", 0)
            columns = source.fragment(20)
            columns["loss_mask"][:], columns["agent_index"] = True, np.full(20, runner)
            played.append([Batch(columns, link=link)])
        memories.give(played)
        for fragments in played:
            first = int(fragments[0].columns["m"]["actions"][0])
            home = [first in rows_of(x.memories) for x in group.learners].index(True)
            went.setdefault(fragments[0].links["m"].name.split("/")[0], []).append(home)
    moves = sum(a != b for homes in went.values() for a, b in itertools.pairwise(homes))
    assert moves <= 40 * runners / 5
    held = [len(x.memories["m"]) for x in group.learners]
    assert sum(held) == 40 * runners * 20 and abs(held[0] - held[1]) <= 6 * 20


def test_a_module_learns_when_it_has_been_given_enough_and_each_learner_has_a_row_of_it():
    group, source = Group(2, 400), Rows(0)
    memories = LearnerMemories(group, ["m"])
    assert not memories.ready(0)
    memories.give([[Batch(source.fragment(100))]])
    assert not memories.ready(0)  # the second learner has nothing to draw
    memories.give([[Batch(source.fragment(100))]])
    rows = len(memories)
    assert memories.ready(rows) == ["m"] and not memories.ready(rows + 1)
    assert not LearnerMemories(group, []).ready(0)


def test_a_fragment_whose_runner_has_died_is_lost_and_the_others_arrive(monkeypatch):
    store = {}

    class OwnerDied(ray.exceptions.ObjectLostError):
        def __init__(self):
            pass

    class Reference:
        def __init__(self, columns):
            store[self] = columns

    def get(reference):
        if store[reference] is None:
            raise OwnerDied
        return store[reference]

    monkeypatch.setattr(learner_memories.ray, "get", get)
    monkeypatch.setattr(learner_memories.ray, "ObjectRef", Reference)
    group, source = Group(2), Rows(0)
    memories = LearnerMemories(group, ["m"])
    batches = [Batch(source.fragment(10)) for _ in range(4)]
    for batch in batches:
        batch.columns = Reference(batch.columns)
    store[batches[1].columns] = None
    arrived = memories.give([[batch] for batch in batches])
    assert arrived == [[batches[i]] for i in (0, 2, 3)]
    assert len(memories) == sum(batches[i].rows for i in (0, 2, 3))


def test_a_fragment_that_a_memory_refuses_is_said():
    group = Group(2)
    memories = LearnerMemories(group, ["m"])
    with pytest.raises(ValueError, match="replay_capacity is 30, less than one fragment of 31"):
        memories.give([[Batch(Rows(0).fragment(31))]])


def test_a_dead_learner_is_said_in_one_sentence():
    group, memories = filled(4, num=2)
    group.dead = {1}
    with pytest.raises(LearnerError) as error:
        memories.give([])
    assert str(error.value).startswith("a learner has died") and "\n" not in str(error.value)
    assert "max_failures" in str(error.value)


# --- checkpoints: as many learners, or others -------------------------------------------------


@pytest.mark.parametrize("longest", [15, 40, 1000])
@pytest.mark.parametrize("fragments", [0, 1, 3, 4, 9])
def test_pieces_hold_every_row_once_in_its_order_and_none_without_its_next(fragments, longest):
    group, _ = filled(fragments)
    memory = group.learners[0].memories["m"]
    other, order = ReplayMemory(CAPACITY, seed=1), []
    for piece in pieces(memory.get_state(), longest):
        assert len(piece["actions"]) <= longest
        order += piece["actions"].tolist()
        other.add(piece)
    assert order == list(range(15 * fragments))[-CAPACITY:]
    assert rows_of({"m": other}) == rows_of({"m": memory})


def test_rows_that_belong_together_are_not_cut_apart():
    memory, columns = ReplayMemory(20), Rows(0).fragment(20)
    columns["next_row"][:] = [*range(1, 20), -1]
    columns["loss_mask"][:] = True
    memory.add(columns)
    with pytest.raises(ValueError, match=r"replay_capacity .* 10 rows, but 20 rows"):
        list(pieces(memory.get_state(), 10))


@pytest.mark.parametrize("after", [1, 2, 3])
@pytest.mark.parametrize("before", [1, 2, 3])
def test_other_learners_hold_the_same_rows_with_their_next_observations(before, after):
    group, memories = filled(8, num=before, capacity=180)
    states = list(memories.states())
    other = Group(after, 180)
    other.learners[0].memories["m"].add(Rows(9).fragment(40))  # what it held is gone
    restored = LearnerMemories(other, ["m"])
    restored.set_states(iter(states), len(states))
    held = [[rows_of(x.memories) for x in g.learners] for g in (group, other)]
    together = [{k: v for part in parts for k, v in part.items()} for parts in held]
    assert together[0] == together[1]
    assert sum(map(len, held[1])) == len(together[1]) == len(restored) == len(memories)
    assert all(held[1])  # every learner has some
    rows = len(memories)
    assert restored.ready(rows - after) == memories.ready(rows - after) == ["m"]
    if before == after:
        for mine, theirs in zip(group.learners, other.learners, strict=True):
            draws = [x.memories["m"].draw(50) for x in (mine, theirs)]
            np.testing.assert_array_equal(*draws)


# --- where rows are kept, and whether they fit ------------------------------------------------


def test_bytes_of_a_row_are_those_of_a_memory():
    for masks, dtype in ((False, None), (True, "float16"), (True, "uint8")):
        memory, columns = ReplayMemory(100, dtype), Rows(0, masks, (8, 4)).fragment(10)
        memory.add(columns)
        counted = (columns["obs"].shape[1:], dtype or columns["obs"].dtype, 2, 3 * masks)
        assert bytes_per_row(*counted) == small_battles.bytes_per_row(memory)


class Config:
    """What the functions of `replay` read of a config."""

    def __init__(self, **settings):
        self.groups = {"red": Spaces(Box(0, 1, (10,), np.float32), Discrete(3))}
        self.policies, self.policies_to_train = {"red": None}, None
        self.policy_mapping_fn = lambda agent, *args: "red"
        self.replay_obs_dtype, self.num_learners, self.replay_device = None, 0, "auto"
        self.neighborhood, self.n_step, self.seed, self.replay_capacity = "group", 1, None, 1000
        self.prioritized_replay, self._model_config = False, {}
        vars(self).update(settings)


ROW = 40 + 14 + 2 * 4 * 3 + 3


@pytest.mark.parametrize("learners", [0, 2])
@pytest.mark.parametrize("capacity", [10, 999, 1000, 1001, 10**9])
def test_a_capacity_that_does_not_fit_names_the_largest_that_does(monkeypatch, capacity, learners):
    monkeypatch.setattr(replay, "estimate_available_memory", lambda: 1000 * ROW / replay.FREE)
    config = Config(replay_capacity=capacity, num_learners=learners)
    cpu = torch.device("cpu")
    if capacity <= 1001 - (capacity == 1001 and not learners):  # halves are rounded down
        replay.check_fits(config, cpu, max(1, learners))
        return
    with pytest.raises(ValueError) as error:
        replay.check_fits(config, cpu, max(1, learners))
    text = f"replay_capacity is {capacity:,}, more rows than fit into the memory that this node"
    assert str(error.value).startswith(text) and "at most 1,000 fit" in str(error.value)
    replay.check_fits(Config(replay_capacity=1000, num_learners=learners), cpu, max(1, learners))


@pytest.mark.parametrize(
    ("setting", "learns_on", "free", "kept_on"),
    [
        ("auto", "cpu", 0, "cpu"),
        ("auto", "cuda", 10**6, "cuda"),
        ("auto", "cuda", 10, "cpu"),
        ("cpu", "cuda", 10**6, "cpu"),
        ("cuda", "cuda", 10, "cuda"),  # and `check_fits` refuses
    ],
)
def test_rows_are_kept_where_replay_device_says(monkeypatch, setting, learns_on, free, kept_on):
    """No GPU is needed: only the choice is tested."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
    config, device = Config(replay_device=setting), torch.device(learns_on)
    assert replay.replay_device(config, device) == torch.device(kept_on)
    if setting == "cuda":
        with pytest.raises(ValueError, match="that the learner's GPU has free; at most 0 fit"):
            replay.check_fits(config, device)


def test_a_learner_with_another_device_makes_batches_there():
    memories = replay.make_memories(Config(seed=1), "meta")
    memories["red"].add(Rows(0).fragment(20))
    (batch,) = memories.batches(8, 1, ["red"])
    assert {column.device.type for column in batch["red"].values()} == {"meta"}


def test_learners_draw_different_rows_and_the_first_those_of_a_single_one():
    config = Config(seed=3, num_learners=2)
    fragment = Rows(0).fragment(400)
    draws = []
    for made in (
        replay.make_memories(config),
        replay.make_memories(config, learner=1),
        replay.make_memories(Config(seed=3)),
    ):
        made["red"].add(fragment)
        draws.append(made["red"].draw(50).tolist())
    assert draws[0] == draws[2] != draws[1]
