"""``python -m pgembed.cli`` is the command ``pgembed``."""

from pgembed.cli.main import main

main()
