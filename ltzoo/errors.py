"""The base of every error that means: what was asked cannot be done as asked."""

__all__ = ['LtzooError']


class LtzooError(Exception):
    """One sentence that names the input, what is wrong with it and what would be right.

    Tools print it and exit with code 2.
    """
