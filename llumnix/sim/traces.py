"""Traces with arrival times, in the columns of the public ones: CSV and JSONL."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from llumnix.errors import ConfigError
from llumnix.sim.records import SimRequest

MOONCAKE_BLOCK_TOKENS = 512
"""Tokens that one of Mooncake's hash_ids stands for."""
_COUNT = "a whole number, 0 or more"


def _clock_time(text: Any) -> float:
    time = datetime.fromisoformat(text)
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def _number(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(value)
    return number


def _milliseconds(value: Any) -> float:
    return _number(value) / 1000


def _count(value: Any) -> int:
    if (number := int(value)) < 0:
        raise ValueError(value)
    return number


def _block_hashes(value: Any) -> list[int]:
    """Of JSONL a list, of CSV its text."""
    hashes = json.loads(value) if isinstance(value, str) and value else value or []
    if not isinstance(hashes, list) or not all(isinstance(number, int) for number in hashes):
        raise ValueError(value)
    return hashes


@dataclass(frozen=True, slots=True)
class TraceFormat:
    """How one public trace names its columns and its times."""

    arrival: str
    prompt: str
    output: str
    to_seconds: Callable[[Any], float] = _number
    time_kind: str = "a number of seconds"
    hash_ids: str = ""
    """Column with the ids of the prompt's blocks, each standing for all before it too."""

    @property
    def columns(self) -> tuple[str, str, str]:
        return self.arrival, self.prompt, self.output


FORMATS = (
    TraceFormat("arrived_at", "num_prefill_tokens", "num_decode_tokens"),  # Azure, as Vidur has it
    TraceFormat("TIMESTAMP", "ContextTokens", "GeneratedTokens", _clock_time, "a date and time"),  # Azure
    TraceFormat("Timestamp", "Request tokens", "Response tokens"),  # BurstGPT
    TraceFormat(
        "timestamp",
        "input_length",
        "output_length",
        _milliseconds,
        "a number of milliseconds",
        hash_ids="hash_ids",
    ),  # Mooncake
)


def read_trace(path: Path, limit: int | None = None) -> list[SimRequest]:
    """The first `limit` requests of a CSV or JSONL file, from time 0 on; raises ConfigError.

    Requests without output are left out: BurstGPT has them for calls that failed.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = _json_rows(path, file) if path.suffix == ".jsonl" else _csv_rows(file)
            requests = list(islice(_requests(path, rows), limit))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): expected a trace.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} cannot be read ({error}): expected a CSV or JSONL trace.") from None
    if not requests:
        raise ConfigError(f"{path} has no requests: expected at least one row with output tokens.")
    requests.sort(key=lambda request: request.arrival_s)
    first_s = requests[0].arrival_s
    return [replace(r, id=number, arrival_s=r.arrival_s - first_s) for number, r in enumerate(requests)]


def _csv_rows(file: Iterable[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(file)
    for row in reader:
        yield reader.line_num, row


def _json_rows(path: Path, file: Iterable[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for line, text in enumerate(file, start=1):
        try:
            row = json.loads(text)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise ConfigError(f"{path} line {line} is not valid: expected a JSON object.")
        yield line, row


def _requests(path: Path, rows: Iterable[tuple[int, Mapping[str, Any]]]) -> Iterator[SimRequest]:
    layout: TraceFormat | None = None
    with_hashes: list[tuple[SimRequest, list[int]]] = []
    for line, row in rows:
        layout = layout or _layout(path, row)
        output_tokens = _cell(path, line, row, layout.output, _count, _COUNT)
        if output_tokens < 1:
            continue
        request = SimRequest(
            id=line,
            arrival_s=_cell(path, line, row, layout.arrival, layout.to_seconds, layout.time_kind),
            prompt_tokens=max(1, _cell(path, line, row, layout.prompt, _count, _COUNT)),
            output_tokens=output_tokens,
        )
        hashes = _cell(path, line, row, layout.hash_ids, _block_hashes, "a list of integers")
        if hashes:
            with_hashes.append((request, hashes))
        else:
            yield request
    yield from _grouped(with_hashes)


def _layout(path: Path, row: Mapping[str, Any]) -> TraceFormat:
    for layout in FORMATS:
        if row.keys() >= set(layout.columns):
            return layout
    names = ", ".join(map(str, row))
    expected = "; or ".join(", ".join(layout.columns) for layout in FORMATS)
    raise ConfigError(f"{path} has the columns {names}: expected {expected}.")


def _cell(
    path: Path, line: int, row: Mapping[str, Any], column: str, convert: Callable[[Any], Any], kind: str
) -> Any:
    value = row.get(column)
    try:
        return convert(value)
    except (TypeError, ValueError):
        raise ConfigError(
            f"{path} line {line}: {column} = {value!r} is not valid: expected {kind}."
        ) from None


def _grouped(requests: Iterable[tuple[SimRequest, list[int]]]) -> Iterator[SimRequest]:
    """Gives requests whose prompts begin alike a common prefix group.

    Beginnings form a tree, groups are single paths from its root: the longest paths come first, and a request
    joins the first path that holds all it shares with others.
    """
    requests = list(requests)
    uses = Counter(block for _, hashes in requests for block in hashes)
    shared = [(request, [block for block in hashes if uses[block] > 1]) for request, hashes in requests]
    path_of: dict[int, int] = {}
    for request, blocks in sorted(shared, key=lambda item: -len(item[1])):
        for block in blocks:
            path_of.setdefault(block, request.id)
    for request, blocks in shared:
        if blocks:
            length = min(len(blocks) * MOONCAKE_BLOCK_TOKENS, request.prompt_tokens)
            yield replace(request, prefix_group=path_of[blocks[-1]], prefix_tokens=length)
        else:
            yield request
