"""Errors a user can act on: one sentence that names the file, key or flag and the remedy."""


class UserError(Exception):
    """Bad input, not a bug. The command line prints its message alone and exits with status 2."""
