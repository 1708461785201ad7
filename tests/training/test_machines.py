"""Two torchrun agents that find each other over the network, as on two machines: here both on this one."""

import socket
import sys

import pytest

from ..commands import NARROW, SMALL, started

RUN = [*SMALL, "--gpu-sample-hz", 0, "--iterations", 3]


@pytest.fixture
def endpoint():
    """An address of the loopback interface that is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def agent(endpoint, *arguments):
    torchrun = (
        sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1",
        "--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}", "--rdzv-id=fastae", "--local-addr=127.0.0.1",
        NARROW[-1],
    )  # fmt: skip
    return started(*arguments, command=torchrun)


def run_on_both(endpoint, *arguments):
    with agent(endpoint, *arguments) as first, agent(endpoint, *arguments) as second:
        for process in (first, second):
            output, errors = process.communicate(timeout=600)
            assert process.returncode == 0, output + errors


def test_a_sweep_is_distributed_over_two_machines(face_folder, tmp_path, endpoint):
    out = tmp_path / "sweep"
    losses = ["--losses", "pixel_mse,pixel_bce"]
    run_on_both(endpoint, "sweep", "--data", face_folder, "--out", out, *losses, *RUN)
    assert len(list(out.glob("*/model.safetensors"))) == 2
    assert (out / "report.html").exists()
