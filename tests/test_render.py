"""Pictures of a match."""

import imageio.v3 as imageio
import numpy as np
import pytest
from click.testing import CliRunner
from small_battles import small_battle

from rllib_cli.command import main
from rllib_mfq.arena.render import film_match


@pytest.fixture(scope="module")
def checkpoint(ray_session, tmp_path_factory):
    path = tmp_path_factory.mktemp("rival")
    algo = small_battle().build_algo()
    algo.save_to_path(path)
    algo.stop()
    return str(path)


def test_a_film_has_a_picture_before_every_step_and_one_of_the_end(checkpoint):
    pictures, match = film_match(checkpoint, seed=3)
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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere", "-o", "x.gif"], "'nowhere' is not the folder of an algorithm's checkpoint"),
        (["CHECKPOINT", "nobody", "-o", "x.gif"], "'nobody', which is neither 'random' nor"),
        (["CHECKPOINT", "-o", "no/x.gif"], "the folder no does not exist"),
        (["CHECKPOINT", "-o", "x.gif", "--env-config", "{map_sise: 9}"], "did you mean 'map_size'"),
    ],
)
def test_what_cannot_be_filmed_is_one_sentence(checkpoint, arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [checkpoint if a == "CHECKPOINT" else a for a in arguments]
    result = CliRunner().invoke(main, ["render", *arguments])
    assert result.exit_code == 2
    assert words in " ".join(result.output.split())
    assert not list(tmp_path.iterdir())
