"""What systemd is told by a service of type notify (sd_notify(3)); nothing where it did not start us."""

from __future__ import annotations

import os
import socket
import time


def notify(*assignments: str) -> None:
    """Send lines such as READY=1; they are lost where nobody listens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # abstract
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        try:
            sender.sendto("\n".join(assignments).encode(), address)
        except OSError:
            return  # systemd is being restarted itself


def notify_reloading() -> None:
    """The service reloads; READY=1 tells that it has."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def watchdog_interval_s() -> float | None:
    """How often WATCHDOG=1 is to be sent: twice in the time that systemd waits; None if it does not."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    limit_us = int(os.environ.get("WATCHDOG_USEC", "0"))
    return limit_us / 2e6 if limit_us else None
