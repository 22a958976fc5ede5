"""The error that every mistake of a user raises."""


class MeowError(Exception):
    """A mistake that the user can correct. The message says what is wrong, where, and what to do.

    Programs print the message as one paragraph without a traceback, and exit with status 2.

    Attributes:
        message: the paragraph. It is kept apart from `args`, to which Ray Data appends advice of
            its own, and it is pickled with the error.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message
