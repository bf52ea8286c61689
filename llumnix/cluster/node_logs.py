"""The logs on other nodes: read by short Ray tasks there, also when what wrote them is dead."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import ray

from llumnix.admin.logs import LogDir
from llumnix.errors import RefusedError, UnknownTargetError
from llumnix.log import log_dir_here

ANSWER_S = 5.0
"""The first answer waits for a process that starts; where that takes longer, the next question finds it."""


def own_node() -> str:
    """The node that this process runs on."""
    node: str = ray.get_runtime_context().get_node_id()
    return node


class NodeLogs:
    """Asks nodes, each with one unanswered question at most beside those asked in the same ANSWER_S."""

    def __init__(self, log_dir: Path) -> None:
        """`log_dir`: where a node's logs are unless its own configuration says otherwise."""
        self._log_dir = log_dir
        self._late: dict[str, asyncio.Future[tuple[str, ...]]] = {}

    async def names(self, node: str) -> tuple[str, ...]:
        """What has a log there; RefusedError if the node is gone or does not answer in time."""
        return await self._ask(node, _names, self._log_dir)

    async def tail(self, node: str, name: str, num_lines: int) -> tuple[str, ...]:
        """A log's last lines; likewise, and UnknownTargetError where there is no such log."""
        return await self._ask(node, _tail, self._log_dir, f"node {node}", name, num_lines)

    async def _ask(self, node: str, task: Any, *arguments: Any) -> tuple[str, ...]:
        if (late := self._late.get(node)) is not None and not late.done():
            raise RefusedError(f"node {node} has not answered for more than {ANSWER_S:g} s")
        pinned = task.options(
            scheduling_strategy=ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
                node, soft=False
            )
        )
        answer = asyncio.wrap_future(pinned.remote(*arguments).future())
        answer.add_done_callback(_look_at)
        await asyncio.wait({answer}, timeout=ANSWER_S)
        if not answer.done():
            self._late[node] = answer
            raise RefusedError(f"node {node} did not answer within {ANSWER_S:g} s")
        try:
            return answer.result()
        except ray.exceptions.RayTaskError as error:
            raise UnknownTargetError(str(error.cause)) from None
        except ray.exceptions.RayError as error:
            cause = " ".join(str(error).split())
            raise RefusedError(f"node {node} cannot be asked for its logs: {cause}") from None


def _look_at(answer: asyncio.Future[Any]) -> None:
    """Nobody may wait for it any more: then its failure is no news."""
    if not answer.cancelled():
        answer.exception()


@ray.remote(num_cpus=0, max_retries=0)
def _names(log_dir: Path) -> tuple[str, ...]:
    return tuple(LogDir(log_dir_here(log_dir)).names())


@ray.remote(num_cpus=0, max_retries=0)
def _tail(log_dir: Path, machine: str, name: str, num_lines: int) -> tuple[str, ...]:
    return LogDir(log_dir_here(log_dir), machine).tail(name, num_lines)
