"""Reading pictures: what comes out is RGB and upright, and nothing hostile gets further than a MediaError."""

from __future__ import annotations

import base64
import http.server
import io
import os
import random
import re
import socket
import socketserver
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import numpy as np
import PIL.Image
import pytest
from PIL import Image, ImageOps

from pgembed import download, inputs
from pgembed.decoding import picture as picture_module
from pgembed.errors import MediaError
from pgembed.media import Limits, MediaPolicy, MediaReader, decode_picture, open_picture, read_media
from tests import deadly

SIZE = (40, 30)
RED, WHITE = (255, 0, 0), (255, 255, 255)


def saved(picture: PIL.Image.Image, form: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


PNG = saved(Image.new("RGB", SIZE, RED))


def close(picture: PIL.Image.Image, colour: tuple[int, int, int], at: tuple[int, int] = (5, 5), off: int = 6) -> bool:
    assert picture.mode == "RGB"
    pixel = picture.getpixel(at)
    assert isinstance(pixel, tuple)
    return all(abs(a - b) <= off for a, b in zip(pixel, colour, strict=True))


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is so large, and holds next to nothing."""
    return deadly.png(width, height, zlib.compress(bytes(100)))


# ---------------------------------------------------------------------------------------------------------- decoding


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "AVIF", "TIFF", "BMP", "JPEG2000", "PPM", "ICO"])
def test_every_format_is_decoded_to_rgb(form: str) -> None:
    picture = decode_picture(saved(Image.new("RGB", SIZE, RED), form))
    assert close(picture, RED)
    assert form == "ICO" or picture.size == SIZE


@pytest.mark.parametrize(
    ("mode", "form", "colour", "expected"),
    [
        ("1", "PNG", 1, WHITE),
        ("L", "PNG", 128, (128,) * 3),
        ("LA", "PNG", (0, 0), WHITE),
        ("RGBA", "PNG", (0, 0, 0, 0), WHITE),
        ("RGBA", "PNG", (255, 0, 0, 128), (255, 127, 127)),
        ("RGBA", "WEBP", (255, 0, 0, 255), RED),
        ("CMYK", "JPEG", (0, 255, 255, 0), RED),
        ("CMYK", "TIFF", (0, 255, 255, 0), RED),
        ("YCbCr", "JPEG", (76, 85, 255), RED),
        ("I;16", "PNG", 0x8000, (128,) * 3),
        ("I;16", "TIFF", 0xFFFF, WHITE),
        ("I", "TIFF", 0x4000, (64,) * 3),
        ("I", "TIFF", 200, (200,) * 3),
        ("F", "TIFF", 0.5, (128,) * 3),
        ("F", "TIFF", float("nan"), (0, 0, 0)),
    ],
)
def test_every_mode_is_shown_as_people_see_it(
    mode: str, form: str, colour: float | tuple[int, ...], expected: tuple[int, int, int]
) -> None:
    data = saved(Image.new(mode, SIZE, colour), form)
    assert close(decode_picture(data), expected)


def test_lab_is_shown_as_people_see_it() -> None:
    lab = Image.merge("LAB", [Image.new("L", SIZE, value) for value in (138, 209, 198)])  # sRGB's red
    assert close(decode_picture(saved(lab, "TIFF")), RED)


@pytest.mark.parametrize("mode", ["L", "1", "RGB"])
def test_a_colour_that_a_file_calls_transparent_is_white(mode: str) -> None:
    black = (0, 0, 0) if mode == "RGB" else 0
    data = saved(Image.new(mode, SIZE, black), transparency=black)
    assert close(decode_picture(data), WHITE)


def test_an_alpha_channel_on_white_is_the_same_in_parts_and_as_a_whole() -> None:
    picture = Image.effect_noise((2100, 2000), 90).convert("RGB")
    picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    white = Image.new("RGBA", picture.size, "white")
    decoded = decode_picture(saved(picture, compress_level=1))
    assert decoded.tobytes() == Image.alpha_composite(white, picture).convert("RGB").tobytes()


def test_what_is_decoded_says_no_more_how_it_is_turned() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    decoded = decode_picture(saved(Image.new("RGB", SIZE), "JPEG", exif=exif))
    assert decoded.size == SIZE[::-1]
    assert 0x0112 not in decoded.getexif()
    assert decoded.info == {}


def test_sixteen_bits_keep_their_gradient() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None, :].repeat(4, axis=0)
    picture = decode_picture(saved(Image.fromarray(ramp)))
    assert np.asarray(picture)[0, :, 0] == pytest.approx(np.arange(256), abs=1)


def test_palette_with_a_transparent_colour_is_on_white() -> None:
    picture = Image.new("P", SIZE, 1)
    picture.putpalette([0, 0, 255, 255, 0, 0])
    picture.paste(0, (0, 0, 10, 10))
    for data in (saved(picture, transparency=0), saved(picture, "GIF", transparency=0)):
        decoded = decode_picture(data)
        assert close(decoded, WHITE, (5, 5))
        assert close(decoded, RED, (20, 20))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(form: str, orientation: int) -> None:
    upright = Image.new("RGB", SIZE, "white")
    upright.paste("red", (0, 0, 20, 15))
    undo = {
        2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90", 7: "TRANSVERSE",
        8: "ROTATE_270",
    }  # fmt: skip
    taken = upright
    if orientation > 1:
        taken = upright.transpose(Image.Transpose[undo[orientation]])
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_picture(saved(taken, form, exif=exif))
    assert decoded.size == SIZE
    assert close(decoded, RED, (5, 5), 40)
    assert close(decoded, WHITE, (35, 25), 40)
    assert close(decoded, WHITE, (35, 5), 40)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_heic_is_decoded_and_turned_upright_where_its_plugin_is_there(orientation: int) -> None:
    heif = pytest.importorskip("pillow_heif")
    exif = Image.Exif()
    exif[0x0112] = orientation
    taken = Image.new("RGB", (64, 48), "white")
    taken.paste("red", (0, 0, 32, 24))
    file = io.BytesIO()
    heif.from_pillow(taken).save(file, exif=exif.tobytes(), quality=90)
    decoded = decode_picture(file.getvalue())
    right = ImageOps.exif_transpose(Image.open(io.BytesIO(saved(taken, exif=exif))))
    assert decoded.size == right.size
    assert np.abs(np.asarray(decoded).astype(int) - np.asarray(right)).mean() < 8


def test_heic_without_its_plugin_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_module, "register_heic", lambda: False)
    with pytest.raises(MediaError, match=r"a HEIC picture\. Install the extra: pip install .*\[heic\]"):
        decode_picture(b"\0\0\0\x18ftypmif1" + bytes(20))


def test_avif_without_its_plugin_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(Image.new("RGB", SIZE, RED), "AVIF")
    monkeypatch.delitem(Image.OPEN, "AVIF")
    with pytest.raises(MediaError, match=r"an AVIF picture\. Install a Pillow that reads AVIF: 11\.3 or newer\."):
        decode_picture(data)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_broken_exif_is_ignored() -> None:
    data = saved(Image.new("RGB", SIZE, RED), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0")
    assert close(decode_picture(data), RED)


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_an_animation(form: str) -> None:
    frames = [Image.new("RGB", SIZE, colour) for colour in ("red", "lime", "blue")]
    assert close(decode_picture(saved(frames[0], form, save_all=True, append_images=frames[1:])), RED)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"just some words, no picture", "looks like text"),
        ("words in späti".encode() * 100, "looks like text"),
        (b"%PDF-1.7 ...", r"a PDF\. Draw its pages"),
        (b"<?xml version='1.0'?>\n<!-- made by hand -->\n<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
        (b"<!DOCTYPE html><html></html>", "an HTML page"),
        (b"PK\x03\x04abc", "a ZIP archive"),
        (b"\0\0\0\x18ftypheic" + bytes(20), "a HEIC picture"),
        (b"\0\0\0\x1cftypavif" + bytes(20), r"an AVIF picture\. It is broken"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", r"a JPEG XL picture\. Store it as"),
        (b"data:image/png;base64,AAAA", 'a data: URL. Keep it in a column of type text.*"as": "url"'),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "PostScript"),
        (b"\x89PNG\r\n\x1a\n", "a broken picture"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "a broken picture"),
        (bytes(range(256)), "unknown data"),
        (png_header(0, 10), "a broken picture|nothing to see"),
    ],
)
def test_what_is_no_picture_is_named(data: bytes, message: str) -> None:
    with pytest.raises(MediaError, match=message) as caught:
        decode_picture(data)
    assert not caught.value.transient
    assert f"{len(data):,} bytes" in str(caught.value)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "AVIF"])
def test_truncated_pictures_are_refused(form: str) -> None:
    noise = Image.effect_noise((200, 200), 90).convert("RGB")
    data = saved(noise, form)
    with pytest.raises(MediaError) as caught:
        decode_picture(data[: len(data) // 2])
    assert not caught.value.transient


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(20_000, 5_001), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_a_bomb_is_refused_by_its_header(size: tuple[int, int]) -> None:
    start = time.perf_counter()
    with pytest.raises(MediaError, match="pixels"):
        decode_picture(png_header(*size))
    assert time.perf_counter() - start < 0.5


SIZES = {  # where a file says how large it is, and in which form; JPEG and JPEG 2000 say the height first
    "JPEG": (rb"\xff\xc0\0\x11\x08", ">HH"),
    "GIF": (rb"\AGIF8.a|,\0\0\0\0", "<HH"),
    "BMP": (rb"\A.{18}", "<ii"),
    "JPEG2000": (rb"ihdr", ">II"),
    "AVIF": (rb"ispe\0{4}", ">II"),
}


def header(form: str, width: int, height: int) -> bytes:
    """A small file that says it is so large."""
    match form:
        case "PPM":
            return b"P6 %d %d 255 " % (width, height) + bytes(100)
        case "WEBP":
            data = saved(Image.new("RGB", SIZE, RED), form, lossless=True)
            return data[:21] + struct.pack("<I", width - 1 | height - 1 << 14) + data[25:]
        case "TIFF":
            data = saved(Image.new("RGB", SIZE, RED), form)
            for tag, number in ((256, width), (257, height)):
                entry = struct.pack("<HHII", tag, 4, 1, number)
                where = re.escape(entry[:2]) + rb"[\x03\x04]\0\x01\0\0\0.{4}"
                data = re.sub(where, lambda _, entry=entry: entry, data, flags=re.DOTALL)
            return data
        case "ICO of PNG" | "ICO of BMP":
            dib = struct.pack("<IiiHHIIiiII", 40, width, 2 * height, 1, 32, 0, 0, 0, 0, 0, 0) + bytes(1000)
            inner = dib if form.endswith("BMP") else png_header(width, height)
            return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(inner), 22) + inner
        case _:
            where, how = SIZES[form]
            size = struct.pack(how, *((height, width) if "JPEG" in form else (width, height)))
            data = saved(Image.new("RGB", SIZE, RED), form)
            return re.sub(b"(" + where + b").{%d}" % len(size), lambda m: m[1] + size, data, flags=re.DOTALL)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(12_000, 10_000), (16_000, 12_000)])
@pytest.mark.parametrize("form", [*SIZES, "PPM", "WEBP", "TIFF", "ICO of PNG", "ICO of BMP"])
def test_a_bomb_of_any_format_is_refused_by_its_header(form: str, size: tuple[int, int]) -> None:
    """Whether it is more than the limit, or more than Pillow opens at all."""
    start = time.perf_counter()
    with pytest.raises(MediaError, match=r"\d x 1\d{4} pixels, more than|more pixels than Pillow opens"):
        decode_picture(header(form, *size))
    assert time.perf_counter() - start < 0.5


def test_limits_are_those_asked_for() -> None:
    assert decode_picture(PNG, Limits(max_pixels=1200)).size == SIZE
    with pytest.raises(MediaError, match="40 x 30 pixels, more than 1,199"):
        decode_picture(PNG, Limits(max_pixels=1199))
    with pytest.raises(MediaError, match="bytes or more, and the limit is 10"):
        open_picture(PNG, "bytes", MediaPolicy(limits=Limits(max_bytes=10)))


def test_a_pil_image_goes_the_same_way() -> None:
    picture = Image.new("RGBA", SIZE, (255, 0, 0, 0))
    assert close(open_picture(picture, "picture"), WHITE)
    with pytest.raises(MediaError, match="more than 10"):
        open_picture(picture, "picture", MediaPolicy(limits=Limits(max_pixels=10)))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_mutated_pictures_only_ever_raise_media_error() -> None:
    noise = Image.effect_noise((24, 24), 90).convert("RGB")
    forms = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "JPEG2000", "ICO", "AVIF", "PPM")
    chance = random.Random(5)
    for form in forms:
        whole = saved(noise, form)
        for _ in range(40):
            data = bytearray(whole)
            for _ in range(chance.randint(1, 8)):
                data[chance.randrange(min(len(data), 400))] = chance.randrange(256)
            try:
                assert decode_picture(bytes(data), Limits(max_pixels=1_000_000)).mode == "RGB"
            except MediaError:
                continue


def test_wrong_kind_is_refused() -> None:
    with pytest.raises(MediaError, match="is bytes, not path"):
        read_media(PNG, "path")
    with pytest.raises(MediaError, match="is str, not bytes"):
        read_media("a.png", "bytes")


# ------------------------------------------------------------------------------------------------------------- paths


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "media"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.png").write_bytes(PNG)
    (folder / "sub" / "b.png").write_bytes(PNG)
    (tmp_path / "secret.png").write_bytes(PNG)
    return folder


def test_paths_below_the_root_are_read(root: Path) -> None:
    (root / "link.png").symlink_to("sub/b.png")
    (root / "folder").symlink_to(root / "sub")
    policy = MediaPolicy(media_root=root)
    for source in ("a.png", "sub/b.png", "./sub//b.png", str(root / "a.png"), "link.png", "folder/b.png"):
        assert read_media(source, "path", policy) == PNG
    (root.parent / "linked").symlink_to(root)
    assert read_media("a.png", "path", MediaPolicy(media_root=root.parent / "linked")) == PNG
    assert open_picture("a.png", "path", policy).size == SIZE


def test_paths_need_a_root() -> None:
    with pytest.raises(MediaError, match="no media root is set"):
        read_media("a.png", "path")


def test_any_path_is_for_the_person_at_the_keyboard(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    for source in ("a.png", "../secret.png", str(root.parent / "secret.png")):
        assert read_media(source, "path", MediaPolicy(any_path=True)) == PNG


@pytest.mark.parametrize(
    "source",
    [
        "../secret.png",
        "sub/../../secret.png",
        "sub/../a.png",
        "/etc/passwd",
        "out.png",
        "up/secret.png",
        "/",
        "//a.png",
    ],
)
def test_paths_out_of_the_root_are_refused(root: Path, source: str) -> None:
    (root / "out.png").symlink_to(root.parent / "secret.png")
    (root / "up").symlink_to("..")
    with pytest.raises(MediaError, match="outside the media root") as caught:
        read_media(source, "path", MediaPolicy(media_root=root))
    assert not caught.value.transient


def test_a_neighbour_with_the_same_beginning_is_outside(root: Path) -> None:
    (root.parent / "media2").mkdir()
    (root.parent / "media2" / "a.png").write_bytes(PNG)
    with pytest.raises(MediaError, match="outside"):
        read_media(str(root.parent / "media2" / "a.png"), "path", MediaPolicy(media_root=root))


def test_a_link_put_in_after_the_check_is_not_followed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.path.realpath

    def swapped(path: str | Path) -> str:
        found = real(path)
        if found.endswith("sub/b.png"):  # the race: a folder becomes a link out, once it has been resolved
            (root / "sub").rename(root / "old")
            (root / "sub").symlink_to(root.parent)
            (root.parent / "b.png").write_bytes(PNG)
        return found

    monkeypatch.setattr(os.path, "realpath", swapped)
    with pytest.raises(MediaError, match="could not be opened"):
        read_media("sub/b.png", "path", MediaPolicy(media_root=root))


def test_pipes_devices_and_folders_are_refused_without_hanging(root: Path) -> None:
    os.mkfifo(root / "pipe")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(root / "socket"))
    for source in ("pipe", "socket", "sub", ""):
        with pytest.raises(MediaError, match="a folder, a pipe or a device"):
            read_media(source, "path", MediaPolicy(media_root=root))
    with pytest.raises(MediaError, match="a folder, a pipe or a device"):
        read_media("/dev/zero", "path", MediaPolicy(any_path=True))
    listener.close()


def test_a_missing_file_may_come_later(root: Path) -> None:
    policy = MediaPolicy(media_root=root)
    with pytest.raises(MediaError, match=r"'later.png' could not be opened: No such file") as caught:
        read_media("later.png", "path", policy)
    assert caught.value.transient
    for source, message in (("a.png/b", "Not a directory"), ("x" * 300, "too long"), ("a\0b", "null")):
        with pytest.raises(MediaError, match=message) as caught:
            read_media(source, "path", policy)
        assert not caught.value.transient


def test_a_file_over_the_limit_is_not_read(root: Path) -> None:
    (root / "huge.png").touch()
    os.truncate(root / "huge.png", 2**40)
    with pytest.raises(MediaError, match="1,099,511,627,776 bytes"):
        read_media("huge.png", "path", MediaPolicy(media_root=root))


def test_no_descriptor_is_left_open(root: Path) -> None:
    policy = MediaPolicy(media_root=root)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for source in ("a.png", "sub/b.png", "sub", "later.png", "../x") * 20:
        try:
            read_media(source, "path", policy)
        except MediaError:
            continue
    after = len(os.listdir("/proc/self/fd")) if before else 0
    assert after == before


# -------------------------------------------------------------------------------------------------------------- URLs

# -------------------------------------------------------------------------------------------------------- data: URLs

CODED = base64.b64encode(PNG).decode()


@pytest.mark.parametrize(
    "source",
    [
        f"data:image/png;base64,{CODED}",
        f"DATA:;BASE64,{CODED.rstrip('=')}",
        f"data:image/png;name=a.png;base64,{CODED[:40]}\n {CODED[40:]}",
        f"data:image/png;base64,{quote(CODED, safe='')}",
        f"data:image/png;base64,{base64.urlsafe_b64encode(PNG).decode()}",
        f"data:image/png,{quote(PNG)}",
    ],
)
def test_data_urls_are_read_without_permission(source: str) -> None:
    assert read_media(source, "url") == PNG
    image = inputs.Image(source)
    assert image.kind == "url"
    assert open_picture(image.source, image.kind).size == SIZE
    assert len(repr(image)) < 100


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("data:image/png;base64", "without a comma. Write data:image/png;base64,"),
        ("data:image/png;base64,§", "not valid Base64"),
        ("data:image/png;base64,AAAAA", "not valid Base64"),
        ("data:,", "is empty"),
        (
            f"data:image/png;base64,{base64.b64encode(bytes(1001)).decode()}",
            "'data:image/png;base64,…' has 1,001 bytes",
        ),
        (f"data:,{'x' * 4000}", "'data:,…' has 1,333 bytes or more, and the limit is 1,000"),
        ("data:text/plain,words", "looks like text"),
    ],
)
def test_a_data_url_that_holds_no_picture_is_refused(source: str, message: str) -> None:
    with pytest.raises(MediaError, match=message) as caught:
        open_picture(source, "url", MediaPolicy(limits=Limits(max_bytes=1000)))
    assert not caught.value.transient
    assert len(str(caught.value)) < 200


Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    request_queue_size = 64
    answers: dict[str, Answer]
    asked: list[str]
    connections: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def get_request(self) -> tuple[socket.socket, object]:
        self.connections += 1
        return super().get_request()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        try:
            self.server.answers.get(self.path.partition("?")[0], body(b"", 404))(self)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


def body(data: bytes, status: int = 200) -> Answer:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    return answer


def redirect(to: str) -> Answer:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", to)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def drip(data: bytes, pause: float) -> Answer:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        for byte in data:
            handler.wfile.write(bytes([byte]))
            handler.wfile.flush()
            time.sleep(pause)
        handler.close_connection = True

    return answer


def endless(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    while True:
        handler.wfile.write(b"1000\r\n" + bytes(4096) + b"\r\n")


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        server.asked = []
        server.answers = {"/a.png": body(PNG)}
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()


LOCAL = MediaPolicy(allow_urls=True, allow_http=True, allow_private=True, limits=Limits(timeout=5, max_bytes=100_000))


def test_a_url_is_read_where_that_is_allowed(server: Server) -> None:
    assert read_media(f"{server.url}/a.png?size=2", "url", LOCAL) == PNG
    assert server.asked == ["/a.png?size=2"]
    assert open_picture(f"{server.url}/a.png", "url", LOCAL).size == SIZE


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (MediaPolicy(), "switched off"),
        (MediaPolicy(allow_urls=True, allow_private=True), "only https: is read"),
        (MediaPolicy(allow_urls=True, allow_http=True), r"address 127\.0\.0\.1, which is private"),
    ],
)
def test_what_is_not_allowed_is_not_asked(server: Server, policy: MediaPolicy, message: str) -> None:
    with pytest.raises(MediaError, match=message) as caught:
        read_media(f"{server.url}/a.png", "url", policy)
    assert not caught.value.transient
    assert server.connections == 0


@pytest.mark.parametrize(
    "host",
    ["localhost", "127.1", "2130706433", "0x7f000001", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254"],
)
def test_spellings_of_this_machine_are_seen_through(host: str) -> None:
    policy = MediaPolicy(allow_urls=True, allow_http=True)
    with pytest.raises(MediaError, match=r"private or reserved|could not be fetched: host"):
        read_media(f"http://{host}/", "url", policy)


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "127.0.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "100.100.100.200",
        "0.0.0.0",
        "192.0.0.192",
        "168.63.129.16",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "198.18.0.1",
        "::1",
        "::",
        "fe80::1",
        "fc00::1",
        "fd00:ec2::254",
        "fec0::1",
        "ff0e::1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::",
        "2001:db8::1",
        "2001::1",
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not download.is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_addresses_that_are_public(address: str) -> None:
    assert download.is_public(address)


def test_a_redirect_is_followed(server: Server) -> None:
    server.answers |= {"/1": redirect("/2"), "/2": redirect(f"{server.url}/a.png")}
    assert read_media(f"{server.url}/1", "url", LOCAL) == PNG


def test_a_redirect_to_a_private_address_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first address counts as public here, the one that it leads to does not, by name as by number."""
    real = download.is_public
    monkeypatch.setattr(download, "is_public", lambda address: address == "127.0.0.1" or real(address))
    monkeypatch.setattr(socket, "getaddrinfo", resolver({"inside.example": "10.1.2.3"}))
    policy = MediaPolicy(allow_urls=True, allow_http=True, limits=Limits(timeout=5))
    assert read_media(f"{server.url}/a.png", "url", policy) == PNG
    for target, address in (
        ("http://169.254.169.254/latest/meta-data", "169.254.169.254"),
        ("http://inside.example/a.png", "10.1.2.3"),
        ("http://[::ffff:10.0.0.7]/", "10.0.0.7"),
    ):
        server.answers["/out"] = redirect(target)
        with pytest.raises(MediaError, match=f"{address}, which is private or reserved") as caught:
            read_media(f"{server.url}/out", "url", policy)
        assert not caught.value.transient


def resolver(names: dict[str, str]) -> Callable[..., object]:
    real = socket.getaddrinfo

    def getaddrinfo(host: str, *rest: object, **options: object) -> object:
        return real(names.get(host, host), *rest, **options)  # type: ignore[arg-type]

    return getaddrinfo


def test_the_address_checked_is_the_address_connected_to(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name whose answer changes between the look-ups gains nothing: there is one look-up."""
    asked: list[str] = []
    real = socket.getaddrinfo

    def changing(host: str, *rest: object, **options: object) -> object:
        if host != "changing.example":
            return real(host, *rest, **options)  # type: ignore[arg-type]
        asked.append(host)
        return real("203.0.113.5" if len(asked) > 1 else "127.0.0.1", *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", changing)
    monkeypatch.setattr(download, "is_public", lambda address: address == "127.0.0.1")
    policy = MediaPolicy(allow_urls=True, allow_http=True, limits=Limits(timeout=5))
    assert read_media(f"http://changing.example:{server.server_port}/a.png", "url", policy) == PNG
    assert asked == ["changing.example"]


def test_of_a_hosts_addresses_only_the_public_ones_are_connected_to(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A private one that the name also has is passed over, first or last, and not tried where the public one fails."""
    connected: list[object] = []
    addresses = ["127.0.0.1", "127.0.0.2"]
    connect, resolve = socket.create_connection, socket.getaddrinfo

    def noted(address: tuple[str, int], *rest: object, **options: object) -> socket.socket:
        connected.append(address[0])
        return connect(address, *rest, **options)  # type: ignore[arg-type]

    def both(host: str, port: int, *rest: object, **options: object) -> list[object]:
        names = addresses if host == "both.example" else [host]
        return [found for name in names for found in resolve(name, port, *rest, **options)]  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "create_connection", noted)
    monkeypatch.setattr(socket, "getaddrinfo", both)
    monkeypatch.setattr(download, "is_public", lambda address: address == "127.0.0.1")
    policy = MediaPolicy(allow_urls=True, allow_http=True, limits=Limits(timeout=5))
    for _ in range(2):
        connected.clear()
        addresses.reverse()
        assert read_media(f"http://both.example:{server.server_port}/a.png", "url", policy) == PNG
        with pytest.raises(MediaError, match="could not be fetched"):
            read_media("http://both.example:1/a.png", "url", policy)
        assert connected == ["127.0.0.1"] * 2


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://127.0.0.1/a", "http://[::g]/", "data:,a"])
def test_a_redirect_to_something_else_is_refused(server: Server, to: str) -> None:
    server.answers["/out"] = redirect(to)
    with pytest.raises(MediaError, match=r"only https: is read|without a host|not a valid URL"):
        read_media(f"{server.url}/out", "url", LOCAL)


def test_redirects_end(server: Server) -> None:
    server.answers["/round"] = redirect("/round")
    with pytest.raises(MediaError, match="redirected more than 3 times"):
        read_media(f"{server.url}/round", "url", LOCAL)
    assert len(server.asked) == 4


@pytest.mark.parametrize(("status", "transient"), [(404, True), (429, True), (503, True), (403, False), (204, False)])
def test_other_answers(server: Server, status: int, transient: bool) -> None:
    server.answers["/no"] = body(b"", status)
    with pytest.raises(MediaError, match=f"HTTP {status}") as caught:
        read_media(f"{server.url}/no", "url", LOCAL)
    assert caught.value.transient is transient


ETAG, DATE = ("ETag", "If-None-Match"), ("Last-Modified", "If-Modified-Since")


def unless_unchanged(
    data: bytes, tag: str, asked: list[str | None], by: tuple[str, str] = ETAG, **headers: str
) -> Answer:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        asked.append(handler.headers.get(by[1]))
        unchanged = asked[-1] == tag
        handler.send_response(304 if unchanged else 200)
        handler.send_header(by[0], tag)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "0" if unchanged else str(len(data)))
        handler.end_headers()
        if not unchanged:
            handler.wfile.write(data)

    return answer


@pytest.mark.parametrize(
    ("by", "before", "after"),
    [(ETAG, '"one"', '"two"'), (DATE, "Sun, 06 Nov 1994 08:49:37 GMT", "Mon, 07 Nov 1994 08:49:37 GMT")],
    ids=["ETag", "date"],
)
def test_an_unchanged_picture_is_not_sent_again_and_a_changed_one_is(
    server: Server, by: tuple[str, str], before: str, after: str
) -> None:
    asked: list[str | None] = []
    server.answers["/a.png"] = unless_unchanged(PNG, before, asked, by)
    with MediaReader(LOCAL) as reader:
        for _ in range(3):
            assert reader.read(f"{server.url}/a.png", "url") == PNG
        assert asked == [None, before, before]
        server.answers["/a.png"] = unless_unchanged(b"other", after, asked, by)
        for _ in range(2):
            assert reader.read(f"{server.url}/a.png", "url") == b"other"
        assert asked[3:] == [before, after]


def test_what_is_not_to_be_kept_is_asked_for_as_new(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_KEPT_BYTES", 8 * len(PNG))
    asked: list[str | None] = []
    server.answers["/secret"] = unless_unchanged(PNG, '"one"', asked, Cache_Control="private, No-Store")
    server.answers["/large"] = unless_unchanged(PNG + b"x", '"one"', asked)
    server.answers |= {f"/{n}": unless_unchanged(PNG, '"one"', asked) for n in range(9)}
    with MediaReader(LOCAL) as reader:
        for path in ("secret", "secret", "large", "large"):
            reader.read(f"{server.url}/{path}", "url")
        assert asked == [None] * 4
        for path in (*range(9), 8, 0):
            reader.read(f"{server.url}/{path}", "url")
        assert asked[4:] == [None] * 9 + ['"one"', None]


def test_not_modified_without_having_been_asked_is_an_error(server: Server) -> None:
    server.answers["/no"] = body(b"", 304)
    with pytest.raises(MediaError, match="HTTP 304"):
        read_media(f"{server.url}/no", "url", LOCAL)


def test_a_long_body_is_cut_off(server: Server) -> None:
    server.answers |= {"/long": body(bytes(100_001)), "/endless": endless, "/fits": body(bytes(100_000))}
    assert len(read_media(f"{server.url}/fits", "url", LOCAL)) == 100_000
    for path in ("/long", "/endless"):
        with pytest.raises(MediaError, match="the limit is 100,000") as caught:
            read_media(f"{server.url}{path}", "url", LOCAL)
        assert not caught.value.transient


@pytest.mark.parametrize(
    "answer",
    [
        drip(b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 20, 0.05),
        drip(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n" + bytes(99), 0.05),
        lambda _: time.sleep(3),
    ],
)
def test_a_slow_server_holds_nobody(server: Server, answer: Answer) -> None:
    server.answers["/slow"] = answer
    start = time.perf_counter()
    policy = MediaPolicy(allow_urls=True, allow_http=True, allow_private=True, limits=Limits(timeout=0.5))
    with pytest.raises(MediaError, match=r"did not arrive within 0\.5 s") as caught:
        read_media(f"{server.url}/slow", "url", policy)
    assert caught.value.transient
    assert time.perf_counter() - start < 1.5


def test_a_resolver_that_never_answers_holds_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(1) or [])
    policy = MediaPolicy(allow_urls=True, limits=Limits(timeout=0.2))
    with pytest.raises(MediaError, match="did not arrive") as caught:
        read_media("https://example.org/a.png", "url", policy)
    assert caught.value.transient


def test_network_failures_are_transient(server: Server) -> None:
    def half(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nabc")
        handler.close_connection = True

    server.answers |= {"/half": half, "/noise": drip(b"no HTTP at all\r\n\r\n", 0)}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}/"
    for url in (f"{server.url}/half", f"{server.url}/noise", closed, "http://name.invalid/"):
        with pytest.raises(MediaError, match="could not be fetched") as caught:
            read_media(url, "url", LOCAL)
        assert caught.value.transient


@pytest.mark.parametrize(
    "url", ["https://me:SECRET@127.0.0.1:9/a.png?token=SECRET#SECRET", "me:SECRET@host/?SECRET", "https://h\n/?SECRET"]
)
@pytest.mark.parametrize("policy", [LOCAL, MediaPolicy()])
def test_errors_hold_no_credentials(url: str, policy: MediaPolicy) -> None:
    with pytest.raises(MediaError) as caught:
        read_media(url, "url", policy)
    assert "SECRET" not in str(caught.value)


def test_a_reader_is_shared_by_threads_and_keeps_its_connections(server: Server) -> None:
    with MediaReader(LOCAL) as reader:
        for _ in range(10):
            assert reader.read(f"{server.url}/a.png", "url") == PNG
        assert server.connections == 1
        with ThreadPoolExecutor(4) as threads:
            read = list(threads.map(lambda _: reader.read(f"{server.url}/a.png", "url"), range(40)))
    assert read == [PNG] * 40
    assert server.connections <= 5
