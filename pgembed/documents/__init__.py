"""Documents: the pages of a PDF, the words on a picture, an HTML page as a screen shows it.

Whatever may die of a hostile file runs in a process of its own (``calls``): ``pdf`` with pypdfium2, ``ocr`` with
rapidocr, ``html`` with Chromium. ``lines`` has what stands on a page as lines, each with its box.
"""

from pgembed.documents.lines import matching_boxes

__all__ = ["matching_boxes"]
