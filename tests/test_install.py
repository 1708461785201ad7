"""The installed package is found from anywhere, whatever folders of the same names lie there."""

import os
import subprocess
import sys
from pathlib import Path

import fastae


def test_a_folder_named_like_the_package_or_a_module_does_not_hide_it(tmp_path):
    """As in the folder that holds the clone, and in one that `fastae export --out model` was called in."""
    for name in ("fastae", "model", "data", "fastae/model"):
        (tmp_path / name).mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    code = "import fastae, fastae.model; print(fastae.__file__); print(fastae.model.__file__)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    package = Path(fastae.__file__).parent
    assert result.stdout.split() == [str(package / "__init__.py"), str(package / "model.py")]


def test_importing_the_package_imports_no_torch_and_names_what_it_offers():
    names = "[getattr(fastae, name) for name in fastae.__all__]"
    code = f"import sys, fastae; assert 'torch' not in sys.modules; {names}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
