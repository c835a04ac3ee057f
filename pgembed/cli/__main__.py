"""``python -m pgembed.cli`` is the command ``pgembed``."""

from pgembed.cli import main

main()
