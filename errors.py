"""The one exception of the toolkit that is meant for the user's eyes."""


class UserError(Exception):
    """A mistake the user can mend.

    Its text is one clear sentence that says what is wrong and what to do about it; every command
    prints it on standard error as a single line and exits with status 2
    (``commands.ending.guarded``).
    """


def refuse_below(least: int, config: object, *names: str) -> None:
    """Raise ``UserError`` for the first of a configuration's fields that is below ``least``."""
    for name in names:
        if getattr(config, name) < least:
            raise UserError(f"{name} must be at least {least}, not {getattr(config, name)}")


def refuse_above(most: int, config: object, *names: str) -> None:
    """Raise ``UserError`` for the first of a configuration's fields that is above ``most``."""
    for name in names:
        if getattr(config, name) > most:
            raise UserError(f"{name} must be at most {most}, not {getattr(config, name)}")
