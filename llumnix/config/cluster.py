"""The cluster and what it is made of: [cluster], [ray], [model], [instances], [logging]."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from llumnix.config.base import Name, NodeIp, Port, Seconds, Section, Text, UserPath, is_loopback, must
from llumnix.config.messages import wrong

# A Unix socket's path has at most 107 bytes; a run's own directories (leftovers, ray_node) add 19, and
# Ray 67 (session name, "/sockets/plasma_store", a number).
TEMP_DIR_MAX_BYTES = 107 - 19 - 67


def host_port(address: str) -> tuple[str, int] | None:
    """HOST:PORT taken apart; None where `address` is not of that form."""
    match = re.fullmatch(r"([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})", address)
    if match is None or not 1 <= int(match[2]) <= 65535:
        return None
    return match[1].strip("[]"), int(match[2])


class ClusterConfig(Section):
    """What the cluster is called, and where it keeps its state."""

    name: Name = Field(
        default="llumnix", description="Name of the cluster: in logs, metrics and the admin API."
    )
    state_dir: UserPath = Field(
        default=Path("~/.local/state/llumnix"),
        validate_default=True,
        description="Journal, tokens, logs and built models; one per cluster. /var/lib/llumnix under "
        "systemd.",
    )
    transport: Literal["auto", "ipc", "tcp"] = Field(
        default="auto",
        description="How API servers, instances and llumnixd talk: ipc (one machine only), tcp (encrypted by "
        "CURVE off loopback), or auto: ipc where ray.node_ip is loopback, else tcp.",
    )


class RayConfig(Section):
    """The Ray cluster that the instances run on."""

    address: Annotated[
        str,
        must(
            lambda v: v in ("local", "auto") or host_port(v) is not None,
            'one of "local", "auto" or "HOST:PORT"',
        ),
    ] = Field(
        default="local",
        description='"local": start a head here; "HOST:PORT": join the Ray cluster there; "auto": use the'
        " one that runs on this machine.",
    )
    node_ip: NodeIp = Field(
        default="127.0.0.1",
        description="Address of this machine at which the other nodes reach it; on loopback no other node"
        " can join.",
    )
    port: Port | None = Field(
        default=None,
        examples=[6379],
        description="Port of the head that is started here; a free one when left out.",
    )
    num_cpus: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        examples=[16],
        description="CPU cores of this node that Ray may give out; all when left out.",
    )
    num_gpus: Annotated[int, Field(ge=0)] | None = Field(
        default=None, examples=[8], description="GPUs of this node that Ray may give out; all when left out."
    )
    temp_dir: (
        Annotated[
            UserPath,
            must(lambda p: len(bytes(p)) <= TEMP_DIR_MAX_BYTES, f"at most {TEMP_DIR_MAX_BYTES} bytes"),
        ]
        | None
    ) = Field(
        default=None,
        examples=["/tmp/llx-ray"],
        description=f"Ray's sockets and logs, a path of at most {TEMP_DIR_MAX_BYTES} bytes, as a Unix "
        "socket's path is limited; when left out a short one below /tmp, the cluster's own.",
    )
    dashboard: bool = Field(default=False, description="Start Ray's dashboard on loopback.")

    @model_validator(mode="after")
    def _head_can_be_reached_back(self) -> Self:
        head = host_port(self.address)
        if head is not None and not is_loopback(head[0]) and is_loopback(self.node_ip):
            raise wrong(
                "ray.node_ip", self.node_ip, f"this machine's address as {head[0]} (ray.address) reaches it"
            )
        return self


class ModelConfig(Section):
    """The model that every instance serves."""

    path: Text = Field(
        default="builtin:tiny",
        description="A directory, a hub id, or builtin:tiny (a 4M-parameter Llama built on the spot, no "
        "network).",
    )
    served_name: Text | None = Field(
        default=None,
        examples=["tiny"],
        description="Name of the model in the OpenAI API; `path` (without builtin:) if left out.",
    )


def _count(data: dict[str, Any]) -> int:
    return int(data["count"])


class InstancesConfig(Section):
    """How many instances there are, what each gets, and when one counts as lost."""

    count: int = Field(default=2, ge=1, description="Instances to start.")
    min: int = Field(
        default_factory=_count,
        ge=1,
        examples=[1],
        description="Fewest instances by scaling; `count` if left out.",
    )
    max: int = Field(
        default_factory=_count,
        ge=1,
        examples=[2],
        description="Most instances by scaling; `count` if left out.",
    )
    start_timeout_s: Seconds = Field(default=600.0, description="How long an instance may take to load.")
    restart_backoff_s: Seconds = Field(
        default=1.0,
        description="Wait before a lost instance is started again; doubled after each failure in a row.",
    )
    restart_limit: int = Field(
        default=5, ge=0, description="Failures in a row after which an instance is given up."
    )
    heartbeat_timeout_s: Seconds = Field(
        default=10.0,
        description="Silence of an engine loop, idle and using no CPU, after which it counts as hung.",
    )
    step_timeout_s: Seconds = Field(
        default=300.0,
        description="The most that one engine step may take while it uses CPU (a long prefill, a compile),"
        " or a call that loads or moves weights (an adapter, sleep), before the loop counts as hung.",
    )
    cpus_per_instance: int = Field(
        default=1, ge=1, description="CPU cores asked of Ray for, and on CPU pinned to, each instance."
    )
    gpus_per_instance: float | None = Field(
        default=None,
        gt=0,
        examples=[1],
        description="GPUs asked of Ray for each instance; engine.tensor_parallel_size * "
        "pipeline_parallel_size if left out. Several instances share a GPU by a fraction "
        "(0.5). Not used on CPU.",
    )

    @model_validator(mode="after")
    def _count_lies_between_min_and_max(self) -> Self:
        if self.min > self.count:
            raise wrong("instances.min", self.min, f"at most instances.count ({self.count})")
        if self.max < self.count:
            raise wrong("instances.max", self.max, f"at least instances.count ({self.count})")
        if self.gpus_per_instance is not None and self.gpus_per_instance > 1 and self.gpus_per_instance % 1:
            raise wrong(
                "instances.gpus_per_instance", self.gpus_per_instance, "a whole number, or one below 1"
            )
        if self.step_timeout_s < self.heartbeat_timeout_s:
            raise wrong(
                "instances.step_timeout_s",
                self.step_timeout_s,
                f"at least instances.heartbeat_timeout_s ({self.heartbeat_timeout_s})",
            )
        return self


class LoggingConfig(Section):
    """The log files, in cluster.state_dir/logs."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least level that is logged."
    )
    max_bytes: int = Field(default=10 * 2**20, ge=4096, description="Size at which a log file is rotated.")
    backups: int = Field(default=5, ge=0, description="Rotated files kept beside each log file.")
