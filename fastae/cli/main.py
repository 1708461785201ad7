"""The command line. Each command parses, calls and prints; what is slow to import is imported inside.

A user's mistake is one line on stderr and exit code 2, whoever notices it: click or the code below.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from fastae.cli.options import GroupedCommand, PathType, options_of
from fastae.config import TrainConfig
from fastae.errors import FastaeError, Stopped
from fastae.losses import LOSSES
from fastae.utils.streams import discard_output, open_streams

WRITE_ERRORS = (errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG)
"""What an OSError that names no file, and that nobody has handled, says about stdout."""

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(context_settings=CONTEXT)
@click.version_option(package_name="fastae", prog_name="fastae")
def cli() -> None:
    """A 2017 experiment with one CelebA autoencoder and six losses, repeated at full speed."""


@cli.command(cls=GroupedCommand, epilog="Example: fastae train --loss minibatch_bce --amp")
@click.option("--resume", metavar="RUN", type=PathType(), help="Resume a run that ended early.")
@options_of(TrainConfig)
@click.pass_context
def train(context: click.Context, resume: Path | None, **settings: Any) -> None:
    """Train the autoencoder on a folder of JPEGs."""
    if resume:
        from fastae.training.resume import resume_run

        resume_run(resume, {name: value for name, value in settings.items() if was_given(context, name)})
    else:
        config = TrainConfig(**settings)
        from fastae.training import runner

        runner.train(config)


@cli.command(cls=GroupedCommand, epilog="The same command resumes a sweep that was stopped.")
@click.option("--losses", metavar="A,B,...", help="Default: all six.")
@click.option("--repeats", default=1, show_default=True, help="Runs of each loss, with other seeds.")
@click.option("--same-init", is_flag=True, help="The same weights and images for all losses.")
@click.option(
    "--at-once",
    default=1,
    show_default=True,
    type=click.IntRange(1, 64),
    help="Runs that take turns on one device.",
)
@click.option("--out", metavar="DIR", type=PathType(), help="Default: runs/TIME-sweep.")
@options_of(TrainConfig, leave_out=("loss", "out"))
def sweep(
    losses: str | None, repeats: int, same_init: bool, at_once: int, out: Path | None, **settings: Any
) -> int:
    """Repeat the article: train once for each loss, under the same conditions; then the report."""
    from fastae.runs.sweep_folder import SweepConfig

    names = tuple(name.strip() for name in losses.split(",")) if losses is not None else tuple(LOSSES)
    config = SweepConfig(TrainConfig(**settings), names, repeats, same_init)
    from fastae.report.make import make_report
    from fastae.runs.sweep_folder import State
    from fastae.sweep.sweep import run_sweep
    from fastae.training.distributed import launched

    folder, runs = run_sweep(config, out, at_once)
    states = {run.state for run in runs}
    if State.FINISHED in states and launched().is_main:
        make_report([folder], data=config.train.data)
    return 1 if State.FAILED in states else 0


def was_given(context: click.Context, name: str) -> bool:
    """Whether an option stands on the command line, rather than having its default."""
    return context.get_parameter_source(name) is not ParameterSource.DEFAULT


@cli.command()
@click.argument("run", metavar="RUN", type=PathType())
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@click.option("--out", required=True, metavar="DIR", type=PathType(), help="New folder.")
@click.option(
    "--codes",
    metavar="FILE.npy",
    type=PathType(),
    help="Save the codes, float32 (N, latent), one row per image; FILE.images.json names the images.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
def reconstruct(run: Path, images: tuple[str, ...], out: Path, codes: Path | None, device: str) -> int:
    """Reconstruct your own images with the model of RUN; exit code 1 if some cannot be used.

    IMAGE is a file (JPEG, PNG, WebP, GIF, BMP, TIFF, PPM, AVIF) or a folder of them. Each is cropped and
    resized as in RUN's training, and saved beside its reconstruction.
    """
    from fastae.tools.reconstruct import reconstruct_files

    return reconstruct_files(run, images, out, codes, device)


@cli.command()
@click.argument("run", metavar="RUN", type=PathType())
@click.option(
    "--format",
    "kind",
    required=True,
    type=click.Choice(["onnx", "torch"]),
    help="onnx: *.onnx (needs the extra 'onnx'); torch: torch.export's *.pt2.",
)
@click.option("--out", required=True, metavar="DIR", type=PathType(), help="New folder.")
def export(run: Path, kind: str, out: Path) -> None:
    """Write RUN's encoder and decoder as files that need no fastae.

    Each is compared with the trained model before it is written; model.json beside them describes their
    inputs, outputs and training.
    """
    from fastae.tools.export import export as write

    write(run, kind, out)


@cli.command()
@click.argument("folder", metavar="DIR", type=PathType(str))
@click.option("--deep", is_flag=True, help="Decode every file as well.")
@click.option("--crop", type=click.IntRange(min=1), help="Side that images must have at least.")
@click.option(
    "--json", "report", metavar="FILE", type=PathType(str), help="Write the findings as JSON; - is stdout."
)
def check(folder: str, deep: bool, crop: int | None, report: str | None) -> int:
    """Find the files of a data set that cannot be trained on; exit code 1 if there are any."""
    from fastae.tools.dataset import check_folder

    return check_folder(folder, deep=deep, crop=crop, report=report)


@cli.group()
def prepare() -> None:
    """Bring a data set into the form that training takes."""


@prepare.command()
@click.argument("source", metavar="SOURCE", type=PathType())
@click.option("--out", required=True, metavar="DIR", type=PathType(), help="Target folder.")
@click.option(
    "--count", default=202_599, show_default=True, help="Images that there should be, by any names."
)
def celeba(source: Path, out: Path, count: int) -> int:
    """Bring CelebA into one form, with the official split, and verify it.

    SOURCE is the original img_align_celeba.zip, Kaggle's archive, either of them unpacked, torchvision's root
    folder, or a folder of Hugging Face's parquet files (needs pyarrow). The same command resumes where it was
    stopped. Exit code 1 if images are missing or faulty.
    """
    from fastae.tools.dataset import prepare_and_report

    return prepare_and_report(source, out, count)


class WatchingCommand(click.Command):
    """A command whose arguments after -- are another program's command line, whatever they look like."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            end = args.index("--")
            args, ctx.obj = args[:end], tuple(args[end + 1 :])
        return super().parse_args(ctx, args)


@cli.command(cls=WatchingCommand, options_metavar="[OPTIONS] RUN | [OPTIONS] -- COMMAND ...")
@click.argument("run", metavar="", required=False, type=PathType())
@click.option("--json", "as_json", is_flag=True, help="RUN's report as JSON.")
@click.option("--out", metavar="DIR", type=PathType(), help="Files of COMMAND's report.")
@click.option("--gpu-sample-hz", default=10.0, show_default=True, help="Readings per second.")
@click.pass_obj
def gpu(
    command: tuple[str, ...] | None,
    run: Path | None,
    as_json: bool,
    out: Path | None,
    gpu_sample_hz: float,
) -> int:
    """Show how busy a RUN kept GPU and CPU, or run COMMAND and show how busy it keeps them.

    To watch the GPUs live, use nvitop.
    """
    from fastae.monitor.command import gpu_command

    return gpu_command(run, command, as_json=as_json, out=out, hz=gpu_sample_hz)


@cli.command()
@click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=PathType())
@click.option("--open", "show", is_flag=True, help="Show it in the browser.")
@click.option("--out", metavar="FILE", type=PathType(), help="Default: DIR/report.html.")
@click.option(
    "--data",
    metavar="DIR",
    type=PathType(str),
    help="The runs' images, for PSNR, SSIM, reconstructions. Default: $FASTAE_DATA, else synthetic faces.",
)
def report(folders: tuple[Path, ...], show: bool, out: Path | None, data: str | None) -> None:
    """Compare finished runs: curves, reconstructions, numbers and the answer, in one HTML file.

    DIR is a run's folder, or one that holds runs, such as a sweep's.
    """
    from fastae.report.make import make_report

    page = make_report(folders, out, data)
    if show:
        import webbrowser

        webbrowser.open(page.absolute().as_uri())


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def doctor(as_json: bool) -> int:
    """Show what this machine will do, and what to fix; exit code 1 if training is impossible."""
    from fastae.tools.doctor import examine

    return examine(as_json=as_json)


@cli.group()
def cache() -> None:
    """What fastae keeps on disk to start faster: decoded data sets, faces, checks."""


cache_dir_option = click.option(
    "--cache-dir", metavar="DIR", type=PathType(str), help="Default: $FASTAE_CACHE, else the user's."
)


@cache.command("list")
@cache_dir_option
def list_cache(cache_dir: str | None) -> None:
    """List the cache's entries: size, last use, name, data."""
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
    """Remove the entry NAME, or all of them; they are made again when needed.

    Only folders with fastae's own marker (entry.json) are removed. Exit code 1 if an entry is being built.
    """
    from fastae.utils.cache import cache_folder, entries, remove
    from fastae.utils.console import log, printable

    folder = cache_folder(cache_dir)
    chosen = [entry for entry in entries(folder) if name in (None, entry.name)]
    if name and not chosen:
        raise FastaeError(f"{str(folder)!r} has no entry {name!r}: fastae cache list shows their names")
    size = sum(entry.size for entry in chosen)
    if chosen and not name and not yes:
        if not sys.stdin.isatty():
            raise FastaeError(
                "name an entry, or remove all of them with --yes: there is no terminal to ask on"
            )
        question = f"Remove {len(chosen)} entries, {size / 1e6:,.1f} MB, from {printable(str(folder))}?"
        if not click.confirm(question):
            return 1
    kept = [entry for entry in chosen if not remove(entry)]
    for entry in kept:
        log(f"kept {entry.name}: another process is building it")
    log(f"removed {(size - sum(entry.size for entry in kept)) / 1e6:,.1f} MB from {folder}")
    return 1 if kept else 0


def main() -> None:
    """The entry point of `fastae` and `python -m fastae`."""
    open_streams()
    try:
        code = run_command()
        sys.stdout.flush()
    except OSError as error:
        if error.filename is not None or error.errno not in WRITE_ERRORS:
            raise
        discard_output()
        # A reader that has seen enough (`| head`) is no news.
        code = 1 if error.errno == errno.EPIPE else refuse(f"cannot write to stdout: {error.strerror}", 1)
    sys.exit(code)


def run_command() -> int:
    """Runs what the command line says; prints one line where it fails. Returns the exit code."""
    if sys.flags.optimize > 1:
        return refuse("PYTHONOPTIMIZE=2 (python -OO) removes docstrings, which DALI needs: set it to 1 or 0")
    try:
        return cli.main(prog_name="fastae", standalone_mode=False) or 0
    except (click.Abort, KeyboardInterrupt):
        return complain("fastae: interrupted", 130)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        return refuse(error.format_message())
    except FastaeError as error:
        return refuse(str(error), error.exit_code)
    except Stopped as stopped:
        return complain(f"fastae: {stopped}", stopped.exit_code)


def refuse(message: str, code: int = 2) -> int:
    return complain(f"fastae: error: {' '.join(message.split())}", code)


def complain(line: str, code: int) -> int:
    from fastae.utils.console import printable  # not above: `fastae --help` shall not wait for rich

    with suppress(OSError):  # the terminal may have gone: the code still tells
        plain = bool(os.environ.get("NO_COLOR")) or not sys.stderr.isatty()
        click.echo(printable(line) if plain else click.style(printable(line), fg="red"), err=True)
    return code
