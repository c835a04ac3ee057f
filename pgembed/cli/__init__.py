"""The command ``pgembed``: parses, calls, prints."""

from pgembed.cli.app import main

__all__ = ["main"]
