"""Whether a scheduler's books agree with each other: every block and request accounted for once."""

from __future__ import annotations

from collections import Counter

from vllm.v1.request import RequestStatus

from llumnix.engine.migration.adopt import Target
from llumnix.engine.migration.export import Source
from llumnix.engine.migration.scheduler_access import SchedulerAccess


def check_integrity(access: SchedulerAccess, source: Source, target: Target) -> list[str]:
    """What is wrong, one sentence each; empty if all is well. Reads every block: for tests, after faults."""
    return [
        *_blocks(access, source),
        *_free_queue(access),
        *_prefix_cache(access),
        *_owners(access, target),
        *_queues(access, source),
    ]


def _blocks(access: SchedulerAccess, source: Source) -> list[str]:
    """Reference counts are what tables, holds and deferred frees add up to."""
    counts: Counter[int] = Counter(block.block_id for block in source.held_blocks())
    for manager in access.managers:
        for blocks in manager.req_to_blocks.values():
            counts.update(block.block_id for block in blocks)
    for _, blocks in access.scheduler.deferred_frees:
        counts.update(block.block_id for block in blocks)
    return [
        f"block {block.block_id} has {block.ref_cnt} references, but {counts[block.block_id]} users"
        for block in access.pool.blocks
        if not block.is_null and block.ref_cnt != counts[block.block_id]
    ]


def _free_queue(access: SchedulerAccess) -> list[str]:
    """Free are exactly the blocks without a reference."""
    queue = access.pool.free_block_queue
    listed = Counter(block.block_id for block in queue.get_all_free_blocks())
    unused = {block.block_id for block in access.pool.blocks if block.ref_cnt == 0 and not block.is_null}
    problems = [f"block {block} is in the free queue {n} times" for block, n in listed.items() if n > 1]
    problems += [f"block {block} is free and in use" for block in listed.keys() - unused]
    problems += [f"block {block} is lost: unused, but not free" for block in unused - listed.keys()]
    if queue.num_free_blocks != listed.total():
        problems.append(f"{queue.num_free_blocks} blocks are counted as free, {listed.total()} are listed")
    return problems


def _prefix_cache(access: SchedulerAccess) -> list[str]:
    """Every block with a hash is found under it."""
    cache = access.pool.cached_block_hash_to_block
    return [
        f"block {block.block_id} has a hash, but the prefix cache does not know it"
        for block in access.pool.blocks
        if block.block_hash is not None and not cache.contain(block.block_hash, block.block_id)
    ]


def _owners(access: SchedulerAccess, target: Target) -> list[str]:
    """Blocks belong to a living request or an open reservation."""
    known = set(access.scheduler.requests) | {r.request_id for r in target.reservations()}
    problems = []
    for manager in access.managers:
        problems += [
            f"{len(blocks)} blocks are held for {request_id}, which nobody knows"
            for request_id, blocks in manager.req_to_blocks.items()
            if blocks and request_id not in known
        ]
    return problems


def _queues(access: SchedulerAccess, source: Source) -> list[str]:
    """Every request is in one place: running, in one queue, or frozen out of a queue."""
    scheduler = access.scheduler
    places: Counter[str] = Counter(request.request_id for request in scheduler.running)
    for queue in (scheduler.waiting, scheduler.kv_holding_waiting):
        places.update(request.request_id for request in queue)
    places.update(
        request.request_id for request in source.frozen_in_no_queue() if not places[request.request_id]
    )
    everywhere = places.keys() | scheduler.requests.keys()
    problems = [
        f"request {request_id} is in {places[request_id]} places"
        for request_id in everywhere
        if places[request_id] != 1
    ]
    problems += [f"request {r} is queued, but not known" for r in places.keys() - scheduler.requests.keys()]
    problems += [
        f"request {request.request_id} runs with status {request.status}"
        for request in scheduler.running
        if request.status != RequestStatus.RUNNING
    ]
    return problems
