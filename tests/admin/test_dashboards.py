"""What configs/ offers Prometheus and Grafana names metrics that exist, and parses."""

import asyncio
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.admin.fake_cluster import FakeCluster

CONFIGS = Path(__file__).parents[2] / "configs"
NAME = re.compile(r"\b(?:llumnix_|vllm:)[a-z0-9_]+")


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((CONFIGS / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((CONFIGS / "grafana-dashboard.json").read_text())["panels"]
    return found


def expressions() -> list[str]:
    return [rule["expr"] for rule in rules()] + [t["expr"] for panel in panels() for t in panel["targets"]]


async def scraped(client: httpx.AsyncClient) -> dict[str, set[str]]:
    """Return the samples' names, each with its labels."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families((await client.get("/metrics")).text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


async def test_metrics_parse_and_are_named_by_convention(viewer: httpx.AsyncClient) -> None:
    text = (await viewer.get("/metrics")).text
    families = list(text_string_to_metric_families(text))
    assert len(families) > 20
    for family in families:
        assert family.name.startswith("llumnix_"), family.name
        assert family.documentation.endswith("."), family.name
        is_counter = family.type == "counter"
        assert all(sample.name.endswith("_total") == is_counter for sample in family.samples), family.name
        assert not re.search(r"_(ms|kb|mb|seconds_\w+)$", family.name), family.name


async def test_every_metric_of_ours_that_is_asked_for_exists_with_its_labels(
    viewer: httpx.AsyncClient, cluster: FakeCluster
) -> None:
    samples = await scraped(viewer)
    asked = {name for text in expressions() for name in NAME.findall(text) if name.startswith("llumnix_")}
    # A gauge without a value at the moment has a family and no sample.
    families = {f.name for f in text_string_to_metric_families((await viewer.get("/metrics")).text)}
    assert len(asked) > 15
    assert asked - samples.keys() - families == set()
    for text in expressions():
        for name, labels in re.findall(r"(llumnix_\w+)\{([^}]*)\}", text):
            assert {label.split("=")[0].strip("!~ ") for label in labels.split(",")} <= samples[name], text


def test_every_metric_of_vllms_that_is_asked_for_exists() -> None:
    loggers = pytest.importorskip("vllm.v1.metrics.loggers")
    known = set(re.findall(r'"(vllm:[a-z0-9_]+)"', Path(loggers.__file__).read_text()))
    asked = {name for text in expressions() for name in NAME.findall(text) if name.startswith("vllm:")}
    assert asked
    for name in asked:
        assert {name, re.sub(r"_(total|bucket|sum|count)$", "", name)} & known, name


def test_series_that_differ_in_a_label_are_matched_without_it() -> None:
    """Prometheus pairs series by all labels: a value of one side only, not ignored, leaves no pair at all."""
    for text in expressions():
        sides = [dict(re.findall(r'(\w+)="(\w+)"', side)) for side in re.split(r"\s[><*/]\s", text)]
        if len(sides) == 2 and "llumnix_" in text.split()[-1] and "sum(" not in text:
            differing = {label for label, _ in sides[0].items() ^ sides[1].items()}
            ignored = re.findall(r"ignoring\((\w+)\)", text)
            assert differing == set(ignored), text


def test_rules_say_what_is_wrong_and_panels_do_not_overlap() -> None:
    for rule in rules():
        assert rule["alert"].startswith("Llumnix") and rule["annotations"]["summary"], rule
        assert rule["labels"]["severity"] in ("warning", "critical")
    assert len({rule["alert"] for rule in rules()}) == len(rules())
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken and max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
async def test_promtool_accepts_rules_scrape_configuration_and_metrics(viewer: httpx.AsyncClient) -> None:
    metrics = (await viewer.get("/metrics")).text
    for command, given in (
        (["check", "rules", str(CONFIGS / "alerts.yml")], ""),
        (["check", "config", "--syntax-only", str(CONFIGS / "prometheus.yml")], ""),
        (["check", "metrics"], metrics),
    ):
        promtool = ["promtool", *command]
        done = await asyncio.to_thread(
            subprocess.run, promtool, input=given, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr
