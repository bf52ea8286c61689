"""The whole configuration, and what follows from it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from llumnix.config.base import Name, Section, is_loopback
from llumnix.config.cluster import ClusterConfig, InstancesConfig, LoggingConfig, ModelConfig, RayConfig
from llumnix.config.messages import wrong
from llumnix.config.scheduling import (
    AutoscaleConfig,
    MigrationConfig,
    PriorityClass,
    SchedulerConfig,
    check_priorities,
    default_priorities,
)
from llumnix.config.serving import AdminConfig, HttpConfig
from llumnix.config.vllm_table import vllm_table
from llumnix.core.handover.settings import HandoverSettings
from llumnix.core.settings import (
    LlumnixPlusSettings,
    LlumnixSettings,
    ScalingSettings,
    SchedulerSettings,
)
from llumnix.profiles import PROFILES, find_profile

_BUILTIN = "builtin:"


class Config(Section):
    """One cluster, as its TOML file describes it: frozen, and checked as far as the file alone allows."""

    cluster: ClusterConfig = Field(default_factory=ClusterConfig, description="The cluster's name and state.")
    ray: RayConfig = Field(default_factory=RayConfig, description="The Ray cluster below it.")
    model: ModelConfig = Field(default_factory=ModelConfig, description="The model served.")
    instances: InstancesConfig = Field(default_factory=InstancesConfig, description="The vLLM instances.")
    engine: Annotated[Mapping[str, Any], AfterValidator(vllm_table("engine"))] = Field(
        default_factory=dict,
        examples=[{"max_model_len": 8192, "kv_cache_memory_bytes": "1G", "simulated": "a10-llama-7b"}],
        description="Any vLLM engine argument by its vLLM name, for every instance; and `simulated`: no "
        "model, virtual hardware of that profile in real time. On CPU set "
        "kv_cache_memory_bytes, the KV cache of one instance.",
    )
    http: HttpConfig = Field(default_factory=HttpConfig, description="The OpenAI endpoint.")
    admin: AdminConfig = Field(default_factory=AdminConfig, description="The admin API.")
    scheduler: SchedulerConfig = Field(default_factory=SchedulerConfig, description="The global scheduler.")
    priorities: Mapping[Name, PriorityClass] = Field(
        default_factory=default_priorities,
        description="Classes of requests, the most important first; engine_priority rises in this order, "
        "and one class has 0, vLLM's own default. Classes named here replace these two.",
    )
    migration: MigrationConfig = Field(default_factory=MigrationConfig, description="Live migration.")
    autoscale: AutoscaleConfig = Field(default_factory=AutoscaleConfig, description="Scaling by load.")
    logging: LoggingConfig = Field(default_factory=LoggingConfig, description="The log files.")

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        check_priorities(self.priorities)
        self._check_api_keys()
        self._check_engine()
        if self.http.port == self.admin.port:
            raise wrong("admin.port", self.admin.port, "another port than http.port")
        if self.cluster.transport == "ipc" and not is_loopback(self.ray.node_ip):
            raise wrong("cluster.transport", "ipc", "auto or tcp, as ray.node_ip lets other nodes join")
        return self

    def _check_api_keys(self) -> None:
        rank = {name: order for order, name in enumerate(self.priorities)}
        classes = "one of the classes in [priorities]: " + ", ".join(rank)
        for entry in self.http.api_keys:
            for field in ("priority", "max_priority"):
                name = getattr(entry, field)
                if name is not None and name not in rank:
                    raise wrong(f"http.api_keys ({entry.name}): {field}", name, classes)
            given = entry.priority or self.default_priority
            if entry.max_priority is not None and rank[given] < rank[entry.max_priority]:
                raise wrong(
                    f"http.api_keys ({entry.name}): max_priority",
                    entry.max_priority,
                    f"{given} or a class above it",
                )

    def _check_engine(self) -> None:
        for key in ("tensor_parallel_size", "pipeline_parallel_size"):
            value = self.engine.get(key, 1)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise wrong(f"engine.{key}", value, "a whole number of at least 1")
        if "simulated" in self.engine:
            self._check_profile(self.engine["simulated"])

    def _check_profile(self, name: Any) -> None:
        try:
            find_profile(str(name))
        except ValueError as error:
            why = f" ({error})" if str(name).endswith(".json") else ""
            expected = f"one of {', '.join(PROFILES)}, or a .json file with a hardware profile{why}"
            raise wrong("engine.simulated", name, expected) from None
        if self.world_size > 1:
            sizes = ("tensor_parallel_size", "pipeline_parallel_size")
            key = next(size for size in sizes if self.engine.get(size, 1) > 1)
            raise wrong(f"engine.{key}", self.engine[key], "1, as a hardware profile is of a whole instance")

    @property
    def cluster_id(self) -> str:
        """8 hexadecimal digits, the same for every run on this state directory."""
        return hashlib.sha1(str(self.cluster.state_dir).encode(), usedforsecurity=False).hexdigest()[:8]

    @property
    def ray_namespace(self) -> str:
        """Ray's namespace of the cluster's actors; two clusters on one Ray do not see each other."""
        return f"{self.cluster.name}-{self.cluster_id}"

    @property
    def transport(self) -> Literal["ipc", "tcp"]:
        """What cluster.transport = "auto" comes to."""
        if self.cluster.transport != "auto":
            return self.cluster.transport
        return "ipc" if is_loopback(self.ray.node_ip) else "tcp"

    @property
    def builtin_model(self) -> str | None:
        """X of model.path = "builtin:X"; None for a directory or hub id."""
        return self.model.path.removeprefix(_BUILTIN) if self.model.path.startswith(_BUILTIN) else None

    @property
    def served_name(self) -> str:
        """The model's name in the OpenAI API."""
        return self.model.served_name or self.builtin_model or self.model.path

    @property
    def simulated(self) -> str | None:
        """The hardware profile of a simulated cluster; None for real engines."""
        profile: str | None = self.engine.get("simulated")
        return profile

    @property
    def engine_options(self) -> dict[str, Any]:
        """The arguments in [engine] that are vLLM's."""
        return {name: value for name, value in self.engine.items() if name != "simulated"}

    @property
    def world_size(self) -> int:
        """Workers inside one instance: tensor parallel size times pipeline parallel size."""
        size: int = self.engine.get("tensor_parallel_size", 1) * self.engine.get("pipeline_parallel_size", 1)
        return size

    @property
    def gpus_per_instance(self) -> float:
        """GPUs that one instance asks of Ray where there are GPUs."""
        return self.instances.gpus_per_instance or float(self.world_size)

    @property
    def handover(self) -> HandoverSettings:
        """What [migration] says to the handover's state machines."""
        names = {field.name for field in fields(HandoverSettings)}
        return HandoverSettings(**self.migration.model_dump(include=names))

    @property
    def scheduling(self) -> SchedulerSettings:
        """What the file says to the scheduler, and to the dispatchers of the API servers."""
        instances, scheduler, autoscale = self.instances, self.scheduler, self.autoscale
        plus = scheduler.llumnix_plus.model_dump()
        return SchedulerSettings(
            policy=scheduler.policy,
            rescheduling=scheduler.rescheduling,
            interval_s=scheduler.interval_s,
            llumnix=LlumnixSettings(scheduler.llumnix.migration_threshold),
            llumnix_plus=LlumnixPlusSettings(**plus),
            scaling=ScalingSettings(
                min_instances=instances.min, max_instances=instances.max, **autoscale.model_dump()
            ),
            headroom={entry.engine_priority: entry.headroom for entry in self.priorities.values()},
            start_timeout_s=instances.start_timeout_s,
            restart_backoff_s=instances.restart_backoff_s,
            restart_limit=instances.restart_limit,
            heartbeat_timeout_s=instances.heartbeat_timeout_s,
            step_timeout_s=instances.step_timeout_s,
        )

    @property
    def default_priority(self) -> str:
        """The class of requests that name none: that of vLLM's default priority, 0."""
        return next(name for name, entry in self.priorities.items() if entry.engine_priority == 0)
