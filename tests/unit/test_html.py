"""HTML in a real Chromium: what is shown, and what a hostile page gets: no file, no address, no time, no memory."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from PIL import Image

from pgembed.documents import chromium
from pgembed.documents.html import HtmlLimits, is_html, printed, screens
from pgembed.documents.pdf import Pdf
from pgembed.download import Downloader
from pgembed.errors import MediaError
from tests.chromium import chromium as any_chromium
from tests.conftest import NO_CHROMIUM, cannot_be_had
from tests.full_server import NotAvailable

RED = b"<svg xmlns='http://www.w3.org/2000/svg' width='99' height='99'><rect width='99' height='99' fill='red'/></svg>"


@pytest.fixture(autouse=True)
def real_chromium(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        monkeypatch.setenv(chromium.VARIABLE, any_chromium())
    except NotAvailable as reason:
        cannot_be_had(NO_CHROMIUM, reason)


class Site(HTTPServer):
    """A site on the loopback address, which notes what it is asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Site)
        self.server.asked.append(self.path)
        self.send_response(200)
        self.send_header("Content-Type", "image/svg+xml")
        self.end_headers()
        self.wfile.write(RED)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def first(found: list[bytes]) -> Image.Image:
    return Image.open(io.BytesIO(found[0])).convert("RGB")


def has_red(picture: Image.Image) -> bool:
    colours = picture.getcolors(1 << 24)
    assert colours is not None
    return any(colour == (255, 0, 0) for _, colour in colours)


@contextmanager
def nothing_left_behind() -> Iterator[None]:
    """No process and no folder of Chromium's is there afterwards."""
    yield
    folders = list(Path(os.environ.get("TMPDIR", "/tmp")).glob("pgembed-chromium-*"))
    until = time.monotonic() + 5
    while (running := processes()) and time.monotonic() < until:
        time.sleep(0.05)
    assert not running
    assert not folders


def processes() -> list[str]:
    """The command lines of the Chromiums that this process started."""
    found: list[str] = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if "pgembed-chromium-" in line:
            found.append(line[:200])
    return found


def test_a_page_is_shown_from_its_top_to_its_foot() -> None:
    bars = "<div style='height:1000px;background:red'></div><div style='height:300px;background:blue'></div>"
    page = f"<body style='margin:0'>{bars}"
    with nothing_left_behind():
        top, foot = (Image.open(io.BytesIO(each)).convert("RGB") for each in screens(page, HtmlLimits(width=640)))
    assert (top.size, foot.size) == ((640, 960), (640, 340))
    assert top.getpixel((600, 900)) == (255, 0, 0)
    assert foot.getpixel((600, 20)) == (255, 0, 0)
    assert foot.getpixel((600, 100)) == (0, 0, 255)


def test_scripts_of_the_page_itself_run() -> None:
    page = "<body><script>setTimeout(() => document.body.style.background = 'red', 50)</script>"
    assert first(screens(page)).getpixel((5, 5)) == (255, 0, 0)


def test_a_printed_page_has_its_words_in_all_letters() -> None:
    page = (
        "<meta charset=utf-8><h1>Größe</h1><p>Ωμέγα и Москва, \U0001d538</p>"
        "<p style='break-before:page'>The second page</p>"
    )
    with Pdf(printed(page.encode())) as document:
        assert document.pages == 2
        found = [word.text for word in document.words(1)]
        assert found[0] == "Größe"
        assert "Ωμέγα и Москва" in found[1]
        assert [word.text for word in document.words(2)] == ["The second page"]


def test_nothing_is_asked_for_and_no_file_is_read(site: Site, tmp_path: Path) -> None:
    (tmp_path / "red.svg").write_bytes(RED)
    file = (tmp_path / "red.svg").as_uri()
    hostile = f"""<body style='background:white'>
        <img src='{site.url}/picture'><img src='{file}'><link rel=stylesheet href='{site.url}/style'>
        <link rel=prefetch href='{site.url}/prefetch'><link rel=preconnect href='{site.url}'>
        <iframe src='{site.url}/frame'></iframe><iframe src='{file}'></iframe><object data='{file}'></object>
        <script src='{site.url}/script'></script>
        <style>@import url({site.url}/import); body {{ background-image: url({file}) }}</style>
        <script>
            fetch('{site.url}/fetch').catch(e => 0); navigator.sendBeacon('{site.url}/beacon', 'x');
            fetch('{file}').then(() => document.body.style.background = 'red', e => 0);
            try {{ new WebSocket('ws://127.0.0.1:{site.server_port}/socket') }} catch (e) {{}}
            try {{ new Worker(URL.createObjectURL(new Blob(["fetch('{site.url}/worker')"]))) }} catch (e) {{}}
            try {{ window.open('{site.url}/window') }} catch (e) {{}}
            const ice = [{{urls: 'stun:127.0.0.1:{site.server_port}'}}];
            new RTCPeerConnection({{iceServers: ice}}).createDataChannel('x');
            setTimeout(() => location = '{site.url}/elsewhere', 20);
            setTimeout(() => location = '{file}', 60);
        </script>"""
    with nothing_left_behind():
        shown = first(screens(hostile))
    assert site.asked == []
    assert not has_red(shown)
    assert shown.getpixel((1200, 900)) == (255, 255, 255)  # it is where it was


def test_what_a_page_names_is_fetched_where_that_is_switched_on(site: Site) -> None:
    asked: list[str] = []

    def fetch(url: str) -> bytes:
        asked.append(url)
        return RED if url.endswith(".svg") else b"body { background: rgb(0, 255, 0) }"

    page = "<!doctype html><link rel=stylesheet href=style.css><img src=/picture.svg>"
    plain = first(screens(page, url="https://shop.example/a/b.html", fetch=fetch))
    assert plain.getpixel((1200, 900)) == (0, 255, 0)
    assert {"https://shop.example/a/style.css", "https://shop.example/picture.svg"} <= set(asked)


def test_private_addresses_are_refused_even_then(site: Site) -> None:
    private = Downloader(allow_http=True, allow_private=False, max_bytes=10**6, timeout=5, max_redirects=3)
    picture = f"<img src='{site.url}/x.svg'>"
    assert not has_red(first(screens(picture, url="http://page.invalid/", fetch=private.get)))
    assert site.asked == []
    allowed = Downloader(allow_http=True, allow_private=True, max_bytes=10**6, timeout=5, max_redirects=3)
    screens(picture, url="http://page.invalid/", fetch=allowed.get)
    assert site.asked  # the same page does ask, where it may


@pytest.mark.parametrize(
    "page",
    [
        "<script>while (true) {}</script>",
        "<script>setTimeout(() => { while (true) {} }, 100)</script>",
        "<script>while (true) alert('again')</script>",
        "<script>while (true) location = 'https://elsewhere.invalid/' + Math.random()</script>",
    ],
)
def test_a_page_that_never_ends_is_given_up(page: str) -> None:
    began = time.monotonic()
    with nothing_left_behind(), pytest.raises(MediaError, match=r"The HTML page .* was not shown within 4 s"):
        screens(page, HtmlLimits(seconds=4))
    assert time.monotonic() - began < 10


def test_dialogs_and_endless_timers_stop_nothing() -> None:
    page = """<body style='background:red' onbeforeunload='return 1'><script>
        alert('a'); confirm('b'); prompt('c'); print();
        setInterval(() => fetch('https://elsewhere.invalid/').catch(e => 0), 5);
        </script>"""
    assert first(screens(page)).getpixel((600, 600)) == (255, 0, 0)


def test_a_page_gets_no_more_memory_than_it_may() -> None:
    arrays = """<body style='background:blue'><script>
        const all = []; try { for (let i = 0; i < 256; i++) all.push(new Uint8Array(1 << 24).fill(1)) }
        catch (e) { document.body.style.background = 'red' }</script>"""  # 4 GB
    assert first(screens(arrays)).getpixel((600, 600)) == (255, 0, 0)
    objects = "<script>const all = []; while (true) all.push({name: [Math.random(), Math.random()]})</script>"
    with nothing_left_behind(), pytest.raises(MediaError, match="ended the process of Chromium that showed it"):
        screens(objects, HtmlLimits(seconds=60))


@pytest.mark.parametrize(
    ("page", "limits", "message"),
    [
        (
            "<div style='height:1000000px'>",
            HtmlLimits(),
            r"is 1,000,0\d\d pixels long, and 48,000 are shown. Split it.",
        ),
        ("<p>" + "x" * 2000, HtmlLimits(max_bytes=1000), "the limit is 1,000"),
    ],
)
def test_what_is_too_large_is_refused(page: str, limits: HtmlLimits, message: str) -> None:
    with pytest.raises(MediaError, match=message):
        screens(page, limits)


def test_without_a_chromium_it_is_told_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(chromium.VARIABLE, "/nowhere/chromium")
    with pytest.raises(MediaError, match="PGEMBED_CHROMIUM is '/nowhere/chromium', which is no program"):
        screens("<p>x")
    monkeypatch.delenv(chromium.VARIABLE)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MediaError, match="apt-get install chromium; or name its path in PGEMBED_CHROMIUM") as caught:
        screens("<p>x")
    assert caught.value.transient


def test_a_chromium_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "chromium"
    program.write_text("#!/bin/sh\necho libx.so: cannot open shared object file >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv(chromium.VARIABLE, str(program))
    with nothing_left_behind(), pytest.raises(MediaError, match=r"Chromium ended while .*libx\.so: cannot open shared"):
        screens("<p>x")


def test_html_is_told_apart() -> None:
    for page in (b"<!DOCTYPE html><p>", b"\xef\xbb\xbf <html>", b"<!-- a -->\n<HTML lang=en>", b"<body>"):
        assert is_html(page)
    for other in (b"", b"%PDF-1.4", b"\x89PNG", b"words", b"<svg xmlns='x'>", b"<htmlx>"):
        assert not is_html(other)
