"""`python -m fastae`: the same program as the command `fastae`."""

from fastae.cli import main

main()
