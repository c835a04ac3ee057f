"""Vectors of a dataset's pictures and captions, kept in a folder, so that a run that was broken off goes on."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pgembed.encoders import Encoder, Role, fingerprint_of
from pgembed.errors import InvalidInput, MediaError, UnsupportedModality
from pgembed.evaluate.cir.dataset import Photo
from pgembed.media import MediaPolicy, MediaReader

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

BATCH = 64
DILATION = 0.7  # of a GeneCIS box, as its authors' own program has it
Vectors = NDArray[np.float32]
Progress = Callable[[int, int], None]


class Kept:
    """Vectors by key, in memory and in a folder: a file for each batch, there as a whole or not at all, however a
    run ends and however many run at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._vectors: dict[str, Vectors] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(folder.glob("*.npz")):
            try:
                with np.load(file) as arrays:
                    self._vectors.update(zip(arrays["keys"].tolist(), arrays["vectors"], strict=True))
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                continue  # damaged: what it held is encoded again

    def __contains__(self, key: str) -> bool:
        return key in self._vectors

    def __getitem__(self, key: str) -> Vectors:
        return self._vectors[key]

    def add(self, keys: Sequence[str], vectors: Vectors) -> None:
        """Keep vectors ``(n, dim)`` under n keys."""
        name = fingerprint_of(*keys)[:24]
        with tempfile.NamedTemporaryFile(dir=self._folder, suffix=".part", delete=False) as file:
            np.savez(file, keys=np.array(keys), vectors=vectors.astype(np.float32))
        Path(file.name).replace(self._folder / f"{name}.npz")
        self._vectors.update(zip(keys, vectors, strict=True))


class Store:
    """The vectors of one encoder below a folder, in one of its fingerprint's name. Raises UnsupportedModality."""

    def __init__(self, encoder: Encoder, folder: Path) -> None:
        for modality in ("text", "image"):
            if modality not in encoder.modalities:
                raise UnsupportedModality(
                    f"Encoder '{encoder.spec}' takes no {modality}.",
                    "Composed retrieval needs one of both in one space.",
                )
        self.encoder = encoder
        self.folder = folder / fingerprint_of(encoder.fingerprint)[:16]

    def texts(
        self, texts: Sequence[str], on_progress: Progress | None = None
    ) -> tuple[dict[str, Vectors], dict[str, str]]:
        """The vectors of captions, encoded as queries, and why those without one cannot be encoded."""
        kept = Kept(self.folder / "texts")
        faults: dict[str, str] = {}
        new = [text for text in dict.fromkeys(texts) if text not in kept]
        for start in range(0, len(new), BATCH):
            batch = new[start : start + BATCH]
            try:
                kept.add(batch, self.encoder.encode_text(batch, role="query"))
            except InvalidInput:  # one of them is at fault: the others are encoded alone
                for text in batch:
                    try:
                        kept.add([text], self.encoder.encode_text([text], role="query"))
                    except InvalidInput as error:
                        faults[text] = error.message
            if on_progress is not None:
                on_progress(start + len(batch), len(new))
        return {text: kept[text] for text in dict.fromkeys(texts) if text not in faults}, faults

    def photos(
        self, photos: Sequence[Photo], role: Role, on_progress: Progress | None = None
    ) -> tuple[dict[Photo, Vectors], dict[Photo, str]]:
        """The vectors of pictures, and why those without one cannot be read."""
        if type(self.encoder).embed_query_pixels is Encoder.embed_query_pixels:
            role = "document"  # queries are encoded as rows are: once is enough
        kept = Kept(self.folder / f"pictures-{role}")
        keys: dict[Photo, str] = {}
        unread: dict[Photo, str] = {}
        for photo in dict.fromkeys(photos):
            try:
                facts = photo.path.stat()
            except OSError as error:
                unread[photo] = f"{photo.path}: {error.strerror or error}"
                continue
            keys[photo] = f"{photo.path.resolve()}|{facts.st_size}|{facts.st_mtime_ns}|{photo.box}"
        new = [photo for photo, key in keys.items() if key not in kept]
        done = 0
        for batch, opened in _opened(new):
            read = [(photo, each) for photo, each in zip(batch, opened, strict=True) if not isinstance(each, str)]
            unread.update((photo, each) for photo, each in zip(batch, opened, strict=True) if isinstance(each, str))
            if read:
                pictures = [each for _, each in read if not isinstance(each, str)]
                kept.add([keys[photo] for photo, _ in read], self.encoder.encode_image(pictures, role=role))
            done += len(batch)
            if on_progress is not None:
                on_progress(done, len(new))
        return {photo: kept[key] for photo, key in keys.items() if photo not in unread}, unread


def _opened(photos: Sequence[Photo]) -> Iterator[tuple[Sequence[Photo], list[Picture | str]]]:
    """The pictures by batches, one batch decoded ahead of the one that is encoded; a text says why one is not read."""
    batches = [photos[start : start + BATCH] for start in range(0, len(photos), BATCH)]
    with MediaReader(MediaPolicy(any_path=True)) as reader, ThreadPoolExecutor(2) as pool:

        def opened(photo: Photo) -> Picture | str:
            try:
                picture = reader.open(str(photo.path), "path")
            except MediaError as error:
                return f"{photo.path}: {error.message}"
            return picture if photo.box is None else dilated(picture, photo.box)

        ahead = [pool.submit(opened, photo) for photo in batches[0]] if batches else []
        for number, batch in enumerate(batches):
            current = ahead
            ahead = [
                pool.submit(opened, photo) for following in batches[number + 1 : number + 2] for photo in following
            ]
            yield batch, [future.result() for future in current]


def dilated(picture: Picture, box: tuple[float, float, float, float]) -> Picture:
    """A GeneCIS crop: the box (left, top, width, height) begins 0.7 of its width and height earlier and is 1.7 times as
    large, within the picture; then black at the sides makes it square. So the authors' own program cuts it."""
    left, top, width, height = box
    start, above = max(0.0, left - DILATION * width), max(0.0, top - DILATION * height)
    right = min(picture.width, start + (1 + DILATION) * width)
    below = min(picture.height, above + (1 + DILATION) * height)
    part = picture.crop((round(start), round(above), round(right), round(below)))
    side = max(part.size)
    square = Image.new("RGB", (side, side))
    square.paste(part, ((side - part.width) // 2, (side - part.height) // 2))
    return square
