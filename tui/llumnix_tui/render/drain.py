"""How far a drain is: what still runs there, what moves, and what it waits for."""

from collections.abc import Sequence

from llumnix.admin.schema import Instance, Migration, Node
from llumnix_tui.commands import Target
from llumnix_tui.render import values
from llumnix_tui.render.bars import progress_bar
from llumnix_tui.render.migrations import ACTIVE
from llumnix_tui.render.states import state
from llumnix_tui.render.text import BAD, DASH, GOOD, MUTED, STRONG, WARN, Line, joined, labelled, line
from llumnix_tui.snapshot import Snapshot

MOVES_SHOWN = 6
BAR_WIDTH = 10


def so_far(targets: Sequence[Target], snapshot: Snapshot) -> Line:
    """Return how many of the targets are safe to remove, or gone."""
    subjects = [_subject(target, snapshot) for target in targets]
    safe = sum(subject is None or subject.safe_to_remove for subject in subjects)
    return line(f"{safe} of {len(targets)} safe to remove", GOOD if safe == len(targets) else STRONG)


def progress(target: Target, snapshot: Snapshot, began_at: float) -> list[Line]:
    """Return the lines about one drained instance or node; the first one ends in `safe to remove`."""
    subject = _subject(target, snapshot)
    if subject is None:
        return [joined((line(str(target), STRONG), line("✔ gone", GOOD)))]
    ids = {target.id} if isinstance(subject, Instance) else set(subject.instances)
    instances = [item for item in snapshot.instances if item.id in ids]
    verdict = line("✔ safe to remove", GOOD) if subject.safe_to_remove else ()
    left = sum(item.running + item.waiting for item in instances)
    moves = [m for m in snapshot.migrations if m.source in ids]
    drains = [item.drain for item in instances if item.drain is not None]
    return [
        joined((line(str(target), STRONG), state(subject.state), verdict)),
        joined(
            (
                labelled("requests left", str(left)),
                labelled("moved", str(sum(drain.moved for drain in drains)) if drains else DASH),
                labelled("aborted", str(sum(drain.aborted for drain in drains)) if drains else DASH),
            )
        ),
        labelled("waits for", "; ".join(subject.blockers) or "nothing", WARN),
        *((line(subject.reason, MUTED),) if subject.reason else ()),
        *(_move(m) for m in _shown(moves, began_at)),
        (),
    ]


def _subject(target: Target, snapshot: Snapshot) -> Instance | Node | None:
    return snapshot.instance(target.id) if target.kind == "instance" else snapshot.node(target.id)


def _shown(moves: list[Migration], began_at: float) -> list[Migration]:
    """Return the moves under way and the latest that ended since."""
    active = [m for m in moves if m.state in ACTIVE]
    ended = sorted((m for m in moves if (m.ended_at or 0) >= began_at), key=lambda m: -(m.ended_at or 0))
    return (active + ended)[:MOVES_SHOWN]


def _move(migration: Migration) -> Line:
    parts = [line(f"  {migration.request}"), line(f"> {migration.target}"), state(migration.state)]
    if migration.state in ACTIVE:
        done = migration.blocks_sent + migration.blocks_skipped
        parts.append(progress_bar(done, migration.blocks_total, BAR_WIDTH))
    elif migration.state == "committed":
        parts.append(labelled("downtime", values.milliseconds(migration.downtime_ms)))
    else:
        parts.append(line(migration.why or migration.reason, BAD))
    return joined(parts)
