"""The one exception of the toolkit that is meant for the user's eyes."""


class UserError(Exception):
    """A mistake the user can mend.

    Its text is one clear sentence that says what is wrong and what to do about it; every command
    prints it on standard error as a single line and exits with status 2
    (``commands.ending.guarded``).
    """
