"""One line of the table that the benchmarks make together."""

from typing import NamedTuple

HEAD = ("what", "found", "wanted", "beside it")


class Row(NamedTuple):
    """What was measured, what came out, what it should be, and how it stands to a peer of the same run."""

    what: str
    found: str
    wanted: str = ""
    beside: str = ""


def table(rows: list[Row]) -> str:
    cells = [Row(*HEAD), Row(*("-" * len(word) for word in HEAD)), *rows]
    widths = [max(len(row[at]) for row in cells) for at in range(len(HEAD))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)


def quantile(values: list[float], share: float) -> float:
    """The value that this share of all does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
