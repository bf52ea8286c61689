"""Rows of the journal, and one entry at length."""

import json

from llumnix.admin.schema import Event
from llumnix_tui.render import values
from llumnix_tui.render.columns import Column
from llumnix_tui.render.states import LOOKS, state
from llumnix_tui.render.text import ACCENT, MUTED, STRONG, Line, joined, labelled, line

OURSELVES = "llumnixd"


def row_key(event: Event) -> str:
    """Return an event's number."""
    return str(event.seq)


def haystack(event: Event) -> str:
    """Return what the filter searches."""
    return f"{event.kind} {event.severity} {event.target} {event.actor} {event.message}"


COLUMNS: tuple[Column[Event], ...] = (
    Column("TIME", 8, lambda e: line(values.clock_time(e.time), MUTED), lambda e: e.seq, "T"),
    Column("SEVERITY", 9, lambda e: state(e.severity), lambda e: e.severity, "S"),
    Column("KIND", 20, lambda e: line(e.kind, STRONG), lambda e: e.kind, "K"),
    Column("TARGET", 14, lambda e: line(e.target or "–"), lambda e: e.target, "A"),
    Column("ACTOR", 9, lambda e: line(e.actor, _actor_style(e)), lambda e: e.actor, "C", min_width=100),
    Column("MESSAGE", 20, lambda e: line(" ".join(e.message.split())), stretches=True),
)


def event_line(event: Event) -> Line:
    """Return an event in one line."""
    glyph, style = LOOKS[event.severity]
    return joined(
        (
            line(values.clock_time(event.time), MUTED),
            line(glyph, style),
            line(event.kind, STRONG),
            line(event.target, ACCENT),
            line(event.message),
        )
    )


def detail(event: Event) -> list[Line]:
    """Return an event with its data."""
    data = json.dumps(event.data, indent=2, ensure_ascii=False).splitlines() if event.data else ["–"]
    return [
        labelled("number   ", str(event.seq)),
        labelled("time     ", values.clock_time(event.time)),
        labelled("kind     ", event.kind),
        labelled("severity ", state(event.severity)),
        labelled("actor    ", event.actor),
        labelled("target   ", event.target or "–"),
        (),
        line(event.message or "–"),
        (),
        *(line(text, MUTED) for text in data),
    ]


def _actor_style(event: Event) -> str:
    return MUTED if event.actor == OURSELVES else ACCENT
