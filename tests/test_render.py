"""Pictures of a match."""

import imageio.v3 as imageio
import numpy as np
import pytest
from click.testing import CliRunner
from small_battles import small_battle

from rllib_cli.command import main
from rllib_mfq import GaussianSqueezePopulation, MFQConfig
from rllib_mfq.arena import render
from rllib_mfq.arena.render import film_match, write_animation


@pytest.fixture(scope="module")
def checkpoint(ray_session, tmp_path_factory):
    path = tmp_path_factory.mktemp("opponent")
    algo = small_battle().build_algo()
    algo.save_to_path(path)
    algo.stop()
    return str(path)


@pytest.fixture(scope="module")
def alone(ray_session, tmp_path_factory):
    """Of an environment with one group."""
    path = tmp_path_factory.mktemp("alone")
    algo = MFQConfig().environment("CartPole-v1").training(replay_capacity=5_000).build_algo()
    algo.save_to_path(path)
    algo.stop()
    return str(path)


def test_a_film_has_a_picture_before_every_step_and_one_of_the_end(checkpoint):
    pictures, match = film_match(checkpoint, seed=3)
    assert match.custom_data["frames_per_second"] == 5.0  # as MAgent2 says
    assert len(pictures) == match.length + 1
    assert all(p.dtype == np.uint8 and p.shape == pictures[0].shape for p in pictures)
    assert any((p != pictures[0]).any() for p in pictures)  # somebody moved


def test_the_same_seed_films_the_same_match(checkpoint):
    first, again = (film_match(checkpoint, checkpoint, seed=5) for _ in range(2))
    assert first[1].returns == again[1].returns
    assert all((a == b).all() for a, b in zip(first[0], again[0], strict=True))


def test_the_command_writes_an_animation_of_another_size(checkpoint, tmp_path):
    out = tmp_path / "battle.gif"
    arguments = ["render", checkpoint, "-o", str(out), "--env-config", "{max_cycles: 5}"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "5 steps" in result.output
    assert len(imageio.imread(out, index=None)) > 1  # equal pictures in a row are one


@pytest.mark.parametrize(("suffix", "shape"), [(".mp4", (32, 48)), (".gif", (31, 47))])
def test_the_animation_shows_the_pictures_and_the_last_one_longer(tmp_path, capfd, suffix, shape):
    shades = [40, 120, 200]
    pictures = [np.full((31, 47, 3), shade, np.uint8) for shade in shades]
    write_animation(pictures, tmp_path / f"film{suffix}", speed=4)
    frames = imageio.imread(tmp_path / f"film{suffix}", index=None)
    assert frames.shape[1:3] == shape  # the codec needs even sides
    found = [round(float(frame.mean())) for frame in frames]
    assert found[:3] == pytest.approx(shades, abs=3)
    assert len(found) == 3 + 6 * (suffix == ".mp4")  # equal pictures in a row are one in a gif
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == [f"film{suffix}"]


def test_explore_draws_from_the_boltzmann_policy(checkpoint):
    greedy, drawn, again = (
        film_match(checkpoint, checkpoint, seed=5, explore=explore)[1].returns
        for explore in (False, True, True)
    )
    assert drawn == again != greedy


def test_one_group_is_filmed_without_an_opponent(alone, tmp_path):
    pictures, episode = film_match(alone)
    assert len(pictures) == episode.length + 1
    arguments = ["render", alone, "random", "-o", str(tmp_path / "x.gif")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "opponent is 'random', but 'agent' is the environment's only group" in result.output
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_refused_before_the_match(tmp_path, monkeypatch):
    def film(*arguments):
        raise AssertionError("the match has begun")

    monkeypatch.setattr(render, "film_match", film)
    monkeypatch.setitem(render.WRITERS, ".mp4", "no_such_package")
    for name, words in (
        ("x.avi", "x.avi must end in .gif or .mp4"),
        ("no/x.gif", "does not exist"),
        ("x.mp4", 'needs no_such_package: pip install "rllib_mfq[render]"'),
    ):
        result = CliRunner().invoke(main, ["render", "checkpoint", "-o", str(tmp_path / name)])
        assert result.exit_code == 2
        assert words in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere", "-o", "x.gif"], "'nowhere' is not the folder of an algorithm's checkpoint"),
        (["CHECKPOINT", "nobody", "-o", "x.gif"], "'nobody', which is neither one of random,"),
        (["CHECKPOINT", "-o", "no/x.gif"], "the folder no does not exist"),
        (["CHECKPOINT", "-o", "x.gif", "--env-config", "{map_sise: 9}"], "did you mean 'map_size'"),
        (["CHECKPOINT", "-o", "x.gif", "--env-config", "{map_size: 3}"], "cannot be made: Assert"),
    ],
)
def test_what_cannot_be_filmed_is_one_sentence(checkpoint, arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [checkpoint if a == "CHECKPOINT" else a for a in arguments]
    result = CliRunner().invoke(main, ["render", *arguments])
    assert result.exit_code == 2
    assert words in " ".join(result.output.split())
    assert not list(tmp_path.iterdir())


class Drawn(GaussianSqueezePopulation):
    """Draws itself, and takes no `render_mode`."""

    def render(self):
        return np.zeros((4, 4, 3), np.uint8)


def test_an_environment_that_takes_no_render_mode_may_draw():
    population = render._make(f"{__name__}.Drawn", {"num_agents": 5, "max_cycles": 3})
    assert population.render().shape == (4, 4, 3)
