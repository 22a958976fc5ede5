"""The error that every mistake of a user raises."""


class MeowError(Exception):
    """A mistake that the user can correct. The message says what is wrong, where, and what to do.

    Programs print the message as one paragraph without a traceback, and exit with status 2.
    """
