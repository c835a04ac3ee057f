"""The command ``pgembed``: parses, calls, prints."""
