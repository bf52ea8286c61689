"""States as a glyph, a word and a style: a colour never stands alone."""

from llumnix_tui.render.text import ACCENT, BAD, GOOD, MUTED, WARN, Line

# Of instances, nodes, requests, migrations, the cluster and events: a word means the same everywhere.
LOOKS: dict[str, tuple[str, str]] = {
    "running": ("●", GOOD),
    "serving": ("●", GOOD),
    "ready": ("●", GOOD),
    "committed": ("✔", GOOD),
    "pending": ("◌", MUTED),
    "starting": ("◌", ACCENT),
    "restarting": ("↻", WARN),
    "queued": ("◌", WARN),
    "prepare": ("▷", ACCENT),
    "copying": ("▶", ACCENT),
    "migrating": ("▶", ACCENT),
    "cordoned": ("◐", WARN),
    "draining": ("▽", WARN),
    "drained": ("○", ACCENT),
    "degraded": ("◐", WARN),
    "stopping": ("▽", WARN),
    "failed": ("✖", BAD),
    "dead": ("✖", BAD),
    "down": ("✖", BAD),
    "aborted": ("✖", BAD),
    "info": ("·", MUTED),
    "warning": ("▲", WARN),
    "error": ("✖", BAD),
}


def state(word: str) -> Line:
    """Return a state with its glyph."""
    glyph, style = LOOKS.get(word, ("?", MUTED))
    return ((f"{glyph} {word}", style),)
