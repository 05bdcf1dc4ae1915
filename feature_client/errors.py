"""The base of every error that a person can mend: its message is one clear sentence, without a stack trace."""


class RapportError(Exception):
    """Commands print the message and exit with 1; the gateway maps its own sub-classes to statuses."""
