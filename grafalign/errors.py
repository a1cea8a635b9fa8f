"""The one error that reaches a user: a sentence that names the file, row or key, and the remedy."""

from __future__ import annotations


class GrafalignError(Exception):
    """Input or environment that the user can mend; the command line prints it without a traceback."""
