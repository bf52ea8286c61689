"""Prometheus metrics of the cluster, read from its state at each scrape. vLLM's own are the API servers'."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, get_args

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from llumnix.admin.control import ClusterControl
from llumnix.admin.journal import Journal
from llumnix.admin.schema import (
    ApiServerState,
    Cluster,
    ClusterState,
    Instance,
    InstanceState,
    Latency,
    RequestState,
)

PER_INSTANCE: Final[tuple[tuple[str, str, Callable[[Instance], float | None]], ...]] = (
    ("kv_blocks_capacity", "KV blocks an instance has.", lambda i: i.kv_blocks_total),
    ("kv_blocks_used", "KV blocks in use.", lambda i: i.kv_blocks_used),
    (
        "kv_blocks_virtual",
        "Sum of virtual usages: in use, the queue head's demand, headroom.",
        lambda i: i.kv_blocks_virtual,
    ),
    ("kv_blocks_headroom", "Part of the virtual usage that is headroom.", lambda i: i.kv_blocks_headroom),
    (
        "freeness",
        "Freeness by the policy in force; absent without a report and while draining.",
        lambda i: i.freeness,
    ),
    ("running_requests", "Requests in the batch.", lambda i: i.running),
    ("waiting_requests", "Requests queued in the engine.", lambda i: i.waiting),
    (
        "step_seconds",
        "Duration of a step, recent mean.",
        lambda i: None if i.step_ms is None else i.step_ms / 1e3,
    ),
    ("tokens_per_second", "Tokens generated per second.", lambda i: i.tokens_per_s),
)
COUNTED_PER_INSTANCE: Final[tuple[tuple[str, str, Callable[[Instance], float]], ...]] = (
    ("restarts", "Times an instance was started again.", lambda i: i.restarts),
    ("migrations_in", "Requests that were moved to an instance.", lambda i: i.migrations_in),
    ("migrations_out", "Requests that were moved away from an instance.", lambda i: i.migrations_out),
)


class ClusterCollector(Collector):
    """Turns the cluster's state into metric families."""

    def __init__(self, control: ClusterControl, journal: Journal) -> None:
        self._control = control
        self._journal = journal

    def describe(self) -> Iterable[Metric]:
        """Return nothing: registering must not ask a cluster that has not started."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield all families."""
        cluster, instances = self._control.cluster(), self._control.instances()
        yield from _cluster_families(cluster)
        states = Counter(instance.state for instance in instances)
        yield _by_state("llumnix_instances", "Instances by state.", get_args(InstanceState), states)
        yield from _instance_families(instances)
        yield self._requests(cluster)
        yield _counter("llumnix_journal_events", "Events written since the start.", self._journal.appended)

    def _requests(self, cluster: Cluster) -> Metric:
        family = GaugeMetricFamily(
            "llumnix_requests",
            "Unfinished requests by priority class and state.",
            labels=("priority", "state"),
        )
        counts = Counter((request.priority, request.state) for request in self._control.requests())
        # All classes and states, also at 0: a series that comes and goes cannot be alerted on.
        pairs = {
            (priority.name, state) for priority in cluster.priorities for state in get_args(RequestState)
        }
        for pair in sorted(pairs | counts.keys()):
            family.add_metric(pair, counts[pair])
        return family


def build_registry(control: ClusterControl, journal: Journal) -> CollectorRegistry:
    """Return a registry of its own: the process-wide one may hold vLLM's or Ray's metrics."""
    registry = CollectorRegistry()
    registry.register(ClusterCollector(control, journal))
    return registry


def _cluster_families(cluster: Cluster) -> Iterator[Metric]:
    labels = {"name": cluster.name, "version": cluster.version, "model": cluster.model}
    labels |= {"policy": cluster.policies.scheduler, "dispatch": cluster.policies.dispatch}
    yield InfoMetricFamily("llumnix_cluster", "What runs here.", value=labels)
    now = Counter([cluster.state])
    yield _by_state("llumnix_cluster_state", "1 for the state in force.", get_args(ClusterState), now)
    servers = Counter(server.state for server in cluster.api_servers)
    yield _by_state("llumnix_api_servers", "OpenAI servers by state.", get_args(ApiServerState), servers)
    scaling, totals = cluster.scaling, cluster.totals
    yield GaugeMetricFamily("llumnix_cluster_uptime_seconds", "Age of the daemon.", cluster.uptime_s)
    yield GaugeMetricFamily("llumnix_nodes", "Nodes of the cluster.", cluster.counts.nodes)
    yield GaugeMetricFamily("llumnix_instances_wanted", "Instances that should serve.", scaling.wanted)
    active = cluster.counts.migrations_active
    yield GaugeMetricFamily("llumnix_migrations_active", "Migrations under way.", active)
    restarts = sum(server.restarts for server in cluster.api_servers)
    yield _counter("llumnix_api_server_restarts", "Times an OpenAI server was started again.", restarts)
    ended = CounterMetricFamily("llumnix_migrations", "Migrations that ended.", labels=("outcome",))
    ended.add_metric(("committed",), totals.migrations_committed)
    ended.add_metric(("aborted",), totals.migrations_aborted)
    yield ended
    yield _counter("llumnix_migrated_bytes", "Bytes of committed migrations.", totals.migrated_bytes)
    downtime_s = totals.migration_downtime_ms / 1e3
    yield _counter("llumnix_migration_downtime_seconds", "Downtime of committed migrations.", downtime_s)
    yield from _latency_families(cluster.latency)


def _latency_families(latency: Latency | None) -> Iterator[Metric]:
    """Percentiles of the last window; vLLM's own histograms are at the OpenAI endpoint."""
    ttft_ms, tpot_ms = (latency.ttft_ms, latency.tpot_ms) if latency else (None, None)
    for name, text, shares in (
        ("ttft", "Time to first token that clients saw lately.", ttft_ms),
        ("tpot", "Time per output token that clients saw lately.", tpot_ms),
    ):
        gauge = GaugeMetricFamily(f"llumnix_{name}_seconds", text, labels=("percentile",))
        if shares is not None:
            for percentile, value_ms in (("50", shares.p50), ("90", shares.p90), ("99", shares.p99)):
                gauge.add_metric((percentile,), value_ms / 1e3)
        yield gauge


def _instance_families(instances: list[Instance]) -> Iterator[Metric]:
    for name, text, value_of in PER_INSTANCE:
        gauge = GaugeMetricFamily(f"llumnix_instance_{name}", text, labels=("instance",))
        for instance in instances:
            if (value := value_of(instance)) is not None:
                gauge.add_metric((instance.id,), value)
        yield gauge
    for name, text, count_of in COUNTED_PER_INSTANCE:
        counter = CounterMetricFamily(f"llumnix_instance_{name}", text, labels=("instance",))
        for instance in instances:
            counter.add_metric((instance.id,), count_of(instance))
        yield counter


def _by_state(name: str, text: str, states: tuple[str, ...], counts: Mapping[Any, int]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=("state",))
    for state in states:
        family.add_metric((state,), counts.get(state, 0))
    return family


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)
