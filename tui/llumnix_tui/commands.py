"""What an operator can ask of the cluster: one call of the admin API each, with the words that explain it."""

from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

from llumnix.admin.schema import TargetKind

OnTimeout = Literal["leave", "abort"]


@dataclass(frozen=True)
class Target:
    """An instance or a node."""

    kind: TargetKind
    id: str

    def __str__(self) -> str:
        return f"{self.kind} {self.id}"

    @property
    def path(self) -> str:
        """Where the admin API has it."""
        return f"/v1/{self.kind}s/{quote(self.id, safe='')}"


@dataclass(frozen=True)
class Command:
    """One call: what it does to which target in a few words, and how it is sent."""

    what: str
    method: str
    path: str
    body: dict[str, Any] | None = None


def cordon(target: Target) -> Command:
    """Send the target no new requests."""
    return Command(f"cordon {target}", "POST", f"{target.path}/cordon")


def uncordon(target: Target) -> Command:
    """Send the target requests again."""
    return Command(f"uncordon {target}", "POST", f"{target.path}/uncordon")


def drain(target: Target, timeout_s: float | None = None, on_timeout: OnTimeout = "leave") -> Command:
    """Move everything away from the target; when the time is up, leave or abort what is left."""
    body = {"timeout_s": timeout_s, "on_timeout": on_timeout}
    return Command(f"drain {target}", "POST", f"{target.path}/drain", body)


def remove(instance_id: str) -> Command:
    """Drain an instance, then end it."""
    target = Target("instance", instance_id)
    return Command(f"remove {target}", "DELETE", target.path)


def add_instances(count: int) -> Command:
    """Start further instances."""
    noun = "instance" if count == 1 else "instances"
    return Command(f"add {count} {noun}", "POST", "/v1/instances", {"count": count})


def set_priority(request_id: str, class_name: str) -> Command:
    """Put a request into another priority class."""
    what = f"set priority of {request_id} to {class_name}"
    return Command(what, "PATCH", _request_path(request_id), {"priority": class_name})


def abort(request_id: str) -> Command:
    """End a request; its client gets an error event."""
    return Command(f"abort {request_id}", "DELETE", _request_path(request_id))


def migrate(request_id: str, to: str | None) -> Command:
    """Move a request to an instance, or to where the scheduler chooses."""
    where = to or "where the scheduler chooses"
    return Command(
        f"migrate {request_id} to {where}", "POST", f"{_request_path(request_id)}/migrate", {"to": to}
    )


def _request_path(request_id: str) -> str:
    return f"/v1/requests/{quote(request_id, safe='')}"
