import pytest

# Their assertions are the tests' own.
pytest.register_assert_rewrite("tests.engine.transport.conformance", "tests.engine.transport.sides")
