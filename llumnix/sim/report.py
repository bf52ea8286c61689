"""Results as JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llumnix.errors import ConfigError
from llumnix.sim.metrics import Metrics
from llumnix.sim.paper import Row
from llumnix.sim.records import RequestResult, RunResult

Record = Mapping[str, Any]
"""One flat row of a result: plain values by name, times in seconds."""
_DIGITS = 6


def run_records(run: RunResult, rate: float | None) -> list[dict[str, Any]]:
    """Metrics of a run; with several priorities those of each class too."""
    shared = {"policy": run.setup.policy, "rate": rate, "seed": run.setup.seed}
    classes = sorted({request.priority for request in run.requests})
    parts: list[tuple[str, Metrics]] = [("all", Metrics.of(run))]
    if len(classes) > 1:
        parts += [
            (str(priority), Metrics.of(run, [r for r in run.requests if r.priority == priority]))
            for priority in classes
        ]
    return [_rounded({**shared, "priority": name, **asdict(metrics)}) for name, metrics in parts]


def request_records(run: RunResult) -> list[dict[str, Any]]:
    """One record per request, with its place in the run."""
    return [_rounded({"policy": run.setup.policy, **_request(request)}) for request in run.requests]


def _request(request: RequestResult) -> dict[str, Any]:
    return {
        **asdict(request),
        "instances": list(request.instances),
        "prefill_s": request.prefill_s,
        "decode_s": request.decode_s,
        "latency_s": request.latency_s,
    }


def paper_record(row: Row) -> dict[str, Any]:
    """One point of a figure; what the paper shows for it has names that begin with `published_`."""
    return _rounded(
        {
            "figure": row.figure,
            "panel": row.panel,
            "x": row.x,
            "rate": row.rate,
            "cv": row.cv,
            "policy": row.policy,
            "seeds": list(row.seeds),
            **asdict(row.metrics),
            **{f"published_{name}": value for name, value in row.published.items()},
        }
    )


def as_json(records: Iterable[Record]) -> str:
    """A list of objects, one to a line."""
    return "[\n" + ",\n".join(json.dumps(record) for record in records) + "\n]\n"


def as_csv(records: Sequence[Record]) -> str:
    """A header and one line per record; a list's values are separated by spaces."""
    names = list(dict.fromkeys(name for record in records for name in record))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in record.items()} for record in records)
    return text.getvalue()


def write_records(path: Path, records: Sequence[Record]) -> None:
    """JSON or CSV, by the file's ending; raises ConfigError."""
    formats = {".json": as_json, ".csv": as_csv}
    if path.suffix not in formats:
        raise ConfigError(f'output file "{path}" is not valid: expected a name that ends in .json or .csv.')
    try:
        path.write_text(formats[path.suffix](records), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}): expected a writable file.") from None


def _rounded(record: dict[str, Any]) -> dict[str, Any]:
    return {k: round(v, _DIGITS) if isinstance(v, float) else v for k, v in record.items()}


def _cell(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, list) else value
