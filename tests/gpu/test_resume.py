"""A run on a GPU that was killed and resumed: the same to rounding, and to the bit with --deterministic."""

import signal

import pytest

from ..commands import SMALL, curve, fastae, last_training, same_state, started, wait_for

RUN = [
    *SMALL, "--batch-size", 16, "--compile", "--amp", "--device", "cuda",
    "--iterations", 24, "--log-every", 2, "--checkpoint-every", 3,
]  # fmt: skip


@pytest.mark.parametrize("kind", ["dali", "resident"])
@pytest.mark.parametrize("deterministic", [True, False], ids=["deterministic", "fastest"])
def test_a_killed_run_ends_as_one_that_was_not(
    dali, results, face_folder, tmp_path, monkeypatch, kind, deterministic
):
    """Each compiles for itself: kernels that the other has chosen by timing would be found in the cache."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    options = [*RUN, "--loader", kind, *(["--deterministic"] if deterministic else [])]
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled for whole"))
    assert fastae("train", "--data", face_folder, "--out", whole, *options).returncode == 0
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled for broken"))
    with started("train", "--data", face_folder, "--out", broken, *options) as process:
        wait_for(process, "14/24")
        process.send_signal(signal.SIGKILL)
        process.wait()
    result = fastae("train", "--resume", broken)
    assert result.returncode == 0, result.stderr
    results()
    if deterministic:
        assert same_state(last_training(broken)["model"], last_training(whole)["model"])
        assert curve(broken) == curve(whole)
    else:
        ours, theirs = (dict(curve(run)) for run in (broken, whole))
        assert ours == pytest.approx(theirs, rel=0.05)
