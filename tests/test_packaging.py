"""The package as others install it: built, installed without the checkout, and run from there."""

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = [c.split()[-1] for c in PROJECT["classifiers"] if "Python :: 3." in c]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


def instructions():
    """Those of the Dockerfile: `(word, rest)`."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    return [line.split(None, 1) for line in text.splitlines() if line and line[0] != "#"]


def ignored(folder, names):
    """Which names in a folder of the checkout `.dockerignore` leaves out."""
    patterns = (ROOT / ".dockerignore").read_text().split()
    above = Path(folder).relative_to(ROOT)
    return [
        name
        for name in names
        for pattern in patterns
        if fnmatch.fnmatch(
            name if "**/" in pattern else str(above / name), pattern.removeprefix("**/")
        )
    ]


class Image:
    """What the Dockerfile makes, in a folder: `python`, `folder`, `command` and `environment`.

    Its `pip` finds what is installed here, and builds this project without a network.
    """

    def __init__(self, root):
        self.root = self.folder = root
        venv.create(root / "venv")
        (self.site,) = (root / "venv").glob("lib/python*/site-packages")
        others = [path for path in sys.path if path.endswith("site-packages")]
        (self.site / "others.pth").write_text("\n".join(others))
        bin = root / "venv" / "bin"
        self.python = bin / "python"
        (bin / "pip").write_text(f'#!/bin/sh\nexec "{self.python}" -m pip "$@"\n')
        (bin / "pip").chmod(0o755)
        # For pip, "0" here means no isolation: the build uses the hatchling that is installed.
        pip = {"PIP_NO_BUILD_ISOLATION": "0", "PIP_NO_INDEX": "1"}
        self.environment = {**os.environ, **pip, "PATH": f"{bin}:{os.environ['PATH']}"}
        self.command = []
        for word, rest in instructions():
            getattr(self, {"FROM": "from_"}.get(word, word.lower()))(rest)

    def inside(self, path):
        return str(self.root / path[1:]) if path.startswith("/") else path

    def run_here(self, command):
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True
        )

    def from_(self, image):
        assert re.fullmatch(r"python:(3\.\d+)-slim", image)[1] in PYTHONS

    def workdir(self, path):
        self.folder = Path(self.inside(path))
        self.folder.mkdir(parents=True, exist_ok=True)

    def copy(self, paths):
        assert paths == ". ."
        shutil.copytree(ROOT, self.folder, ignore=ignored, dirs_exist_ok=True)

    def arg(self, name):
        assert name not in self.environment or name.startswith("PIP_")

    def run(self, command):
        done = self.run_here(["bash", "-c", command])
        assert done.returncode == 0, done.stderr

    def entrypoint(self, words):
        self.command += [self.inside(word) for word in json.loads(words)]

    cmd = entrypoint


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return Image(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """A Python that has the wheel, and of this checkout only what others install, too."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder)
    python = folder / "bin" / "python"
    (site,) = folder.glob("lib/python*/site-packages")
    with zipfile.ZipFile(built[0]) as wheel:
        wheel.extractall(site)
    others = [path for path in sys.path if path.endswith("site-packages")]
    (site / "others.pth").write_text("\n".join(others))
    return python


def run(python, folder, *arguments):
    command = [str(python), "-I", "-m", "rllib_cli", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def test_the_wheel_holds_types_tables_agents_and_examples(built):
    names = set(zipfile.ZipFile(built[0]).namelist())
    for file in ("py.typed", "algorithm/rllib_keys.yaml", "pretrained/battle-mfq.safetensors"):
        assert f"rllib_mfq/{file}" in names
    examples = {path.name for path in ROOT.glob("tuned_examples/*.yaml")}
    assert {f"rllib_mfq/tuned_examples/{name}" for name in examples} <= names
    assert "rllib_cli/old_names.yaml" in names and not any("tests/" in name for name in names)


def test_the_source_distribution_can_run_the_tests(built):
    names = {name.partition("/")[2] for name in tarfile.open(built[1]).getnames()}
    assert {"README.md", "LICENSE", "pyproject.toml", "tests/conftest.py"} <= names


def test_the_image_installs_what_the_wheel_holds_and_runs_an_example(built, image):
    """The Dockerfile's steps, without Docker, up to its command; stopped after an iteration."""
    shipped = {name for name in zipfile.ZipFile(built[0]).namelist() if ".dist-info/" not in name}
    found = {
        str(path.relative_to(image.site))
        for package in ("rllib_mfq", "rllib_cli")
        for path in (image.site / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert found == shipped
    image.command[0] = str(image.python.with_name(image.command[0]))
    stop = ["--stop", "{training_iteration: 1}", "--ray-num-cpus", "2"]
    done = image.run_here([*image.command, *stop])
    assert done.returncode == 0, done.stderr
    assert list((image.root / "runs").glob("*/*/checkpoint_*"))
    where = image.run_here([str(image.python), "-c", "import rllib_mfq as m; print(m.__file__)"])
    assert where.stdout.startswith(str(image.site))


def test_the_image_gets_no_caches_no_environment_and_no_runs():
    top = [".git", ".venv", "build", ".mypy_cache"]
    assert ignored(ROOT, [*top, ".github", "docs", "README.md"]) == top
    assert ignored(ROOT / "rllib_mfq" / "envs", ["__pycache__", "ising.py"]) == ["__pycache__"]
    assert ignored(ROOT / "results", ["runs", "ising.csv"]) == ["runs"]


def test_the_agents_that_come_with_the_package_play_from_there(installed, tmp_path):
    arguments = ["pretrained:battle-mfq", "random", "--matches", "2", "--processes", "1"]
    env_config = ["--env-config", "{map_size: 16, max_cycles: 20}"]
    result = run(installed, tmp_path, "tournament", *arguments, *env_config)
    assert result.returncode == 0, result.stderr
    assert "pretrained:battle-mfq" in result.stdout


def test_all_places_name_the_same_versions_of_python():
    matrix = re.search(r"python: (\[.*\])", (ROOT / ".github/workflows/tests.yml").read_text())
    assert json.loads(matrix[1]) == PYTHONS
    assert PROJECT["requires-python"] == f">={PYTHONS[0]}"
    assert f"Python {PYTHONS[0]} to {PYTHONS[-1]}" in (ROOT / "CONTRIBUTING.md").read_text()
    line = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
    assert line["image"].removeprefix("python:") in PYTHONS
    assert line["postCreateCommand"] in (ROOT / "CONTRIBUTING.md").read_text()
