"""What is asked of the command lines of all examples."""

from pathlib import Path


def assert_refused(program: str, result: tuple[int, str, str], words: list[str], folder: Path):
    """Exit status 2, and one line on stderr that has all the words; nothing was written."""
    status, _, error = result
    assert status == 2
    assert error.startswith(f"{program}: error: ")
    assert len(error.strip().splitlines()) == 1
    assert all(word in error for word in words)
    assert not any(folder.iterdir())


def caller(example, capsys):
    """Calls the command line of an example: exit status, stdout, stderr."""

    def call(*arguments):
        status = example.main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return call
