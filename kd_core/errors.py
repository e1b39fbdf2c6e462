"""The one exception type for mistakes that a user can mend."""


class UserError(Exception):
    """Bad input: shown as one clear message, without a traceback; the script exits with status 2.

    The message names the file, key and value, and says what would be right.
    """
