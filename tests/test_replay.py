"""The memory against a plain list, and its promises about bytes, types and draws."""

import numpy as np
import pytest
from small_battles import bytes_per_row, sample

from rllib_mfq.replay.memory import ReplayMemory

OBS = (2, 3)


class Rows:
    """Writes fragments of made-up lives: row number n is known by its observation, all n."""

    def __init__(self, seed, masks=False, shape=OBS, dtype=np.float32):
        self.rng = np.random.default_rng(seed)
        self.masks, self.shape, self.dtype, self.written = masks, shape, dtype, 0

    def fragment(self, n):
        """n rows; each one's successor comes later, or it is terminated, or it closes a life."""
        rng, index = self.rng, np.arange(n)
        numbers = self.written + index
        self.written += n
        next_row = rng.integers(index + 1, np.minimum(index + 5, n) + 1)
        terminated = rng.random(n) < 0.2
        valid = (rng.random(n) < 0.8) & (terminated | (next_row < n))
        next_row[~valid | terminated] = -1
        columns = {
            "obs": np.broadcast_to(numbers.reshape(-1, 1, 1), (n, *self.shape)).astype(self.dtype),
            "actions": numbers.astype(np.int32),
            "rewards": (numbers / 2).astype(np.float32),
            "terminateds": terminated & valid,
            "mean_actions": np.stack([numbers + 0.25, numbers], 1).astype(np.float32),
            "next_mean_actions": np.stack([numbers + 0.5, numbers], 1).astype(np.float32),
            "next_row": next_row.astype(np.int32),
            "loss_mask": valid,
            "eps_id": np.zeros(n, np.int64),  # not kept
        }
        if self.masks:
            columns["action_mask"] = numbers[:, None] % np.array([2, 3, 5]) == 0
        return columns


class ListMemory:
    """The reference: a list of the last `capacity` rows, each with its successor's number."""

    def __init__(self, capacity):
        self.capacity, self.rows = capacity, []

    def add(self, columns):
        first = int(columns["actions"][0]) if len(columns["actions"]) else 0
        for i in range(len(columns["actions"])):
            after = int(columns["next_row"][i])
            valid = bool(columns["loss_mask"][i])
            self.rows.append((first + i, first + (i if after < 0 else after), valid))
        self.rows = self.rows[-self.capacity :]

    def valid(self):
        return {number: after for number, after, valid in self.rows if valid}


def check(batch, expected):
    """Every row of a batch is one of `expected` {number: successor}, with all its columns."""
    numbers = batch["actions"].astype(np.int64)
    assert set(numbers.tolist()) <= set(expected)
    after = np.array([expected[n] for n in numbers.tolist()])
    columns = {
        "obs": np.broadcast_to(numbers.reshape(-1, 1, 1), batch["obs"].shape),
        "new_obs": np.broadcast_to(after.reshape(-1, 1, 1), batch["new_obs"].shape),
        "rewards": numbers / 2,
        "terminateds": after == numbers,
        "mean_actions": np.stack([numbers + 0.25, numbers], 1),
        "next_mean_actions": np.stack([numbers + 0.5, numbers], 1),
    }
    for name, values in columns.items():
        np.testing.assert_array_equal(batch[name], values, err_msg=name)
    return numbers


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_every_draw_is_a_row_of_the_plain_list_with_its_true_successor(seed, masks):
    """Over many wraps, with fragments of all sizes up to the whole memory."""
    capacity = (37, 64, 101, 30)[seed]
    memory, reference = ReplayMemory(capacity, seed=seed), ListMemory(capacity)
    rows, rng = Rows(seed, masks), np.random.default_rng(seed)
    for step in range(60):
        size = capacity if step % 20 == 19 else int(rng.integers(capacity // 3))
        columns = rows.fragment(size)
        memory.add(columns)
        reference.add(columns)
        expected = reference.valid()
        assert len(memory) == len(expected)
        if not expected:
            continue
        batch = sample(memory, 200)
        numbers = check(batch, expected)
        if masks:
            after = np.array([expected[n] for n in numbers.tolist()])
            small = np.array([2, 3, 5])
            np.testing.assert_array_equal(batch["action_mask"], numbers[:, None] % small == 0)
            np.testing.assert_array_equal(batch["next_action_mask"], after[:, None] % small == 0)
        else:
            assert "action_mask" not in batch and "next_action_mask" not in batch
    assert rows.written > 8 * capacity


def test_every_row_to_learn_from_can_be_drawn_and_no_other():
    memory, reference, rows = ReplayMemory(50, seed=0), ListMemory(50), Rows(0)
    for size in (30, 33, 7, 21):  # ends in the middle
        columns = rows.fragment(size)
        memory.add(columns)
        reference.add(columns)
    numbers = check(sample(memory, 5000), reference.valid())
    assert set(numbers.tolist()) == set(reference.valid())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sizes", [[40], [70, 45]], ids=["partly filled", "wrapped"])
def test_draws_are_uniform(sizes, seed):
    memory, reference, rows = ReplayMemory(100, seed=seed), ListMemory(100), Rows(seed)
    for size in sizes:
        columns = rows.fragment(size)
        memory.add(columns)
        reference.add(columns)
    valid, draws = list(reference.valid()), 100_000
    counts = np.bincount(sample(memory, draws)["actions"], minlength=rows.written)[valid]
    expected = draws / len(valid)
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    degrees = len(valid) - 1
    assert chi_squared < degrees + 5 * np.sqrt(2 * degrees)


def test_same_seed_same_draws():
    drawn = []
    for seed in (1, 1, 2):
        memory = ReplayMemory(64, seed=seed)
        memory.add(Rows(0).fragment(60))
        drawn.append(np.concatenate([sample(memory, 50)["actions"] for _ in range(3)]))
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()


def test_the_written_fragment_is_nobodys_else_and_a_batch_stays_until_the_next_is_read():
    memory, rows = ReplayMemory(40, seed=0), Rows(0)
    columns = rows.fragment(40)
    memory.add(columns)
    batch = memory.sample(30)
    before = {name: column.clone() for name, column in batch.items()}
    for column in columns.values():
        column[:] = 0
    memory.add(rows.fragment(40))
    for name, column in batch.items():
        np.testing.assert_array_equal(column, before[name])
    after = memory.sample(20)
    for name, column in batch.items():
        assert column.data_ptr() == after[name].data_ptr()
        np.testing.assert_array_equal(column[:20], after[name])


def test_rows_that_may_only_be_read_are_written_without_a_warning(recwarn):
    memory, columns = ReplayMemory(40, seed=0), Rows(0).fragment(40)
    for column in columns.values():
        column.flags.writeable = False  # as Ray's object store gives them
    memory.add(columns)
    batch = sample(memory, 30)
    np.testing.assert_array_equal(batch["obs"], columns["obs"][batch["actions"]])
    assert not recwarn.list


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("batch_device", [None, "meta"])
def test_on_another_device_the_same_rows_are_drawn_with_the_same_columns(n_step, batch_device):
    """`meta` has shapes and types only; what a device adds is the copy to it."""
    device = "meta" if batch_device is None else "cpu"
    here = ReplayMemory(50, "float16", 0, n_step)
    there = ReplayMemory(50, "float16", 0, n_step, device, batch_device)
    rows = Rows(0, masks=True)
    for _ in range(3):
        columns = rows.fragment(30)
        for memory in (here, there):
            memory.add(columns)
        drawn = [memory.draw(20) for memory in (here, there)]
        np.testing.assert_array_equal(*drawn)
        mine, theirs = here.read(drawn[0]), there.read(drawn[1])
        assert {c.device.type for c in theirs.values()} == {"meta"}
        layouts = [{n: (c.shape, c.dtype) for n, c in batch.items()} for batch in (mine, theirs)]
        assert layouts[0] == layouts[1]


def test_a_memory_without_a_row_to_learn_from_says_so():
    memory, columns = ReplayMemory(10), Rows(0).fragment(4)
    with pytest.raises(ValueError, match="no row to learn from"):
        sample(memory, 1)
    columns["loss_mask"][:] = False
    memory.add(columns)
    assert len(memory) == 0
    with pytest.raises(ValueError, match="no row to learn from"):
        sample(memory, 1)


def test_a_fragment_larger_than_the_memory_is_refused_and_changes_nothing():
    memory, rows = ReplayMemory(20, seed=0), Rows(0)
    columns = rows.fragment(20)
    memory.add(columns)
    with pytest.raises(ValueError, match="replay_capacity is 20, less than one fragment of 21"):
        memory.add(rows.fragment(21))
    assert len(memory) == np.count_nonzero(columns["loss_mask"])
    assert sample(memory, 100)["actions"].max() < 20


def test_an_empty_fragment_changes_nothing():
    memory, rows = ReplayMemory(20, seed=0), Rows(0)
    memory.add(rows.fragment(0))
    columns = rows.fragment(20)
    memory.add(columns)
    memory.add(rows.fragment(0))
    assert len(memory) == np.count_nonzero(columns["loss_mask"])


# --- bytes and types --------------------------------------------------------------------------


@pytest.mark.parametrize("masks", [False, True])
def test_a_row_takes_little_more_than_its_observation(masks):
    shape, actions = (13, 13, 5), 21  # of a battle
    columns = Rows(0, masks).fragment(8)
    columns["obs"] = np.zeros((8, *shape), np.float32)
    for name in ("mean_actions", "next_mean_actions"):
        columns[name] = np.zeros((8, actions), np.float32)
    if masks:
        columns["action_mask"] = np.ones((8, actions), bool)
    observation = 4 * int(np.prod(shape))
    memory = ReplayMemory(1000)
    memory.add(columns)
    assert observation < bytes_per_row(memory) <= 1.2 * observation + 200
    half = ReplayMemory(1000, "float16")
    half.add(columns)
    assert bytes_per_row(memory) - bytes_per_row(half) == observation / 2


@pytest.mark.parametrize("dtype", ["float16", "uint8", "int16", None])
def test_observations_are_kept_in_the_type_asked_for(dtype):
    memory, reference, rows = ReplayMemory(50, dtype, seed=0), ListMemory(50), Rows(0)
    for _ in range(8):  # numbers up to 240, which all of these hold exactly
        columns = rows.fragment(30)
        memory.add(columns)
        reference.add(columns)
    batch = sample(memory, 100)
    check(batch, reference.valid())
    assert batch["obs"].dtype == batch["new_obs"].dtype == np.dtype(dtype or np.float32)


def test_float16_rounds_and_keeps_the_observation_to_three_digits():
    columns = Rows(0).fragment(10)
    columns["obs"] = np.random.default_rng(0).normal(size=(10, *OBS)).astype(np.float32)
    memory = ReplayMemory(10, "float16", seed=0)
    memory.add(columns)
    batch = sample(memory, 50)
    np.testing.assert_allclose(batch["obs"], columns["obs"][batch["actions"]], rtol=1e-3)


@pytest.mark.parametrize(
    ("dtype", "value", "refused"),
    [
        ("uint8", 255.0, False),
        ("uint8", 256.0, True),
        ("uint8", -1.0, True),
        ("uint8", 0.5, True),
        ("int8", 128.0, True),
        ("float16", 65504.0, False),
        ("float16", 1e5, True),
        ("float16", -1e5, True),
        (None, 1e30, False),
    ],
)
def test_a_type_that_cannot_hold_an_observation_is_refused(dtype, value, refused):
    memory, rows = ReplayMemory(30, dtype, seed=0), Rows(0)
    memory.add(rows.fragment(10))
    columns = rows.fragment(10)
    columns["obs"][3, 0, 1] = value
    before = len(memory)
    if refused:
        with pytest.raises(ValueError, match=f"replay_obs_dtype is '{dtype}'") as error:
            memory.add(columns)
        assert str(value) in str(error.value) and len(memory) == before
    else:
        memory.add(columns)
        assert len(memory) > before


# --- masks ------------------------------------------------------------------------------------


def test_a_first_mask_that_comes_late_finds_everything_legal_until_then():
    memory, plain, masked = ReplayMemory(60, seed=0), Rows(0), Rows(1, masks=True)
    masked.written = 30
    memory.add(plain.fragment(30))
    columns = masked.fragment(30)
    memory.add(columns)
    batch = sample(memory, 500)
    old = batch["actions"] < 30
    assert old.any() and not old.all()
    assert batch["action_mask"][old].all() and batch["next_action_mask"][old].all()
    expected = columns["action_mask"][batch["actions"][~old] - 30]
    np.testing.assert_array_equal(batch["action_mask"][~old], expected)
    assert not expected.all()


def test_in_a_fragment_without_masks_everything_is_legal():
    memory, plain, masked = ReplayMemory(40, seed=0), Rows(0), Rows(1, masks=True)
    memory.add(masked.fragment(40))
    plain.written = 40
    memory.add(plain.fragment(20))
    batch = sample(memory, 500)
    new = batch["actions"] >= 40
    assert batch["action_mask"][new].all() and not batch["action_mask"][~new].all()


# --- state ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [None, "float16"])
@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("fragments", [0, 1, 2, 5], ids=lambda n: f"{n} fragments")
def test_a_restored_memory_goes_on_exactly(fragments, masks, dtype):
    memory, rows = ReplayMemory(50, dtype, seed=0), Rows(0, masks)
    for _ in range(fragments):
        memory.add(rows.fragment(21))
        sample(memory, 10)
    state = memory.get_state()
    others = [ReplayMemory(50, dtype, seed=seed) for seed in (5, 6)]
    others[1].add(Rows(3, masks).fragment(33))  # and what it held is gone
    for other in others:
        other.set_state(state)
        assert len(other) == len(memory)
    memories = [memory, *others]
    for _ in range(6):
        batches = [sample(m, 40) for m in memories if len(memory)]
        for batch in batches[1:]:
            assert set(batch) == set(batches[0])
            for name, column in batch.items():
                np.testing.assert_array_equal(column, batches[0][name])
                assert column.dtype == batches[0][name].dtype
        columns = rows.fragment(17)
        for each in memories:
            each.add(columns)
    assert {len(each) for each in memories} == {len(memory)}
    assert all(bytes_per_row(other) == bytes_per_row(memory) for other in others)


def test_a_state_holds_the_filled_rows_only_and_is_a_copy():
    memory, rows = ReplayMemory(1000, seed=0), Rows(0)
    memory.add(rows.fragment(20))
    state = memory.get_state()
    assert all(len(column) == 20 for column in state["columns"].values())
    memory.add(rows.fragment(980))
    memory.add(rows.fragment(20))
    assert state["columns"]["actions"].tolist() == list(range(20))


@pytest.mark.parametrize(
    ("capacity", "dtype", "message"),
    [
        (41, None, "replay_capacity is 41, but the checkpoint's memory has 40; use the same."),
        (
            40,
            "float16",
            "replay_obs_dtype is 'float16', but the checkpoint's memory has None; use the same.",
        ),
    ],
)
def test_the_state_of_another_memory_is_refused(capacity, dtype, message):
    state = ReplayMemory(40).get_state()
    with pytest.raises(ValueError) as error:
        ReplayMemory(capacity, dtype).set_state(state)
    assert str(error.value) == message
