"""What the terminal interface shows at one moment, and the short history behind its sparklines."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from llumnix.admin.schema import Cluster, Instance, Migration, MigrationTotals, Node, Request

HISTORY_SAMPLES = 240
SAMPLE_EVERY_S = 1.0
# More than twenty minutes.
MOVES_SAMPLES = 1300


class Snapshot(BaseModel):
    """The admin API's answers of one round; what nobody looked at is None."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    taken_at: float
    cluster: Cluster
    instances: tuple[Instance, ...] = ()
    nodes: tuple[Node, ...] = ()
    migrations: tuple[Migration, ...] = ()
    migration_totals: MigrationTotals | None = None
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
    """The last minutes of one instance, or of all together; a sample each at the times `at`."""

    at: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY_SAMPLES))
    kv_share: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY_SAMPLES))
    tokens_per_s: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY_SAMPLES))
    waiting: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY_SAMPLES))

    @property
    def span_s(self) -> float | None:
        """Seconds from the first sample to the last; None where there are none."""
        return self.at[-1] - self.at[0] if self.at else None

    def add(self, instances: Iterable[Instance], at: float) -> None:
        """Append the sum of these instances at a time."""
        items = list(instances)
        self.at.append(at)
        total = sum(item.kv_blocks_total for item in items)
        self.kv_share.append(sum(item.kv_blocks_used for item in items) / total if total else 0.0)
        self.tokens_per_s.append(sum(item.tokens_per_s for item in items))
        self.waiting.append(sum(item.waiting for item in items))


class Moves(NamedTuple):
    """How many migrations the daemon had seen end at a time."""

    at: float
    committed: int
    aborted: int


class History:
    """Samples of each instance and of the cluster, at most one per second."""

    def __init__(self) -> None:
        self.cluster = Series()
        self.moves: deque[Moves] = deque(maxlen=MOVES_SAMPLES)
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
        self.cluster.add(snapshot.instances, snapshot.taken_at)
        self._add_moves(snapshot)
        kept = {item.id: self._instances.get(item.id) or Series() for item in snapshot.instances}
        for item in snapshot.instances:
            kept[item.id].add((item,), snapshot.taken_at)
        self._instances = kept

    def _add_moves(self, snapshot: Snapshot) -> None:
        totals = snapshot.cluster.totals
        sample = Moves(snapshot.taken_at, totals.migrations_committed, totals.migrations_aborted)
        if self.moves and (sample.committed, sample.aborted) < self.moves[-1][1:]:
            self.moves.clear()  # another daemon counts from 0 again
        self.moves.append(sample)
