"""The package as others install it: built, installed without the checkout, and run from there."""

import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


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


def test_an_example_runs_where_only_the_wheel_is(installed, tmp_path):
    stop = "{training_iteration: 1}"
    options = ["--stop", stop, "--storage-path", str(tmp_path), "--ray-num-cpus", "1"]
    result = run(installed, tmp_path, "example", "run", "cartpole", *options)
    assert result.returncode == 0, result.stderr
    assert "checkpoint" in result.stdout
    where = [str(installed), "-I", "-c", "import rllib_mfq; print(rllib_mfq.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, capture_output=True, text=True).stdout
    assert found.startswith(str(installed.parents[1]))


def test_the_agents_that_come_with_the_package_play_from_there(installed, tmp_path):
    arguments = ["pretrained:battle-mfq", "random", "--matches", "2", "--processes", "1"]
    env_config = ["--env-config", "{map_size: 16, max_cycles: 20}"]
    result = run(installed, tmp_path, "tournament", *arguments, *env_config)
    assert result.returncode == 0, result.stderr
    assert "pretrained:battle-mfq" in result.stdout
