"""What a checkpoint's folder holds, what is unpickled, and damage that is noticed."""

import contextlib
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core.rl_module.rl_module import RLModule
from small_battles import memories, small_battle, weights

from rllib_cli.command import main
from rllib_cli.hooks import load_config
from rllib_mfq import MFQ, magent2
from rllib_mfq.algorithm.checkpoint import (
    CLASS,
    ENVIRONMENT,
    MODULES,
    NETWORK,
    find_modules,
    load_modules,
    saved_environment,
    saved_play,
)
from rllib_mfq.algorithm.checksums import FILE, check_files, write_checksums
from rllib_mfq.algorithm.opponents import load_opponent
from rllib_mfq.arena.render import film_match
from rllib_mfq.arena.tournament import play_tournament

pytestmark = pytest.mark.usefixtures("ray_session")
OLD_CHECKPOINTS = Path(__file__).parent / "checkpoints"


@pytest.fixture(scope="module")
def saved(ray_session, tmp_path_factory):
    """A checkpoint of each API stack, with the learner's weights."""
    found = {}
    for old in (False, True):
        config = small_battle(old=old, store_replay_in_checkpoints=True)
        algo = config.multi_agent(policies=["shared"]).build_algo()
        algo.train()
        folder = Path(algo.save_to_path(str(tmp_path_factory.mktemp("saved"))))
        found[old] = folder, weights(algo, "shared")
        algo.stop()
    return found


@pytest.fixture(params=[False, True], ids=["new", "old"])
def folder(request, saved, tmp_path):
    """A copy of a checkpoint, of each stack in turn."""
    return shutil.copytree(saved[request.param][0], tmp_path / "checkpoint")


class Burglar:
    """What a pickle can do."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_the_file_of_a_network_holds_the_learners_weights(saved):
    for folder, learned in saved.values():
        (module,) = load_modules(folder).values()
        assert (folder / MODULES / "shared" / NETWORK).is_file()
        state = module.get_state()
        assert {name for name in learned if not name.startswith("_target")} == state.keys()
        for name, value in state.items():
            assert np.array_equal(value, learned[name])
        pickled = RLModule.from_checkpoint(folder / MODULES / "shared")
        assert module.observation_space == pickled.observation_space
        assert module.action_space == pickled.action_space
        assert module.neighborhood == pickled.neighborhood


def test_what_only_plays_unpickles_nothing(folder, tmp_path):
    trace = tmp_path / "burgled"
    for file in folder.rglob("*.pkl"):
        file.write_bytes(pickle.dumps(Burglar(trace)))
    write_checksums(folder)
    load_opponent("rival", str(folder), magent2("battle_v4", map_size=12).groups)
    agents = {"mine": str(folder), "random": "random"}
    tournament = play_tournament(agents, matches=2, processes=1)
    assert tournament.env_config == saved_environment(folder)["env_config"]
    film_match(str(folder), "random")
    if saved_play(folder)["suffices"] and (folder / f"{CLASS}.pkl").is_file():
        arguments = ["evaluate", str(folder), "--episodes", "1", "--opponent", "random"]
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
    assert not trace.exists()
    (folder / MODULES / "shared" / NETWORK).unlink()  # and the trap works
    write_checksums(folder)
    with contextlib.suppress(ValueError, AttributeError):
        load_modules(folder)
    assert trace.exists()


def test_evaluate_plays_with_callbacks_of_the_config_if_there_are_some(build, tmp_path):
    class Mine(RLlibCallback):
        pass

    folder = build(small_battle().callbacks(Mine)).save_to_path(str(tmp_path))
    assert not saved_play(folder)["suffices"]
    assert load_config(folder)[2].callbacks_class is Mine
    # Without them the networks and the mapping of the groups suffice.
    config = small_battle().multi_agent(
        policies=["a", "b"], policy_mapping_fn=lambda agent, *_, **__: "ab"["blue" in agent]
    )
    folder = build(config.training(neighborhood="all")).save_to_path(str(tmp_path))
    assert saved_play(folder)["groups"] == {"red": "a", "blue": "b"}
    _, kind, plays = load_config(folder)
    assert kind is MFQ and plays.neighborhood == "all"
    assert plays.policy_mapping_fn("blue_7", None) == "b"


def test_an_environment_that_json_cannot_name_is_unpickled(build, tmp_path):
    config = small_battle().environment(env_config={"map_size": 12, "max_cycles": np.int64(20)})
    folder = build(config).save_to_path(str(tmp_path))
    assert not (Path(folder) / ENVIRONMENT).exists()
    assert saved_environment(folder)["env_config"]["max_cycles"] == 20


def readers(folder):
    """Everything that reads a checkpoint."""
    groups = magent2("battle_v4", map_size=12).groups
    played = [str(folder), "random"]
    return {
        "opponent": lambda: load_opponent("rival", str(folder), groups),
        "tournament": lambda: play_tournament(dict(zip("ab", played, strict=True)), matches=2),
        "render": lambda: film_match(*played),
        "from_checkpoint": lambda: MFQ.from_checkpoint(folder),
    }


NEEDED = {
    "opponent": [MODULES / "shared" / NETWORK],
    "tournament": [MODULES / "shared" / NETWORK, ENVIRONMENT],
    "render": [MODULES / "shared" / NETWORK, ENVIRONMENT],
}


def damage(file, how):
    content = bytearray(file.read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 1
    file.write_bytes(content if how == "flipped" else content[: len(content) // 2])


@pytest.mark.parametrize("how", ["flipped", "truncated"])
@pytest.mark.parametrize("sealed", [True, False])
def test_damage_is_one_sentence_with_the_files_name(folder, how, sealed):
    if not sealed and how == "flipped":
        return  # only checksums notice one flipped byte
    if not sealed:
        (folder / FILE).unlink()
    read = readers(folder)
    for reader, files in NEEDED.items():
        for name in files:
            whole = (folder / name).read_bytes()
            damage(folder / name, how)
            with pytest.raises(ValueError, match=Path(name).name) as caught:
                read[reader]()
            assert "\n" not in str(caught.value)
            (folder / name).write_bytes(whole)
    files = [*folder.rglob("*.pkl"), *folder.rglob("*.json")]
    assert len(files) > 6
    for file in files:
        if file.name == FILE and how == "flipped":
            continue
        whole = file.read_bytes()
        damage(file, how)
        with pytest.raises(ValueError, match=file.name) as caught:
            read["from_checkpoint"]()
        assert str(file) in str(caught.value) and "\n" not in str(caught.value)
        file.write_bytes(whole)
    check_files(folder)


@pytest.mark.parametrize("old", [False, True])
def test_a_restore_notices_a_flipped_byte_before_it_changes_anything(build, saved, tmp_path, old):
    folder = shutil.copytree(saved[old][0], tmp_path / "checkpoint")
    algo = build(
        small_battle(old=old, store_replay_in_checkpoints=True).multi_agent(policies=["shared"])
    )
    before = weights(algo, "shared")
    for file in (folder / "algorithm_state.pkl", folder / MODULES / "shared" / "module_state.pkl"):
        whole = file.read_bytes()
        damage(file, "flipped")
        for restore in (algo.restore_from_path, algo.load_checkpoint, algo.restore):
            with pytest.raises(ValueError, match=f"{file.name} is damaged: its checksum"):
                restore(str(folder))
        file.write_bytes(whole)
    assert algo._agent_steps == 0
    after = weights(algo, "shared")
    assert all((before[name] == after[name]).all() for name in before)
    algo.restore_from_path(str(folder))
    assert algo._agent_steps > 0


@pytest.mark.parametrize("old", [False, True])
def test_a_checkpoint_at_a_uri_is_as_one_in_a_folder(build, tmp_path, old):
    config = small_battle(old=old, store_replay_in_checkpoints=True)
    algo, uri = build(config), (tmp_path / "bucket" / "saved").as_uri()
    algo.train()
    assert algo.save_to_path(uri) == uri
    folder = tmp_path / "bucket" / "saved"
    check_files(folder)
    assert {FILE, ENVIRONMENT} <= {path.name for path in folder.iterdir()}
    inside = build(config)
    inside.save_to_path("inside", filesystem=SubTreeFileSystem(str(tmp_path), LocalFileSystem()))
    check_files(tmp_path / "inside")
    inside.restore_from_path(uri)
    for again in (inside, MFQ.from_checkpoint(uri)):
        assert again._agent_steps == algo._agent_steps > 0
        mine, theirs = weights(algo, "red"), weights(again, "red")
        assert all((mine[name] == theirs[name]).all() for name in mine)
        kept, other = memories(algo), memories(again)
        assert [len(memory) for memory in kept.values()] == [len(m) for m in other.values()]
        assert sum(map(len, other.values())) == algo._agent_steps
    again.stop()
    damage(folder / "algorithm_state.pkl", "flipped")
    for read in (algo.restore_from_path, MFQ.from_checkpoint):
        with pytest.raises(ValueError, match=f"{uri}/algorithm_state.pkl is damaged: its"):
            read(uri)


def test_a_missing_file_is_named(folder):
    (folder / MODULES / "shared" / NETWORK).unlink()
    with pytest.raises(ValueError, match=f"{NETWORK} is missing"):
        MFQ.from_checkpoint(folder)


@pytest.mark.parametrize("kind", ["new", "old_pool"])
def test_an_old_checkpoint_without_checksums_that_is_cut_off_is_named(kind, tmp_path):
    folder = shutil.copytree(OLD_CHECKPOINTS / kind, tmp_path / kind)
    check_files(folder)
    file = next(iter(find_modules(folder).values())) / "module_state.pkl"
    damage(file, "truncated")
    for read in (load_modules, MFQ.from_checkpoint):
        with pytest.raises(ValueError, match=str(file)):
            read(folder)


def test_a_checkpoint_over_another_one_keeps_nothing_of_it(build, folder, tmp_path):
    algo = build(small_battle().environment(env_config={"map_size": 14, "max_cycles": 20}))
    algo.save_to_path(str(folder))
    assert json.loads((folder / ENVIRONMENT).read_text())["env_config"]["map_size"] == 14
    check_files(folder)


@pytest.mark.parametrize("old", [False, True])
def test_counters_of_evaluations_add_up_also_after_a_restore(build, tmp_path, old):
    config = small_battle(old=old).evaluation(evaluation_interval=2, evaluation_duration=3)
    algo = build(config)

    def played(algo):
        found = algo.train()["evaluation"]["env_runners"]
        steps = found["num_agent_steps_sampled_lifetime"]
        assert steps["red"] == 2 * 20 * found["num_episodes_lifetime"]
        assert found["num_env_steps_sampled_lifetime"] == 20 * found["num_episodes_lifetime"]
        return found["num_episodes_lifetime"]

    algo.train()
    assert [played(algo) for _ in range(4)] == [3, 3, 6, 6]
    algo.save_to_path(str(tmp_path / "saved"))
    again = build(config)
    again.restore_from_path(str(tmp_path / "saved"))
    assert [played(again) for _ in range(3)] == [9, 9, 12]
    assert again.evaluate()["env_runners"]["num_episodes_lifetime"] == 15
    assert played(again) == 15
