"""Which failures of a server are worth another try."""

from effopd.errors import ServerError


class PassingError(ServerError):
    """A failure that may pass: the server was away, overloaded, or sent something broken."""


class NotFiniteAnswerError(PassingError):
    """A log-probability in an answer was NaN, infinite or missing."""
