"""The program `fastae`, also as `python -m fastae`."""

from __future__ import annotations

import signal


def main() -> None:
    """Runs the command line. Until it can report Ctrl-C, Ctrl-C ends the process without a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as under nohup
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from fastae.cli.main import main

    main()


if __name__ == "__main__":
    main()
