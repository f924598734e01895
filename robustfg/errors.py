"""The one error that a command shows without a traceback."""


class UserError(ValueError):
    """A mistake in an option or a file. The message names it and says what to do, in one or two lines."""
