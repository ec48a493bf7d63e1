"""Self-play against an opponent: who plays, who learns, and what a checkpoint keeps."""

import copy
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import ray
from small_battles import memories, same, small_battle, weights

from rllib_cli.hooks import hooks
from rllib_mfq import MFQ
from rllib_mfq.algorithm.casting import MINE, OPPONENT, shares_won
from rllib_mfq.algorithm.self_play import PoolOpponent, TrackedOpponent, self_play_settings
from rllib_mfq.population.fragment import Episode

pytestmark = pytest.mark.usefixtures("ray_session")

TRACKED = {"opponent": "tracked", "tau": 0.75}
POOL = {"opponent": "pool", "size": 3, "interval": 200}
BOTH = pytest.mark.parametrize("self_play", [TRACKED, POOL], ids=["tracked", "pool"])
STACKS = pytest.mark.parametrize("old", [False, True], ids=["new", "old"])


def battle(self_play, old=False, **training):
    return small_battle(old=old, self_play=self_play, **training)


def shared(config):
    return config.multi_agent(policies=["shared"])


def assert_same(first, second, rtol=0.0):
    assert first.keys() == second.keys()
    for module_id, tensors in first.items():
        assert tensors.keys() == second[module_id].keys()
        for name, tensor in tensors.items():
            np.testing.assert_allclose(tensor, second[module_id][name], rtol, err_msg=name)


def opponent_of(runner):
    """The opponent that a runner has."""
    state = runner._opponent.get_state(inference_only=True)
    return {m: {n: np.array(x) for n, x in tensors.items()} for m, tensors in state.items()}


def learner(value):
    return {"red": {"w": np.full(2, value, np.float32), "temperature": np.float32(value)}}


def tracked(tau=0.75):
    return TrackedOpponent({"tau": tau}, 0, 10, lambda: learner(0.0))


@STACKS
@BOTH
def test_the_memory_holds_the_learners_rows_and_nobody_elses(build, self_play, old):
    algo = build(battle(self_play, old, num_steps_sampled_before_learning_starts=0))
    results = algo.train()
    rows = algo._agent_steps
    assert rows == 4 * 10 * 2 * 2  # fragments, steps, environments, agents of one side
    assert sum(len(memory) for memory in memories(algo).values()) == rows
    assert len(memories(algo)["red"]) == len(memories(algo)["blue"]) == rows / 2
    assert results["agent_steps_sampled_lifetime"] == results["replay_size"] == rows
    assert results["env_runners"]["num_agent_steps_sampled"] == {"red": rows / 2, "blue": rows / 2}
    assert results["env_runners"]["num_env_steps_sampled_lifetime"] == 80
    owed = results["num_updates"] + algo._owed
    assert owed * 32 * 2 == pytest.approx(2.0 * rows)


def test_latest_is_the_default_and_plays_in_one_sampler(build):
    plain, named = build(small_battle()), build(battle({"opponent": "latest"}))
    for algo in (plain, named):
        results = algo.train()
        assert "self_play" not in results
        assert len(algo.env_runner._samplers) == 1 and algo.env_runner._opponent is None
    assert same(weights(plain, "red"), weights(named, "red"))


@STACKS
@BOTH
def test_a_shared_policy_learns_both_sides_by_rows_that_find_their_next(build, self_play, old):
    algo = build(shared(battle(self_play, old)))
    (batches,) = algo._runners.collect(algo._state_for_runners)
    assert [batch.mine for batch in batches] == ["red", "blue"]
    for number, batch in enumerate(batches):
        assert set(batch.policy_batches) == {"shared"}
        columns = batch.policy_batches["shared"]
        assert set(columns["group"]) == {number}
        assert batch.agent_steps() == columns["loss_mask"].sum() == 10 * 2
        going_on = np.flatnonzero(columns["next_row"] >= 0)
        after = columns["next_row"][going_on]
        assert len(after) and np.array_equal(columns["t"][after], columns["t"][going_on] + 1)
        for name in ("group", "agent_index", "eps_id"):
            assert np.array_equal(columns[name][after], columns[name][going_on])
    algo._memories.give([batches])
    assert len(memories(algo)["shared"]) == 40


def test_the_two_halves_play_different_games(build):
    algo = build(shared(battle(TRACKED)).env_runners(num_envs_per_env_runner=4))
    runner = algo.env_runner
    indices = []
    runner._fire = lambda name, **kwargs: indices.append(kwargs.get("env_index"))
    first, second = runner.sample()
    assert indices[:8:2] == [0, 1, 2, 3]
    obs = [batch.policy_batches["shared"]["obs"] for batch in (first, second)]
    assert not np.array_equal(*obs)
    assert {p.name for p in runner._samplers["red"].players.values()} == {
        "shared",
        "opponent/shared",
    }


def test_the_opponents_side_is_played_by_its_own_networks(build):
    algo = build(battle(TRACKED))
    asked = []
    runner = algo.env_runner
    for who, modules in (("learner", runner.module), ("opponent", runner._opponent)):
        for module_id, module in modules.items():

            def act(*args, who=who, module_id=module_id, act=module.act, **kwargs):
                asked.append((who, module_id, kwargs["explore"]))
                return act(*args, **kwargs)

            module.act = act
    runner.sample()
    learner_red, learner_blue = ("learner", "red", True), ("learner", "blue", True)
    rival_red, rival_blue = ("opponent", "red", True), ("opponent", "blue", True)
    assert set(asked[:20]) == {learner_red, rival_blue}
    assert set(asked[20:]) == {learner_blue, rival_red}


def test_it_moves_only_after_a_round_that_was_won_and_by_the_formula():
    opponent = tracked()
    opponent._learner = lambda: learner(1.0)
    for shares in ([], [0.0], [0.5, 0.5], [1.0, 0.0], [1.0, 0.0, 0.0]):
        opponent.end_round(shares, 0)
        assert_same(opponent.weights, learner(0.0))
        assert opponent.number == 1 and opponent.opponents == 0
    opponent.end_round([1.0, 0.5], 0)
    assert_same(opponent.weights, learner(0.75))
    opponent._learner = lambda: learner(2.0)
    opponent.end_round([1.0], 0)
    assert_same(opponent.weights, learner(0.75 * 2 + 0.25 * 0.75))
    assert opponent.number == 3 and opponent.opponents == 2


def test_it_follows_nobody_where_winning_means_nothing():
    """Of predators and prey one always earns more, whoever plays it."""
    with pytest.raises(ValueError, match=r"nobody wins here.*legal are latest, pool"):
        tracked().end_round([math.nan, math.nan], 0)
    pool = PoolOpponent({"size": 3, "interval": 100}, 0, 10, lambda: learner(0.0))
    pool.end_matches({"pool": [math.nan], "random": [math.nan]}, 100)
    assert pool.figures() == {("opponents",): 2}  # and no win rate


def test_a_share_is_known_where_somebody_can_win():
    def episodes(alike):
        return [
            Episode(0, 0, {"predator": 5.0, "prey": -3.0}, alike=alike, custom_data={MINE: mine})
            for mine in ("predator", "prey")
        ]

    for alike, expected in ((True, [1.0, 0.0]), (False, [math.nan] * 2)):
        batch = SimpleNamespace(mine=None, episodes=episodes(alike))
        for episode in batch.episodes:
            episode.custom_data[OPPONENT] = "rush"
        np.testing.assert_equal(shares_won([batch], "pool"), {"pool": [], "rush": expected})


def rig(algo, score):
    """Every match ends as `score`, given the learner's group, says."""
    collect = algo._runners.collect

    def rigged(state):
        played = collect(state)
        for batch in itertools.chain(*played):
            for episode in batch.episodes:
                episode.result = {"score": score(batch.mine)}
        return played

    algo._runners.collect = rigged


@STACKS
def test_the_tracked_opponent_is_the_initial_learner_until_it_loses(build, old):
    algo = build(battle(TRACKED, old))
    expected = copy.deepcopy(algo._learner_weights())
    outcome = 0.0
    rig(algo, lambda mine: {"red": 0.5, "blue": 0.5, mine: outcome})
    for outcome in (0.0, 0.5, 1.0, 0.0, 1.0):
        for _ in range(2):  # an episode has two fragments
            algo.training_step()
        if outcome == 1.0:
            now = algo._learner_weights()
            expected = {
                m: {n: 0.75 * now[m][n] + 0.25 * x for n, x in tensors.items()}
                for m, tensors in expected.items()
            }
        assert_same(algo._self_play.weights, expected)
        assert_same(opponent_of(algo.env_runner), expected, rtol=1e-6)
    assert algo._self_play.opponents == 2


def test_a_round_is_scored_for_the_learners_side(build):
    algo = build(battle(TRACKED))
    heard = []
    end_round = algo._self_play.end_round
    algo._self_play.end_round = lambda shares, rows: (
        heard.append(list(shares)) or end_round(shares, rows)
    )
    rig(algo, lambda mine: {"red": 2, "blue": 1})
    for _ in range(2):
        algo.training_step()
    assert heard == [[], [1.0, 0.0]]  # it played red in the first match and blue in the second
    assert list(algo._self_play._shares) == [1.0, 0.0]


def test_snapshots_are_taken_at_their_rows_and_bounded_and_draws_are_seeded():
    def play(seed):
        steps = 0
        pool = PoolOpponent({"size": 3, "interval": 100}, seed, 10, lambda: learner(float(steps)))
        sizes, kept, drawn = [], [], []
        for steps in range(40, 1_000, 40):
            pool.end_round([1.0], steps)
            sizes.append(pool.opponents)
            kept.append([s["red"]["w"][0] for s in pool._snapshots])
            drawn.append(float(pool.weights["red"]["w"][0]))
            assert drawn[-1] in kept[-1]
        return sizes, kept, drawn

    sizes, kept, drawn = play(1)
    assert sizes[:5] == [1, 1, 2, 2, 3] and max(sizes) == 3
    assert kept[2] == [0, 120] and kept[4] == [0, 120, 200] and kept[-1] == [720, 800, 920]
    assert drawn == play(1)[2] != play(2)[2]
    assert len(set(drawn)) > 3


def test_a_pool_goes_on_with_another_interval():
    def pool(interval):
        return PoolOpponent({"size": 9, "interval": interval}, 0, 10, lambda: learner(0.0))

    before, after = pool(100), pool(200)
    for steps in range(100, 1_100, 100):
        before.end_round([], steps)
    after.set_state(before.get_state())
    taken = []
    for steps in range(1_100, 1_700, 100):
        count = after.opponents = 1  # so that each one more shows
        after._snapshots = after._snapshots[:1]
        after.end_round([], steps)
        taken += [steps] * (after.opponents > count)
    assert taken == [1_200, 1_400, 1_600]


def test_a_pool_keeps_its_opponent_while_no_match_ends_and_numbers_the_others():
    pool = PoolOpponent({"size": 3, "interval": 1}, 0, 10, lambda: learner(0.0))
    pool._learner = lambda: learner(1.0)
    for steps in range(1, 4):
        pool.end_round([], steps)
        assert_same(pool.weights, learner(0.0))
    assert pool.number == 1 and pool.opponents == 3
    before, moves = pool.weights, 0
    for steps in range(4, 20):
        pool.end_round([0.0], steps)
        moves += pool.weights is not before
        before = pool.weights
    assert pool.number == 1 + moves > 1


@STACKS
def test_a_snapshot_stays_as_it_was_while_the_learner_learns(build, old):
    algo = build(battle(POOL, old))
    initial = copy.deepcopy(algo._learner_weights())
    for _ in range(4):
        algo.training_step()
    assert_same(algo._self_play._snapshots[0], initial)
    now = algo._learner_weights()["red"]
    assert any(not np.array_equal(now[name], initial["red"][name]) for name in now)


def copied(batches):
    """Fragments that the runner's next one does not overwrite."""
    return copy.deepcopy(batches)


@STACKS
@BOTH
def test_a_restored_run_goes_on_with_the_opponent_it_would_have_had(
    build, tmp_path, self_play, old
):
    config = battle(self_play, old, store_replay_in_checkpoints=True)
    algo = build(config)
    for _ in range(2):
        algo.train()
    if self_play is TRACKED:
        algo._self_play.end_round([1.0], algo._agent_steps)
        algo.env_runner.set_state(algo._self_play.for_runners())
    algo.save_to_path(tmp_path)
    again = MFQ.from_checkpoint(tmp_path)
    other = build(config.copy(copy_frozen=False).debugging(seed=99))
    other.train()
    other._self_play.number = algo._self_play.number - 1  # numbers of another run
    other.restore_from_path(tmp_path)
    runs = (algo, again, other)
    for run in runs[1:]:
        assert_same(opponent_of(run.env_runner), opponent_of(algo.env_runner))
        assert list(run._self_play._shares) == list(algo._self_play._shares) != []
    recorded = []
    collect = algo._runners.collect

    def record(state):
        recorded.append([copied(fragments) for fragments in collect(state)])
        return copied(recorded[-1])

    algo._runners.collect = record
    for _ in range(8):
        algo.training_step()
    for run in runs[1:]:
        fragments = iter(recorded)
        run._runners.collect = lambda state, fragments=fragments: copied(next(fragments))
        for _ in recorded:
            run.training_step()
        assert_same(run._self_play.weights, algo._self_play.weights)
        assert_same(opponent_of(run.env_runner), opponent_of(algo.env_runner))
        assert run._self_play.opponents == algo._self_play.opponents
        assert list(run._self_play._shares) == list(algo._self_play._shares)
        assert run._agent_steps == algo._agent_steps
        for module_id in ("red", "blue"):
            assert same(weights(run, module_id), weights(algo, module_id))
    again.stop()


@BOTH
def test_a_checkpoint_without_this_opponent_begins_it_from_the_restored_learner(
    build, tmp_path, self_play
):
    algo = build(small_battle())
    algo.train()
    algo.save_to_path(tmp_path)
    other = build(battle(self_play))
    other.train()
    other.restore_from_path(tmp_path)
    assert_same(other._self_play.weights, algo._learner_weights())
    assert_same(opponent_of(other.env_runner), algo._learner_weights())
    assert not other._self_play._shares


def test_the_first_fragments_are_those_of_the_other_stack(build):
    fragments = [copied(build(battle(POOL, old)).env_runner.sample()) for old in (False, True)]
    for new, old in zip(*fragments, strict=True):
        assert new.mine == old.mine and set(new.policy_batches) == {new.mine}
        for name, column in new.policy_batches[new.mine].items():
            np.testing.assert_array_equal(column, old.policy_batches[old.mine][name])


def test_both_stacks_train_the_same_weights_against_the_same_opponent(build):
    new, old = (build(battle(POOL, old)) for old in (False, True))
    for algo in (new, old):
        for _ in range(2):
            results = algo.train()
        assert results["self_play"]["opponents"] == 2
    for module_id, tensors in new._self_play.weights.items():
        for name, tensor in tensors.items():
            other = old._self_play.weights[module_id][name]
            np.testing.assert_allclose(tensor, other, rtol=1e-5, atol=5e-6, err_msg=name)


@STACKS
def test_a_remote_runner_has_the_algorithms_opponent_also_after_a_restart(build, old):
    config = battle({"opponent": "pool", "size": 3, "interval": 40}, old)
    algo = build(config.env_runners(num_env_runners=1))
    assert algo.train()["self_play"]["opponents"] == 3
    group = algo.env_runner_group

    def theirs():
        """The opponent of the runner once it has been asked for its next fragment."""
        algo._runners.drain()
        algo._runners.request(algo._state_for_runners)
        state, *_ = group.foreach_env_runner(
            lambda runner: runner._opponent.get_state(inference_only=True),
            local_env_runner=False,
        )
        return state

    assert_same(theirs(), algo._self_play.weights)
    ray.kill(group._worker_manager.actors()[1], no_restart=False)
    for _ in range(60):
        algo.train()
        if group.num_healthy_remote_env_runners() and algo._self_play.number > 1:
            break
    assert_same(theirs(), algo._self_play.weights)
    rows = algo._agent_steps
    assert rows == sum(len(memory) for memory in memories(algo).values())


def test_figures_are_reported_and_may_be_stopped_at(build):
    algo = build(battle(TRACKED).reporting(min_sample_timesteps_per_iteration=20))
    assert algo.train()["self_play"] == {"opponents": 0}  # no episode has ended yet
    results = algo.train()["self_play"]
    assert results["win_rate"] == pytest.approx(np.mean(algo._self_play._shares))
    assert results["opponents"] == algo._self_play.opponents
    run = hooks(MFQ).run(algo.config.copy(copy_frozen=False))
    assert all(run.reports(f"self_play/{name}") for name in results)
    without = hooks(MFQ).run(battle({"opponent": "latest"}))
    assert not without.reports("self_play/win_rate")


@BOTH
def test_an_evaluation_is_as_without_an_opponent(build, self_play):
    config = battle(self_play).evaluation(
        evaluation_interval=1, evaluation_duration=2, evaluation_opponents={"random": "random"}
    )
    algo = build(config)
    runner = algo.eval_env_runner
    assert len(runner._samplers) == 1 and runner._opponent is None
    assert algo.train()["evaluation"]["env_runners"]["num_episodes"] == 2


@pytest.mark.parametrize(
    ("self_play", "words"),
    [
        ("pool", "self_play is 'pool'; it must be a dict"),
        ({}, "must have an opponent"),
        ({"tau": 0.5}, "must have an opponent"),
        ({"opponent": "pol"}, r"'pol' \(did you mean 'pool'\?\); legal are latest, tracked, pool"),
        ({"opponent": 3}, "opponent 3; legal are"),
        ({"opponent": "pool", "sizes": 3}, r"no key 'sizes' \(did you mean 'size'\?\)"),
        ({"opponent": "pool", "tau": 0.5}, "tau 0.5, which has no effect on the opponent 'pool'"),
        ({"opponent": "tracked", "size": 3}, "size 3, which has no effect on the opponent"),
        ({"opponent": "latest", "size": 3}, "size 3, which has no effect on the opponent"),
        ({"opponent": "tracked", "tau": 0}, "tau 0; it must be a number above 0 and at most 1"),
        ({"opponent": "tracked", "tau": "0.9"}, "tau '0.9'; it must be a number"),
        ({"opponent": "tracked", "tau": float("nan")}, "tau nan; it must be a number"),
        ({"opponent": "pool", "size": 0}, "size 0; it must be an integer of at least 1"),
        ({"opponent": "pool", "interval": 1.5}, "interval 1.5; it must be an integer"),
        ({"opponent": "pool", "size": True}, "size True; it must be an integer"),
    ],
)
def test_what_self_play_cannot_be_is_refused(self_play, words):
    with pytest.raises(ValueError, match=words):
        battle(self_play).validate()


def test_defaults_are_filled_in():
    tracked = {"opponent": "tracked", "tau": 0.99, "others": {}}
    assert self_play_settings({"opponent": "tracked"}) == tracked
    pool = {"opponent": "pool", "size": 10, "interval": 500_000, "others": {}}
    assert self_play_settings({"opponent": "pool"}) == pool


def test_an_odd_number_of_environments_is_refused_with_an_opponent_only():
    for self_play in (TRACKED, POOL):
        config = battle(self_play).env_runners(num_envs_per_env_runner=3)
        with pytest.raises(ValueError, match=r"num_envs_per_env_runner is 3; .* must be even"):
            config.validate()
    small_battle().env_runners(num_envs_per_env_runner=3).validate()


def test_an_environment_without_two_groups_is_refused(build):
    config = small_battle("CartPole-v1", {}, self_play=POOL)
    with pytest.raises(ValueError, match=r"self_play is .* needs an environment of two groups"):
        build(config)


def test_a_fragment_need_only_fit_as_it_is(build):
    config = battle(POOL, replay_capacity=24, num_steps_sampled_before_learning_starts=20)
    build(shared(config)).train()
    with pytest.raises(ValueError, match="one fragment of module 'shared' has 22 rows"):
        build(shared(battle(POOL, replay_capacity=21, num_steps_sampled_before_learning_starts=20)))


OTHERS = {"still": 0.2, "rush": 0.2, "random": 0.1}


def mixed(opponent, old=False, others=OTHERS, **training):
    config = battle({**opponent, "others": others}, old, **training)
    return config.env_runners(num_envs_per_env_runner=4)


@STACKS
@pytest.mark.parametrize("policies", [["shared"], None], ids=["shared", "two"])
@pytest.mark.parametrize("opponent", [{"opponent": "latest"}, POOL], ids=["latest", "pool"])
def test_others_meet_both_sides_alike_and_nobody_learns_from_them(build, opponent, policies, old):
    others = OTHERS | ({} if opponent["opponent"] == "latest" else {"latest": 0.3})
    config = mixed(opponent, old, others, replay_capacity=50_000)
    algo = build(config.multi_agent(policies=policies) if policies else config)
    met, learned, played, rows = {}, 0, 0, 0
    for _ in range(30):
        ((batch,),) = algo._runners.collect(algo._state_for_runners)
        assert set(batch.policy_batches) == set(policies or ("red", "blue"))
        for episode in batch.episodes:
            who = episode.custom_data["opponent"], episode.custom_data.get("mine")
            met[who] = met.get(who, 0) + 1
            played += 1
        rows += batch.agent_steps()
        learned += sum(int(b["loss_mask"].sum()) for b in batch.policy_batches.values())
    assert learned == rows
    for name, share in others.items():
        sides = [met.get((name, side), 0) for side in ("red", "blue")]
        if name == "latest":
            assert sides == [0, 0]
        else:
            assert abs(sides[0] - sides[1]) <= 4  # of those that have not ended, one may be either
        found = sum(n for (who, _), n in met.items() if who == name)
        assert abs(found / played - share) < 4 * (share * (1 - share) / played) ** 0.5
    for name in ("still", "rush", "random", opponent["opponent"]):
        assert (name, None) not in met or name == "latest"


def test_the_learner_has_one_side_of_a_match_against_others(build):
    algo = build(shared(mixed({"opponent": "latest"})))
    chosen = {}
    sampler = algo.env_runner._sampler
    choose = sampler._choose

    def watched(episode):
        number = choose(episode)
        chosen[episode.id_] = episode.custom_data.get("mine")
        return number

    sampler._choose = watched
    names = list(sampler.groups)
    for _ in range(6):
        (batch,) = algo.env_runner.sample()
        columns = batch.policy_batches["shared"]
        for id_ in set(columns["eps_id"]):
            seen = {names[n] for n in columns["group"][columns["eps_id"] == id_]}
            assert seen == ({chosen[id_]} if chosen.get(id_) else set(names)) or id_ not in chosen
        going_on = np.flatnonzero(columns["next_row"] >= 0)
        after = columns["next_row"][going_on]
        for name in ("group", "agent_index", "eps_id"):
            assert np.array_equal(columns[name][after], columns[name][going_on])
    assert {*chosen.values()} == {None, "red", "blue"}


def test_those_who_do_nothing_do_nothing_in_their_matches_only(build):
    algo = build(shared(mixed({"opponent": "latest"}, others={"still": 0.5})))
    sampler = algo.env_runner._sampler
    for _ in range(10):
        algo.env_runner.sample()
        for index, episode in sampler._episodes.items():
            mine = episode.custom_data.get("mine")
            for group in sampler.groups:
                name = sampler._block(index, group).player.name
                assert name == ("shared" if mine in (None, group) else f"opponent still/{group}")
    block = next(b for b in sampler._casts.blocks if b.player.name == "opponent still/red")
    acted = block.data["loss_mask"][: block.start]
    assert acted.any() and set(block.data["actions"][: block.start][acted]) == {6}


@STACKS
def test_the_same_seed_gives_the_same_run_with_others(build, old):
    runs = [build(shared(mixed(POOL, old))) for _ in range(2)]
    for algo in runs:
        for _ in range(3):
            algo.train()
    assert same(*(weights(algo, "shared") for algo in runs))
    assert runs[0]._self_play.figures() == runs[1]._self_play.figures()


def test_a_checkpoint_keeps_what_was_won_against_others(build, tmp_path):
    algo = build(shared(mixed(POOL)))
    for _ in range(4):
        results = algo.train()
    rates = results["self_play"]["win_rates"]
    assert {*rates} == {*OTHERS}
    algo.save_to_path(tmp_path)
    again = build(shared(mixed(POOL)))
    again.restore_from_path(tmp_path)
    assert again._self_play.figures() == algo._self_play.figures()
    drawn = [run.env_runner._generator.get_state() for run in (again, algo)]
    assert np.array_equal(*drawn)  # who plays next is drawn alike
    without = build(shared(battle(POOL)))
    without.restore_from_path(tmp_path)
    assert ("win_rates", "still") not in without._self_play.figures()
    run = hooks(MFQ).run(algo.config.copy(copy_frozen=False))
    assert all(run.reports(f"self_play/win_rates/{name}") for name in OTHERS)


def test_others_play_in_training_only_and_may_be_any_number_of_environments(build):
    config = shared(mixed(POOL)).env_runners(num_envs_per_env_runner=3)
    config.evaluation(
        evaluation_interval=1, evaluation_duration=2, evaluation_opponents={"random": "random"}
    )
    algo = build(config)
    assert {*algo.train()["evaluation"]["env_runners"]["win_rate"]} == {"random"}
    assert algo.eval_env_runner._samplers.keys() == {None}


@pytest.mark.parametrize(
    ("self_play", "words"),
    [
        ({"opponent": "latest", "others": ["still"]}, r"others \['still'\]; it must be a dict"),
        ({"opponent": "latest", "others": {"still": 0}}, "a share of the matches must be"),
        ({"opponent": "latest", "others": {"still": "0.1"}}, "a share of the matches must be"),
        ({"opponent": "latest", "others": {"still": 0.5, "rush": 0.5}}, "shares sum to 1"),
        ({"opponent": "latest", "others": {"latest": 0.5}}, "may name 'latest' only, and not tw"),
        ({"opponent": "pool", "others": {"tracked": 0.5}}, "may name 'latest' only"),
        ({"opponent": "pool", "other": {}}, "did you mean 'others'"),
    ],
)
def test_shares_that_cannot_be_are_one_sentence(self_play, words):
    with pytest.raises(ValueError, match=words):
        battle(self_play).validate()


def test_others_that_do_not_exist_or_do_not_fit_are_one_sentence(build):
    with pytest.raises(ValueError, match="did you mean 'rush'"):
        build(mixed({"opponent": "latest"}, others={"rusch": 0.1}))
    pursuit = small_battle(
        "adversarial_pursuit_v4",
        {"map_size": 12},
        self_play={"opponent": "latest", "others": {"still": 0.1}},
    )
    with pytest.raises(ValueError, match="it plays MAgent2's battles"):
        build(pursuit)
    cartpole = small_battle(
        "CartPole-v1", {}, self_play={"opponent": "latest", "others": {"random": 0.1}}
    )
    with pytest.raises(ValueError, match="needs an environment of two groups"):
        build(cartpole)
