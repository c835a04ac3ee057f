"""The scan of a person's pictures: what becomes a row, and what is left out and why."""

from __future__ import annotations

import os
from datetime import datetime
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image as Pictures

from pgembed.demo.folder import FolderPicture, Skipped, picture_files, scan
from pgembed.errors import InvalidInput
from pgembed.media import Limits


def save(path: Path, size: tuple[int, int] = (40, 20), exif: Pictures.Exif | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pictures.new("RGB", size, "red").save(path, exif=exif or Pictures.Exif())
    return path


def scanned(folder: Path, limits: Limits | None = None) -> dict[str, FolderPicture | Skipped]:
    return {found.path: found for found in scan(folder, picture_files(folder), limits)}


def test_every_picture_below_the_folder_becomes_a_row(tmp_path: Path) -> None:
    for name in ("a.jpg", "b/c.PNG", "b/d/e.webp", "f.gif", "g.tiff"):
        save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    found = scanned(tmp_path)
    assert sorted(found) == ["a.jpg", "b/c.PNG", "b/d/e.webp", "f.gif", "g.tiff"]
    assert all(isinstance(one, FolderPicture) and (one.width, one.height) == (40, 20) for one in found.values())


def test_exif_gives_time_camera_and_the_upright_size(tmp_path: Path) -> None:
    exif = Pictures.Exif()
    exif[0x0112], exif[0x010F], exif[0x0110] = 6, "Canon\0\0", "Canon EOS R6"
    exif.get_ifd(0x8769)[0x9003] = "2024:07:14 18:30:05"
    path = save(tmp_path / "a.jpg", exif=exif)
    assert scanned(tmp_path)["a.jpg"] == FolderPicture(
        "a.jpg", datetime(2024, 7, 14, 18, 30, 5), 20, 40, path.stat().st_size, "Canon EOS R6"
    )


@pytest.mark.parametrize("moment", ["0000:00:00 00:00:00", "yesterday", "", "2024:13:01 00:00:00"])
def test_a_time_that_is_none_is_left_out(tmp_path: Path, moment: str) -> None:
    exif = Pictures.Exif()
    exif.get_ifd(0x8769)[0x9003] = moment
    save(tmp_path / "a.jpg", exif=exif)
    found = scanned(tmp_path)["a.jpg"]
    assert isinstance(found, FolderPicture)
    assert found.taken_at is None


def test_unreadable_files_are_skipped_with_a_reason(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.jpg", (400, 400)).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "page.jpg").write_text("<!doctype html><p>not found</p>")
    (tmp_path / "large.jpg").write_bytes(bytes(len(whole) + 1))
    (tmp_path / "lost.jpg").symlink_to(tmp_path / "nowhere.jpg")
    found = scanned(tmp_path, Limits(max_bytes=len(whole)))
    assert isinstance(found.pop("whole.jpg"), FolderPicture)
    reasons = {path: one.reason for path, one in found.items() if isinstance(one, Skipped)}
    assert sorted(reasons) == ["cut.jpg", "empty.png", "large.jpg", "lost.jpg", "page.jpg"]
    assert "HTML" in reasons["page.jpg"]
    assert "empty" in reasons["empty.png"]
    assert "more than" in reasons["large.jpg"]


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    save(tmp_path / "wide.png", (2000, 100))
    found = scanned(tmp_path, Limits(max_pixels=100_000))["wide.png"]
    assert isinstance(found, Skipped)
    assert "100,000" in found.reason


def test_links_that_lead_out_are_not_followed_and_inner_ones_are(tmp_path: Path) -> None:
    outside = save(tmp_path / "outside" / "secret.jpg")
    folder = tmp_path / "pictures"
    inner = save(folder / "a.jpg")
    (folder / "out.jpg").symlink_to(outside)
    (folder / "in.jpg").symlink_to(inner)
    (folder / "all").symlink_to(outside.parent)
    found = scanned(folder)
    assert sorted(found) == ["a.jpg", "in.jpg", "out.jpg"]
    assert isinstance(found["out.jpg"], Skipped)
    assert isinstance(found["in.jpg"], FolderPicture)


def test_hidden_folders_are_left_out(tmp_path: Path) -> None:
    save(tmp_path / ".thumbnails" / "a.jpg")
    assert picture_files(tmp_path) == []


def test_the_demos_own_folder_is_left_out(tmp_path: Path) -> None:
    save(tmp_path / "a.jpg")
    save(tmp_path / "demo" / "contact-sheet.png")
    assert picture_files(tmp_path, leave_out=tmp_path / "demo") == ["a.jpg"]


def test_a_name_that_postgres_cannot_hold_is_skipped(tmp_path: Path) -> None:
    data = BytesIO()
    Pictures.new("RGB", (4, 4)).save(data, "PNG")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")).write_bytes(data.getvalue())
    (found,) = scan(tmp_path, picture_files(tmp_path))
    assert isinstance(found, Skipped)
    assert "UTF-8" in found.reason
    assert found.path.encode()


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="is not a folder"):
        picture_files(save(tmp_path / "a.jpg"))
