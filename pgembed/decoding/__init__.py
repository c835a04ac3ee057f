"""The bytes of a picture file made into pixels: here, or in a process that may die of it.

``picture`` decodes, and knows Pillow alone; ``process`` is the program of the other process, which imports nothing else
of weight; ``pool`` keeps such processes and hands pictures to them; ``turns`` lets large pictures wait for one another.
"""
