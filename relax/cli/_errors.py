"""What the command line refuses."""


class InputError(ValueError):
    """What the user asked for does not exist or cannot be used; the message is one line."""
