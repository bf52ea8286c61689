"""The API server's book of requests: what reaches clients, whatever becomes of instances."""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason

from llumnix.core.handover.epochs import Epoch
from llumnix.core.handover.messages import Adopted, Moved
from llumnix.core.handover.settings import HandoverSettings
from llumnix.core.hold_queue import HoldQueue
from llumnix.core.prefixes import CHUNK_TOKENS
from llumnix.frontend.request_book import NotPlaced, Placed, RequestBook

SETTINGS = HandoverSettings(handover_timeout_s=2.0, resume_timeout_s=5.0, max_attempts=3)


@dataclass
class World:
    """The instances that take requests, and all that the book did."""

    instances: list[int] = field(default_factory=lambda: [1, 2])
    refuges: list[int] = field(default_factory=list)
    """Cordoned ones."""
    room: int = 100
    """Requests that there is room for."""
    sent: list[tuple[int, str, tuple[int, ...]]] = field(default_factory=list)
    priorities: list[int] = field(default_factory=list)
    """Of what was sent."""
    prefixes: list[tuple[int, ...]] = field(default_factory=list)
    aborted: list[tuple[int, list[str]]] = field(default_factory=list)
    delivered: list[EngineCoreOutput] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.book = RequestBook(
            SETTINGS,
            HoldQueue(),
            place=self.place,
            abort=lambda uid, ids: self.aborted.append((uid, ids)),
            deliver=self.delivered.extend,
            fail=lambda request_id, reason: self.failed.append((request_id, reason)),
        )

    def place(
        self, request: EngineCoreRequest, tokens: tuple[int, ...], prefix: tuple[int, ...], *, resumed: bool
    ) -> Placed | NotPlaced:
        able = self.instances or (self.refuges if resumed else [])
        if not able:
            return NotPlaced("nobody is there", is_any_open=False, is_any_refuge=bool(self.refuges))
        if self.room == 0:
            return NotPlaced("all are full", bool(self.instances), bool(self.refuges))
        self.room -= 1
        self.priorities.append(request.priority)
        self.prefixes.append(prefix)
        self.sent.append((able[0], request.request_id, tokens))
        return Placed(able[0])

    def output(self, uid: int, of_engine: str, *tokens: int, finish: FinishReason | None = None) -> None:
        output = EngineCoreOutput(of_engine, list(tokens), finish_reason=finish)
        self.delivered += self.book.take(uid, [output], 0.0)

    def tokens(self) -> list[int]:
        return [token for output in self.delivered for token in output.new_token_ids]


def request_named(request_id: str, *, priority: int = 0, arrival_s: float = 0.0) -> EngineCoreRequest:
    return EngineCoreRequest(
        request_id=request_id,
        prompt_token_ids=[1, 2, 3],
        mm_features=None,
        sampling_params=SamplingParams(),
        pooling_params=None,
        arrival_time=arrival_s,
        priority=priority,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )


def world_with_a_request() -> World:
    world = World()
    assert world.book.add(request_named("r"), 0.0) is None
    return world


def test_outputs_come_under_the_clients_id_and_the_request_ends_with_its_last() -> None:
    world = world_with_a_request()
    assert world.sent == [(1, "r@0.0", ())]
    world.output(1, "r@0.0", 5)
    world.output(1, "r@0.0", 6, finish=FinishReason.LENGTH)
    assert [output.request_id for output in world.delivered] == ["r", "r"]
    assert world.tokens() == [5, 6]
    assert len(world.book) == 0


def test_a_further_attempt_has_the_priority_that_an_operator_gave_meanwhile() -> None:
    world = world_with_a_request()
    world.book.priority_changed("r", -10)
    world.book.priority_changed("unknown", -10)
    world.instances = [2]
    world.book.instance_lost(1, "it died", 1.0, fenced=True)
    assert world.priorities == [0, -10]


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
    world.book.place_held(3.0)
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


# ---- requests that wait for room (late binding) ---------------------------------------------------------


def full_world() -> World:
    """Instances without room; a, b and the more important c wait."""
    world = World(room=0)
    for name, priority, arrival_s in (("a", 0, 1.0), ("b", 0, 2.0), ("c", -10, 3.0)):
        request = request_named(name, priority=priority, arrival_s=arrival_s)
        assert world.book.add(request, arrival_s) is None
    return world


def sent_ids(world: World) -> list[str]:
    return [of_engine for _, of_engine, _ in world.sent]


def test_requests_wait_for_room_by_class_then_age_and_without_a_limit() -> None:
    world = full_world()
    world.book.tick(1000.0)
    assert (world.failed, world.sent) == ([], [])
    assert [request.request_id for request, _ in world.book.held()] == ["c", "a", "b"]
    world.room = 2
    world.book.place_held(1001.0)
    assert sent_ids(world) == ["c@0.0", "a@0.0"]


def test_a_request_that_waits_can_be_given_another_class() -> None:
    world = full_world()
    assert world.book.set_priority("b", -20)
    assert not world.book.set_priority("unknown", -20)
    world.room = 1
    world.book.place_held(5.0)
    assert sent_ids(world) == ["b@0.0"]
    assert not world.book.set_priority("b", 0), "it waits no more"


def test_a_client_that_gives_up_waits_no_more() -> None:
    world = full_world()
    world.book.abort(["c", "a"], 5.0)
    world.room = 3
    world.book.place_held(6.0)
    assert sent_ids(world) == ["b@0.0"]
    assert len(world.book) == 1


def test_when_the_last_instance_is_gone_everybody_who_waits_is_given_the_time_to_resume() -> None:
    world = full_world()
    world.instances = []
    world.book.place_held(10.0)
    world.book.tick(14.0)
    assert world.failed == []
    world.book.tick(15.0)
    assert {request_id for request_id, _ in world.failed} == {"a", "b", "c"}
    assert len(world.book) == 0


def test_a_request_that_lost_its_instance_goes_before_younger_ones_of_its_class() -> None:
    world = world_with_a_request()
    world.output(1, "r@0.0", 5)
    world.room = 0
    assert world.book.add(request_named("young", arrival_s=1.0), 1.0) is None
    world.instances = [2]
    world.book.instance_lost(1, "killed by signal 9", 2.0, fenced=True)
    world.room = 1
    world.book.place_held(3.0)
    assert world.sent[-1] == (2, "r@1.0", (5,))


def test_placing_knows_the_prompts_beginning_apart_by_salt_and_again_after_a_death() -> None:
    prompt = [7] * (2 * CHUNK_TOKENS + 1)
    world = World()
    for request_id, salt in (("a", None), ("b", "other")):
        request = request_named(request_id)
        request.prompt_token_ids, request.cache_salt = prompt, salt
        world.book.add(request, 0.0)
    plain, salted = world.prefixes
    assert len(plain) == len(salted) == 2 and not set(plain) & set(salted)
    world.instances = [2]
    world.book.instance_lost(1, "it died", 0.0, fenced=True)
    assert world.prefixes[2:] == [plain, salted]


def test_prompts_with_images_have_no_beginning_in_common() -> None:
    world = World()
    request = request_named("a")
    request.prompt_token_ids, request.mm_features = [7] * 500, [object()]
    world.book.add(request, 0.0)
    assert world.prefixes == [()]


# ---- when only cordoned instances are left ---------------------------------------------------------------


def left_with_refuges(refuges: list[int], room: int) -> World:
    """Instance 1 ran `old` and has died; the more important `new` had found no room there."""
    world = World(instances=[1], refuges=refuges, room=1)
    world.book.add(request_named("old"), 0.0)
    world.output(1, "old@0.0", 7)
    world.book.add(request_named("new", priority=-10), 0.0)
    world.instances, world.room = [], room
    world.book.instance_lost(1, "killed", 1.0, fenced=True)
    return world


def test_what_has_lost_its_instance_goes_on_at_a_refuge_past_what_is_new() -> None:
    world = left_with_refuges([2], room=5)
    assert world.sent[1:] == [(2, "old@1.0", (7,))]
    assert world.book.add(request_named("newer"), 1.0) == "nobody is there"
    world.book.tick(1.0 + SETTINGS.resume_timeout_s)
    assert [request_id for request_id, _ in world.failed] == ["new"]
    world.output(2, "old@1.0", 8, finish=FinishReason.LENGTH)
    assert world.tokens() == [7, 8]


def test_it_waits_for_room_there_without_a_limit_and_goes_to_what_opens_first() -> None:
    world = left_with_refuges([2], room=0)
    for now in (2.0, 20.0):
        world.book.place_held(now)
        world.book.tick(now)
    assert [request_id for request_id, _ in world.failed] == ["new"]
    world.instances, world.room = [3], 1
    world.book.place_held(21.0)
    assert world.sent[1:] == [(3, "old@1.0", (7,))]


def test_without_a_refuge_it_fails_in_its_time() -> None:
    world = left_with_refuges([], room=5)
    world.book.tick(1.0 + SETTINGS.resume_timeout_s)
    assert {request_id for request_id, _ in world.failed} == {"old", "new"}
