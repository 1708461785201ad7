"""`make setup` chooses PyTorch and DALI together, by the driver and the card that nvidia-smi shows."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def setup(tmp_path):
    """Runs `make setup` in a copy, beside an nvidia-smi that shows this driver and card."""

    def run(driver, capability, *arguments):
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, tmp_path)
        program = tmp_path / "bin" / "nvidia-smi"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\ncase "$*" in *driver*) echo {driver};; *) echo {capability};; esac\n')
        program.chmod(0o755)
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "TORCH_"))}
        return subprocess.run(
            ["make", "setup", *arguments],
            cwd=tmp_path,
            env=ours | {"PATH": f"{program.parent}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.mark.parametrize(
    ("driver", "capability", "extra"),
    [
        ("580.65.06", "9.0", "cuda13"),
        ("580.65.06", "7.5", "cuda13"),
        ("610.10", "12.0", "cuda13"),
        ("", "", "cuda13"),
        ("NVIDIA-SMI has failed because it could not communicate", "", "cuda13"),
        ("570.86.15", "9.0", "cuda12"),
        ("580.65.06", "7.0", "cuda12"),
        ("580.65.06", "6.1", "cuda12"),
    ],
)
def test_the_build_follows_driver_and_card(setup, driver, capability, extra):
    result = setup(driver, capability, "--dry-run", "TORCH_INDEX=somewhere")
    assert f"'.[{extra},dev]'" in result.stdout and "--extra-index-url somewhere" in result.stdout


def test_without_an_index_for_cuda_12_nothing_is_installed(setup, tmp_path):
    result = setup("570.86.15", "9.0")
    assert result.returncode == 2 and "TORCH_INDEX" in result.stderr
    assert not (tmp_path / ".venv").exists()
