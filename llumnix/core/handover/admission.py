"""Whether a request may come here, and if not, why: one sentence for operators."""

from __future__ import annotations

Fingerprint = tuple[tuple[str, str], ...]


def mismatch(theirs: Fingerprint, ours: Fingerprint) -> str | None:
    """The first field in which the two engines differ."""
    of_source, of_target = dict(theirs), dict(ours)
    for name in sorted(of_source.keys() | of_target.keys()):
        there, here = of_source.get(name, "unknown"), of_target.get(name, "unknown")
        if there != here:
            return f"the engines differ in {name}: {there} at the source, {here} at the target"
    return None
