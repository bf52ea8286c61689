"""Requests that are leaving an instance: what its engine does for the source's machines, and the news."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from llumnix.core.handover import actions as act
from llumnix.core.handover import events as ev
from llumnix.core.handover.epochs import split_engine_id
from llumnix.engine.copies import Sent
from llumnix.engine.migration.port import MigrationPort
from llumnix.engine.migration.state import encode
from llumnix.errors import RefusedError
from llumnix.wire import MigrationNews

MigrationState = Literal["prepare", "copying", "committed", "aborted"]


@dataclass(slots=True)
class Leaving:
    """A migration away from here."""

    migration: str
    engine_id: str
    peer: int
    reason: str
    num_preemptions: int
    frozen_at: float | None = None
    froze_from: int | None = None
    """Freeze is asked for and not answered: output tokens from this one on are still to be told."""
    sent: Sent = field(default_factory=Sent)
    blocks_skipped: int | None = None
    """That the target has already; known with the first copy."""


@dataclass(slots=True)
class Departures:
    """For the engine thread, between two steps."""

    uid: int
    port: MigrationPort
    clock: Callable[[], float]
    tell: Callable[[ev.Event], None]
    publish: Callable[[MigrationNews], None]
    _leaving: dict[str, Leaving] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._leaving)

    def engine_ids(self) -> Iterable[str]:
        return (leaving.engine_id for leaving in self._leaving.values())

    def snapshot(self, request_id: str) -> tuple[ev.RequestSnapshot, int]:
        """The request as it is now, and how often it was preempted; raises what Source.identity raises."""
        info = self.port.source.identity(request_id)
        sent = info.request
        bare_id, epoch = split_engine_id(request_id)
        snapshot = ev.RequestSnapshot(
            request_id=bare_id,
            epoch=epoch,
            owner=sent.client_index,
            priority=sent.priority,
            adapter=sent.lora_request.lora_name if sent.lora_request else "",
            num_tokens=len(sent.prompt_token_ids or ()) + len(info.output_token_ids),
            num_settled_tokens=info.num_computed_tokens,
            block_hashes=(),
            output_tokens=tuple(info.output_token_ids),
            request=msgspec.msgpack.encode(encode(info)),
        )
        return snapshot, info.num_preemptions

    def begin(self, leaving: Leaving) -> None:
        self._leaving[leaving.migration] = leaving

    def forget(self, migration: str) -> None:
        """It was refused before it began."""
        del self._leaving[migration]

    def refused(self, leaving: Leaving, why: str) -> None:
        """It was asked for a while ago and cannot begin: whoever looks for it finds the reason."""
        self._publish(leaving, "aborted", why)

    def announce(self, migration: str) -> None:
        """PREPARE is on its way."""
        leaving = self._leaving.get(migration)
        if leaving is not None:
            self._publish(leaving, "prepare", "")

    def copying(self, action: act.CopyBlocks) -> None:
        """A stage begins: the blocks before its first one are at the target."""
        leaving = self._leaving[action.migration]
        if leaving.blocks_skipped is None:
            leaving.blocks_skipped = action.first_block
        held = self.port.held_blocks(leaving.engine_id) or 0
        self.publish(
            self._news(
                leaving,
                "copying",
                stages=action.stage,
                blocks_sent=action.first_block - leaving.blocks_skipped,
                blocks_skipped=leaving.blocks_skipped,
                blocks_total=max(held, action.first_block + action.num_blocks),
            )
        )

    def sent(self, migration: str) -> Sent:
        """What its copies have taken so far."""
        return self._leaving[migration].sent

    def ended(self, ended: act.MigrationEnded) -> str | None:
        """The machine knows the outcome; the request's id if it was one that left from here."""
        leaving = self._leaving.pop(ended.migration, None)
        if leaving is None:
            return None
        moved = ended.outcome is act.Outcome.MOVED
        self._publish(leaving, "committed" if moved else "aborted", ended.reason, ended)
        return leaving.engine_id

    def freeze(self, action: act.Freeze) -> None:
        """Take it out of the batch; answered in this turn where no step in flight concerns it."""
        self.port.source.freeze(action.engine_id)
        leaving = self._leaving[action.migration]
        leaving.froze_from = action.from_output
        leaving.frozen_at = self.clock()
        self._look_at(leaving)

    def look(self) -> None:
        """Tell what the step, or an idle turn, has done to the requests that are leaving."""
        for leaving in list(self._leaving.values()):
            self._look_at(leaving)

    def _look_at(self, leaving: Leaving) -> None:
        progress = self.port.source.progress(leaving.engine_id)
        if progress is None:
            self.tell(ev.RequestFinished(leaving.engine_id))
        elif progress.num_preemptions != leaving.num_preemptions:
            leaving.num_preemptions = progress.num_preemptions
            self.tell(ev.RequestPreempted(leaving.engine_id))
        elif leaving.froze_from is None:
            num_tokens = self.port.num_tokens(leaving.engine_id)
            self.tell(ev.Stepped(leaving.engine_id, num_tokens, progress.num_settled_tokens))
        elif progress.quiet:
            first, leaving.froze_from = leaving.froze_from, None
            self._quiesced(leaving, first)

    def _quiesced(self, leaving: Leaving, first_output: int) -> None:
        try:
            final = self.port.source.final_state(leaving.engine_id, first_output)
        except RefusedError as error:
            self.tell(ev.CancelMigration(leaving.migration, str(error)))
            return
        self.tell(
            ev.Quiesced(
                leaving.engine_id,
                tuple(final.output_token_ids),
                self.port.num_tokens(leaving.engine_id),
                final.num_computed_tokens,
                msgspec.msgpack.encode(encode(final)),
            )
        )

    def _publish(
        self,
        leaving: Leaving,
        state: MigrationState,
        why: str,
        ended: act.MigrationEnded | None = None,
    ) -> None:
        downtime_ms = None
        if state == "committed" and leaving.frozen_at is not None:
            downtime_ms = (self.clock() - leaving.frozen_at) * 1e3
        self.publish(
            self._news(
                leaving,
                state,
                why=why,
                stages=ended.stages if ended else 0,
                blocks_sent=ended.num_blocks_copied if ended else 0,
                blocks_skipped=ended.num_blocks_skipped if ended else 0,
                downtime_ms=downtime_ms,
            )
        )

    def _news(
        self,
        leaving: Leaving,
        state: MigrationState,
        *,
        stages: int,
        blocks_sent: int,
        blocks_skipped: int,
        why: str = "",
        downtime_ms: float | None = None,
        blocks_total: int | None = None,
    ) -> MigrationNews:
        return MigrationNews(
            migration=leaving.migration,
            request_id=leaving.engine_id,
            source=self.uid,
            target=leaving.peer,
            reason=leaving.reason,
            state=state,
            why=why,
            stages=stages,
            blocks_sent=blocks_sent,
            blocks_skipped=blocks_skipped,
            num_bytes=leaving.sent.num_bytes,
            copy_ms=leaving.sent.copy_s * 1e3,
            downtime_ms=downtime_ms,
            blocks_total=blocks_total,
        )
