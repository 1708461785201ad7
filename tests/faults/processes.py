"""What a fork does: it runs a command of fastae, with a fault at one of its file operations.

Only the process that is forked imports this module, and with it everything that a command imports. An audit
hook sees each operation on a file below the command's folder. `os.fsync`, which raises no audit event, is
replaced, and flushes nothing: a killed process loses nothing of what it wrote. An operation is known by its
kind, its path, and how often it has occurred: threads may change the order of different operations only.
"""

import errno
import os
import re
import signal
import sys
from collections import Counter
from pathlib import Path

from .. import narrow  # noqa: F401 (first, since it changes the model)

# Everything that the commands import, so that no fork does.
import numpy as np  # isort: skip
import torch._dynamo  # isort: skip
from fastae.cli import main  # isort: skip
from fastae.data import commands  # noqa: F401
from fastae.data.loaders import pipeline  # noqa: F401
from fastae.data.loaders.cpu_ops import CpuOps
from fastae.data.loaders.crop_resize import CropResize
from fastae.data.loaders.output_format import OutputFormat
from fastae.data.loaders.sampler import Sampler
from fastae.experiment.augment import Augmentation
from fastae.experiment.definition import StepCost
from fastae.report import make
from fastae.sweep import sweep  # noqa: F401
from fastae.tools import export, reconstruct  # noqa: F401
from fastae.training import resume, session  # noqa: F401
from fastae.utils.plotting import import_matplotlib

import_matplotlib()


def compile_kernel():
    """Makes a batch in each way, so that no fork does it for the first time. The threads then end."""
    ops, params = CpuOps(CropResize(size=16), OutputFormat(), 1), Sampler(1, 1, 0, Augmentation()).at(0)
    crops = [np.zeros((16, 16, 3), np.uint8)]
    pixels, means = torch.zeros(1, 16, 3, 16, dtype=torch.uint8), torch.zeros(1, 3)
    for batches in (
        ops.resized([crops]),
        ops.augmented([(crops, params.augment)]),
        ops.gathered(pixels, means, [params]),
    ):
        list(batches)


compile_kernel()

EVENTS = {
    "open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate",
    "os.utime", "os.chmod", "os.listdir", "os.scandir",
}  # fmt: skip
TAKES_SPACE = ("write", "os.mkdir", "os.link", "os.symlink", "fsync")
"""Kinds of operations that a full disk refuses."""


def path_of(file):
    """Returns the path of an open file or folder."""
    return Path(f"/proc/self/fd/{file}").readlink()


class Operations:
    """Notes the file operations of this process, and puts a fault at one of them.

    Args:
        folder: the folder below which operations count.
        file: an open file for the operations' names.
        at: the operation with the fault; None for no fault.
        fault: one of `forks.FAULTS`. The disk stays full; the other faults occur once.
    """

    def __init__(self, folder, file, at, fault):
        self.folder, self.file, self.at, self.fault = f"{folder}/", file, at, fault
        self.seen, self.is_full = Counter(), False

    def audit(self, event, arguments):
        if event in EVENTS and not isinstance(arguments[0], int | None):
            kind = event
            if event == "open":
                kind = "write" if arguments[2] & (os.O_WRONLY | os.O_RDWR) else "read"
            folders = [each for each in arguments[1:] if isinstance(each, int)] if event != "open" else []
            self.happens(kind, os.fsdecode(arguments[0]), folders[0] if folders else -1)

    def fsync(self, file):
        self.happens("fsync", path_of(file))

    def happens(self, kind, path, folder=-1):
        if folder >= 0 and kind in ("os.remove", "os.rmdir"):  # shutil.rmtree names files by their folder
            path = path_of(folder) / path
        path = os.path.normpath(Path.cwd() / path)
        if not path.startswith(self.folder):
            return
        name = kind + " " + re.sub(r"\.partial-[0-9a-f]{16}", ".partial", path.removeprefix(self.folder))
        self.seen[name] += 1
        operation = f"{name} {self.seen[name]}"
        os.write(self.file, operation.encode() + b"\n")
        if operation == self.at:
            if self.fault.startswith("SIG"):
                os.kill(os.getpid(), signal.Signals[self.fault])
            else:
                self.is_full = self.fault == "ENOSPC"
                number = getattr(errno, self.fault)
                raise OSError(number, os.strerror(number), path)
        elif self.is_full and kind in TAKES_SPACE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def work(words, folder, output, at, fault):
    """Runs a command in `folder` to its end. The files `output`.{out,err,operations} get what it does."""
    os.chdir(folder)
    for number, suffix in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{output}.{suffix}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    file = os.open(f"{output}.operations", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.environ["FASTAE_CACHE"] = str(Path(output).parent / "cache")
    torch.backends.mkldnn.enabled = False  # each fork would compile its kernels anew
    # These take time, and use no file.
    export._verified = lambda *module: (b"ONNX", 0.0)
    session.step_cost = lambda *step: StepCost(0.0, 0)
    if words[0] == "sweep":
        make.make_report = lambda *arguments, **options: None  # has cases of its own
    operations = Operations(folder, file, at, fault)
    os.fsync = operations.fsync
    sys.addaudithook(operations.audit)
    sys.argv = ["fastae", *words]
    main.main()
