"""``pgembed attach --dry-run``: what the embedding would come to."""

from __future__ import annotations

from pgembed.cli.output import console, print_json, print_table, remark
from pgembed.estimate import Estimate


def show(found: Estimate, *, as_json: bool) -> None:
    """The estimate as a table and two lines, or as JSON."""
    if as_json:
        print_json({"action": "estimate", **vars(found), "tokens": found.tokens, "pictures": found.pictures})
        return
    about = "" if found.exact else "about "
    print_table(
        ["input", "rows with it", "mean size", "tokens"],
        [
            (one.modality, f"{one.inputs:,}", _size(one.mean_bytes), "" if one.tokens is None else f"~{one.tokens:,}")
            for one in found.inputs
        ],
        right=["rows with it", "mean size", "tokens"],
    )
    console.print(f"{found.table} has {about}{found.rows:,} rows. Nothing was changed.", markup=False, soft_wrap=True)
    if found.calls is not None and found.seconds is not None:
        line = f"'{found.encoder}' would take {found.calls:,} calls and about {_span(found.seconds)} of encoding."
        console.print(line, markup=False, soft_wrap=True)
    if found.days is not None and found.days > 1:
        console.print(f"Its budget makes that {found.days:,.1f} days.", markup=False, soft_wrap=True)
    advice = f"Advised: --storage {found.storage}. {found.storage_reason}"
    console.print(advice, markup=False, soft_wrap=True)
    if found.problem is not None:
        remark("warning", f"The encoder cannot be timed here: {found.problem}", as_json=False)


def _size(size: float | None) -> str:
    if size is None:
        return ""
    return f"{size:,.0f} B" if size < 10_000 else f"{size / 1000:,.0f} kB"


def _span(seconds: float) -> str:
    """Seconds in the unit that a person would use."""
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:,.1f} seconds"
