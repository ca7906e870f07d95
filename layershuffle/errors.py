"""The one exception that means: the user can fix this."""


class UserError(ValueError):
    """What is wrong and what to do, in one sentence; the command lines print it without a traceback."""
