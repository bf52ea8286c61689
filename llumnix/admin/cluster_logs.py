"""The logs of a whole cluster: read here on the daemon's machine, and elsewhere by asking that node."""

import asyncio

from llumnix.admin.control import ClusterControl
from llumnix.admin.logs import LogDir
from llumnix.admin.schema import LogNames, NodeLogs
from llumnix.errors import RefusedError, UnknownTargetError


class ClusterLogs:
    """Finds where a log is; every answer comes in bounded time."""

    def __init__(self, here: LogDir, control: ClusterControl) -> None:
        self._here = here
        self._control = control

    async def names(self) -> LogNames:
        """Return what has a log, and where."""
        own = self._control.own_node()
        others = [node.id for node in self._control.nodes() if node.id != own and node.state != "dead"]
        asked = asyncio.gather(*map(self._names_on, others))
        here = await asyncio.to_thread(self._here.names)
        return LogNames(node=own, names=tuple(here), others=tuple(await asked))

    async def tail(self, name: str, num_lines: int, node: str | None = None) -> tuple[str, ...]:
        """Return a log's last lines.

        Without a node: an instance's log where its latest process is or was, any other log where one is.
        """
        instance = next((i for i in self._control.instances() if i.id == name), None)
        if node is None and instance is not None:
            node = instance.last_node
        here = await asyncio.to_thread(self._here.names)
        if node is None and instance is None and name not in here:
            node = await self._find(name)
        if node is None or node == self._control.own_node():
            return await asyncio.to_thread(self._here.tail, name, num_lines)
        self._require_alive(node)
        return await self._control.log_tail(node, name, num_lines)

    async def _names_on(self, node: str) -> NodeLogs:
        try:
            return NodeLogs(node=node, names=await self._control.log_names(node))
        except RefusedError as refused:
            return NodeLogs(node=node, error=str(refused))

    async def _find(self, name: str) -> str | None:
        """Return another node that has this log; UnknownTargetError says whom it could not ask."""
        others = (await self.names()).others
        errors = [other.error for other in others if other.error]
        found = next((other.node for other in others if name in other.names), None)
        if found is None and errors:
            raise UnknownTargetError(f"no log of {name!r} was found; {'; '.join(errors)}")
        return found

    def _require_alive(self, node: str) -> None:
        known = next((n for n in self._control.nodes() if n.id == node), None)
        if known is None:
            raise UnknownTargetError(f"there is no node {node!r}; logs of one that left are on its machine")
        if known.state == "dead":
            raise RefusedError(f"node {node} is dead; its logs can be read on its machine only")
