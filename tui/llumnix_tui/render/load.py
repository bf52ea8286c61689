"""The freeness that a target of a migration will have, by the paper's Algorithm 1."""

from llumnix.admin.schema import Cluster, Instance, Request


def predicted_freeness(target: Instance, request: Request, cluster: Cluster) -> float | None:
    """Return a target's freeness with the request running there, or None where it is not known.

    Freeness is (capacity - virtual usage) / batch size. The request's class brings its headroom only where
    nothing of that class runs yet.
    """
    virtual = target.kv_blocks_virtual
    if virtual is None or target.freeness is None:
        return None
    if all(load.name != request.priority or not load.running for load in target.priorities):
        virtual += _headroom_blocks(target, request.priority, cluster)
    return (target.kv_blocks_total - virtual - request.kv_blocks) / (target.running + 1)


def _headroom_blocks(target: Instance, class_name: str, cluster: Cluster) -> int:
    found = next((item for item in cluster.priorities if item.name == class_name), None)
    if found is None or not target.block_size:
        return 0
    if found.target_load_tokens:
        return max(0, target.kv_blocks_total - found.target_load_tokens // target.block_size)
    return -(-found.headroom_tokens // target.block_size)
