"""What commands say to mistakes."""

from run import main


def refusal(capsys, *arguments):
    """The one line of a command that ends with status 2."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    return errors
