"""Two torchrun agents that find each other over the network, as on two machines: here both on this one."""

import os
import socket
import sys
from contextlib import suppress
from itertools import count

import pytest

from ..commands import NARROW, SMALL, started

RUN = [*SMALL, "--gpu-sample-hz", 0, "--iterations", 3]


@pytest.fixture
def endpoint():
    """A free address of the loopback interface, whose port the kernel gives to no other socket."""
    for port in count(20_000 + os.getpid() % 10_000):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return f"127.0.0.1:{port}"


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
