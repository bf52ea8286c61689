from __future__ import annotations

from llumnix.engine.lease import Lease


def test_a_lease_runs_only_while_nobody_is_there() -> None:
    lease = Lease(15.0, now=0.0)
    assert not lease.is_over(14.9)
    lease.opened("manager")
    lease.opened("api0")
    assert not lease.is_over(1_000.0)
    lease.lost("manager", 1_000.0)
    assert not lease.is_over(2_000.0)  # an API server is enough
    lease.lost("api0", 2_000.0)
    assert not lease.is_over(2_014.9)
    assert lease.is_over(2_015.0)


def test_whoever_comes_back_in_time_renews_it() -> None:
    lease = Lease(15.0, now=0.0)
    lease.opened("api0")
    lease.lost("api0", 10.0)
    lease.lost("api0", 24.0)  # a repeated attempt to connect failed: the lease began with the first loss
    assert lease.is_over(25.0)
    lease.opened("api0")
    assert not lease.is_over(1_000.0)


def test_an_instance_that_never_reaches_anybody_ends_too() -> None:
    assert Lease(15.0, now=100.0).is_over(115.0)
