"""Reads and runs text scenarios of one migration from instance 1 to instance 2, and the trace they give.

The request r0 has 9 tokens, 3 of them output; its epoch is 0.0 and a block has 2 tokens. Blocks of a scenario
stand as in tests/core/scenario.py: comment lines (`#`), command lines, `----`, the trace. Commands:

    set KEY=VALUE ...               settings, before anything else
    migrate                         instance 1 is told to move r0, of which the API server has all tokens
    deliver FROM>TO | lose FROM>TO  the next message on that way arrives, or never does
    notice UID                      the API server gets the next notice of that instance
    reserved CACHED | noroom WHY... | grown | nogrowth WHY... | adopted | notadopted WHY...
    step TOKENS SETTLED | quiesced TOKEN,...|- | finished | aborted | preempted | priority N
    done UID COPY | failed UID COPY | confirmed UID COPY
    peer-lost UID                   that instance loses the other one
    owner-lost UID                  that instance loses the API server
    pressure N | cordon WHY... | cancel UID WHY...
    output UID EPOCH OFFSET TOKEN,...|- [FINISH]
    placed UID EPOCH | held WHY... | none-left WHY... | fenced UID WHY... | forgotten UID WHY... |
    client-aborts
    advance S
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path

from llumnix.core.handover.actions import (
    Action,
    Adopt,
    GrowReservation,
    MigrationEnded,
    Reserve,
    SendToPeer,
    ToOwner,
)
from llumnix.core.handover.epochs import Epoch, engine_id
from llumnix.core.handover.events import (
    AdoptDone,
    AdoptFailed,
    CancelConfirmed,
    CancelMigration,
    Closed,
    CopyDone,
    CopyFailed,
    Event,
    GrowFailed,
    Grown,
    OwnerLost,
    PeerLost,
    PeerMessage,
    Pressure,
    PriorityChanged,
    Quiesced,
    RequestAborted,
    RequestFinished,
    RequestPreempted,
    RequestSnapshot,
    Reserved,
    ReserveFailed,
    StartMigration,
    Stepped,
    Tick,
)
from llumnix.core.handover.host import Handovers
from llumnix.core.handover.messages import Adopted, Moved, Notice, PeerMessageType, Prepare
from llumnix.core.handover.owner import RequestOwner
from llumnix.core.handover.owner_events import (
    AdoptedAt,
    AttemptHeld,
    AttemptPlaced,
    ClientAborted,
    Fenced,
    Forgotten,
    MovedFrom,
    Outputs,
    OwnerEvent,
    OwnerTick,
)
from llumnix.core.handover.settings import HandoverSettings

M = "m1-1"
HERE = engine_id("r0", Epoch(0, 0))
NUM_PROMPT = 6
FIRST_OUTPUTS = (1, 2, 3)


def request() -> RequestSnapshot:
    return RequestSnapshot("r0", Epoch(0, 0), 0, 0, "", 9, 8, (b"a", b"b", b"c", b"d"), FIRST_OUTPUTS, b"")


@dataclass(slots=True)
class Runner:
    settings: HandoverSettings = field(default_factory=HandoverSettings)
    now: float = 0.0
    hosts: dict[int, Handovers] = field(init=False)
    owner: RequestOwner = field(init=False)
    ways: dict[str, deque[PeerMessageType]] = field(init=False)
    notices: dict[int, deque[Notice]] = field(init=False)
    asked: list[Reserve | GrowReservation | Adopt] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.hosts = {uid: Handovers(uid, (("dtype", "bfloat16"),), 2, self.settings) for uid in (1, 2)}
        self.owner = RequestOwner("r0", self.settings, self.now)
        self.ways = {"1>2": deque(), "2>1": deque()}
        self.notices = {1: deque(), 2: deque()}

    def run(self, line: str) -> list[str]:
        """The trace of one command line."""
        verb, *words = line.split()
        match verb, words:
            case "set", pairs:
                for key, value in (pair.split("=") for pair in pairs):
                    self.settings = replace(self.settings, **{key: type(getattr(self.settings, key))(value)})
                self.__post_init__()
                return []
            case "migrate", []:
                start = self.hosts[1].handle(StartMigration(self.hosts[1].new_id(), 2, request()), self.now)
                self.api_server(AttemptPlaced(1, "r0", Epoch(0, 0)))
                self.api_server(Outputs(1, "r0", Epoch(0, 0), 0, FIRST_OUTPUTS, None))
                return self.enact(1, start)
            case "deliver", [way]:
                sender, receiver = (int(uid) for uid in way.split(">"))
                return self.tell(receiver, PeerMessage(sender, self.ways[way].popleft()))
            case "lose", [way]:
                self.ways[way].popleft()
                return []
            case "notice", [uid]:
                notice = self.notices[int(uid)].popleft()
                heard = MovedFrom if isinstance(notice, Moved) else AdoptedAt
                return self.api_server(heard(int(uid), notice))  # type: ignore[arg-type]
            case "advance", [seconds]:
                self.now += float(seconds)
                ticks = self.tell(1, Tick()) + self.tell(2, Tick())
                return ticks + self.api_server(OwnerTick())
            case "pressure" | "cordon", _:
                return self.tell(
                    2, Pressure(int(words[0])) if verb == "pressure" else Closed(" ".join(words))
                )
            case "peer-lost", [uid]:
                return self.tell(int(uid), PeerLost(3 - int(uid), "connection reset"))
            case "owner-lost", [uid]:
                return self.tell(int(uid), OwnerLost(0))
            case "cancel", [uid, *why]:
                return self.tell(int(uid), CancelMigration(M, " ".join(why)))
            case "done" | "failed" | "confirmed", [uid, copy]:
                ends: dict[str, Event] = {
                    "done": CopyDone(M, int(copy)),
                    "failed": CopyFailed(M, int(copy), "connection reset"),
                    "confirmed": CancelConfirmed(M, int(copy)),
                }
                return self.tell(int(uid), ends[verb])
        if verb in ("reserved", "noroom", "grown", "nogrowth", "adopted", "notadopted"):
            return self.tell(2, self.answer(verb, words))
        if verb in ("step", "quiesced", "finished", "aborted", "preempted", "priority"):
            return self.tell(1, request_change(verb, words))
        return self.api_server(owner_event(verb, words))

    def answer(self, verb: str, words: list[str]) -> Event:
        asked = self.asked.pop(0)
        match verb, asked:
            case "reserved", Reserve(prepare):
                return Reserved(M, int(words[0]), prepare.num_blocks)
            case "grown", GrowReservation(_, num_blocks):
                return Grown(M, num_blocks)
            case "adopted", Adopt():
                return AdoptDone(M)
            case "noroom", Reserve():
                return ReserveFailed(M, " ".join(words))
            case "nogrowth", GrowReservation():
                return GrowFailed(M, " ".join(words))
            case "notadopted", Adopt():
                return AdoptFailed(M, " ".join(words))
        raise ValueError(f"the engine was asked {asked}, not {verb}")

    def tell(self, uid: int, event: Event) -> list[str]:
        return self.enact(uid, self.hosts[uid].handle(event, self.now))

    def enact(self, uid: int, actions: list[Action]) -> list[str]:
        for action in actions:
            match action:
                case SendToPeer(peer, message):
                    self.ways[f"{uid}>{peer}"].append(message)
                case ToOwner(_, notice):
                    self.notices[uid].append(notice)
                case Reserve() | GrowReservation() | Adopt():
                    self.asked.append(action)
        self.hosts[uid].check_integrity()
        return [f"{self.now:6.2f} {uid}: {describe(action)}" for action in actions]

    def api_server(self, event: OwnerEvent) -> list[str]:
        actions = self.owner.handle(event, self.now)
        self.owner.check_integrity()
        return [f"{self.now:6.2f} api: {describe(action)}" for action in actions]


def numbers(text: str) -> tuple[int, ...]:
    return () if text == "-" else tuple(int(part) for part in text.split(","))


def epoch(text: str) -> Epoch:
    attempt, hop = text.split(".")
    return Epoch(int(attempt), int(hop))


def request_change(verb: str, words: list[str]) -> Event:
    match verb, words:
        case "step", [tokens, settled]:
            return Stepped(HERE, int(tokens), int(settled))
        case "quiesced", [tokens]:
            since = numbers(tokens)
            num_tokens = NUM_PROMPT + len(FIRST_OUTPUTS) + len(since)
            return Quiesced(HERE, since, num_tokens, num_tokens - 1, b"rng")
        case "priority", [priority]:
            return PriorityChanged(HERE, int(priority))
    gone: dict[str, type[RequestFinished | RequestAborted | RequestPreempted]] = {
        "finished": RequestFinished,
        "aborted": RequestAborted,
        "preempted": RequestPreempted,
    }
    return gone[verb](HERE)


def owner_event(verb: str, words: list[str]) -> OwnerEvent:
    match verb, words:
        case "output", [uid, of, offset, tokens, *finish]:
            return Outputs(
                int(uid), "r0", epoch(of), int(offset), numbers(tokens), finish[0] if finish else None
            )
        case "placed", [uid, of]:
            return AttemptPlaced(int(uid), "r0", epoch(of))
        case "held" | "none-left", [attempt, *why]:
            return AttemptHeld(epoch(attempt), " ".join(why), is_any_left=verb == "held")
        case "fenced", [uid, *why]:
            return Fenced(int(uid), " ".join(why))
        case "forgotten", [uid, *why]:
            return Forgotten(int(uid), " ".join(why))
        case "client-aborts", []:
            return ClientAborted()
    raise ValueError(f"no such command: {verb} {' '.join(words)}")


def describe(value: object) -> str:
    """An action or message with its telling fields."""
    match value:
        case SendToPeer(_, message):
            return f"send {describe(message)}"
        case ToOwner(_, notice):
            return f"tell api {describe(notice)}"
        case Reserve(prepare) | Adopt(prepare):
            return f"{type(value).__name__} {prepare.engine_id}"
        case Prepare():
            return f"Prepare {value.engine_id} tokens={value.num_tokens} blocks={value.num_blocks}"
        case MigrationEnded(_, outcome, reason, stages, copied, skipped):
            return f"ended {outcome}, {stages} stages, {copied} copied, {skipped} skipped: {reason}"
        case Moved() | Adopted():
            pass
    assert is_dataclass(value)
    shown = [f"{f.name}={plain(getattr(value, f.name))}" for f in fields(value) if f.name != "migration"]
    return " ".join([type(value).__name__, *shown])


def plain(value: object) -> str:
    return describe(value) if isinstance(value, Outputs) else str(value)


def replay(text: str) -> str:
    """The scenario with its traces as the machines give them now."""
    runner, out = Runner(), []
    for block in text.strip().split("\n\n"):
        lines = block.split("\n----")[0].splitlines()
        trace = [line for command in lines if not command.startswith("#") for line in runner.run(command)]
        out += ["\n".join([*lines, "----", *(trace or ["(nothing)"])])]
    return "\n\n".join(out) + "\n"


def scenario_files() -> list[Path]:
    return sorted((Path(__file__).parent / "scenarios").glob("*.txt"))
