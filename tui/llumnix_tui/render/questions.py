"""What the dialogs say: the targets, and what happens if one goes on."""

from collections.abc import Sequence

from llumnix.admin.schema import Cluster, Instance, Request
from llumnix_tui.commands import Target
from llumnix_tui.render import values
from llumnix_tui.render.load import predicted_freeness
from llumnix_tui.render.text import BAD, MUTED, STRONG, Line, fitted, line
from llumnix_tui.snapshot import Snapshot

NAMED_AT_MOST = 6
SCHEDULER_CHOOSES = ""


def some(requests: Sequence[Request]) -> str:
    """Return which requests are meant."""
    return requests[0].id if len(requests) == 1 else f"{len(requests)} requests"


def named(names: Sequence[str]) -> str:
    """Return a list of names, the first few of many."""
    more = len(names) - NAMED_AT_MOST
    return ", ".join(names[:NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")


def cordon(targets: Sequence[Target]) -> list[str]:
    """Return what a cordon does."""
    return [named([str(target) for target in targets]), "Gets no new requests; what runs there goes on."]


def uncordon(targets: Sequence[Target]) -> list[str]:
    """Return what an uncordon does."""
    return [named([str(target) for target in targets]), "Gets requests again; a drain under way ends."]


def drain(targets: Sequence[Target], snapshot: Snapshot) -> list[str]:
    """Return what a drain does."""
    ids = {target.id for target in targets if target.kind == "instance"}
    for target in targets:
        node = snapshot.node(target.id) if target.kind == "node" else None
        ids |= set(node.instances) if node else set()
    count = sum(item.running + item.waiting for item in snapshot.instances if item.id in ids)
    open_ids = [item.id for item in snapshot.instances if item.state == "running" and item.id not in ids]
    lines = [f"Its {count} requests move live to other instances; it gets no new ones until uncordoned."]
    return lines + ([] if open_ids else ["No other instance is running: the requests have nowhere to go."])


def remove(ids: Sequence[str], snapshot: Snapshot) -> list[str]:
    """Return what a removal does."""
    bounds = snapshot.cluster.scaling
    left = bounds.wanted - len(ids)
    return [
        named([f"instance {instance_id}" for instance_id in ids]),
        f"Is drained, then ended. {left} instances stay wanted (at least {bounds.min}).",
    ]


def add(snapshot: Snapshot) -> list[str]:
    """Return what adding instances does."""
    bounds = snapshot.cluster.scaling
    return [
        f"{bounds.wanted} instances are wanted now, {bounds.max} at most. A new one takes a GPU or cores."
    ]


def migrate(requests: Sequence[Request]) -> list[str]:
    """Return what a migration does."""
    blocks = sum(request.kv_blocks for request in requests)
    return [
        named([f"{request.id} on {request.instance or 'no instance'}" for request in requests]),
        f"Moves live with {values.count(blocks)} KV blocks; its client notices nothing.",
        "Freeness now, and with the request there (j/k choose):",
    ]


def migration_targets(requests: Sequence[Request], snapshot: Snapshot) -> list[tuple[str, Line]]:
    """Return the scheduler's own choice, then every possible target, the freest afterwards first."""
    sources = {request.instance for request in requests}
    found = []
    for target in snapshot.instances:
        if sources == {target.id} or target.state != "running":
            continue
        # With several requests: as if they were one.
        blocks = sum(request.kv_blocks for request in requests)
        after = predicted_freeness(
            target, requests[0].model_copy(update={"kv_blocks": blocks}), snapshot.cluster
        )
        found.append((after, target))
    found.sort(key=lambda pair: float("-inf") if pair[0] is None else pair[0], reverse=True)
    shown = [(target.id, _target_line(target, after)) for after, target in found]
    return [(SCHEDULER_CHOOSES, line("the scheduler chooses", STRONG)), *shown]


def set_priority(requests: Sequence[Request]) -> list[str]:
    """Return what a change of priority does."""
    return [
        named([f"{request.id} ({request.priority})" for request in requests]),
        "Takes effect at once: queue order, preemption and headroom. (j/k choose)",
    ]


def priority_classes(cluster: Cluster) -> list[tuple[str, Line]]:
    """Return the classes that can be chosen."""
    return [
        (item.name, ((f"{item.name:12}", STRONG), (f" headroom {item.headroom_tokens} tokens", MUTED)))
        for item in cluster.priorities
    ]


def abort(requests: Sequence[Request]) -> list[str]:
    """Return what an abort does."""
    return [
        named([request.id for request in requests]),
        "Ends now, with all its children; its client gets an error event. This cannot be undone.",
    ]


def _target_line(target: Instance, after: float | None) -> Line:
    style = BAD if after is not None and after < 0 else STRONG
    return (
        *fitted(line(target.id, STRONG), 8),
        *fitted(line(values.decimal(target.freeness)), 8, right=True),
        ("  then ", MUTED),
        *fitted(line(values.decimal(after), style), 8, right=True),
        (f"  {target.running} running, KV ", MUTED),
        (values.percent(target.kv_blocks_used, target.kv_blocks_total), ""),
    )
