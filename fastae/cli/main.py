"""The command line. Each command parses its options and calls a function; slow imports are inside.

A user's mistake is reported as one line on stderr, with exit code 2, whether click or fastae detects it.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import click
from click.core import ParameterSource

from fastae.cli.options import GroupedCommand, GroupedOption, InOrder, PathType, options_of
from fastae.config import RUN_FOLDER, TrainConfig
from fastae.errors import FastaeError, Stopped
from fastae.utils.exits import before_exit
from fastae.utils.limits import require_address_space
from fastae.utils.streams import discard_output, open_streams

WRITE_ERRORS = (errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG)
"""An unhandled OSError with one of these numbers and no file name was raised by writing to stdout."""


@click.group(cls=InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="fastae", prog_name="fastae")
def cli() -> None:
    """Train one CelebA autoencoder with the losses of an article of 2017, and compare the results.

    Start with: fastae train --amp --minutes 3
    """


@cli.command(cls=GroupedCommand, epilog="Example: fastae train --data celeba/ --loss pixel_mse --amp")
@options_of(TrainConfig)
@click.option(
    "--resume", cls=GroupedOption, group=RUN_FOLDER, metavar="RUN", type=PathType(),
    help="Resume the run in this folder, with its own settings.",
)  # fmt: skip
@click.pass_context
def train(context: click.Context, resume: Path | None, **settings: Any) -> None:
    """Train the autoencoder on a folder of JPEGs and PNGs."""
    require_address_space()
    if resume:
        from fastae.training.resume import resume_run

        source = context.get_parameter_source
        given = [name for name in settings if source(name) is not ParameterSource.DEFAULT]
        resume_run(resume, {name: settings[name] for name in given})
    else:
        config = TrainConfig(**settings)
        from fastae.training import runner

        runner.train(config)


def sweep_option(*names: str, **settings: Any) -> Any:
    """Returns a decorator that adds an option, which --help lists under the heading Sweep."""
    return click.option(*names, cls=GroupedOption, group="Sweep", show_default=True, **settings)


@cli.command(cls=GroupedCommand, epilog="The same command, with --out DIR, resumes a sweep that was stopped.")
@sweep_option("--losses", metavar="A,B,...", help="Losses to train. Default: all.")
@sweep_option("--repeats", default=1, help="Runs per loss, each with another seed.")
@sweep_option(
    "--same-init/--no-same-init", default=True, help="Same initial weights and batches for all losses."
)
@sweep_option("--out", metavar="DIR", type=PathType(), help="Sweep folder. Default: runs/TIME-sweep.")
@options_of(TrainConfig, leave_out=("loss", "out"))
def sweep(losses: str | None, repeats: int, same_init: bool, out: Path | None, **settings: Any) -> int:
    """Train once per loss, then make the report.

    All runs have the same settings and train on the same images.
    """
    require_address_space()
    from fastae.sweep.plan import SweepConfig

    names = () if losses is None else [name.strip() for name in losses.split(",")]
    config = SweepConfig(TrainConfig(**settings), names, repeats=repeats, same_init=same_init)
    from fastae.report.make import make_report
    from fastae.sweep.sweep import train_sweep
    from fastae.training.distributed import launched

    result = train_sweep(config, out)
    if result.has_finished_runs and launched().is_main:
        make_report([result.path], data=config.train.data)
    return 1 if result.failed else 0


@cli.command()
@click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=PathType())
@click.option("--out", metavar="FILE", type=PathType(), help="Page to write. Default: DIR/report.html.")
@click.option(
    "--data", metavar="DIR", type=PathType(str),
    help="The runs' images, for reconstructions. Default: the folder that they were trained "
    "on if it is here, else $FASTAE_DATA, else the synthetic faces.",
)  # fmt: skip
def report(folders: tuple[Path, ...], out: Path | None, data: str | None) -> None:
    """Compare runs on one HTML page.

    DIR is a run folder, or a folder that contains runs, such as a sweep folder. The page shows curves,
    reconstructions and numbers, and says whether the losses differ. A single run gets a page of its own.
    """
    from fastae.report.make import make_report

    make_report(folders, out, data)


@cli.command()
@click.argument("run", metavar="RUN", type=PathType())
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=PathType(str))
@click.option("--out", required=True, metavar="DIR", type=PathType(), help="New folder.")
@click.option(
    "--device", metavar="DEVICE", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."
)
def reconstruct(run: Path, images: tuple[str, ...], out: Path, device: str) -> int:
    """Reconstruct your own images with the model of RUN.

    IMAGE is a JPEG, a PNG or a folder of them. Each is cropped and resized as in RUN's training, and saved
    beside its reconstruction. The exit code is 1 if some images cannot be used.
    """
    from fastae.tools.reconstruct import reconstruct_files

    return reconstruct_files(run, images, out, device=device)


@cli.command()
@click.argument("run", metavar="RUN", type=PathType())
@click.option("--out", required=True, metavar="DIR", type=PathType(), help="New folder for the files.")
def export(run: Path, out: Path) -> None:
    """Write RUN's encoder and decoder as ONNX files.

    This needs the extra 'onnx'. The files do not need fastae. Each is compared with the trained model before
    it is written.
    """
    from fastae.tools.export import export as write

    write(run, out)


@cli.group()
def prepare() -> None:
    """Convert a data set to a folder of JPEGs for training."""


@prepare.command()
@click.argument("source", metavar="SOURCE", type=PathType())
@click.option("--out", required=True, metavar="DIR", type=PathType(), help="Target folder.")
@click.option("--count", default=202_599, show_default=True, help="Number of images expected.")
def celeba(source: Path, out: Path, count: int) -> int:
    """Make a folder of JPEGs from any copy of CelebA.

    SOURCE is the original img_align_celeba.zip, Kaggle's archive, either of them unpacked, torchvision's root
    folder, or a folder of Hugging Face's parquet files (needs pyarrow). The official split is kept, and every
    image is checked. The same command resumes an interrupted conversion. The exit code is 1 if images are
    missing or faulty.
    """
    from fastae.data.commands import prepare_and_report

    return prepare_and_report(source, out, count)


@cli.command()
@click.argument("folder", metavar="DIR", type=PathType(str))
@click.option("--deep", is_flag=True, help="Decode every file as well, as training does.")
@click.option(
    "--crop", type=click.IntRange(min=1), help="Training's --crop: the smallest side of a usable image."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the names of all files.")
def check(folder: str, deep: bool, crop: int | None, as_json: bool) -> int:
    """Find files of a data set that cannot be used.

    DIR is the folder of JPEGs and PNGs. The exit code is 1 if any of them cannot be trained on.
    """
    from fastae.data.commands import check_and_report

    return check_and_report(folder, deep=deep, crop=crop, as_json=as_json)


@cli.command()
@click.argument("run", metavar="RUN", type=PathType())
def gpu(run: Path) -> None:
    """Show how busy RUN kept GPU and CPU, and what to change.

    RUN is the folder of a run or of fastae.watch. For a resumed run, the part since the last resumption is
    shown; gpu.json has all parts. To watch the GPUs live, use nvitop.
    """
    from fastae.monitor.files import REPORT, count_unreported, read_reports
    from fastae.monitor.text import show_reports
    from fastae.runs.folder import require_run
    from fastae.utils.console import console

    if not (run / REPORT).exists():  # a folder of fastae.watch need not be a run's
        require_run(run)
    reports = read_reports(run)
    show_reports(reports, console, count_unreported(run, reports))


@cli.command()
def doctor() -> int:
    """Show what this machine can do, and what to fix.

    The exit code is 1 if training is impossible.
    """
    try:
        from fastae.device.doctor import examine
    except (ImportError, OSError) as error:  # each of its checks needs PyTorch
        from fastae.device.compatibility import install_command

        raise FastaeError(f"PyTorch cannot be imported ({error}): {install_command()}") from None
    return examine()


@cli.group()
def cache() -> None:
    """List or clear the cache that makes runs start faster.

    It contains decoded data sets, the synthetic faces, the results of file checks and compiled kernels.
    """


cache_dir_option = click.option(
    "--cache-dir", metavar="DIR", type=PathType(str),
    help="Cache folder. Default: $FASTAE_CACHE, else ~/.cache/fastae.",
)  # fmt: skip


@cache.command("list")
@cache_dir_option
def list_cache(cache_dir: str | None) -> None:
    """List the entries: size, last use, name, data."""
    from datetime import datetime

    from fastae.utils.cache import cache_folder, entries
    from fastae.utils.console import log

    folder = cache_folder(cache_dir)
    found = entries(folder)
    for entry in found:
        used = f"{datetime.fromtimestamp(entry.used):%Y-%m-%d %H:%M}"
        state = "unfinished, " if entry.is_draft else ""
        log(f"{entry.size / 1e6:12,.1f} MB  {used}  {entry.name}  {state}{entry.marker.data}")
    log(f"{sum(entry.size for entry in found) / 1e6:12,.1f} MB  in {folder}")


@cache.command("clear")
@click.argument("name", required=False)
@cache_dir_option
@click.option("--yes", is_flag=True, help="Do not ask before removing everything.")
def clear_cache(name: str | None, cache_dir: str | None, yes: bool) -> int:
    """Remove the entry NAME, or all entries.

    Removed entries are made again when needed. Only folders with fastae's own marker (entry.json) are
    removed. The exit code is 1 if an entry is being built.
    """
    from fastae.utils.cache import cache_folder, entries, remove, remove_leftovers
    from fastae.utils.console import log, printable

    folder = cache_folder(cache_dir)
    chosen = [entry for entry in entries(folder) if name in (None, entry.name)]
    if name and not chosen:
        raise FastaeError(f"{str(folder)!r} has no entry {name!r}: fastae cache list shows their names")
    size = sum(entry.size for entry in chosen)
    question = f"Remove {len(chosen)} entries, {size / 1e6:,.1f} MB, from {printable(str(folder))}?"
    if chosen and not name and not yes and not click.confirm(question):
        return 1
    kept = [entry for entry in chosen if not remove(entry)]
    if not name:
        remove_leftovers(folder)
    for entry in kept:
        log(f"kept {entry.name}: another process is building it")
    log(f"removed {(size - sum(entry.size for entry in kept)) / 1e6:,.1f} MB from {folder}")
    return 1 if kept else 0


def main() -> None:
    """The entry point of `fastae` and `python -m fastae`."""
    open_streams()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, interrupt)
    try:
        if sys.flags.optimize > 1:
            raise FastaeError("PYTHONOPTIMIZE=2 removes docstrings, which DALI needs: set it to 1 or 0")
        code = cli.main(prog_name="fastae", standalone_mode=False) or 0
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        code = report_error(error)
    for end in before_exit:
        end(code)
    if signal.getsignal(signal.SIGINT) is interrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is left to be reported
    sys.exit(code)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Handles the first Ctrl-C. A second one, while the first is handled, ends the process at once."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    raise KeyboardInterrupt


def report_error(error: BaseException) -> int:
    """Prints an error, in one line unless it is unexpected, and returns the exit code."""
    match error:
        case click.exceptions.NoArgsIsHelpError():
            error.show()
            return error.exit_code
        case click.Abort() | KeyboardInterrupt():
            return complain("fastae: interrupted", 130)
        case Stopped():
            return complain(f"fastae: {error}", error.exit_code)
        case OSError(filename=None) if error.errno in WRITE_ERRORS:
            discard_output()
            # A closed pipe (`| head`) is not an error.
            return 1 if error.errno == errno.EPIPE else refuse(f"cannot write to stdout: {error.strerror}", 1)
    if expected := in_words(error):
        return refuse(*expected)
    sys.excepthook(type(error), error, error.__traceback__)
    return 1


def in_words(error: BaseException) -> tuple[str, int] | None:
    """Returns what an error means, and the exit code; None if the error is unexpected."""
    match error:
        case click.ClickException():
            return f"{error.format_message():.500}", 2  # it may repeat a value of any length
        case FastaeError():
            return str(error), error.exit_code
        case ImportError():
            return f"a package cannot be loaded: {error}", 1
        case MemoryError() | RuntimeError():
            from fastae.utils.limits import lacks_memory

            return ("out of memory", 1) if lacks_memory(error) else None
    return None


def refuse(message: str, code: int = 2) -> int:
    """Prints an error in one line and returns the exit code."""
    return complain("fastae: error: " + re.sub(r"\s*\n\s*", " ", message.strip()), code)


def complain(line: str, code: int) -> int:
    """Prints a line on stderr, in red on a terminal, and returns the exit code."""
    from fastae.utils.console import printable  # not at the top: `fastae --help` would wait for rich

    color = False if os.environ.get("NO_COLOR") else None  # None: on a terminal
    with suppress(OSError):  # without a terminal, the exit code must suffice
        click.secho(printable(line), fg="red", err=True, color=color)
    return code
