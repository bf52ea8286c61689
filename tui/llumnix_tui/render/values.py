"""Numbers, times and sizes as short text; what is not known is a dash."""

import math
import time

from llumnix_tui.render.text import DASH

PREFIXES = ("", "k", "M", "G", "T")


def count(value: float | None) -> str:
    """Return a count in at most five characters: 999, 12.3k, 4.5M."""
    if value is None:
        return DASH
    if abs(value) < 1000:
        return f"{value:.0f}"
    power = min(int(math.log10(abs(value)) // 3), len(PREFIXES) - 1)
    scaled = value / 1000**power
    return f"{scaled:.1f}{PREFIXES[power]}" if abs(scaled) < 100 else f"{scaled:.0f}{PREFIXES[power]}"


def decimal(value: float | None) -> str:
    """Return a number with as many decimals as its size leaves room for."""
    if value is None:
        return DASH
    magnitude = abs(value)
    return f"{value:.2f}" if magnitude < 10 else f"{value:.1f}" if magnitude < 100 else count(value)


def percent(part: float | None, whole: float | None) -> str:
    """Return a share in percent."""
    return DASH if part is None or not whole else f"{100 * part / whole:.0f}%"


def size(num_bytes: float | None) -> str:
    """Return a number of bytes in binary units."""
    if num_bytes is None:
        return DASH
    value, unit = float(num_bytes), "B"
    for following in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, following
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def milliseconds(value: float | None) -> str:
    """Return a duration given in milliseconds."""
    if value is None:
        return DASH
    return f"{decimal(value)} ms" if value < 1000 else f"{value / 1000:.2f} s"


def age(seconds: float | None) -> str:
    """Return a duration given in seconds, in at most two units: 0.4s, 12s, 3m07, 2h05, 3d04."""
    if seconds is None:
        return DASH
    seconds = max(seconds, 0.0)
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    for large, small, name in ((3600, 60, "m"), (86400, 3600, "h")):
        if whole < large:
            return f"{whole // small}{name}{whole % small * 60 // small:02d}"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}"


def clock_time(unix_s: float) -> str:
    """Return the local time of day."""
    return time.strftime("%H:%M:%S", time.localtime(unix_s))
