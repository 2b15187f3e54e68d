"""The one exception type that users see: a single line saying what is wrong, where, and what to do."""


class DGemmaError(ValueError):
    """A mistake in the input (a path, a checkpoint, a prompt, an option), told in one line."""


def first_line(error: BaseException) -> str:
    """Somebody else's error message, cut to one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
