"""The one error a user's mistake raises."""


class MeowError(Exception):
    """A mistake that the user can mend: the message says what is wrong, where, and what to do.

    Programs print it as one paragraph without a traceback and exit with status 2.
    """
