"""The one exception that means "the user can mend this": its text is shown as one line, exit code 2."""


class FastaeError(Exception):
    """A mistake in the input. The message names the thing and the remedy, in one line."""
