"""The README and the tuned examples say what was measured, name tests that exist, and run."""

import re
from pathlib import Path

import pytest

from benchmarks.tables import files, measured
from rllib_mfq.algorithm.config import DEFAULTS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
TESTS = "\n".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))


@pytest.mark.parametrize("path", files(), ids=lambda path: path.name)
def test_every_figure_is_the_one_that_results_hold(path):
    assert path.read_text() == files()[path], "run `python -m benchmarks.tables`"


def test_every_tuned_example_of_the_first_table_has_three_seeds():
    found = measured()
    assert {*found} == {"battle_small", "battle", "battle_iql", "adversarial_pursuit", "cartpole"}
    for figures in found.values():
        for rows in figures.values():
            assert len({row["seed"] for row in rows}) >= 3


def test_every_test_the_readme_names_exists():
    names = set(re.findall(r"`(test_\w+)`", README))
    assert len(names) >= 8
    for name in names:
        assert f"def {name}(" in TESTS, name


def test_every_file_the_readme_links_to_exists():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    links += re.findall(r'src="([^"]+)"', README)
    assert len(links) > 8
    for link in links:
        assert (ROOT / link).exists(), link


def test_every_setting_and_its_default_stand_in_the_readme():
    table = README[README.index("| Key | Default |") : README.index("The network is RLlib's")]
    for key, value in DEFAULTS.items():
        (line,) = [line for line in table.splitlines() if f"`{key}`" in line]
        assert str(value).replace("_", "") in line.replace("_", ""), line
