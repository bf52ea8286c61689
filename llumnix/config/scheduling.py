"""Where requests run and in what order: [scheduler], [priorities], [migration], [autoscale]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from llumnix.config.base import Seconds, Section, UserPath
from llumnix.config.messages import wrong
from llumnix.core.load import Headroom


class LlumnixPolicy(Section):
    """Policy llumnix: the paper's Algorithm 1."""

    migration_threshold: float = Field(
        default=3.0,
        description="Freeness (free KV blocks per running request) below which an instance gives requests"
        " away, and from which on it takes them.",
    )


class LlumnixPlusPolicy(Section):
    """Policy llumnix+: the paper's, with thresholds apart so that requests do not go to and fro."""

    migrate_out_threshold: float = Field(
        default=3.0,
        description="Freeness (free KV blocks per running request) below which an instance gives requests"
        " away.",
    )
    migrate_in_threshold: float = Field(
        default=6.0,
        description="Freeness from which on an instance takes requests; not below migrate_out_threshold.",
    )
    reserve_blocks: float = Field(
        default=1.0,
        ge=0,
        description="A new request waits at its API server until an instance has room for it and, for every"
        " request there, this many free KV blocks to grow.",
    )
    overtake_s: float = Field(
        default=30.0,
        ge=0,
        description="Smaller requests may pass one that fits nowhere for this long.",
    )
    prefix_reach: float = Field(
        default=2.0,
        ge=1,
        description="An instance that was sent the same beginning of a prompt before is preferred to one that"
        " is freer by up to this factor; 1: freeness alone decides.",
    )
    make_room: bool = Field(
        default=True,
        description="Move running requests together so that a request fits that fits nowhere.",
    )

    @model_validator(mode="after")
    def _takers_are_freer_than_givers(self) -> Self:
        if self.migrate_in_threshold < self.migrate_out_threshold:
            raise wrong(
                'scheduler."llumnix+".migrate_in_threshold',
                self.migrate_in_threshold,
                f"at least migrate_out_threshold ({self.migrate_out_threshold})",
            )
        return self


class SchedulerConfig(Section):
    """The global scheduler."""

    policy: Literal["llumnix+", "llumnix", "load", "least_requests", "round_robin"] = Field(
        default="llumnix+",
        description="A named combination of dispatch and rescheduling: llumnix+, llumnix (the paper's), "
        "load (INFaaS++: free memory, queued demand counted), least_requests (vLLM's data "
        "parallel), round_robin.",
    )
    rescheduling: bool = Field(
        default=True, description="Move running requests between instances; false: place only, move by hand."
    )
    interval_s: Seconds = Field(default=0.05, description="How often migration is considered.")
    record: UserPath | None = Field(
        default=None,
        examples=["/var/lib/llumnix/scheduler.events"],
        description="File that every event of the scheduler is written to, for llumnix-sim replay; at most "
        "8 files of 64 MiB.",
    )
    llumnix: LlumnixPolicy = Field(default_factory=LlumnixPolicy, description="Thresholds of policy llumnix.")
    llumnix_plus: LlumnixPlusPolicy = Field(
        default_factory=LlumnixPlusPolicy, alias="llumnix+", description="Thresholds of policy llumnix+."
    )


class PriorityClass(Section):
    """One class of requests."""

    engine_priority: int = Field(description="Priority in vLLM's scheduler: the lower, the more important.")
    headroom_tokens: int = Field(
        default=0, ge=0, description="KV tokens kept free on an instance that runs requests of this class."
    )
    target_load_tokens: int = Field(
        default=0,
        ge=0,
        description="If not 0, in place of headroom_tokens: all of an instance's KV tokens but this many are"
        " kept free, so that requests of this class run at their ideal speed.",
    )

    @property
    def headroom(self) -> Headroom:
        """As the scheduler counts it."""
        return Headroom(self.headroom_tokens, self.target_load_tokens or None)


def default_priorities() -> dict[str, PriorityClass]:
    """The classes of a file that names none, most important first."""
    return {
        "high": PriorityClass(engine_priority=-10, target_load_tokens=1600),
        "normal": PriorityClass(engine_priority=0, headroom_tokens=0),
    }


def check_priorities(classes: Mapping[str, PriorityClass]) -> None:
    """Refuses classes whose order and engine priorities disagree, or that lack vLLM's default, 0."""
    previous: tuple[str, int] | None = None
    for name, entry in classes.items():
        if previous is not None and entry.engine_priority <= previous[1]:
            raise wrong(
                f"priorities.{name}.engine_priority",
                entry.engine_priority,
                f"more than that of {previous[0]} ({previous[1]}), which stands before it as more important",
            )
        previous = (name, entry.engine_priority)
        if entry.headroom_tokens and entry.target_load_tokens:
            expected = f"0, as headroom_tokens ({entry.headroom_tokens}) is set"
            raise wrong(f"priorities.{name}.target_load_tokens", entry.target_load_tokens, expected)
    if 0 not in [entry.engine_priority for entry in classes.values()]:
        listed: dict[str, Any] = {name: {"engine_priority": c.engine_priority} for name, c in classes.items()}
        raise wrong("priorities", listed, "a class of engine_priority 0, which requests have that name none")


class MigrationConfig(Section):
    """Live migration of requests between instances."""

    backend: Literal["auto", "gloo", "shm", "nccl", "cuda_ipc"] = Field(
        default="auto",
        description="Transport of KV blocks; auto, on CPU: shm inside a node, gloo between nodes; "
        "on GPU: cuda_ipc on one GPU, else nccl.",
    )
    max_stages: int = Field(
        default=3, ge=1, description="Copies that are made while the request goes on, before the last one."
    )
    last_stage_blocks: int = Field(
        default=1, ge=1, description="Blocks left to copy at which the last stage begins."
    )
    max_concurrent: int = Field(
        default=2, ge=1, description="Migrations that one instance takes part in at a time."
    )
    max_inflight_blocks: int = Field(
        default=512, ge=1, description="Blocks that one instance may have under way."
    )
    timeout_s: Seconds = Field(
        default=10.0, description="How long one migration may take before it is given up."
    )
    handover_timeout_s: Seconds = Field(
        default=2.0,
        description="How long an API server waits for the tokens of a handover before it starts the "
        "request anew.",
    )
    max_attempts: int = Field(
        default=5,
        ge=1,
        description="A request that has lost so many instances is given up: it may be what kills them.",
    )
    resume_timeout_s: Seconds = Field(
        default=30.0,
        description="How long a request that lost its instance waits for another before it fails (503).",
    )
    lease_s: Seconds = Field(
        default=15.0, description="Without contact for this long an instance ends itself."
    )


class AutoscaleConfig(Section):
    """Adding and removing instances by load, between instances.min and instances.max."""

    enabled: bool = Field(default=False, description="Whether it is on.")
    scale_up_freeness: float = Field(
        default=10.0, description="Mean freeness below which an instance is added."
    )
    scale_down_freeness: float = Field(
        default=60.0, description="Mean freeness above which an instance is removed."
    )
    hold_s: float = Field(
        default=30.0, ge=0, description="How long a bound must be crossed before anything is done."
    )
    interval_s: Seconds = Field(default=10.0, description="How often the load is looked at.")

    @model_validator(mode="after")
    def _bounds_are_apart(self) -> Self:
        if self.scale_down_freeness <= self.scale_up_freeness:
            raise wrong(
                "autoscale.scale_down_freeness",
                self.scale_down_freeness,
                f"more than autoscale.scale_up_freeness ({self.scale_up_freeness})",
            )
        return self
