"""Rows of requests, and one of them at length."""

from collections.abc import Iterable, Sequence
from operator import attrgetter

from llumnix.admin.schema import Event, PriorityClass, Request
from llumnix_tui.render import values
from llumnix_tui.render.columns import Column, natural
from llumnix_tui.render.events import event_line
from llumnix_tui.render.states import state
from llumnix_tui.render.text import MUTED, STRONG, Line, labelled, line

# Of a request; called for ten thousand of them with each round.
row_key = attrgetter("id")


def haystack(request: Request) -> str:
    """Return what the filter searches."""
    place = request.instance or "held"
    return f"{request.id} {place} {request.priority} {request.state} {request.api_server} {request.reason}"


def columns(classes: Sequence[PriorityClass]) -> list[Column[Request]]:
    """Return the columns; priorities are sorted by importance, the most important class first."""
    rank = {item.name: item.engine_priority for item in classes}
    return [
        Column("ID", 15, lambda r: line(r.id, STRONG), lambda r: r.id, "I", stretches=True),
        Column("INSTANCE", 8, lambda r: line(r.instance or "held"), _natural_instance, "N"),
        Column("PRIORITY", 8, lambda r: line(r.priority), lambda r: rank.get(r.priority), "P"),
        Column("STATE", 11, lambda r: state(r.state), lambda r: r.state, "S"),
        Column("TOKENS", 11, _tokens, lambda r: r.prompt_tokens + r.output_tokens, "T", right=True),
        Column(
            "BLOCKS", 6, lambda r: line(values.count(r.kv_blocks)), lambda r: r.kv_blocks, "B", right=True
        ),
        Column("AGE", 6, lambda r: line(values.age(r.age_s)), lambda r: r.age_s, "A", right=True),
        Column(
            "MOVES", 5, lambda r: line(values.count(r.migrations)), lambda r: r.migrations, "M", right=True
        ),
        Column("WHY LAST MOVED", 24, _reason, lambda r: r.reason, "W", min_width=108, stretches=True),
    ]


def detail(request: Request, events: Iterable[Event]) -> list[Line]:
    """Return all that is known of a request, and what the journal says of it."""
    lines = [
        labelled("id          ", request.id),
        labelled("response id ", request.response_id or "–"),
        labelled("state       ", state(request.state)),
        labelled("priority    ", request.priority),
        labelled("instance    ", request.instance or "– (held: no instance has room)"),
        labelled("API server  ", request.api_server or "–"),
        labelled("age         ", values.age(request.age_s)),
        labelled("arrived     ", values.clock_time(request.arrived_at)),
        labelled("tokens      ", f"{request.prompt_tokens} of the prompt, {request.output_tokens} generated"),
        labelled("KV blocks   ", str(request.kv_blocks)),
        labelled("migrations  ", str(request.migrations)),
        labelled("last reason ", request.reason or "–"),
        (),
        line("In the journal", STRONG),
    ]
    ids = {f"request/{request.id}", f"request/{request.response_id}"}
    found = [event_line(event) for event in events if event.target in ids]
    return lines + (found or [line("nothing", MUTED)])


def _natural_instance(request: Request) -> str | None:
    return None if request.instance is None else natural(request.instance)


def _tokens(request: Request) -> Line:
    return (
        (f"{values.count(request.prompt_tokens)}+", MUTED),
        (values.count(request.output_tokens), ""),
    )


def _reason(request: Request) -> Line:
    return line(request.reason or "–", MUTED)
