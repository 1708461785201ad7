"""Explains what ends a run early, in one line that says how to resume the run or what to change."""

from __future__ import annotations

import os
from pathlib import Path
from subprocess import CalledProcessError
from typing import cast

import torch
import torch.distributed as dist

from fastae.data.loaders.batch_source import BatchSource
from fastae.data.loaders.resident import ResidentSource
from fastae.device.memory import is_out_of_memory
from fastae.errors import NotFinite, RunFailure, Stopped, TrainingFault
from fastae.runs.folder import RunFolder
from fastae.training.observers.callback import CallbackFailed
from fastae.training.session import Session
from fastae.training.signals import StopSignals
from fastae.utils.console import first_line
from fastae.utils.limits import thread_limit

SIGNALS_APART = 1.0
"""Seconds to wait for a signal that may already have ended a compiler."""


def explain(error: Exception, session: Session, run: RunFolder, *, stops: StopSignals) -> Exception:
    """Returns an error that tells the user what to do; `error` itself if its cause is not known."""
    hint = run.resume_hint()
    if isinstance(error, CallbackFailed):
        return cast(Exception, error.__cause__)
    if isinstance(error, Stopped):
        return Stopped(error.caught, f"{error}; {hint}")
    if isinstance(error, NotFinite):
        remedy = "a lower --lr" + (" or --no-amp" if session.hardware.precision.dtype else "")
        return RunFailure(
            f"{error}; {run.saved()}, but resuming would repeat it: start a new run with {remedy}"
        )
    # A signal to the process group, as Ctrl-C sends it, also ends the g++ that torch.compile waits for.
    if _is_compiler_error(error) and (caught := stops.within(SIGNALS_APART)):
        return Stopped(caught, f"stopped by {caught.name} while compiling; {hint}")
    then = f"; {hint}" if run.config_file.exists() else ""
    if is_out_of_memory(error):
        return RunFailure(f"{out_of_memory_advice(session.loader, session.hardware.device)}{then}")
    if _is_compiler_error(error):
        return RunFailure(f"torch.compile failed ({first_line(error):.200}): use --no-compile{then}")
    reason = _resumable_reason(error, session, run)
    return RunFailure(f"{reason}; {hint}") if reason else error


def _resumable_reason(error: Exception, session: Session, run: RunFolder) -> str | None:
    """Returns why a run ended that can be resumed once the cause is gone; None if that is not known."""
    if isinstance(error, TrainingFault):
        return str(error)
    if isinstance(error, OSError):
        what = f"cannot write to the run folder {str(run.path)!r}"
        if not _may_be_in(run, error):
            what = f"cannot use {error.filename!r}"
        return f"{what}: {error.strerror or error}"
    if isinstance(error, RuntimeError) and (no_threads := thread_limit(error)):
        return no_threads
    if session.ranks.size > 1 and _is_lost_rank(error):
        return f"another rank ended, or cannot be reached: {first_line(error)}"
    return None


def _may_be_in(run: RunFolder, error: OSError) -> bool:
    """Returns whether writing to the run's folder can have raised the error. A failed write names no file."""
    named = error.filename
    return not isinstance(named, str | bytes) or Path(os.fsdecode(named)).is_relative_to(run.path)


def _is_lost_rank(error: Exception) -> bool:
    """Returns whether the error says that another rank has ended, or cannot be reached."""
    # NCCL's errors have a type. Gloo's have none, and begin with the source file that raised them.
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "/gloo/" in str(error))


def _is_compiler_error(error: Exception) -> bool:
    """Returns whether torch.compile raised the error. It raises many types, some of them Triton's.

    Triton starts a C compiler, whose failure is a CalledProcessError.
    """
    modules = ("torch._dynamo", "torch._inductor", "triton")
    return isinstance(error, CalledProcessError) or type(error).__module__.startswith(modules)


def out_of_memory_advice(loader: BatchSource, device: torch.device) -> str:
    """Returns one line that says what takes less memory on `device`."""
    batch_size = loader.sampler.batch_size
    remedies = []
    if isinstance(loader, ResidentSource):
        kind, saved = "host" if device.type == "cuda" else "dali", loader.store.pixels.nbytes
        remedies.append(f"--loader {kind} ({saved / 1e9:.1f} GB less on {device})")
    if batch_size > 1:
        remedies.append(f"a new run with --batch-size {batch_size // 2}")
    remedy = " or ".join(remedies) or "a smaller --image-size, or another device"
    return f"out of memory at batch size {batch_size}: try {remedy}"
