"""The errors whose messages are meant for the person who uses the library or its commands."""


class UserError(ValueError):
    """A mistake of the user: what was given cannot be used.

    Its message says what must hold, what came instead and what to do about it. A command prints the
    message in one line and ends with status 2; every other error keeps its traceback, because it is
    a fault of the program. It is a `ValueError`, so that callers need not import this class.
    """
