"""The API server's book of requests: what reaches clients, whatever becomes of instances."""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason

from llumnix.core.handover.epochs import Epoch
from llumnix.core.handover.messages import Adopted, Moved
from llumnix.core.handover.settings import HandoverSettings
from llumnix.frontend.request_book import NotPlaced, Placed, RequestBook

SETTINGS = HandoverSettings(handover_timeout_s=2.0, resume_timeout_s=5.0, max_attempts=3)


@dataclass
class World:
    """The instances that take requests, and all that the book did."""

    instances: list[int] = field(default_factory=lambda: [1, 2])
    sent: list[tuple[int, str, tuple[int, ...]]] = field(default_factory=list)
    aborted: list[tuple[int, list[str]]] = field(default_factory=list)
    delivered: list[EngineCoreOutput] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.book = RequestBook(
            SETTINGS,
            place=self.place,
            abort=lambda uid, ids: self.aborted.append((uid, ids)),
            deliver=self.delivered.extend,
            fail=lambda request_id, reason: self.failed.append((request_id, reason)),
        )

    def place(self, request: EngineCoreRequest, tokens: tuple[int, ...]) -> Placed | NotPlaced:
        if not self.instances:
            return NotPlaced("nobody is there")
        self.sent.append((self.instances[0], request.request_id, tokens))
        return Placed(self.instances[0])

    def output(self, uid: int, of_engine: str, *tokens: int, finish: FinishReason | None = None) -> None:
        output = EngineCoreOutput(of_engine, list(tokens), finish_reason=finish)
        self.delivered += self.book.take(uid, [output], 0.0)

    def tokens(self) -> list[int]:
        return [token for output in self.delivered for token in output.new_token_ids]


def world_with_a_request() -> World:
    world = World()
    request = EngineCoreRequest(
        request_id="r",
        prompt_token_ids=[1, 2, 3],
        mm_features=None,
        sampling_params=SamplingParams(),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )
    assert world.book.add(request, 0.0) is None
    return world


def test_outputs_come_under_the_clients_id_and_the_request_ends_with_its_last() -> None:
    world = world_with_a_request()
    assert world.sent == [(1, "r@0.0", ())]
    world.output(1, "r@0.0", 5)
    world.output(1, "r@0.0", 6, finish=FinishReason.LENGTH)
    assert [output.request_id for output in world.delivered] == ["r", "r"]
    assert world.tokens() == [5, 6]
    assert len(world.book) == 0


def test_a_lost_instances_request_goes_on_from_what_was_delivered() -> None:
    world = world_with_a_request()
    world.output(1, "r@0.0", 5, 6)
    world.instances = [2]
    world.book.instance_lost(1, "it died", 1.0, fenced=True)
    assert world.sent[-1] == (2, "r@1.0", (5, 6))
    world.output(1, "r@0.0", 7)  # too late
    world.output(2, "r@1.0", 7)
    assert world.tokens() == [5, 6, 7]


def test_without_any_instance_it_waits_and_goes_on_where_one_comes() -> None:
    world = world_with_a_request()
    world.instances = []
    world.book.instance_lost(1, "it died", 1.0, fenced=True)
    world.book.tick(3.0)
    world.instances = [3]
    world.book.retry(3.0)
    assert world.sent[-1] == (3, "r@1.0", ())
    assert not world.failed


def test_without_any_instance_for_too_long_it_fails_with_the_reason() -> None:
    world = world_with_a_request()
    world.instances = []
    world.book.instance_lost(1, "it died", 1.0, fenced=True)
    world.book.tick(6.5)
    ((request_id, reason),) = world.failed
    assert request_id == "r" and "nobody is there" in reason
    assert len(world.book) == 0


def test_a_new_request_is_refused_at_once_where_nobody_is() -> None:
    world = World(instances=[])
    refused = EngineCoreRequest("q", [1], None, SamplingParams(), None, 0.0, None, None, None)
    assert "nobody is there" in str(world.book.add(refused, 0.0))
    assert len(world.book) == 0


def test_a_request_that_loses_every_instance_it_runs_on_is_given_up() -> None:
    world = world_with_a_request()
    for uid in (1, 2, 3):
        world.instances = [uid + 1]
        world.book.instance_lost(uid, "it died", 1.0, fenced=True)
    ((_, reason),) = world.failed
    assert "max_attempts" in reason


def test_a_moved_requests_tokens_wait_for_those_before_them() -> None:
    world = world_with_a_request()
    world.output(1, "r@0.0", 5)
    world.book.notice(2, Adopted("r", Epoch(0, 1), 2), 0.0)
    world.output(2, "r@0.1", 7)
    assert world.tokens() == [5]
    world.output(1, "r@0.0", 6)
    world.book.notice(1, Moved("r", Epoch(0, 0), Epoch(0, 1), 2, 2, True), 0.0)
    assert world.tokens() == [5, 6, 7]
    world.output(2, "r@0.1", 8, finish=FinishReason.STOP)
    assert world.tokens() == [5, 6, 7, 8]
    assert len(world.book) == 0


def test_a_handover_that_is_never_completed_ends_in_a_new_attempt() -> None:
    world = world_with_a_request()
    world.output(1, "r@0.0", 5)
    world.book.notice(1, Moved("r", Epoch(0, 0), Epoch(0, 1), 2, 1, False), 0.0)
    world.book.tick(1.0)
    assert len(world.sent) == 1
    world.book.tick(2.5)
    assert world.sent[-1][1:] == ("r@1.0", (5,))
    assert (2, ["r@0.1"]) in world.aborted


def test_an_abort_reaches_wherever_it_may_run_and_strays_are_told_to_stop() -> None:
    world = world_with_a_request()
    world.book.abort(["r", "unknown"], 0.0)
    assert world.aborted == [(1, ["r@0.0"])]
    world.output(1, "r@0.0", 5)
    assert world.tokens() == []
    assert world.aborted[-1] == (1, ["r@0.0"])


def test_an_instance_that_forgot_what_it_had_can_take_it_again() -> None:
    world = world_with_a_request()
    world.book.instance_lost(1, "the connection broke", 0.0, fenced=False)
    assert world.sent[-1] == (1, "r@1.0", ())
    world.output(1, "r@1.0", 5)
    assert world.tokens() == [5]
