"""Reads and runs text scenarios: commands for core.Scheduler, and the trace it gives.

A scenario is a list of blocks: comment lines (`#`), command lines, `----`, the trace they give. Commands:

    set KEY=VALUE ...               settings, before the first event; SECTION.KEY=VALUE of a section;
                                    headroom.PRIORITY=TOKENS
    serve N                         add N instances and have them ready; only the last table is shown
    add N | cordon ID | uncordon ID | drain ID S [abort] | remove ID S | restart ID S
    placed UID | ready UID | died UID REASON...
    report UID [running=N] ...      any figure of InstanceReport; PRIORITY:running=N of a class
    held API requests=N tokens=N head=N priority=P
    scale N | notice ID S
    beat UID loop=S step=S|none cpu=SHARE
    advance S [silent=UID,...] [absent]
    show                            one line per instance, and how many are in which state

`advance` ticks every 0.25 s; before each tick every serving instance, but for those named after `silent`,
sends a good heartbeat and reports its last load again. With `absent` nothing comes before the end: the daemon
stood still.
A refused command gives a `refused` line; an order to move that only renews the former one gives none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llumnix.core.events import (
    AbortRequests,
    Action,
    AddInstances,
    Beat,
    CommandRefused,
    Cordon,
    DispatchEntry,
    Drain,
    Event,
    HeldRequests,
    InstanceDied,
    InstancePlaced,
    InstanceReady,
    KillInstance,
    MoveRequests,
    PublishTable,
    Record,
    Reported,
    ScaleTo,
    StartInstance,
    StopInstance,
    TerminationNotice,
    Tick,
    Uncordon,
    UnknownInstance,
)
from llumnix.core.load import ClassLoad, Headroom, InstanceReport
from llumnix.core.member import SERVING
from llumnix.core.scheduler import Scheduler
from llumnix.core.settings import SchedulerSettings
from llumnix.core.victims import MoveGoal

from .reports import report

TICK_S = 0.25


@dataclass(slots=True)
class Runner:
    settings: SchedulerSettings = field(default_factory=SchedulerSettings)
    scheduler: Scheduler = field(init=False)
    now: float = 0.0
    loads: dict[int, InstanceReport] = field(default_factory=dict)
    orders: dict[int, MoveRequests] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.settings)

    def run(self, line: str) -> list[str]:
        """The trace of one command line."""
        verb, *words = line.split()
        match verb, words:
            case "set", pairs:
                for key, value in (pair.split("=") for pair in pairs):
                    self.settings = changed(self.settings, key, type_of(value))
                self.scheduler = Scheduler(self.settings)
                return []
            case "serve", [count]:
                return self.serve(int(count))
            case "advance", [seconds, *options]:
                return self.advance(float(seconds), options)
            case "show", []:
                return self.show()
            case "report", [uid, *pairs]:
                return self.report(int(uid), {k: type_of(v) for k, v in (pair.split("=") for pair in pairs)})
        return self.tell(parse_event(verb, words))

    def tell(self, event: Event) -> list[str]:
        try:
            actions = self.scheduler.handle(event, self.now)
        except (CommandRefused, UnknownInstance) as error:
            return [f"refused: {error}"]
        self.scheduler.check_integrity()
        return [f"{self.now:7.2f} {describe(action)}" for action in actions if self.is_news(action)]

    def is_news(self, action: Action) -> bool:
        """False for an order that only renews the source's former one."""
        if not isinstance(action, MoveRequests):
            return True
        renewed = self.orders.get(action.source) == action
        self.orders[action.source] = action
        return not renewed

    def serve(self, count: int) -> list[str]:
        trace: list[str] = []
        for _ in range(count):
            self.scheduler.handle(AddInstances(1), self.now)
            uid = self.scheduler.instances()[-1].uid
            self.scheduler.handle(InstancePlaced(uid, node="n0", pid=1000 + uid), self.now)
            trace = self.tell(InstanceReady(uid))
        return trace[-1:]

    def report(self, uid: int, given: dict[str, Any]) -> list[str]:
        seq = self.loads[uid].seq + 1 if uid in self.loads else 1
        fields = {key: value for key, value in given.items() if ":" not in key}
        classes: dict[int, ClassLoad] = {}
        for key, value in given.items():
            if ":" in key:
                priority, name = key.split(":")
                known = classes.get(int(priority), ClassLoad())
                classes[int(priority)] = replace(known, **{name: value})
        if classes:
            fields["classes"] = classes
        self.loads[uid] = report(uid=uid, seq=seq, **fields)
        return self.tell(Reported(self.loads[uid]))

    def advance(self, seconds: float, options: list[str]) -> list[str]:
        silent = {int(u) for o in options if o.startswith("silent=") for u in o[7:].split(",")}
        end, trace = self.now + seconds, []
        while self.now < end:
            self.now = end if "absent" in options else min(self.now + TICK_S, end)
            for view in self.scheduler.instances() if "absent" not in options else []:
                if view.state in SERVING and view.uid not in silent:
                    trace += self.tell(Beat(view.uid, loop_age_s=0.01, step_age_s=None, cpu_share=0.5))
                    if view.uid in self.loads:
                        self.loads[view.uid] = replace(self.loads[view.uid], seq=self.loads[view.uid].seq + 1)
                        trace += self.tell(Reported(self.loads[view.uid]))
            trace += self.tell(Tick())
        return trace

    def show(self) -> list[str]:
        lines = []
        for v in self.scheduler.instances():
            extra = f" blockers={list(v.blockers)}" if v.blockers else ""
            lines.append(
                f"{v.instance} uid={v.uid} incarnation={v.incarnation} {v.state} since {v.since:.2f}: "
                f"{v.reason}{extra}"
            )
        counts = {str(state): n for state, n in self.scheduler.counts().items() if n}
        return [*lines, f"counts {counts}"]


def type_of(value: str) -> int | float | str | bool:
    if value in ("true", "false"):
        return value == "true"
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            pass
    return value


def changed(settings: SchedulerSettings, key: str, value: Any) -> SchedulerSettings:
    section, _, name = key.rpartition(".")
    if section == "headroom":
        return replace(settings, headroom={**settings.headroom, int(name): Headroom(value)})
    if section:
        value = replace(getattr(settings, section), **{name: value})
    return replace(settings, **{section or name: value})


def parse_event(verb: str, words: list[str]) -> Event:
    match verb, words:
        case "add", [count]:
            return AddInstances(int(count))
        case "cordon", [instance]:
            return Cordon(instance)
        case "uncordon", [instance]:
            return Uncordon(instance)
        case "drain", [instance, timeout_s, "abort"]:
            return Drain(instance, float(timeout_s), abort_left=True)
        case "drain" | "remove" | "restart", [instance, timeout_s]:
            return Drain(instance, float(timeout_s), remove=verb == "remove", restart=verb == "restart")
        case "placed", [uid]:
            return InstancePlaced(int(uid), node="n0", pid=1000 + int(uid))
        case "ready", [uid]:
            return InstanceReady(int(uid))
        case "died", [uid, *reason]:
            return InstanceDied(int(uid), " ".join(reason))
        case "scale", [count]:
            return ScaleTo(int(count))
        case "notice", [instance, deadline_s]:
            return TerminationNotice(instance, float(deadline_s))
        case "held", [api_server, *pairs]:
            told = {key: int(value) for key, value in (pair.split("=") for pair in pairs)}
            return HeldRequests(
                int(api_server), told["requests"], told["tokens"], told["head"], told["priority"]
            )
        case "beat", [uid, *pairs]:
            said = dict(pair.split("=") for pair in pairs)
            step_age_s = None if said["step"] == "none" else float(said["step"])
            return Beat(int(uid), float(said["loop"]), step_age_s, float(said["cpu"]))
    raise ValueError(f"no such command: {verb} {' '.join(words)}")


def describe(action: Action) -> str:
    match action:
        case StartInstance(instance, uid, incarnation, reason):
            return f"START {instance} uid={uid} incarnation={incarnation}: {reason}"
        case StopInstance(instance, uid, reason):
            return f"STOP {instance} uid={uid}: {reason}"
        case KillInstance(instance, uid, reason):
            return f"KILL {instance} uid={uid}: {reason}"
        case AbortRequests(uid, reason):
            return f"ABORT all of uid={uid}: {reason}"
        case PublishTable(version, entries):
            rows = " ".join(f"{e.instance}/{e.uid}{_how_open(e)}" for e in entries)
            return f"TABLE v{version} {rows or '(empty)'}"
        case MoveRequests(source, target, reason, _, goal):
            return f"MOVE {source} -> {target} {describe_goal(goal)}: {reason}"
        case Record(kind, severity, target, message):
            return f"{severity} {kind} {target}: {message}"


def _how_open(entry: DispatchEntry) -> str:
    return "" if entry.open else ":refuge" if entry.refuge else ":closed"


def describe_goal(goal: MoveGoal) -> str:
    """What of the goal limits the move."""
    parts = [f"queued {goal.queued}"]
    if math.isfinite(goal.until_freeness):
        parts.append(f"until freeness {goal.until_freeness:g}")
    if goal.until_free_blocks:
        parts.append(f"until {goal.until_free_blocks} blocks are free")
    if math.isfinite(goal.target_room_blocks):
        parts.append(f"target keeps {goal.target_freeness:g} of room for {goal.target_room_blocks:g}")
    return f"({', '.join(parts)})"


def replay(text: str) -> str:
    """The scenario with its traces as the scheduler gives them now."""
    runner, out, in_trace = Runner(), [], False
    pending: list[str] = []

    def flush() -> None:
        nonlocal pending
        if pending:
            trace = [line for command in pending for line in runner.run(command)]
            out.extend(["----", *(trace or ["(nothing)"]), ""])
        pending = []

    for line in text.splitlines():
        if line == "----":
            in_trace = True
        elif not line.strip():
            flush()
            in_trace = False
        elif not in_trace:
            out.append(line)
            if not line.startswith("#"):
                pending.append(line)
    flush()
    return "\n".join(out).rstrip() + "\n"


def scenario_files() -> list[Path]:
    return sorted((Path(__file__).parent / "scenarios").glob("*.txt"))
