"""A structured output's grammar: how far it has come at the source, and how it comes as far at the target.

A grammar's state cannot be sent, but it is a function of the tokens fed to it. vLLM feeds it each output
token, or, with a reasoning parser, each one after the end of the reasoning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.structured_output.backend_xgrammar import XgrammarGrammar

from llumnix.engine.migration.state import GrammarProgress
from llumnix.errors import RefusedError


def progress(manager: StructuredOutputManager, request: Request) -> GrammarProgress | None:
    """None for a request without structured output; raises RefusedError where it cannot be told."""
    structured = request.structured_output_request
    if structured is None:
        return None
    if request.num_output_tokens == 0:
        return GrammarProgress(structured.reasoning_ended, 0)
    return GrammarProgress(structured.reasoning_ended, _num_fed_tokens(manager, request))


def is_ready(request: Request) -> bool:
    """Whether the request's grammar, if any, is compiled; raises RefusedError if that failed."""
    structured = request.structured_output_request
    if structured is None:
        return True
    if isinstance(structured.grammar, Exception):
        raise RefusedError(f"its grammar cannot be compiled: {structured.grammar}")
    return structured.grammar is not None


def is_compiling(request: Request) -> bool:
    """Whether another thread still compiles the request's grammar."""
    structured = request.structured_output_request
    return structured is not None and not structured.is_grammar_ready


def when_compiled(request: Request, call: Callable[[], object]) -> None:
    """Have `call` made once the request's grammar is compiled, on that thread; at once if it is."""
    structured = request.structured_output_request
    compiling = None if structured is None else structured._grammar
    if isinstance(compiling, Future):
        compiling.add_done_callback(lambda _: call())
    else:
        call()


class GrammarReplay:
    """Feeds a compiled grammar what the source's has been fed, a piece at a time."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._next: int | None = None
        """Index of the next output token to feed; None while nothing has been fed at the source either."""

    def advance(self, upto: GrammarProgress | None, max_tokens: int | None = None) -> bool:
        """Feed up to `max_tokens`; whether the grammar is now as far as the source's was.

        `upto` belongs to the tokens that the request has now. Raises RefusedError if the grammar rejects one.
        """
        if upto is None or upto.num_fed_tokens == 0:
            return True
        outputs = self._request.output_token_ids
        if self._next is None:
            self._next = len(outputs) - upto.num_fed_tokens
        end = len(outputs) if max_tokens is None else min(len(outputs), self._next + max_tokens)
        grammar: Any = self._structured().grammar
        for token in outputs[self._next : end]:
            if not grammar.accept_tokens(self._request.request_id, [token]):
                raise RefusedError("its grammar rejects a token that the source has sent")
        self._next = end
        return end == len(outputs)

    def finish(self, final: GrammarProgress | None) -> None:
        """Feed all that is left, and take over whether the reasoning has ended."""
        self.advance(final)
        if final is not None:
            self._structured().reasoning_ended = final.reasoning_ended

    def _structured(self) -> Any:
        structured = self._request.structured_output_request
        assert structured is not None
        return structured


class OutputReplay:
    """Makes a request's output again, a piece at a time, as vLLM's scheduler did when it was sampled.

    So a reasoning parser sees each token behind those before it, and the grammar is fed what it was fed then.
    """

    def __init__(
        self, manager: StructuredOutputManager, request: Request, output_token_ids: Sequence[int]
    ) -> None:
        self._manager = manager
        self._request = request
        self._tokens = output_token_ids

    def advance(self, max_tokens: int) -> bool:
        """Append and feed up to `max_tokens`; whether all are. RefusedError if the grammar rejects one."""
        request, first = self._request, self._request.num_output_tokens
        for token in self._tokens[first : first + max_tokens]:
            request.append_output_token_ids(token)
            if not self._manager.accept_tokens(request, [token]):
                raise RefusedError("its grammar rejects a token that the source has sent")
        return request.num_output_tokens == len(self._tokens)


def _num_fed_tokens(manager: StructuredOutputManager, request: Request) -> int:
    if manager.reasoner_cls is None or manager.enable_in_reasoning:
        return request.num_output_tokens
    structured = request.structured_output_request
    assert structured is not None
    if not structured.reasoning_ended:
        return 0
    grammar = structured.grammar
    # Only xgrammar counts exactly what it was fed, and only until it has ended.
    if not isinstance(grammar, XgrammarGrammar) or grammar.is_terminated():
        raise RefusedError("with a reasoning parser the progress of its grammar cannot be told")
    return grammar.num_processed_tokens
