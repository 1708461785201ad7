"""The command line. Each command parses, calls and prints; what is slow to import is imported inside.

A user's mistake is one line on stderr and exit code 2, whoever notices it: click or the code below.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

import fastae
from fastae.config import TrainConfig
from fastae.errors import FastaeError, Stopped
from fastae.losses import LOSSES
from fastae.options import options_of

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(context_settings=CONTEXT)
@click.version_option(fastae.__version__, prog_name="fastae")
def cli() -> None:
    """A 2017 experiment with one CelebA autoencoder and six losses, repeated at full speed."""


@cli.command(epilog=f"Losses: {', '.join(LOSSES)}. Example: fastae train --loss minibatch_bce --amp")
@click.option(
    "--resume", metavar="RUN", type=click.Path(path_type=Path), help="Go on with a run that ended early."
)
@options_of(TrainConfig)
@click.pass_context
def train(context: click.Context, resume: Path | None, **settings: Any) -> None:
    """Train the autoencoder on a folder of JPEGs."""
    if resume:
        from fastae.resume import resume as go_on

        given = {name: value for name, value in settings.items() if was_given(context, name)}
        go_on(resume, given)
    else:
        config = TrainConfig(**settings)
        from fastae.train import train as run

        run(config)


@cli.command(epilog=f"Losses: {', '.join(LOSSES)}. The same command goes on with a sweep that was stopped.")
@click.option("--losses", metavar="A,B,...", help="Default: all six.")
@click.option("--repeats", default=1, show_default=True, help="Runs of each loss, with other seeds.")
@click.option("--same-init", is_flag=True, help="The same weights and images for all losses.")
@click.option("--out", metavar="DIR", type=click.Path(path_type=Path), help="Default: runs/TIME-sweep.")
@options_of(TrainConfig, leave_out=("loss", "out"))
def sweep(losses: str | None, repeats: int, same_init: bool, out: Path | None, **settings: Any) -> int:
    """Repeat the article: train once for each loss, under the same conditions; then the report."""
    from fastae.sweep.plan import SweepConfig

    names = tuple(name.strip() for name in losses.split(",")) if losses is not None else tuple(LOSSES)
    config = SweepConfig(TrainConfig(**settings), names, repeats, same_init)
    from fastae.ranks import launched
    from fastae.report.make import make_report
    from fastae.sweep.sweep import sweep as run

    done = run(config, out)
    if done.finished and launched().first:
        make_report([done.folder])
    return 1 if done.failed else 0


def was_given(context: click.Context, name: str) -> bool:
    """Whether an option stands on the command line, rather than having its default."""
    return context.get_parameter_source(name) is not ParameterSource.DEFAULT


@cli.command()
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@click.option("--out", required=True, metavar="DIR", type=click.Path(path_type=Path), help="New folder.")
@click.option(
    "--latent",
    metavar="FILE.npy",
    type=click.Path(path_type=Path),
    help="Save the codes, float32 (N, latent), one row an image; FILE.images.json names the images.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
def reconstruct(run: Path, images: tuple[str, ...], out: Path, latent: Path | None, device: str) -> int:
    """Reconstruct your own images with what RUN has learned; exit code 1 where some cannot be used.

    IMAGE is a file (JPEG, PNG, WebP, GIF, BMP, TIFF, PPM, AVIF) or a folder of them. Each is cut out and
    resized as in RUN's training, and saved beside its reconstruction.
    """
    from fastae.reconstruct import reconstruct_files

    return reconstruct_files(run, images, out, latent, device)


@cli.command()
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "kind",
    required=True,
    type=click.Choice(["onnx", "torch"]),
    help="onnx: *.onnx (needs onnx and onnxscript); torch: torch.export's *.pt2.",
)
@click.option("--out", required=True, metavar="DIR", type=click.Path(path_type=Path), help="New folder.")
def export(run: Path, kind: str, out: Path) -> None:
    """Write RUN's encoder and decoder as files that need no fastae.

    Each is held against the trained model before it is written; model.json beside them says what they
    take and what they come from.
    """
    from fastae.export import export as write

    write(run, kind, out)


@cli.command()
@click.argument("folder", metavar="DIR")
@click.option("--deep", is_flag=True, help="Decode every file as well.")
@click.option("--crop", type=click.IntRange(min=1), help="Side that images must have at least.")
@click.option("--json", "report", metavar="FILE", help="Write the findings as JSON; - is stdout.")
def check(folder: str, deep: bool, crop: int | None, report: str | None) -> int:
    """Find the files of a data set that cannot be trained on; exit code 1 where there are any."""
    from fastae.dataset_commands import check_folder

    return check_folder(folder, deep=deep, crop=crop, report=report)


@cli.group()
def prepare() -> None:
    """Bring a data set into the form that training takes."""


@prepare.command()
@click.argument("archive", metavar="ARCHIVE", type=click.Path(path_type=Path))
@click.option("--out", required=True, metavar="DIR", type=click.Path(path_type=Path), help="Target folder.")
@click.option("--count", default=202_599, show_default=True, help="Images that should be there.")
def celeba(archive: Path, out: Path, count: int) -> int:
    """Unpack img_align_celeba.zip, or take a folder of its images, and verify them."""
    from fastae.dataset_commands import prepare_and_report

    return prepare_and_report(archive, out, count)


class WatchingCommand(click.Command):
    """A command whose arguments after -- are another program's command line, whatever they look like."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            end = args.index("--")
            args, ctx.obj = args[:end], tuple(args[end + 1 :])
        return super().parse_args(ctx, args)


@cli.command(cls=WatchingCommand, options_metavar="[OPTIONS] RUN | [OPTIONS] -- COMMAND ...")
@click.argument("run", metavar="", required=False, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="RUN's report as JSON.")
@click.option("--out", metavar="DIR", type=click.Path(path_type=Path), help="Files of COMMAND's report.")
@click.option("--gpu-sample-hz", default=10.0, show_default=True, help="Readings a second.")
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
@click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--open", "show", is_flag=True, help="Show it in the browser.")
@click.option("--out", metavar="FILE", type=click.Path(path_type=Path), help="Default: DIR/report.html.")
def report(folders: tuple[Path, ...], show: bool, out: Path | None) -> None:
    """Compare finished runs: curves, reconstructions, numbers and the answer, in one HTML file.

    DIR is a run's folder, or one that holds runs, such as a sweep's.
    """
    from fastae.report.make import make_report

    page = make_report(folders, out)
    if show:
        import webbrowser

        webbrowser.open(page.absolute().as_uri())


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def doctor(as_json: bool) -> int:
    """Show what this machine will do, and what to fix; exit code 1 if training is impossible."""
    from fastae.doctor import examine

    return examine(as_json=as_json)


@cli.group()
def cache() -> None:
    """What fastae keeps on disk to start faster: decoded data sets, faces, checks."""


@cache.command("list")
@click.option("--cache-dir", metavar="DIR", help="Default: $FASTAE_CACHE, else the user's.")
def list_cache(cache_dir: str | None) -> None:
    """List what lies in the cache, with sizes."""
    from fastae.cache import cache_folder, entries
    from fastae.console import say

    folder = Path(cache_dir) if cache_dir else cache_folder()
    found = entries(folder)
    for entry in found:
        say(f"{entry.size / 1e6:12,.1f} MB  {entry.path.name}")
    say(f"{sum(entry.size for entry in found) / 1e6:12,.1f} MB  in {folder}")


@cache.command("clear")
@click.option("--cache-dir", metavar="DIR", help="Default: $FASTAE_CACHE, else the user's.")
def clear_cache(cache_dir: str | None) -> None:
    """Remove all of it; it is made again where it is needed."""
    from fastae.cache import cache_folder, clear, entries
    from fastae.console import say

    folder = Path(cache_dir) if cache_dir else cache_folder()
    size = sum(entry.size for entry in entries(folder))
    clear(folder)
    say(f"removed {size / 1e6:,.1f} MB from {folder}")


def main() -> None:
    """The entry point of `fastae` and `python -m fastae`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a name that the terminal's encoding lacks is no error
            stream.reconfigure(errors="backslashreplace")
    try:
        code = cli.main(prog_name="fastae", standalone_mode=False)
    except (click.Abort, KeyboardInterrupt):
        code = complain("fastae: interrupted", 130)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        code = error.exit_code
    except click.ClickException as error:
        code = refuse(error.format_message())
    except FastaeError as error:
        code = refuse(str(error), error.exit_code)
    except Stopped as stopped:
        code = complain(f"fastae: {stopped}", stopped.exit_code)
    sys.exit(code or 0)


def refuse(message: str, code: int = 2) -> int:
    return complain(f"fastae: error: {' '.join(message.split())}", code)


def complain(line: str, code: int) -> int:
    from fastae.console import printable  # not above: `fastae --help` shall not wait for rich

    with suppress(OSError):  # the terminal may have gone: the code still tells
        click.echo(printable(line), err=True)
    return code
