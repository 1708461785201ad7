"""The command line. Each command parses, calls and prints; what is slow to import is imported inside.

A user's mistake is one line on stderr and exit code 2, whoever notices it: click or the code below.
"""

from __future__ import annotations

import sys
from typing import Any

import click

import fastae
from fastae.config import TrainConfig
from fastae.errors import FastaeError
from fastae.losses import LOSSES
from fastae.options import options_of

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(context_settings=CONTEXT)
@click.version_option(fastae.__version__, prog_name="fastae")
def cli() -> None:
    """A 2017 experiment with one CelebA autoencoder and six losses, repeated at full speed."""


@cli.command(epilog=f"Losses: {', '.join(LOSSES)}. Example: fastae train --loss minibatch_bce --amp")
@options_of(TrainConfig)
def train(**settings: Any) -> None:
    """Train the autoencoder on a folder of JPEGs."""
    config = TrainConfig(**settings)
    from fastae.train import train as run

    run(config)


def main() -> None:
    """The entry point of `fastae` and `python -m fastae`."""
    try:
        code = cli.main(prog_name="fastae", standalone_mode=False)
    except (click.Abort, KeyboardInterrupt):
        click.echo("fastae: interrupted", err=True)
        code = 130
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        code = error.exit_code
    except click.ClickException as error:
        code = refuse(error.format_message())
    except FastaeError as error:
        code = refuse(str(error))
    sys.exit(code)


def refuse(message: str) -> int:
    click.echo(f"fastae: error: {' '.join(message.split())}", err=True)
    return 2
