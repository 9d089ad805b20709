"""The error that a user can cause and mend."""


class UserError(ValueError):
    """A wrong argument, file or folder; its message says what was received and what is allowed.

    The command line prints it without a traceback and exits with status 1.
    """


class DivergedError(UserError):
    """Training produced a loss or a weight that is not finite."""
