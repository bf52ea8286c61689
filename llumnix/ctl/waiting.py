"""Waiting: for what a command began, drains and a rollout's restarts one after the other, and for events."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from llumnix.admin.schema import Event, Instance, InstancePage, Node
from llumnix.ctl.api import AdminApi, path_of
from llumnix.ctl.errors import CtlError, Exit

POLL_S: Final = 0.25
RETRY_S: Final = 1.0


@dataclass(frozen=True)
class Watch:
    """How waiting passes the time, and how it tells of it."""

    timeout_s: float | None
    tell: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def until(self, look: Callable[[], str | None], what: str) -> None:
        """Look again and again until `look` returns None; it says what is still missing."""
        deadline = None if self.timeout_s is None else self.clock() + self.timeout_s
        told = ""
        while (missing := look()) is not None:
            if missing != told:
                self.tell(missing)
                told = missing
            if deadline is not None and self.clock() >= deadline:
                raise CtlError(f"{what} within {self.timeout_s:g} s: {missing}", Exit.NOT_IN_TIME)
            self.sleep(POLL_S)


def follow(
    api: AdminApi,
    since: int | None,
    tell: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Event]:
    """Yield events as they are written; a daemon that goes away is waited for, and nothing is left out."""
    told = ""
    while True:
        try:
            for event in api.follow(since):
                told, since = "", event.seq
                yield event
        except CtlError as error:
            if error.code is not Exit.UNREACHABLE:
                raise
            if told != str(error):
                told = str(error)
                tell(told)
        sleep(RETRY_S)


def wait_drained(api: AdminApi, kind: str, target_id: str, watch: Watch) -> None:
    """Wait until an instance or node is safe to remove; CtlError if the drain ends otherwise."""

    def look() -> str | None:
        target: Instance | Node = api.instance(target_id) if kind == "instances" else api.node(target_id)
        if target.safe_to_remove:
            return None
        # A node's state is made of its instances': draining as long as one of them is.
        if target.state != "draining":
            blockers = "; ".join(target.blockers) or target.reason
            raise CtlError(f"{target_id} is {target.state}, not safe to remove: {blockers}", Exit.NOT_IN_TIME)
        return f"{target_id} is draining: {'; '.join(target.blockers) or 'settles'}"

    watch.until(look, f"{target_id} was not drained")


def restart_all(api: AdminApi, drain: dict[str, Any], watch: Watch) -> list[str]:
    """Restart every running instance, one after the other; returns their ids. Stops at the first failure."""
    running = [i for i in api.items("/v1/instances", InstancePage) if i.state in ("running", "cordoned")]
    for number, instance in enumerate(running, 1):
        watch.tell(f"{instance.id} ({number} of {len(running)}): drains, then restarts")
        restart_one(api, instance, drain, watch)
    return [instance.id for instance in running]


def restart_one(api: AdminApi, before: Instance, drain: dict[str, Any], watch: Watch) -> None:
    """Restart an instance and wait until its new process serves as the old one did."""
    api.command("POST", path_of("instances", before.id, "restart"), drain)

    def look() -> str | None:
        now = api.instance(before.id)
        if now.incarnation > before.incarnation and now.state == before.state:
            return None
        if now.state == "failed" or (now.incarnation == before.incarnation and now.state == "cordoned"):
            raise CtlError(f"{now.id} was not restarted: it is {now.state}, {now.reason}", Exit.REFUSED)
        return f"{now.id} is {now.state}: {now.stage or '; '.join(now.blockers) or now.reason}"

    watch.until(look, f"{before.id} does not serve again")
