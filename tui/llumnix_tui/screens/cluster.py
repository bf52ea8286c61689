"""Screen 1: the cluster's totals, and every instance, under its node where there are several."""

from __future__ import annotations

from collections.abc import Sequence

from llumnix.admin.schema import Node
from llumnix_tui.commands import Target
from llumnix_tui.render import instances
from llumnix_tui.render.columns import Column
from llumnix_tui.render.instances import InstanceRow
from llumnix_tui.render.overview import totals
from llumnix_tui.render.text import Line
from llumnix_tui.screens.actions import ScaleActions
from llumnix_tui.screens.instance import InstanceScreen
from llumnix_tui.screens.lists import ListScreen
from llumnix_tui.snapshot import Snapshot
from llumnix_tui.table import VirtualTable


class ClusterScreen(ScaleActions, ListScreen):
    """Instances and what they carry."""

    def make_table(self) -> VirtualTable[InstanceRow]:
        """Return the table of instances and nodes."""
        return VirtualTable(
            instances.row_key, instances.haystack, banner=instances.node_line, empty="no instances"
        )

    def rows(self, snapshot: Snapshot) -> Sequence[InstanceRow]:
        """Return instances, and nodes where there are several."""
        return instances.instance_rows(snapshot)

    def columns(self, snapshot: Snapshot) -> Sequence[Column[InstanceRow]]:
        """Return the columns, which depend on the priority classes."""
        return instances.instance_columns(snapshot.cluster.priorities, self.llumnix.store.history)

    def heading(self, snapshot: Snapshot) -> Sequence[Line]:
        """Return the cluster's totals."""
        return totals(snapshot, self.llumnix.store.history.cluster, self.size.width)

    def about(self, row: InstanceRow) -> Sequence[Line]:
        """Return the row's trends and reasons."""
        return instances.about(row, self.llumnix.store.history, self.size.width)

    def open(self, row: InstanceRow) -> None:
        """Show the instance."""
        if not isinstance(row, Node):
            self.app.push_screen(InstanceScreen(row.id))

    def targets(self) -> list[Target]:
        """Return the marked rows, else the one under the cursor."""
        return [
            Target("node" if isinstance(row, Node) else "instance", row.id) for row in self.table().chosen
        ]
