"""The wire models: light to import, frozen, and sayable in JSON."""

import math
import subprocess
import sys

import pytest
from pydantic import ValidationError

from llumnix.admin.schema import AddInstances, DrainOptions, Instance, InstancePage, RequestPatch
from tests.admin.fake_cluster import make_instance


def test_importing_the_schema_loads_nothing_heavy() -> None:
    code = (
        "import sys; import llumnix.admin.schema; "
        "heavy = {'ray', 'torch', 'vllm', 'fastapi', 'starlette', 'uvicorn'} & set(sys.modules); "
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_models_are_frozen() -> None:
    with pytest.raises(ValidationError):
        make_instance("i0").state = "dead"


@pytest.mark.parametrize("freeness", [-math.inf, math.inf, math.nan])
def test_a_freeness_that_json_cannot_say_travels_as_null(freeness: float) -> None:
    instance = make_instance("i0", freeness=freeness)
    assert Instance.model_validate_json(instance.model_dump_json()).freeness is None


def test_a_page_survives_the_wire() -> None:
    page = InstancePage(items=(make_instance("i0"), make_instance("i1", state="failed")), next="abc")
    assert InstancePage.model_validate_json(page.model_dump_json()) == page


def test_an_answer_with_fields_of_a_later_release_is_readable() -> None:
    instance = Instance.model_validate({"id": "i0", "state": "running", "field_of_tomorrow": 1})
    assert instance.id == "i0"


@pytest.mark.parametrize("count", [0, -1, 1001, "2", 2.5, True, None])
def test_bad_counts_are_refused(count: object) -> None:
    with pytest.raises(ValidationError):
        AddInstances.model_validate({"count": count})


@pytest.mark.parametrize("timeout_s", [0, -1, math.nan, math.inf, "5"])
def test_bad_timeouts_are_refused(timeout_s: object) -> None:
    with pytest.raises(ValidationError):
        DrainOptions.model_validate({"timeout_s": timeout_s})


def test_inputs_refuse_unknown_fields() -> None:
    with pytest.raises(ValidationError, match="priorty"):
        RequestPatch.model_validate({"priority": "high", "priorty": "high"})
