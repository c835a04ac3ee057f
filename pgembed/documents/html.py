"""HTML as a screen shows it, or printed: a headless Chromium does either, and nothing leaves it for the network.

What a page names (pictures, styles, other pages, files) is not loaded, unless a function that fetches it is given; the
one of ``pgembed.download`` asks public addresses only, at each redirect again.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pgembed.documents.chromium import Chromium
from pgembed.errors import MediaError
from pgembed.media_errors import too_long
from pgembed.shown import shown_source

_PAGE = "https://page.invalid/"  # where a page stands that has no address: a name that never resolves
_BEGINS = re.compile(
    rb"(?i)(\xef\xbb\xbf)?\s*(<\?xml.{0,200}?>\s*)?(<!--.{0,1000}?-->\s*)*<(!doctype html|html|head|body)\b", re.DOTALL
)
_TYPES = {"Stylesheet": "text/css", "Script": "text/javascript"}  # others are known by their content
_SETTLE = 0.3  # seconds that a page which has loaded may still arrange itself
Fetch = Callable[[str], bytes]


@dataclass(frozen=True)
class HtmlLimits:
    """What one page may cost, and the screen it is shown on. ``seconds`` are for all of it."""

    width: int = 1280  # pixels, of the screen
    height: int = 960
    max_bytes: int = 8 * 1024 * 1024  # of the HTML
    max_screens: int = 50  # that it is long
    seconds: float = 30.0


def is_html(data: bytes) -> bool:
    """Whether the bytes of a file are those of an HTML page."""
    return _BEGINS.match(data[:4096]) is not None


def screens(
    html: str | bytes, limits: HtmlLimits | None = None, *, url: str | None = None, fetch: Fetch | None = None
) -> list[bytes]:
    """A page from its top to its foot as PNG files, each of one screen; the last one may be lower.

    ``url`` is where it stands, which its links are relative to; ``fetch`` gets what it names by ``http:`` or
    ``https:``, and may raise MediaError. Raises MediaError where the page is too long, or takes too long, or where
    there is no Chromium.
    """
    limits = limits or HtmlLimits()
    with _shown(html, limits, url, fetch) as page:
        size = page.call("Page.getLayoutMetrics")["cssContentSize"]
        height = max(1, math.ceil(size["height"]))
        count = math.ceil(height / limits.height)
        if count > limits.max_screens:
            most = limits.max_screens * limits.height
            raise MediaError(f"{_named(html)} is {height:,} pixels long, and {most:,} are shown.", "Split it.")
        found: list[bytes] = []
        for top in range(0, height, limits.height):
            clip = {"x": 0, "y": top, "width": limits.width, "height": min(limits.height, height - top), "scale": 1}
            shot = page.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
            found.append(base64.b64decode(shot["data"]))
        return found


def printed(
    html: str | bytes, limits: HtmlLimits | None = None, *, url: str | None = None, fetch: Fetch | None = None
) -> bytes:
    """A page as it is printed: the bytes of a PDF. Raises MediaError, as ``screens`` does."""
    with _shown(html, limits or HtmlLimits(), url, fetch) as page:
        return base64.b64decode(page.call("Page.printToPDF", printBackground=True, preferCSSPageSize=True)["data"])


@contextmanager
def _shown(html: str | bytes, limits: HtmlLimits, url: str | None, fetch: Fetch | None) -> Generator[Chromium]:
    """A Chromium that has loaded the page."""
    body = html.encode(errors="replace") if isinstance(html, str) else html
    if len(body) > limits.max_bytes:
        raise too_long(shown_source(body), len(body), limits.max_bytes)
    kind = "text/html; charset=utf-8" if isinstance(html, str) else "text/html"
    with Chromium(_named(html), limits.seconds) as page:
        requests = _Requests(page, url or _PAGE, body, kind, fetch)
        page.on("Fetch.requestPaused", requests.answer)
        page.on("Page.frameStoppedLoading", requests.note_stop)
        page.on("Page.javascriptDialogOpening", requests.refuse_dialog)
        page.call("Page.enable")
        page.call("Fetch.enable", patterns=[{"urlPattern": "*"}])
        page.call("Browser.setDownloadBehavior", behavior="deny")
        screen = {"width": limits.width, "height": limits.height, "deviceScaleFactor": 1, "mobile": False}
        page.call("Emulation.setDeviceMetricsOverride", **screen)
        page.send("Page.navigate", url=url or _PAGE)
        page.wait(lambda: requests.loaded)
        page.wait(lambda: False, _SETTLE)
        yield page


class _Requests:
    """What a page asks for: itself, once, and what ``fetch`` may get."""

    def __init__(self, page: Chromium, url: str, body: bytes, kind: str, fetch: Fetch | None) -> None:
        self._page = page
        self._url = url
        self._body = body
        self._kind = kind
        self._fetch = fetch
        self._given = False
        self.loaded = False

    def note_stop(self, event: Mapping[str, Any]) -> None:
        """The page has loaded, or has broken off as a script wanted to go elsewhere."""
        self.loaded = self.loaded or (self._given and event["frameId"] == self._page.frame)

    def answer(self, event: Mapping[str, Any]) -> None:
        """Give what is asked for, or refuse it."""
        asked, kind = event["request"], event["resourceType"]
        if kind == "Document" and not self._given:
            self._given = True
            self._fulfill(event, self._body, self._kind)
            return
        if self._fetch is not None and asked["method"] == "GET" and kind != "Document" and _is_web(asked["url"]):
            try:
                self._fulfill(event, self._fetch(asked["url"]), _TYPES.get(kind))
                return
            except MediaError:  # a page is shown without what it cannot have, as anywhere
                pass
        # Aborted leaves the page where it is: it cannot go elsewhere either.
        self._page.send("Fetch.failRequest", requestId=event["requestId"], errorReason="Aborted")

    def refuse_dialog(self, _: Mapping[str, Any]) -> None:
        """A dialog stops the page until it is answered."""
        self._page.send("Page.handleJavaScriptDialog", accept=False)

    def _fulfill(self, event: Mapping[str, Any], body: bytes, kind: str | None) -> None:
        headers = [{"name": "Content-Type", "value": kind}] if kind else []
        headers.append({"name": "Access-Control-Allow-Origin", "value": "*"})  # fonts
        encoded = base64.b64encode(body).decode()
        self._page.send(
            "Fetch.fulfillRequest",
            requestId=event["requestId"],
            responseCode=200,
            responseHeaders=headers,
            body=encoded,
        )


def _is_web(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _named(html: str | bytes) -> str:
    data = html.encode(errors="replace") if isinstance(html, str) else html
    return f"The HTML page {shown_source(data)}"
