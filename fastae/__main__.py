"""`python -m fastae` is the same program as the command `fastae`."""

from fastae.cli.main import main

main()
