"""A cluster whose model embeds instead of generating."""

from __future__ import annotations

import math
from collections.abc import Iterator

import openai
import pytest

from tests.e2e.running import RunningCluster, http, running, settings


@pytest.fixture(scope="module")
def embedding(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    directory = tmp_path_factory.mktemp("embedding")
    config = settings(
        directory / "state", instances={"count": 1}, engine={"runner": "pooling", "convert": "embed"}
    )
    with running(config, directory) as cluster:
        yield cluster


def test_embeddings_are_unit_vectors_that_depend_on_the_text_alone(embedding: RunningCluster) -> None:
    texts = ["A cat.", "A dog.", "A cat."]
    answer = embedding.client().embeddings.create(model="tiny", input=texts, encoding_format="float")
    assert [item.index for item in answer.data] == [0, 1, 2]
    cat, dog, again = (item.embedding for item in answer.data)
    assert len(cat) == 256 and math.isclose(math.hypot(*cat), 1.0, rel_tol=1e-4)
    assert again == pytest.approx(cat, abs=1e-5) and dog != pytest.approx(cat, abs=1e-2)
    assert answer.usage.prompt_tokens > 0
    as_base64 = embedding.client().embeddings.create(model="tiny", input="A cat.")
    assert as_base64.data[0].embedding == pytest.approx(cat, abs=1e-5)


def test_embedding_model_refuses_to_generate_and_too_long_a_text(embedding: RunningCluster) -> None:
    body = {"model": "tiny", "prompt": "x"}
    assert http.post(f"{embedding.url}/v1/completions", json=body).status_code == 404
    with pytest.raises(openai.BadRequestError, match="maximum context length is 8192"):
        embedding.client().embeddings.create(model="tiny", input=[5] * 9000)
    assert embedding.client().embeddings.create(model="tiny", input="still there").data
