"""The builds that are installed fit the card, and the package is found from every current folder."""

import os
import shutil
import subprocess
import sys
import tomllib
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts import cuda_major


@pytest.mark.parametrize(
    ("driver", "capabilities", "major"),
    [
        (None, [], "13"),
        ("580.65.06", ["9.0"], "13"),
        ("580.65.06", ["7.0", "9.0"], "12"),
        ("570.86.15", ["9.0"], "12"),
        ("550.54.15", ["7.5", "7.5"], "12"),  # as on Kaggle
        ("580.65.06", ["12.0"], "13"),
        ("570.86.15", ["12.0"], "driver 580 or newer, not 570"),
    ],
)
def test_the_builds_fit_driver_and_card(tmp_path, monkeypatch, capsys, driver, capabilities, major):
    lines = {"driver_version": [driver] * len(capabilities), "compute_cap": capabilities}
    asked = "".join(f"*={field}) printf '%s\\n' {' '.join(values)};; " for field, values in lines.items())
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\ncase $* in {asked if driver else '*) exit 9;;'} esac\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    try:
        cuda_major.main()
    except SystemExit as error:
        assert major in str(error)
    else:
        assert capsys.readouterr().out.strip() == major


def test_the_constraints_pin_all_that_an_install_resolves_to():
    """But for the two whose versions PyTorch's build determines. After a failure: make constraints."""
    pins = {line.partition("==")[0] for line in Path("constraints.txt").read_text().splitlines()}
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    stack = [Requirement(line) for lines in (project["dependencies"], *extras.values()) for line in lines]
    needed = set()
    while stack:
        requirement = stack.pop()
        name = canonicalize_name(requirement.name)
        if name == "fastae" or name in needed:
            continue
        needed.add(name)
        with suppress(PackageNotFoundError):  # an extra that is not installed here
            found = [Requirement(line) for line in requires(name) or ()]
            wanted = [{"extra": extra} for extra in ("", *requirement.extras)]
            stack += [each for each in found if not each.marker or any(map(each.marker.evaluate, wanted))]
    assert needed - pins <= {"cuda-toolkit", "cuda-bindings"}


@pytest.mark.skipif(not shutil.which("make"), reason="no make")
@pytest.mark.parametrize("has_pip", [True, False])
def test_make_setup_works_without_ensurepip_if_there_is_a_pip(tmp_path, has_pip):
    """A Python without ensurepip leaves half a .venv. The pip in this test only notes how it is called."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "scripts"):
        (tmp_path / name).symlink_to(Path(name).absolute())
    python = tmp_path / "python"
    python.write_text(f"""#!/bin/sh
case "$*" in
  "-m venv .venv") mkdir -p .venv/bin; touch .venv/bin/python; exit 1;;
  "-m venv --clear --without-pip .venv") rm -r .venv; mkdir -p .venv/bin; touch .venv/bin/python;;
  "-m pip --python .venv/bin/python install"*) {"true" if has_pip else "exit 1"}
    printf '#!/bin/sh\\necho "$@" > installed\\n' > .venv/bin/pip; chmod +x .venv/bin/pip;;
  scripts/*) exec {sys.executable} "$@";;
esac
""")
    python.chmod(0o755)
    command = ["make", "setup", f"PYTHON={python}"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    installed = tmp_path / "installed"
    assert result.returncode != 0, "make succeeded without fastae"
    assert ("apt install python3-venv" in result.stderr) is not has_pip
    assert installed.exists() is has_pip and (not has_pip or ",dev]" in installed.read_text())
