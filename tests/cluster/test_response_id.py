"""Engine-side request ids and the ids that clients see."""

import pytest

from llumnix.cluster.request_ids import response_id


@pytest.mark.parametrize(
    ("request_id", "expected"),
    [
        ("chatcmpl-bde033964db9f688-1a2b3c4d", "chatcmpl-bde033964db9f688"),
        ("1_chatcmpl-bde033964db9f688-1a2b3c4d", "chatcmpl-bde033964db9f688"),
        ("cmpl-93dc46a5c23e7eaf-0-1a2b3c4d", "cmpl-93dc46a5c23e7eaf"),
        ("2_cmpl-93dc46a5c23e7eaf-11-1a2b3c4d", "cmpl-93dc46a5c23e7eaf"),
        ("my-own-id-1a2b3c4d", "my-own-id"),
    ],
)
def test_the_response_id_is_what_vllm_wrapped(request_id: str, expected: str) -> None:
    assert response_id(request_id) == expected
