"""The Python part of the hollow GPU: it loads the shim, makes Triton compile, and replaces cuDNN and cuBLAS.

`relaunch()` must be called before torch is imported, `install()` after that. `LOG` then contains the launches
in order, and `Counts` are the numbers of calls between two moments.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

LIBRARY_OPERATORS = (
    "convolution", "convolution_backward", "mm", "mm.out", "addmm", "addmm.out", "bmm", "bmm.out",
    "cudnn_batch_norm", "cudnn_batch_norm_backward",
)  # fmt: skip
"""The operators of cuDNN and cuBLAS. Inductor generates the rest, and batch norm unless it is eager."""


@dataclass(frozen=True)
class Kernel:
    """A launch of a Triton kernel."""

    name: str

    backward: bool
    """Whether it belongs to the backward pass."""

    megabytes: float
    """The MB that it reads and writes."""

    registers: int
    """Registers per thread."""

    stack: int
    """Stack bytes per thread, which are 0 if no register is spilled."""

    grid: tuple[int, int, int]


@dataclass(frozen=True)
class LibraryCall:
    """A call of an operator of cuDNN or cuBLAS, with its tensors."""

    name: str
    tensors: tuple[Tensor, ...]


LOG: list[Kernel | LibraryCall] = []
"""The launches so far, in order."""


@dataclass(frozen=True)
class Counts:
    """Numbers of calls up to now, or between two moments (their difference)."""

    triton: int
    """Launches of Triton kernels."""

    library: int
    """Calls of cuDNN and cuBLAS."""

    aten: int
    """Launches of PyTorch's own kernels."""

    copies: int
    """Calls of cudaMemcpy."""

    uploads: int
    """Copies from the host in a capture, which a replay would repeat from memory that may have changed."""

    synchronisations: int
    """Waits of the main thread for the device."""

    replays: int
    """Replays of CUDA graphs."""

    megabytes: float
    """The MB that Triton kernels read and write."""

    @staticmethod
    def now() -> Counts:
        kernels = [entry for entry in LOG if isinstance(entry, Kernel)]
        return Counts(
            len(kernels),
            len(LOG) - len(kernels),
            _host().hollow_launches(),
            _host().hollow_copies(),
            _host().hollow_uploads(),
            _host().hollow_synchronisations(),
            _host().hollow_replays(),
            sum(kernel.megabytes for kernel in kernels),
        )

    def __sub__(self, other: Counts) -> Counts:
        return Counts(*(a - b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def __str__(self) -> str:
        return (
            f"{self.triton} Triton ({self.megabytes:,.1f} MB), {self.library} cuDNN/cuBLAS, "
            f"{self.aten} ATen, {self.copies} copies, {self.synchronisations} host syncs, "
            f"{self.replays} replays"
        )


def captured_nodes() -> int:
    """Returns the number of kernels, copies and memsets in the last captured graph."""
    return _host().hollow_captured()


def count_replays(counters: list[Tensor]) -> None:
    """Makes each replay of a non-empty graph add one to these int64 scalars, as its kernels would."""
    for counter in counters:
        _host().hollow_count_replays(ctypes.c_void_p(counter.data_ptr()))


def relaunch() -> None:
    """Compiles the shim, unless this version is compiled already, and restarts this program under it."""
    source = Path(__file__).with_name("shim.c")
    version = hashlib.sha256(source.read_bytes()).hexdigest()[:12]
    library = Path(sys.prefix) / f"hollow-{version}" / "libcuda.so.1"
    if str(library) in os.environ.get("LD_PRELOAD", ""):
        return
    if not library.exists():
        site = sysconfig.get_paths()["purelib"]
        includes = [f"-I{site}/nvidia/cu13/include", f"-I{site}/triton/backends/nvidia/include"]
        library.parent.mkdir(exist_ok=True)
        draft = library.with_suffix(f".{os.getpid()}")
        flags = ["-shared", "-fPIC", "-O1", "-w", "-Wl,-soname,libcuda.so.1"]
        subprocess.run(["gcc", *flags, *includes, "-o", draft, source], check=True)
        draft.rename(library)
    settings = {
        "LD_PRELOAD": str(library),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",  # compile in this process, in which Triton's driver is replaced
        "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
    }
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | settings)


def install() -> None:
    """Replaces Triton's driver and the libraries' operators here, by private names of Triton and PyTorch."""
    import torch._inductor.config as inductor
    import triton

    triton.runtime.driver.set_active(_triton_driver())
    inductor.use_static_triton_launcher = False
    inductor.benchmark_kernel = True  # otherwise the bytes of a kernel are not recorded
    # A node that lives longer than its step would launch a part of the next capture on another stream.
    warnings.filterwarnings("error", message="The AccumulateGrad node's stream")
    _log_kernels()
    _replace_operators()


def _host() -> Any:
    """Returns this process's symbols, which include the shim's."""
    library = ctypes.CDLL(None)
    for name in ("launches", "copies", "uploads", "synchronisations", "replays", "captured"):
        getattr(library, f"hollow_{name}").restype = ctypes.c_long
    return library


_binaries: dict[Any, dict[str, int]] = {}
_kept: list[Any] = []  # an operator is replaced only while its library object exists


def _triton_driver() -> Any:
    """Makes a driver for Triton that compiles for sm_90, and launches nothing."""
    import torch
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia import driver as nvidia

    cuobjdump = Path(nvidia.__file__).parent / "bin" / "cuobjdump"

    class Utils:
        """Loads no kernel. Registers and stack are read from the compiled binary."""

        def load_binary(self, name: str, cubin: bytes, shared: int, device: int) -> tuple[Any, ...]:
            with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
                file.write(cubin)
                file.flush()
                shown = subprocess.run([cuobjdump, "-res-usage", file.name], capture_output=True, text=True)
            used = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", shown.stdout)}
            _binaries[name, hash(cubin)] = used
            spilled = used["STACK"] + used.get("LOCAL", 0)
            return 1, (name, hash(cubin)), used["REG"], spilled // 4, 1024

        def get_device_properties(self, device: int) -> dict[str, int]:
            return {
                "max_shared_mem": 232448, "max_num_regs": 65536, "multiprocessor_count": 132, "warpSize": 32,
                "sm_clock_rate": 1980000, "mem_clock_rate": 2619000, "mem_bus_width": 5120,
            }  # fmt: skip

        def unload_module(self, *module: Any) -> None:
            pass

    class Launcher:
        launched: Any = None

        def __init__(self, source: Any, metadata: Any) -> None:
            pass

        def __call__(self, x: int, y: int, z: int, stream: int, function: Any, *rest: Any) -> None:
            Launcher.launched = function, (x, y, z)
            _host().hollow_launch(ctypes.c_void_p(stream))

    class Driver(nvidia.CudaDriver):
        def __init__(self) -> None:
            self.utils, self.launcher_cls = Utils(), Launcher
            self.get_device_capability = torch.cuda.get_device_capability
            self.get_current_device = torch.cuda.current_device
            self.set_current_device = torch.cuda.set_device
            self.get_current_stream = lambda device: torch.cuda.current_stream(device).cuda_stream

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 90, 32)

    return Driver()


def _log_kernels() -> None:
    """Makes Inductor append each launch of a Triton kernel to LOG, and time no configurations."""
    import triton
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner

    def first(tuner: Any, *arguments: Any, **options: Any) -> dict[Any, float]:
        """Chooses the first configuration, since nothing can be timed."""
        return {launcher: float(index) for index, launcher in enumerate(tuner.launchers)}

    run = CachingAutotuner.run

    def logged(tuner: Any, *arguments: Any, stream: Any, **options: Any) -> Any:
        result = run(tuner, *arguments, stream=stream, **options)
        function, grid = triton.runtime.driver.active.launcher_cls.launched
        used, meta = _binaries[function], tuner.inductor_meta
        LOG.append(
            Kernel(
                meta.get("kernel_name") or function[0],
                bool(tuner.is_backward),
                1e3 * (meta.get("kernel_num_gb") or 0),
                used["REG"],
                used["STACK"] + used.get("LOCAL", 0),
                grid,
            )
        )
        return result

    CachingAutotuner.benchmark_all_configs = first  # type: ignore[assignment, method-assign]
    CachingAutotuner.run = logged  # type: ignore[assignment, method-assign]


def _replace_operators() -> None:
    """Makes LIBRARY_OPERATORS return uninitialised outputs of the right shape, and append calls to LOG."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._pytree import tree_map_only

    library = torch.library.Library("aten", "IMPL")
    _kept.append(library)

    def hollow(name: str) -> Any:
        packet, _, overload = name.partition(".")
        operator = getattr(getattr(torch.ops.aten, packet), overload or "default")

        def call(*arguments: Any, **options: Any) -> Any:
            # Detached: the log must not keep an autograd graph alive.
            tensors = tuple(a.detach() for a in arguments if isinstance(a, torch.Tensor))
            LOG.append(LibraryCall(name, tensors))
            _host().hollow_launch(ctypes.c_void_p(torch.cuda.current_stream().cuda_stream))
            if "out" in options:
                return options["out"]
            with FakeTensorMode() as mode:
                fake = tree_map_only(torch.Tensor, mode.from_tensor, (arguments, options))
                output = operator(*fake[0], **fake[1])

            def allocate(like: Tensor) -> Tensor:
                return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=like.device)

            return tree_map_only(torch.Tensor, allocate, output)

        return call

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about replaced operators
        for name in LIBRARY_OPERATORS:
            library.impl(name, hollow(name), "CUDA")
