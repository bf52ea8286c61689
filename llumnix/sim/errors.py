"""What can go wrong in a simulation."""

from __future__ import annotations


class SimulationError(Exception):
    """The simulated cluster broke its own rules: a bug of llumnix, not of the workload."""
