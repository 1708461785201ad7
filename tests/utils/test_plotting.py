"""The folder of Matplotlib's list of fonts if the home folder is not writable."""

import os
import subprocess
import sys

IMPORT = "from fastae.utils.plotting import import_matplotlib as get; print(get().get_configdir())"


def imported(**environment):
    """Imports Matplotlib in a process without a home folder, so that its own folders are not writable."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "MPL"))}
    environment = inherited | {"HOME": "/proc/nowhere"} | environment
    return subprocess.run(
        [sys.executable, "-c", IMPORT], capture_output=True, text=True, env=environment, check=False
    )


def test_matplotlibs_list_of_fonts_goes_into_the_cache(tmp_path):
    result = imported(FASTAE_CACHE=str(tmp_path))
    assert (result.stdout.strip(), result.stderr) == (str(tmp_path / "matplotlib"), "")
    assert (tmp_path / "matplotlib" / "entry.json").is_file()


def test_without_a_cache_the_list_goes_into_a_temporary_folder_that_is_removed(tmp_path):
    result = imported(FASTAE_CACHE="/proc/nowhere", TMPDIR=str(tmp_path))
    assert result.stdout.startswith(str(tmp_path)) and result.stderr == ""
    assert not list(tmp_path.iterdir())
