"""Bars and sparklines of block characters."""

from collections.abc import Sequence
from itertools import pairwise

from llumnix_tui.render.text import ACCENT, BAD, GOOD, MUTED, WARN, Line

STEPS = "▁▂▃▄▅▆▇█"
HIGH_SHARE = 0.75
FULL_SHARE = 0.9


def share_style(share: float) -> str:
    """Return the style for a share of capacity in use."""
    return BAD if share >= FULL_SHARE else WARN if share >= HIGH_SHARE else GOOD


def usage_bar(used: float, virtual: float | None, total: float, width: int) -> Line:
    """Return a bar of `width` cells: used, then what virtual usage holds beyond it (headroom), then free."""
    if total <= 0:
        return (("·" * width, MUTED),)
    solid = min(width, round(width * used / total))
    if used > 0:
        solid = max(solid, 1)
    shaded = 0
    if virtual is not None and virtual > used:
        shaded = max(0, min(width, round(width * virtual / total)) - solid)
    free = width - solid - shaded
    return (("█" * solid, share_style(used / total)), ("▒" * shaded, ACCENT), ("·" * free, MUTED))


def progress_bar(done: float, total: float | None, width: int) -> Line:
    """Return a bar of `width` cells; all dots where the total is not known."""
    if not total:
        return (("·" * width, MUTED),)
    filled = max(0, min(width, int(width * done / total)))
    return (("█" * filled, ACCENT), ("·" * (width - filled), MUTED))


def averaged(values: Sequence[float], width: int) -> list[float]:
    """Return all values as at most `width`: where there are more, the mean of each part of them."""
    kept = list(values)
    if len(kept) <= width:
        return kept
    edges = [number * len(kept) // width for number in range(width + 1)] if width > 0 else []
    return [sum(kept[begin:end]) / (end - begin) for begin, end in pairwise(edges)]


def sparkline(values: Sequence[float], width: int, top: float | None = None) -> str:
    """Return the values, averaged to fit, as one line, against `top` or their own largest."""
    shown = averaged(values, width)
    top = top or max(shown, default=0.0)
    if top <= 0:
        return ("▁" * len(shown)).rjust(width)
    last = len(STEPS) - 1
    return "".join(STEPS[max(0, min(last, round(last * value / top)))] for value in shown).rjust(width)


def chart(values: Sequence[float], width: int, height: int, top: float) -> list[str]:
    """Return the values, averaged to fit, as a chart of `height` lines, the uppermost first."""
    shown = averaged(values, width)
    eighths = [0 if top <= 0 else max(0, min(8 * height, round(8 * height * v / top))) for v in shown]
    rows = []
    for floor in range(8 * (height - 1), -1, -8):
        cells = (" " if (over := level - floor) <= 0 else STEPS[min(over, 8) - 1] for level in eighths)
        rows.append("".join(cells).rjust(width))
    return rows
