"""Plots as inline SVG, in the colours of the page around them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from pgembed.evaluate.sweep import Point

WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 20, 24, 44
MOST_BARS = 400
STYLE = """
svg { display: block; width: 100%; height: auto; max-width: 56rem; }
svg text { fill: var(--soft); font-size: 12px; }
svg .name { fill: var(--ink); }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .axis { stroke: var(--soft); stroke-width: 1; }
svg .curve { fill: none; stroke: var(--accent); stroke-width: 2; }
svg .dot, svg .gain { fill: var(--accent); }
svg .exact, svg .loss { fill: var(--second); }
"""
_STEPS = (1, 2, 5)


def recall_latency(points: Sequence[Point]) -> str:
    """Recall of the exact answer over the median time of a search, each point named by its ``hnsw.ef_search``."""
    times = [point.median for point in points]
    low, high = _decade_steps(min(times) * 0.8, max(times) * 1.25)
    floor = min(0.9, math.floor(min(point.recall for point in points) * 20) / 20)

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log(value / low) / math.log(high / low)

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - (value - floor) / (1 - floor))

    parts: list[str] = []
    for value in _ticks(floor, 1.0, 5):
        parts.append(_line("grid", LEFT, y(value), WIDTH - RIGHT, y(value)))
        parts.append(_text(LEFT - 8, y(value) + 4, f"{value:.2f}", "end"))
    for value in _decades(low, high):
        parts.append(_line("grid", x(value), TOP, x(value), HEIGHT - BOTTOM))
        parts.append(_text(x(value), HEIGHT - BOTTOM + 18, f"{value:g}", "middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, "milliseconds a search, median (log)", "middle"))
    parts.append(_text(LEFT, 14, "recall@10 of the exact search", "start"))
    index = [point for point in points if point.ef_search is not None]
    if len(index) > 1:
        ordered = sorted(index, key=lambda point: point.ef_search or 0)
        path = " ".join(f"{x(point.median):.1f},{y(point.recall):.1f}" for point in ordered)
        parts.append(f'<polyline class="curve" points="{path}"/>')
    for number, point in enumerate(points):
        across, down = x(point.median), y(point.recall)
        name = "exact" if point.ef_search is None else str(point.ef_search)
        told = f"{name}: recall {point.recall:.3f}, {point.median:.2f} ms (95th percentile {point.late:.2f})"
        kind = "exact" if point.ef_search is None else "dot"
        parts.append(f'<circle class="{kind}" cx="{across:.1f}" cy="{down:.1f}" r="5">{_title(told)}</circle>')
        above = down - 10 if down > TOP + 14 and number % 2 else down + 20
        parts.append(_text(across, above, name, "middle", "name"))
    return _svg("Recall against time", HEIGHT, parts)


def bars(values: Sequence[tuple[str, float]], *, title: str, signed: bool) -> str:
    """A bar for each named value, from the highest to the lowest; of many every so manyth. ``signed`` values are gains
    and losses around 0, others lie between 0 and 1."""
    ordered = sorted(values, key=lambda each: -each[1])
    step = max(1, math.ceil(len(ordered) / MOST_BARS))
    shown = ordered[::step]
    high, low = max([0.0, *(value for _, value in shown)]), min([0.0, *(value for _, value in shown)])
    if not signed or high == low:
        high = max(high, 1.0)
    height = 220

    def y(value: float) -> float:
        return TOP + (height - TOP - 28) * (high - value) / (high - low)

    parts: list[str] = []
    for value in _ticks(low, high, 4):
        parts.append(_line("grid", LEFT, y(value), WIDTH - RIGHT, y(value)))
        parts.append(_text(LEFT - 8, y(value) + 4, f"{value:+.2f}" if signed and value else f"{value:.2f}", "end"))
    room = (WIDTH - LEFT - RIGHT) / max(len(shown), 1)
    for number, (name, value) in enumerate(shown):
        top, bottom = sorted((y(value), y(0.0)))
        kind = "loss" if value < 0 else "gain"
        told = _title(f"query {name}: {value:+.3f}" if signed else f"query {name}: {value:.3f}")
        parts.append(
            f'<rect class="{kind}" x="{LEFT + number * room:.2f}" y="{top:.1f}" width="{room * 0.86:.2f}"'
            f' height="{max(bottom - top, 0.6):.1f}">{told}</rect>'
        )
    parts.append(_line("axis", LEFT, y(0.0), WIDTH - RIGHT, y(0.0)))
    every = "" if step == 1 else f", one in {step} shown"
    parts.append(_text(LEFT, 14, f"{title}: {len(ordered):,} queries, sorted{every}", "start"))
    return _svg(title, height, parts)


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    head = f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(title)}">'
    return head + "".join(parts) + "</svg>"


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str, kind: str = "label") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _title(text: str) -> str:
    return f"<title>{escape(text)}</title>"


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Round values from low to high, about so many."""
    raw = (high - low) / most
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw * 0.99)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, 20, … between both."""
    values = [factor * 10.0**power for power in range(-4, 6) for factor in _STEPS]
    return [value for value in values if low * 0.999 <= value <= high * 1.001]


def _decade_steps(low: float, high: float) -> tuple[float, float]:
    """The round values around both."""
    values = [factor * 10.0**power for power in range(-4, 6) for factor in _STEPS]
    return max(value for value in values if value <= low), min(value for value in values if value >= high)
