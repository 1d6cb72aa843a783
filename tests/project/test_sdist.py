"""The source distribution holds what its own tests read."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What git does not track may lie here too.
LEFT_OUT = shutil.ignore_patterns(
    ".*", "__pycache__", "*.egg-info", "build", "dist", "demo_out", "lightning_logs", "*_out", "checkpoints"
)
BUILD = "from setuptools import build_meta; build_meta.build_sdist('dist')"


def run(*command, cwd, timeout=240):
    environment = {**os.environ, "PYTHONPATH": str(cwd)}
    result = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return result.stdout


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdist")
    shutil.copytree(ROOT, folder / "source", ignore=LEFT_OUT)
    run(sys.executable, "-c", BUILD, cwd=folder / "source")
    [archive] = (folder / "source" / "dist").iterdir()
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


@pytest.mark.slow
def test_every_test_of_an_unpacked_sdist_is_collected(unpacked):
    here, there = (
        {
            path.relative_to(root).as_posix()
            for folder in ("tests", "docs", "examples", "benchmarks", "lightning_pce")
            for path in (root / folder).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
        }
        for root in (unpacked.parent / "source", unpacked)
    )
    assert here <= there
    python = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/project"]
    chosen = "versions or traps or laws or link or index"
    assert "passed" in run(*python, "-v", "-k", f"({chosen}) and not sdist", cwd=unpacked)
