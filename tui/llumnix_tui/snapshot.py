"""What the terminal interface shows at one moment, and the short history behind its sparklines."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict

from llumnix.admin.schema import Cluster, Instance, Migration, Node, Request

HISTORY_SAMPLES = 240
SAMPLE_EVERY_S = 1.0


class Snapshot(BaseModel):
    """The admin API's answers of one round; `requests` is None where nobody looked at them."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    taken_at: float
    cluster: Cluster
    instances: tuple[Instance, ...] = ()
    nodes: tuple[Node, ...] = ()
    migrations: tuple[Migration, ...] = ()
    requests: tuple[Request, ...] | None = None
    # If given: `requests` are only those of this instance.
    requests_of: str | None = None
    # The log's tail of the instances that were looked at, by id.
    logs: dict[str, tuple[str, ...]] = {}

    def instance(self, instance_id: str) -> Instance | None:
        """Return the instance with this id."""
        return next((item for item in self.instances if item.id == instance_id), None)

    def requests_on(self, instance_id: str) -> tuple[Request, ...] | None:
        """Return an instance's requests; None where they were not fetched."""
        if self.requests is None or self.requests_of not in (None, instance_id):
            return None
        return tuple(item for item in self.requests if item.instance == instance_id)

    def node(self, node_id: str) -> Node | None:
        """Return the node with this id."""
        return next((item for item in self.nodes if item.id == node_id), None)


@dataclass
class Series:
    """The last minutes of one instance, or of all together."""

    kv_share: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY_SAMPLES))
    tokens_per_s: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY_SAMPLES))
    waiting: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY_SAMPLES))

    def add(self, instances: Iterable[Instance]) -> None:
        """Append the sum of these instances."""
        items = list(instances)
        total = sum(item.kv_blocks_total for item in items)
        self.kv_share.append(sum(item.kv_blocks_used for item in items) / total if total else 0.0)
        self.tokens_per_s.append(sum(item.tokens_per_s for item in items))
        self.waiting.append(sum(item.waiting for item in items))


class History:
    """Samples of each instance and of the cluster, at most one per second."""

    def __init__(self) -> None:
        self.cluster = Series()
        self._instances: dict[str, Series] = {}
        self._sampled_at = float("-inf")

    def of(self, instance_id: str) -> Series:
        """Return the series of an instance; an empty one if it was never seen."""
        return self._instances.get(instance_id) or Series()

    def add(self, snapshot: Snapshot) -> None:
        """Sample a snapshot, unless the last sample is fresh; forget instances that are gone."""
        if snapshot.taken_at - self._sampled_at < SAMPLE_EVERY_S * 0.9:
            return
        self._sampled_at = snapshot.taken_at
        self.cluster.add(snapshot.instances)
        kept = {item.id: self._instances.get(item.id) or Series() for item in snapshot.instances}
        for item in snapshot.instances:
            kept[item.id].add((item,))
        self._instances = kept
