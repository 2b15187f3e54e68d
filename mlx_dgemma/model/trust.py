"""Which kernels are not to be used here: `selfcheck` found them to differ from their plain twins."""

_distrusted: set[str] = set()


def is_trusted(name: str) -> bool:
    return name not in _distrusted


def distrust(names: set[str]) -> None:
    """From now on the twins of these, and of no others, are used."""
    _distrusted.clear()
    _distrusted.update(names)


def distrusted() -> list[str]:
    """In the order of the alphabet."""
    return sorted(_distrusted)
