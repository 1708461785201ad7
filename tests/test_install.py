"""The Makefile installs the builds that fit the card, and the package is found from every current folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastae


def test_a_folder_named_like_the_package_or_a_module_does_not_hide_it(tmp_path):
    """For example the clone's parent folder, or a folder where `fastae export --out model` was called."""
    for name in ("fastae", "config", "data", "fastae/config"):
        (tmp_path / name).mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    code = "from importlib.util import find_spec as f; print(f('fastae').origin, f('fastae.config').origin)"
    command = [sys.executable, "-c", code]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    package = Path(fastae.__file__).parent
    assert result.stdout.split() == [str(package / "__init__.py"), str(package / "config.py")]


@pytest.fixture
def make(tmp_path):
    """A function that calls `make setup` in a folder with only the Makefile, on a simulated machine."""
    if not shutil.which("make"):
        pytest.skip("no make")

    def run(driver, capabilities, *options):
        shutil.copy("Makefile", tmp_path)
        for name in ("pyproject.toml", "constraints.txt"):
            (tmp_path / name).touch()
        smi = tmp_path / "bin" / "nvidia-smi"
        smi.parent.mkdir()
        query = f"case $* in *=driver_version*) echo {driver};; *) printf '{capabilities}';; esac"
        smi.write_text(f"#!/bin/sh\n{query if driver else 'exit 9'}\n")
        smi.chmod(0o755)
        environment = {**os.environ, "PATH": f"{smi.parent}:{os.environ['PATH']}"}
        command = ["make", "setup", *options]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    return run


@pytest.mark.parametrize(
    ("driver", "capabilities", "extra"),
    [
        (None, "", "cuda13"),
        ("580.65.06", "9.0\\n", "cuda13"),
        ("580.65.06", "7.0\\n9.0\\n", "cuda12"),
        ("570.86.15", "9.0\\n", "cuda12"),
        ("550.54.15", "7.5\\n7.5\\n", "cuda12"),  # as on Kaggle
        ("580.65.06", "12.0\\n", "cuda13"),
    ],
)
def test_make_setup_installs_the_builds_that_fit_driver_and_card(make, driver, capabilities, extra):
    output = make(driver, capabilities, "-n").stdout
    assert f"-e '.[{extra},dev]'" in output
    assert ("--extra-index-url https://download.pytorch.org/whl/cu126" in output) is (extra == "cuda12")


def test_make_setup_names_the_driver_that_a_new_card_needs(make):
    result = make("570.86.15", "12.0\\n")
    assert result.returncode != 0 and "driver 580 or newer, not 570" in result.stderr


@pytest.mark.parametrize("has_pip", [True, False])
def test_make_setup_works_without_ensurepip_if_there_is_a_pip(make, tmp_path, has_pip):
    """A Python without ensurepip leaves half a .venv. The pip in this test only notes how it is called."""
    python = tmp_path / "python"
    python.write_text(f"""#!/bin/sh
case "$*" in
  "-m venv .venv") mkdir -p .venv/bin; touch .venv/bin/python; exit 1;;
  "-m venv --clear --without-pip .venv") rm -r .venv; mkdir -p .venv/bin; touch .venv/bin/python;;
  "-m pip --python .venv/bin/python install"*) {"true" if has_pip else "exit 1"}
    printf '#!/bin/sh\\necho "$@" > installed\\n' > .venv/bin/pip; chmod +x .venv/bin/pip;;
esac
""")
    python.chmod(0o755)
    result = make(None, "", f"PYTHON={python}")
    installed = tmp_path / "installed"
    assert installed.exists() is has_pip and result.returncode != 0, "make succeeded without fastae"
    assert ("apt install python3-venv" in result.stderr) is not has_pip
