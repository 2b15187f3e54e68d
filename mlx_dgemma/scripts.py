"""Where the installed commands begin: signals count from here on, before the command itself is imported."""

from mlx_dgemma.terminal import signals


def generate() -> int:
    signals.begin()
    from mlx_dgemma.generate import main

    return main()


def bench() -> int:
    signals.begin()
    from mlx_dgemma.bench.__main__ import main

    return main()


def sweep() -> int:
    signals.begin()
    from mlx_dgemma.sweep.__main__ import main

    return main()


def convert() -> int:
    signals.begin()
    from mlx_dgemma.converter.__main__ import main  # type: ignore[import-not-found]  # `convert/` until it is installed

    code: int = main()
    return code


def chat() -> int:
    signals.begin()
    from mlx_dgemma.chat.__main__ import main

    return main()


def server() -> int:
    signals.begin()
    from mlx_dgemma.server.__main__ import main

    return main()


def report() -> int:
    signals.begin()
    from mlx_dgemma.report.__main__ import main

    return main()
