"""Which class a request gets, and who may ask for what."""

from http import HTTPStatus

import pytest

from llumnix.frontend.priority import KeyRule, PriorityRules, Refused

CLASSES = {"high": -10, "normal": 0, "batch": 5}
RULES = PriorityRules(
    CLASSES,
    {
        "k-any": KeyRule("any"),
        "k-batch": KeyRule("batch", default_class="batch"),
        "k-held": KeyRule("held", max_class="normal"),
    },
)


@pytest.mark.parametrize(
    ("header", "body", "key", "expected"),
    [
        (None, None, None, 0),
        ("high", None, None, -10),
        (None, -10, None, -10),
        ("batch", -10, None, 5),
        (None, None, "k-batch", 5),
        (None, 0, "k-batch", 0),
        ("high", None, "k-batch", -10),
        ("normal", None, "k-held", 0),
        ("batch", None, "k-held", 5),
    ],
)
def test_header_beats_field_beats_key(
    header: str | None, body: int | None, key: str | None, expected: int
) -> None:
    assert RULES.resolve(header, body, key) == expected


@pytest.mark.parametrize(("header", "body"), [("urgent", None), (None, 7), ("", None)])
def test_what_is_no_class_is_a_bad_request_that_names_the_classes(
    header: str | None, body: int | None
) -> None:
    with pytest.raises(Refused, match="high") as refused:
        RULES.resolve(header, body, None)
    assert refused.value.status is HTTPStatus.BAD_REQUEST


@pytest.mark.parametrize(("header", "body"), [("high", None), (None, -10)])
def test_a_class_above_the_keys_limit_is_forbidden(header: str | None, body: int | None) -> None:
    with pytest.raises(Refused, match=r"held.*'normal'.*'high'") as refused:
        RULES.resolve(header, body, "k-held")
    assert refused.value.status is HTTPStatus.FORBIDDEN
