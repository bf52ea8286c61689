"""Migrations as the admin API shows them."""

from __future__ import annotations

from collections.abc import Mapping

from llumnix.admin import schema
from llumnix.cluster.migration_log import Ended, MigrationEntry, MigrationLog
from llumnix.cluster.request_ids import internal_id

Names = Mapping[int, str]
"""By uid: the instance."""


def migration_view(entry: MigrationEntry, names: Names) -> schema.Migration:
    """One migration."""
    news = entry.news
    return schema.Migration(
        id=news.migration,
        request=internal_id(news.request_id),
        source=_name(news.source, names),
        target=_name(news.target, names),
        reason=news.reason,
        state=news.state,
        why=news.why,
        started_at=entry.started_at,
        ended_at=entry.ended_at,
        stages=news.stages,
        blocks_total=news.blocks_total,
        blocks_sent=news.blocks_sent,
        blocks_skipped=news.blocks_skipped,
        bytes=news.num_bytes,
        copy_ms=news.copy_ms,
        downtime_ms=news.downtime_ms,
    )


def totals_view(log: MigrationLog, names: Names) -> schema.MigrationTotals:
    """All that ended, by instance: the sum over its processes."""
    by_name: dict[tuple[str, str], Ended] = {}
    for (source, target), ended in log.pairs().items():
        pair = _name(source, names), _name(target, names)
        by_name[pair] = by_name.get(pair, Ended()).plus(ended)
    return schema.MigrationTotals(
        since=log.since,
        pairs=tuple(
            schema.MigrationPair(source=source, target=target, committed=n.committed, aborted=n.aborted)
            for (source, target), n in by_name.items()
        ),
        others_committed=log.other_pairs.committed,
        others_aborted=log.other_pairs.aborted,
    )


def drain_view(log: MigrationLog, uid: int) -> schema.DrainTotals | None:
    """The latest drain of a process."""
    found = log.drained(uid)
    if found is None:
        return None
    since, ended = found
    return schema.DrainTotals(since=since, moved=ended.committed, aborted=ended.aborted)


def _name(uid: int, names: Names) -> str:
    return names.get(uid, f"#{uid}")
