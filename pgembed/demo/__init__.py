"""The demo: ``pgembed demo``."""

from pgembed.demo.run import run

__all__ = ["run"]
