"""The `rllib` command, as a person types it."""

import ast
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from ray.rllib.core.rl_module.rl_module import RLModule

from rllib_cli import command, experiments, hooks, progress
from rllib_mfq import MFQEnvRunner
from rllib_mfq.algorithm.checkpoint import find_modules

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
LIGHT = {
    "completion",
    "plugins",
    "reproduce",
    "__init__",
    "__main__",
    "arena",
    "command",
    "experiments",
    "options",
}
TINY = {
    "run": "MFQ",
    "env": "battle_v4",
    "stop": {"training_iteration": 2},
    "config": {
        "env_config": {"map_size": 12, "max_cycles": 20},
        "num_envs_per_env_runner": 2,
        "rollout_fragment_length": 10,
        "train_batch_size_per_learner": 32,
        "num_steps_sampled_before_learning_starts": 50,
        "replay_capacity": 5_000,
        "min_sample_timesteps_per_iteration": 80,
        "evaluation_interval": 1,
        "evaluation_duration": 2,
        "evaluation_opponents": {"random": "random"},
    },
}
WIN_RATE = "evaluation/env_runners/win_rate/random"


def rllib(*arguments):
    """Runs the command in this process."""
    result = CliRunner().invoke(command.main, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def start(*arguments, **options):
    """Starts the command as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "rllib_cli", *map(str, arguments)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


def write(path, experiments):
    path.write_text(yaml.safe_dump(experiments))
    return path


def results_of(folder):
    """The results of every trial below a folder, in the order of trials."""
    files = sorted(folder.rglob("result.json"))
    return [[json.loads(line) for line in file.read_text().splitlines()] for file in files]


def flat(nested, prefix=""):
    for key, value in nested.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}"


@pytest.fixture(scope="module")
def trained(ray_session, tmp_path_factory):
    """A tiny MFQ run: what was printed, its folder and its checkpoint."""
    folder = tmp_path_factory.mktemp("trained")
    path = write(folder / "tiny.yaml", {"tiny": TINY})
    result = rllib("train", "file", path, "--storage-path", folder, "--seed", 1)
    assert result.exit_code == 0, result.output
    (checkpoint,) = folder.rglob("checkpoint_*")
    return SimpleNamespace(output=result.stdout, folder=folder, checkpoint=checkpoint, path=path)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["train", "file", "--help"], 0),
        (["evaluate", "--help"], 0),
        (["--version"], 0),
        (["example", "list"], 0),
        (["train", "file", "nope.yaml"], 2),
        (["train"], 2),
        (["train", "--run", "PPO", "--config", "{"], 2),
        (["example", "get", "nope"], 2),
        (["tournament", "--help"], 0),
        (["tournament"], 2),
        (["plot", "--help"], 0),
        (["render", "nowhere", "-o", "x.gif", "--env-config", "{"], 2),
    ],
)
def test_help_and_typing_errors_are_answered_without_importing_ray_or_torch(arguments, code):
    script = (
        "import sys\nfrom rllib_cli.command import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit as end: assert end.code == " + str(code) + ", end.code\n"
        "heavy = {'ray', 'torch', 'rllib_mfq', 'gymnasium', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert b"Traceback" not in done.stderr


FILES = sorted(ROOT.glob("rllib_cli/*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_only_what_runs_something_imports_ray_and_nothing_imports_the_command(path):
    top = [node for node in ast.parse(path.read_text()).body]
    names = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in top if isinstance(node, ast.ImportFrom)}
    if path.stem in LIGHT:
        assert not {name.split(".")[0] for name in names} & {"ray", "torch", "rllib_mfq"}
        inner = {name.split(".")[1] for name in names if name.startswith("rllib_cli.")}
        assert inner <= LIGHT
    assert len(path.read_text().splitlines()) <= 320
    for other in ROOT.glob("rllib_mfq/**/*.py"):
        assert "rllib_cli" not in other.read_text(), other


def test_the_help_says_to_trust_checkpoints():
    for words in (["evaluate"], ["train", "file"], ["render"], ["tournament"]):
        told = " ".join(rllib(*words, "--help").output.split())
        assert "load only checkpoints you trust" in told


def test_examples_are_listed_shown_and_found_by_their_old_kind_of_name():
    listed = rllib("example", "list").output
    for path in ROOT.glob("tuned_examples/*.yaml"):
        assert path.stem in listed
    assert "battle_sweep" not in rllib("example", "list", "--filter", "PBT").output
    text = (ROOT / "tuned_examples" / "battle_pbt.yaml").read_text()
    assert rllib("example", "get", "battle_pbt").output == text
    assert experiments.find_example("battle-pbt.yaml").name == "battle_pbt.yaml"
    result = rllib("example", "run", "battle_pb")
    assert result.exit_code == 2 and "(did you mean 'battle_pbt'?)" in result.output


def test_options_that_lost_their_meaning_are_noticed_in_one_line():
    result = rllib("train", "--torch", "--no-ray-ui", "--resources-per-trial", "{}")
    notes = [line for line in result.stderr.splitlines() if line.startswith("note:")]
    assert len(notes) == 3 and "num_env_runners" in " ".join(notes)
    result = rllib("train", "--seed", 1, "file", "x.yaml")
    assert result.exit_code == 2 and "--seed stands before file" in result.stderr
    result = rllib("rollout", "checkpoint", "--run", "PPO")
    assert result.exit_code == 2 and "rllib evaluate" in result.stderr


def test_bad_input_ends_with_code_2_and_a_traceback_only_with_vv(ray_session):
    arguments = ["train", "--run", "MFQ", "--env", "battle_v4", "--set", "tau=9"]
    for few in ([], ["-v"]):
        result = rllib(*arguments, *few)
        assert result.exit_code == 2
        assert "Error: default: tau is 9" in result.stderr and "Traceback" not in result.stderr
    result = rllib(*arguments, "-vv")
    assert result.exit_code == 2 and "Traceback" in result.stderr
    for bad in (
        ["--restore", "nope"],
        ["--as-test", "--stop", "{training_iteration: 1}"],
        ["--scheduler", "ashaa"],
        ["--scheduler", "pbt", "--scheduler-config", "{perturb: 1}"],
        ["--scheduler", "asha", "--scheduler-config", "{metric: reward}"],
        ["--scheduler", "pbt"],  # without mutations
        ["--wandb-project", "x"],
        ["--import", "no_such_module"],
        ["--resume", "--storage-path", "/tmp/nobody/was/here"],
    ):
        result = rllib("train", "--run", "MFQ", "--env", "battle_v4", *bad)
        (line,) = [text for text in result.stderr.splitlines() if "note:" not in text]
        assert result.exit_code == 2 and line.startswith("Error: "), (bad, result.stderr)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["train", "cartpole.yaml"], "write `rllib train file cartpole.yaml`"),
        (["train", "battle_small"], "write `rllib example run battle_small`"),
        (["train", "--dry-run"], "Did you mean '--run'?"),
        (["train", "--torc"], "No such option '--torc'.\n"),  # --torch is hidden
        (["train", "--run", "MFQ", "--stop", "100"], "such as '{training_iteration: 100}'"),
        (["render", "x", "-o", "x.gif", "--env-config", "3"], "such as '{map_size: 20}'"),
    ],
)
def test_a_slip_is_answered_with_what_was_meant(words, answer):
    result = rllib(*words)
    assert result.exit_code == 2 and answer in result.stderr


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["example", "get", "cart"], ["cartpole"]),
        (["example", "run", "battle_p"], ["battle_pbt"]),
        (["train", "--env", "CartPole-v"], ["CartPole-v0", "CartPole-v1"]),
        (["tournament", "rand"], ["random"]),
        (["evaluate", "pretrained:battle-mfq-"], ["pretrained:battle-mfq-0.1"]),
        (["render", "mine/x/check"], ["mine/x/checkpoint_000001"]),
    ],
)
def test_a_shell_completes_values(words, offered, tmp_path, monkeypatch):
    (tmp_path / "mine" / "x" / "checkpoint_000001").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    asked = {"_RLLIB_COMPLETE": "bash_complete", "COMP_CWORD": str(len(words))}
    asked["COMP_WORDS"] = " ".join(["rllib", *words])
    told = CliRunner().invoke(command.main, prog_name="rllib", env=asked).output
    assert [line.removeprefix("plain,") for line in told.splitlines() if "plain" in line] == offered


def test_a_shell_knows_all_environments():
    from rllib_cli import completion
    from rllib_mfq.algorithm.environment import ENVIRONMENTS
    from rllib_mfq.algorithm.opponents import NAMES
    from rllib_mfq.algorithm.pretrained import PREFIX

    assert sorted(completion.ENVIRONMENTS) == sorted(ENVIRONMENTS)
    stored = (ROOT / "rllib_mfq" / "pretrained").glob("*.safetensors")
    assert set(completion.AGENTS) == {*NAMES, *(f"{PREFIX}{path.stem}" for path in stored)}


def test_another_rllib_command_is_named(tmp_path, monkeypatch):
    assert command.other_commands() == []
    modules = {"ray": "ray.rllib.scripts", "rllib_mfq": "rllib_cli.command"}
    entries = [
        SimpleNamespace(dist=SimpleNamespace(name=name, version="2.40.0"), module=module)
        for name, module in modules.items()
    ]
    with monkeypatch.context() as patch:
        patch.setattr(command.importlib.metadata, "entry_points", lambda **kwargs: entries)
        (told,) = command.other_commands()
    assert "ray 2.40.0" in told
    for folder in ("first", "ours", "last"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "rllib").write_text("#!/bin/sh\n")
        (tmp_path / folder / "rllib").chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "ours" / "rllib")])
    paths = [str(tmp_path / folder) for folder in ("first", "ours", "last")]
    monkeypatch.setenv("PATH", os.pathsep.join(paths))
    (told,) = command.other_commands()
    assert str(tmp_path / "first" / "rllib") in told
    monkeypatch.setenv("PATH", os.pathsep.join(paths[1:]))
    assert command.other_commands() == []


def test_the_last_lines_say_what_a_run_reached_and_how_to_play_it(trained):
    lines = trained.output.splitlines()
    assert lines[0].split()[0] == "iter" and lines[-3].split()[0] == "2"
    assert lines[-2].startswith("tiny: win rate against random 0.")
    assert lines[-2].endswith(f"checkpoint {trained.checkpoint}")
    assert lines[-1] == f"play it: rllib evaluate {trained.checkpoint} --opponent random"


def test_what_is_said_to_be_reported_is_what_a_run_reports(trained):
    from rllib_cli.translation import translate
    from rllib_cli.validation import check

    run = check("tiny", translate("tiny", TINY)[0]).run
    found = set(flat(results_of(trained.folder)[0][-1]))
    assert run.keys - found == set()
    named = {key for key in found if key.startswith(("env_runners/", "evaluation/env_runners/"))}
    unsaid = {key for key in named if not run.reports(key)}
    assert {key for key in unsaid if "throughput" not in key and "failures" not in key} == set()


def test_evaluate_plays_matches_on_both_sides_in_turn(trained, tmp_path):
    out = tmp_path / "out.json"
    arguments = ("evaluate", trained.checkpoint, "--opponent", "random", "--episodes", 4)
    result = rllib(*arguments, "--out", out, "--seed", 3)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert len(lines) == 5 and lines[-1].startswith("4 episodes: win rate 0.")
    content = json.loads(out.read_text())
    assert [e["side"] for e in content["episodes"]] == ["blue", "red", "blue", "red"]
    for episode, line in zip(content["episodes"], lines, strict=False):
        assert episode["return"] == episode["returns"][episode["side"]]
        kills = episode["result"]["kills"]
        mine = episode["side"]
        theirs = "red" if mine == "blue" else "blue"
        share = 0.5 + 0.5 * ((kills[mine] > kills[theirs]) - (kills[mine] < kills[theirs]))
        assert episode["share"] == share
        assert f"as {mine} against random" in line and f"{episode['return']:.1f}" in line
    rates = [episode["share"] for episode in content["episodes"]]
    assert content["summary"]["win_rate"] == sum(rates) / 4


@pytest.mark.parametrize("opponent", [(), ("--opponent", "random")])
def test_evaluate_plays_with_the_weights_of_the_checkpoint(trained, monkeypatch, opponent):
    played = []

    def record(self, *args, **kwargs):
        played.append(self.module.get_state())
        return sample(self, *args, **kwargs)

    sample = MFQEnvRunner.sample
    monkeypatch.setattr(MFQEnvRunner, "sample", record)
    result = rllib("evaluate", trained.checkpoint, "--episodes", 1, *opponent)
    assert result.exit_code == 0, result.output
    saved = {
        module_id: RLModule.from_checkpoint(folder).get_state(inference_only=True)
        for module_id, folder in find_modules(trained.checkpoint).items()
    }
    assert played and saved
    for module_id, state in saved.items():
        for name, value in state.items():
            np.testing.assert_array_equal(played[-1][module_id][name], value)


def test_evaluate_plays_a_checkpoint_against_itself_and_counts_steps(trained):
    result = rllib("evaluate", trained.checkpoint, "--steps", 50)
    assert result.exit_code == 0 and result.stdout.count("20 steps") == 3 + 1
    result = rllib(
        "evaluate", trained.checkpoint, "--opponent", trained.checkpoint, "--episodes", 2
    )
    assert result.exit_code == 0 and "win rate 0.50 against the opponent" in result.stdout


def test_evaluate_refuses_what_it_cannot_play(trained, tmp_path):
    for arguments, word in (
        ([trained.folder], "no checkpoint"),
        ([trained.checkpoint.parent], "checkpoint_000000"),
        ([trained.checkpoint, "--algo", "PPO"], "is of MFQ"),
        ([trained.checkpoint, "--opponent", tmp_path], "no checkpoint"),
        ([trained.checkpoint, "--out", tmp_path / "no" / "x.json"], "does not exist"),
        ([trained.checkpoint, "-c", "{num_workers: 2}"], "sets num_env_runners to 2"),
        ([trained.checkpoint, "-c", "{evaluation_num_env_runners: 1}"], "must stay 0"),
        ([trained.checkpoint, "-c", "{evaluation_duration: 9}"], "--episodes"),
        ([trained.checkpoint, "-c", "{explore: true}"], "plays greedily"),
        ([trained.checkpoint, "-c", "{evaluation_config: {explore: true}}"], "must stay"),
        ([trained.checkpoint, "-c", "{evaluation_opponents: {r: random}}"], "--opponent"),
        ([trained.checkpoint, "-c", "{self_play: {opponent: pool}}"], "has self_play"),
    ):
        result = rllib("evaluate", *arguments)
        assert result.exit_code == 2 and word in result.stderr


def test_render_shows_every_step(trained, monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    pytest.importorskip("pygame")
    shown = []
    monkeypatch.setattr(hooks, "render_step", lambda *, env, **kwargs: shown.append(env.render()))
    result = rllib("evaluate", trained.checkpoint, "--episodes", 1, "--render")
    assert result.exit_code == 0, result.output
    assert len(shown) >= 20


def test_restore_goes_on_from_a_checkpoint(trained, tmp_path):
    result = rllib(
        "train", "-f", trained.path, "--restore", trained.checkpoint, "--storage-path", tmp_path,
        "--stop", "{training_iteration: 3}",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert [r["training_iteration"] for r in results_of(tmp_path)[0]] == [3]


def test_as_test_fails_unless_the_goal_is_reached(trained, tmp_path):
    arguments = ["train", "file", trained.path, "--storage-path", tmp_path, "--as-test"]
    stop = "{training_iteration: 1, env_runners/episode_len_mean: %s}"
    result = rllib(*arguments, "--stop", stop % 20, "-n", "reached")
    assert result.exit_code == 0, result.output
    result = rllib(*arguments, "--stop", stop % 21, "-n", "missed")
    assert result.exit_code == 1 and "the goal was not reached" in result.stderr


def test_a_trial_that_fails_says_why_and_the_command_exits_1(trained, tmp_path):
    path = write(tmp_path / "bad.yaml", {"bad": TINY})
    opponents = "evaluation_opponents={gone: /tmp/nobody/was/here}"
    result = rllib("train", "file", path, "--storage-path", tmp_path, "--set", opponents)
    assert result.exit_code == 1
    assert "bad: failed:" in result.stdout and "nobody" in result.stdout


def test_an_algorithm_may_be_named_by_options_and_a_python_file_may_hold_the_config(
    ray_session, tmp_path
):
    path = tmp_path / "small.py"
    path.write_text(
        "from ray.rllib.algorithms.ppo import PPOConfig\n"
        "config = PPOConfig().environment('CartPole-v1').env_runners(num_env_runners=0)\n"
        "config.training(train_batch_size=200, minibatch_size=100, num_epochs=1, gamma=0.5)\n"
        "stop = {'training_iteration': 1}\n"
    )
    assert rllib("train", "file", path, "--storage-path", tmp_path).exit_code == 0
    ((result,),) = results_of(tmp_path / "small")
    assert result["config"]["gamma"] == 0.5 and result["config"]["num_epochs"] == 1
    config = '{"num_workers": 0, "num_sgd_iter": 1, "train_batch_size": 200}'
    result = rllib(
        "train", "--run", "PPO", "--env", "CartPole-v1", "-c", config, "-s",
        '{"training_iteration": 1}', "--storage-path", tmp_path, "-n", "by_options",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    ((reported,),) = results_of(tmp_path / "by_options")
    assert reported["config"]["num_epochs"] == 1
    (checkpoint,) = (tmp_path / "by_options").rglob("checkpoint_*")
    played = rllib("evaluate", checkpoint, "--episodes", 2)
    assert played.exit_code == 0 and played.stdout.count("episode ") == 2
    assert "PPO plays no matches" in rllib("evaluate", checkpoint, "--opponent", "random").stderr


OLD_FILES = {
    "ppo": """
cartpole-ppo:
    env: CartPole-v1
    run: PPO
    stop:
        sampler_results/episode_reward_mean: 150
        timesteps_total: 300
    config:
        # Works for both torch and tf.
        framework: torch
        gamma: 0.99
        lr: 0.0003
        num_workers: 1
        train_batch_size: 256
        observation_filter: MeanStdFilter
        num_sgd_iter: 2
        vf_loss_coeff: 0.01
        model:
            fcnet_hiddens: [32]
            fcnet_activation: linear
            vf_share_layers: true
        enable_connectors: true
""",
    "dqn": """
cartpole-dqn:
    env: CartPole-v1
    run: DQN
    stop:
        episode_reward_mean: 150
        timesteps_total: 300
    checkpoint_freq: 1
    checkpoint_at_end: true
    config:
        framework: tf
        buffer_size: 20000
        prioritized_replay: true
        learning_starts: 100
        exploration_config: {epsilon_timesteps: 5000, final_epsilon: 0.02}
        timesteps_per_iteration: 200
        model:
            fcnet_hiddens: [64]
            fcnet_activation: linear
        n_step: 3
        lr: 5e-4
        num_gpus: 0
""",
    "impala": """
cartpole-impala:
    env: CartPole-v1
    run: IMPALA
    stop:
        episode_reward_mean: 150
        timesteps_total: 300
    config:
        framework: tf
        num_workers: 1
        num_envs_per_worker: 2
        num_gpus: 0
        min_time_s_per_reporting: 1
        lr: 0.0005
""",
}


@pytest.mark.parametrize("name", OLD_FILES)
def test_old_files_train(ray_session, tmp_path, name):
    path = tmp_path / f"{name}.yaml"
    path.write_text(OLD_FILES[name])
    result = rllib("train", "-f", path, "--storage-path", tmp_path)
    assert result.exit_code == 0, result.output
    (results,) = results_of(tmp_path)
    assert 300 <= results[-1]["num_env_steps_sampled_lifetime"] < 30_000
    assert results[-1]["config"]["num_env_runners"] == (0 if name == "dqn" else 1)
    assert f"cartpole-{name}: return " in result.stdout
    if name == "dqn":
        assert results[-1]["config"]["lr"] == 5e-4
        assert results[-1]["learners"]["default_policy"]["qf_loss"] >= 0
    if name == "ppo":
        hidden = results[-1]["config"]["_model_config"]
        assert hidden["fcnet_hiddens"] == [32]


def small(name, tmp_path, **scheduler):
    """A tuned sweep with small battles, few trials and other settings of its scheduler."""
    experiment = yaml.safe_load((ROOT / "tuned_examples" / f"{name}.yaml").read_text())
    ((title, content),) = experiment.items()
    content["config"] |= TINY["config"]
    content["scheduler_config"] |= scheduler
    return title, write(tmp_path / f"{name}.yaml", experiment)


@pytest.mark.slow
def test_the_sweep_stops_the_worse_trials_early(ray_session, tmp_path):
    title, path = small("battle_sweep", tmp_path, grace_period=1, max_t=4, reduction_factor=2)
    metric = "env_runners/num_episodes_lifetime"  # of which all trials have as many
    result = rllib(
        "train", "file", path, "--num-samples", 4, "--storage-path", tmp_path,
        "--checkpoint-freq", 1, "--keep-checkpoints-num", 1, "--checkpoint-score-attr", metric,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    trials = results_of(tmp_path / title)
    assert len(trials) == 4 and max(len(trial) for trial in trials) == 4
    assert len({trial[0]["config"]["lr"] for trial in trials}) == 4
    assert all(1e-4 <= trial[0]["config"]["lr"] <= 2e-3 for trial in trials)
    assert len(list((tmp_path / title).rglob("checkpoint_*"))) == 4
    lines = result.stdout.splitlines()
    assert sum("lr=" in line and "neighborhood=" in line for line in lines) == 4
    rates = [trial[-1]["evaluation"]["env_runners"]["win_rate"]["random"] for trial in trials]
    assert f"best ({WIN_RATE} {max(rates):.3g}):" in lines[-2]


@pytest.mark.slow
def test_pbt_copies_the_best_and_its_learning_rate_takes_effect(ray_session, tmp_path):
    # The first iteration has no win rate yet, which must not end the run.
    title, path = small("battle_pbt", tmp_path, perturbation_interval=1, quantile_fraction=0.5)
    result = rllib(
        "train", "file", path, "--num-samples", 2, "--storage-path", tmp_path,
        "--stop", "{training_iteration: 5}", "--set", "evaluation_interval=2",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    copied = 0
    for results in results_of(tmp_path / title):
        rates = [each["config"]["lr"] for each in results]
        copied += len(set(rates)) > 1
        for each in results[1:]:
            learner = each["learners"]["shared"]
            assert learner["default_optimizer_learning_rate"] == pytest.approx(each["config"]["lr"])
    assert copied


def test_ctrl_c_leaves_a_checkpoint_from_which_resume_goes_on(tmp_path):
    both = {"first": TINY, "second": TINY}
    path = write(tmp_path / "two.yaml", both)
    arguments = ("train", "file", path, "--storage-path", tmp_path, "--ray-num-cpus", 1)
    process = start(*arguments, "--stop", "{training_iteration: 100000}")
    try:
        deadline = time.time() + 120
        while time.time() < deadline and len((results_of(tmp_path) or [[]])[0]) < 2:
            assert process.poll() is None, process.communicate()
            time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, err
    assert "Saving a checkpoint" in err and "Traceback" not in err
    (checkpoint,) = (tmp_path / "first").rglob("checkpoint_*")
    assert f"checkpoint {checkpoint}" in out
    assert out.splitlines()[-1].startswith("Go on with: rllib train file")
    assert out.splitlines()[-1].endswith("--resume")
    (results,) = results_of(tmp_path)
    reached = results[-1]["training_iteration"]
    assert not (tmp_path / "second").exists() or not results_of(tmp_path / "second")
    state = json.loads(next((tmp_path / "first").glob("experiment_state-*")).read_text())
    assert "100000" in json.dumps(state)
    process = start(*arguments, "--resume", "--stop", "{training_iteration: 100000}")
    try:
        deadline = time.time() + 120
        while time.time() < deadline and len(results_of(tmp_path)[0]) < len(results) + 2:
            assert process.poll() is None, process.communicate()
            time.sleep(0.5)
    finally:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    (results_now,) = results_of(tmp_path)
    iterations = [each["training_iteration"] for each in results_now]
    assert iterations == list(range(1, len(iterations) + 1)) and iterations[-1] > reached


def test_a_trial_larger_than_the_machine_is_refused_instead_of_waiting(tmp_path):
    path = write(tmp_path / "x.yaml", {"x": TINY})
    process = start("train", "file", path, "--ray-num-cpus", 1, "--set", "num_env_runners=3")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "x: a trial needs 4 CPU, Ray has 1" in err


@pytest.mark.slow
def test_a_trial_spans_two_nodes_of_a_cluster(tmp_path):
    from ray.cluster_utils import Cluster

    # Two CPUs per node, three for the trial: no node could hold it alone.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    try:
        cluster.add_node(num_cpus=2)
        path = write(tmp_path / "wide.yaml", {"wide": TINY})
        process = start(
            "train", "file", path, "--ray-address", cluster.address, "--storage-path", tmp_path,
            "--set", "num_env_runners=2", "--set", "evaluation_interval=null",
            "--set", "evaluation_opponents={}",
        )  # fmt: skip
        out, err = process.communicate(timeout=240)
    finally:
        cluster.shutdown()
    assert process.returncode == 0, err
    (results,) = results_of(tmp_path)
    assert results[-1]["num_env_steps_sampled_lifetime"] >= 160
    assert "wide: return" in out
    process = start("train", "file", path, "--ray-address", "1.2.3.4:6", "--ray-num-cpus", 2)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2 and "--ray-num-cpus has no effect on a cluster" in err


def trial(number=0, status="RUNNING", **result):
    config = {"evaluation_opponents": {"random": "random"}, "lr": 3.4171e-4}
    config["neighborhood"] = {"radius": 4}
    result = {
        "training_iteration": 47,
        "time_total_s": 3725.0,
        "agent_steps_sampled_lifetime": 1_234_567,
        "agent_steps_per_second": 12345.6,
        "env_runners": {"group_returns_mean": {"red": -1.54, "blue": 12.3}},
        "evaluation": {"env_runners": {"win_rate": {"random": 0.875}}},
        "learners": {"__all_modules__": {}, "red": {"temperature": 0.48312}},
        **result,
    }
    return SimpleNamespace(
        trial_id=f"1a2b3_{number:05}", status=status, config=config, last_result=result
    )


def test_one_trial_is_a_line_per_report_that_fits_a_terminal(capsys, monkeypatch):
    reporter = progress.Progress(hooks.MFQHooks(), goals=[WIN_RATE])
    first = trial()
    assert reporter.should_report([first])
    reporter.report([first], False)
    assert not reporter.should_report([first])  # nothing new, and too soon
    assert not reporter.should_report([trial(training_iteration=48)])
    assert reporter.should_report([trial(training_iteration=48)], done=True)
    assert not reporter.should_report([trial(training_iteration=48)], done=True)
    reporter.report([trial(training_iteration=48)], True)
    header, line, last = capsys.readouterr().out.splitlines()
    assert header.split("  ")[-1].strip() == "temperature"
    assert line.split() == "47 1:02:05 0.88 12.3 -1.5 1.23M 12,346 0.483".split()
    assert last.split()[0] == "48"
    assert max(map(len, (header, line, last))) <= 80


def test_a_figure_that_is_wider_than_its_column_gets_a_wider_one(capsys):
    reporter = progress.Progress(hooks.Hooks())
    for value in (1.5, 2.5, -12345678.9, 3.5):
        reporter.report([trial(env_runners={"episode_return_mean": value})], False)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["iter", "47", "47", "iter", "47", "47"]
    assert len(set(map(len, lines[:3]))) == len(set(map(len, lines[3:]))) == 1


def test_several_trials_are_a_table_of_what_differs_cut_to_the_terminal(monkeypatch):
    reporter = progress.Progress(hooks.MFQHooks(), ["lr", "neighborhood"], [WIN_RATE])
    rows = [reporter._row(trial(number, "TERMINATED")) for number in range(2)]
    for columns in (80, 100):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = progress.table(rows).splitlines()
        assert len(lines) == 3 and max(map(len, lines)) <= columns
        assert len(set(map(len, lines))) == 1
        for word in ("trial", "status", "iter", "time", "win rate", "lr", "neighborhood"):
            assert word in lines[0].split("  ") or word in lines[0]
        assert "00001" in lines[2] and "radius 4" in lines[2] and "0.000342" in lines[2]


def test_the_column_that_a_run_stops_on_is_shown():
    eval_return = "evaluation/env_runners/episode_return_mean"
    win, prey = WIN_RATE, "evaluation/env_runners/opponents/random/group_returns_mean/prey"
    goals = [eval_return, win, prey, "time_total_s", "learners/red/qf_loss"]
    played = {"episode_return_mean": 501.2, "win_rate": {"random": 0.9}}
    played["opponents"] = {"random": {"group_returns_mean": {"prey": -3.25}}}
    learned = {"red": {"qf_loss": 0.1234, "temperature": 0.5}}
    result = trial(evaluation={"env_runners": played}, learners=learned)
    row = progress.figures(result, hooks.MFQHooks(), goals)
    assert list(row)[2:6] == ["win rate", "eval return", "prey vs random", "red qf loss"]
    assert [*row.values()][2:6] == ["0.90", "501.2", "-3.2", "0.123"]
    # In brackets what random itself earns there, and not in a column of its own.
    played["opponents"]["random"]["baseline_returns_mean"] = {"prey": -0.04}
    both = [prey, prey.replace("group_returns", "baseline_returns")]
    row = progress.figures(result, hooks.MFQHooks(), both)
    assert list(row)[2:4] == ["prey vs random", "return blue"]
    assert row["prey vs random"] == "-3.2 (0.0)"
    result.config = {"evaluation_interval": 1}  # an evaluation is shown if nothing stops on it
    assert progress.figures(result, hooks.Hooks())["eval return"] == "501.2"


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_the_return_of_every_group_is_shown(count):
    returns = {f"group{number}": float(number) for number in range(count)}
    result = trial(env_runners={"group_returns_mean": returns, "episode_return_mean": 7.0})
    row = progress.figures(result, hooks.MFQHooks())
    assert row.get("return") == ("7.0" if count in (1, 6) else None)  # of many groups, of all
    if count > 1:
        assert [row[f"return group{n}"] for n in range(count)] == [f"{n}.0" for n in range(count)]


def test_a_line_appears_while_the_first_iteration_runs(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    reporter = progress.Progress(hooks.Hooks())
    silent = trial()
    silent.last_result = {}
    told = []
    for now[0] in np.arange(100.0, 250.0, 5.0):
        assert not reporter.should_report([silent])
        told += capsys.readouterr().out.splitlines()
    assert told == ["1:00  in the first iteration", "2:00  in the first iteration"]  # in a file


def test_results_that_are_not_there_yet_are_dashes():
    nothing = trial(evaluation={}, learners={}, env_runners={})
    row = progress.figures(nothing, hooks.MFQHooks(), [WIN_RATE])
    assert row["win rate"] == row["return"] == row["temperature"] == "-"
    unfinished = trial(env_runners={"episode_return_mean": float("nan")})
    row = progress.figures(unfinished, hooks.MFQHooks())
    assert row["return"] == "-"


def test_the_closing_line_names_the_optimised_metric_once():
    length = "env_runners/episode_len_mean"
    runners = {"episode_return_mean": 3.0, "episode_len_mean": 12.5}
    ended = trial(status="TERMINATED", env_runners=runners, evaluation={})
    ended.storage, ended.checkpoint = SimpleNamespace(experiment_dir_name="x"), None
    ended.config = {"lr": 1e-3}
    said = progress.summary(ended, ["lr"], metric=length)
    assert said.startswith("x 00000 (lr=0.001): episode len mean 12.5, return 3.0 after")
    assert (
        progress.summary(ended, ["lr"], metric="env_runners/episode_return_mean").count("3.0") == 1
    )
    assert progress.summary(ended).startswith("x: return 3.0 after")
    ended.last_result["evaluation"] = {"env_runners": {"episode_return_mean": -0.01}}
    assert progress.summary(ended).startswith("x: eval return 0.0 after")
    ended.last_result["evaluation"] = {"env_runners": {"win_rate": {"random": 0.75}}}
    ended.config = {"lr": 1e-3, "evaluation_opponents": {"random": "random"}}
    assert progress.summary(ended, metric=WIN_RATE).startswith("x: win rate against random 0.75 af")


def test_the_closing_line_of_a_failure_is_the_last_error_without_our_own_class(tmp_path):
    failed = trial(status="ERROR")
    failed.storage, failed.path = SimpleNamespace(experiment_dir_name="x"), str(tmp_path)
    for line, told in (
        ("rllib_mfq.algorithm.runner_failures.RunnerError: env runner 1 failed.", "env runner 1 f"),
        ("RuntimeError: the roof fell in", "RuntimeError: the roof fell in"),
    ):
        said = progress.summary(failed, error=RuntimeError(f"Traceback\n{line}"))
        assert said.startswith(f"x: failed: {told}")
