"""Pictures as a server takes them: a JPEG or PNG of bounded size, in base64."""

from __future__ import annotations

import base64
from io import BytesIO
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

SIDE = 1024
QUALITY = 90


def packed(picture: Picture, *, side: int, form: str) -> bytes:
    """A picture as a file, its longer side at most ``side``; never enlarged."""
    if picture.mode != "RGB":
        picture = picture.convert("RGB")
    if max(picture.size) > side:
        picture = picture.copy()
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    data = BytesIO()
    if form == "png":
        picture.save(data, "PNG")
    else:
        picture.save(data, "JPEG", quality=QUALITY)
    return data.getvalue()


def marks(file: bytes) -> dict[str, str]:
    """What stands for a picture's marks in a request template."""
    kind = "png" if file.startswith(b"\x89PNG") else "jpeg"
    encoded = base64.b64encode(file).decode("ascii")
    return {"base64": encoded, "data_url": f"data:image/{kind};base64,{encoded}"}
