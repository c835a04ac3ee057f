"""The bytes of a picture file made into pixels: here, or in a process that may die of it.

``picture`` decodes, and knows Pillow alone; ``process`` is the program of the other process, which imports nothing else
of weight; ``child`` is one such process, for documents too; ``pool`` keeps several and hands pictures to them;
``turns`` lets large pictures wait for one another.
"""
