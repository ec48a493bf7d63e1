"""The README, the documentation and the examples say what was measured and name what exists."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest

import rllib_mfq
from benchmarks.measure import RESULTS
from benchmarks.tables import files, ising_rows, measured
from rllib_cli.experiments import parse
from rllib_mfq.algorithm.settings import SETTINGS
from rllib_mfq.experiments import battle, ising

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = {p.relative_to(ROOT): p.read_text() for p in (ROOT / "README.md", *ROOT.glob("docs/*.md"))}
TESTS = "\n".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))


@pytest.mark.parametrize("path", files(), ids=lambda path: path.name)
def test_every_figure_is_the_one_that_results_hold(path):
    assert path.read_text() == files()[path], "run `python -m benchmarks.tables`"


def test_every_tuned_example_of_the_first_table_has_three_seeds():
    found = measured()
    names = {
        "battle",
        "battle_small",
        "battle_iql",
        "adversarial_pursuit",
        "cartpole",
        "battle_lstm",
    }
    names |= {"simple_spread", "lunarlander", "lunarlander_dqn", "pong"}
    assert {*found} == names | {"battle_small with priorities", "cartpole with priorities"}
    for example, figures in found.items():
        for rows in figures.values():
            # RLlib's DQN is there to compare with; a run of Pong takes an hour.
            assert len({row["seed"] for row in rows}) >= 3 or example in ("lunarlander_dqn", "pong")
    (returns,) = found["pong"].values()
    assert min(float(row["value"]) for row in returns) > -20  # where it begins
    (returns,) = found["lunarlander"].values()
    assert min(float(row["value"]) for row in returns) >= 200


def test_the_learned_ising_model_is_as_ordered_as_glauber_dynamics_and_the_exact_one():
    rows = ising_rows()
    assert len({row["seed"] for row in rows}) >= 5 and {row["size"] for row in rows} == {"20"}
    for line in ising.summary(rows):
        learned, glauber, exact = (
            float(line[name].split()[0]) for name in ("MFQ", "Glauber", "exact")
        )
        assert abs(learned - glauber) <= 0.002, line  # they draw the same random numbers
        if float(line["T"]) < 1.0:
            assert abs(glauber - exact) <= 0.02 and abs(learned - exact) <= 0.02, line
    crossings = ising.crossings(rows)
    assert abs(crossings["MFQ"] - crossings["Glauber"]) <= 0.002
    assert max(float(row["q_mse"]) for row in rows if row["method"] == "MFQ") < 1e-4


def test_the_squeeze_is_recorded_for_five_seeds_and_a_crowd_of_a_hundred_is_near_the_optimum():
    found = {}
    for row in csv.DictReader((RESULTS / "gaussian_squeeze.csv").open()):
        found.setdefault((row["method"], row["num_agents"]), []).append(
            float(row["share_of_optimum"])
        )
    assert len(found) == 12 and {len(shares) for shares in found.values()} == {5}
    assert min(found["MFQ", "100"]) >= 0.95
    assert max(found["MFQ, exploring alone", "1000"]) == 0.0
    assert min(found["MFQ", "1000"]) > 0.9


def test_every_seed_of_battle_beats_random_play_and_met_every_other():
    rows = list(csv.DictReader((RESULTS / "battle.csv").open()))
    mfq = [row for row in rows if row["method"] == "mfq"]
    assert len(mfq) >= 10 and min(float(row["win_rate_random"]) for row in mfq) >= 0.99
    content = battle.read(RESULTS)
    assert min(pair["matches"] for pair in content["pairs"]) >= 10
    assert content["random_steps"] >= 3  # so that these are as many different ones
    assert min(pair["distinct"] for pair in content["pairs"]) >= 10
    assert battle.cross_play(content, "mfq", "iql").mean(axis=1).min() > 0.5
    assert np.isfinite(battle.cross_play(content, "mfq", "iql")).all()


def test_the_readme_is_short_and_keeps_the_two_lines_of_the_set_up():
    assert len(README.splitlines()) <= 150
    first, second = (line for line in README.splitlines() if line.startswith("    python3 -m venv"))
    assert first.endswith("rllib train file tuned_examples/battle_small.yaml")
    assert second.endswith("-m pytest")


def test_every_page_of_the_documentation_is_named_in_the_readme_and_in_the_site():
    site = (ROOT / "mkdocs.yml").read_text()
    for page in ROOT.glob("docs/*.md"):
        assert page.name == "changelog.md" or f"(docs/{page.name})" in README, page
        assert f": {page.name}" in site, page


def test_every_public_name_stands_in_the_api_reference():
    page = PAGES[Path("docs/api.md")]
    assert [
        n for n in rllib_mfq.__all__ if not re.search(rf"^::: rllib_mfq\.{n}$", page, re.M)
    ] == []


@pytest.mark.parametrize("path", ROOT.glob("examples/*.py"), ids=lambda path: path.name)
def test_every_example_is_run_and_shown_whole(path):
    name, page = f"examples/{path.name}", PAGES[Path("docs/examples.md")]
    assert f"| `{name}` |" in page
    assert f"```python\n--8<--\n{name}\n--8<--\n```" in page  # a formatter spares this form
    imports = re.findall(r"^ *from examples(?:\..*| import (?:\([^)]*\)|.*))", TESTS, re.M)
    named = f"examples.{path.stem}:" in TESTS  # as an opponent's class is
    assert named or any(re.search(rf"\b{path.stem}\b", line) for line in imports)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_the_python_of_the_pages_is_python(page):
    for code in re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL):
        if not code.startswith("--8<--"):  # a whole file, which the tests run
            compile(code, str(page), "exec")


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_the_yaml_of_the_pages_is_yaml(page):
    for text in re.findall(r"```yaml\n(.*?)```", PAGES[page], re.DOTALL):
        assert isinstance(parse(text, str(page)), dict)


def test_every_test_the_pages_name_exists():
    names = set(re.findall(r"`(test_\w+)`", "".join(PAGES.values())))
    assert len(names) >= 8
    for name in names:
        assert f"def {name}(" in TESTS, name


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_file_a_page_links_to_exists(page):
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", PAGES[page]) if "://" not in link]
    for link in (*links, *re.findall(r'src="([^"]+)"', PAGES[page])):
        assert (ROOT / page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_file_of_the_project_that_a_page_names_exists(page):
    folders = "rllib_mfq|rllib_cli|tuned_examples|tests|benchmarks|results|docs|examples"
    for path in re.findall(rf"`((?:{folders})/[\w/.-]+\.\w+)`", PAGES[page]):
        assert (ROOT / path).exists(), path


def test_every_setting_and_its_default_stand_in_the_documentation():
    table = PAGES[Path("docs/settings.md")]
    for key, setting in SETTINGS.items():
        (line,) = [line for line in table.splitlines() if line.startswith(f"| `{key}` |")]
        assert str(setting.default).replace("_", "") in line.replace("_", ""), line
