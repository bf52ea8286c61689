"""Text scenarios of core.handover give the traces that stand in them.

`REWRITE_SCENARIOS=1 pytest tests/core/handover` writes the traces anew; review them as a diff.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .scenario import replay, scenario_files


@pytest.mark.parametrize("path", scenario_files(), ids=lambda path: path.stem)
def test_a_scenario_gives_its_trace(path: Path) -> None:
    written = path.read_text()
    given = replay(written)
    if os.environ.get("REWRITE_SCENARIOS"):
        path.write_text(given)
    else:
        assert given == written


def test_a_changed_trace_is_noticed() -> None:
    written = scenario_files()[0].read_text()
    changed = written.replace("Prepare", "Perhaps", 1)
    assert changed != written and replay(changed) != changed
