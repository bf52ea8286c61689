"""Prefix-aware placement: what counts as the same beginning, what is remembered, when it decides."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llumnix.core.choice import Admission, Choice, Hold
from llumnix.core.dispatch import Dispatcher
from llumnix.core.events import DispatchEntry
from llumnix.core.prefixes import CHUNK_TOKENS, SeenPrefixes, prefix_keys

from .reports import report

PROMPT = [5] * (3 * CHUNK_TOKENS + 1)
KEYS = prefix_keys(PROMPT)


@given(
    st.lists(st.integers(0, 3), max_size=3 * CHUNK_TOKENS),
    st.lists(st.integers(0, 3), max_size=3 * CHUNK_TOKENS),
    st.integers(0, 3 * CHUNK_TOKENS),
)
def test_keys_agree_exactly_as_far_as_whole_chunks_do(one: list[int], other: list[int], shared: int) -> None:
    other = one[:shared] + other
    for chunk, (mine, theirs) in enumerate(zip(prefix_keys(one), prefix_keys(other), strict=False)):
        end = (chunk + 1) * CHUNK_TOKENS
        assert (mine == theirs) == (one[:end] == other[:end])


def test_the_last_token_is_never_in_a_key() -> None:
    assert len(prefix_keys([1] * CHUNK_TOKENS)) == 0
    assert len(prefix_keys([1] * (CHUNK_TOKENS + 1))) == 1


def test_salts_part_equal_prompts() -> None:
    assert not set(prefix_keys(PROMPT, "a")) & set(prefix_keys(PROMPT, "b"))


def test_the_ends_of_the_oldest_prompts_are_forgotten_first() -> None:
    seen = SeenPrefixes()
    seen.add(KEYS, 5 * CHUNK_TOKENS)
    later = prefix_keys([6] * (4 * CHUNK_TOKENS + 1))
    seen.add(later, 5 * CHUNK_TOKENS)
    assert len(seen) == 5
    assert (seen.num_known(KEYS), seen.num_known(later)) == (1, 4)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=30), st.integers(0, 12))
def test_what_is_remembered_fits_the_kv_cache_and_has_no_gaps(
    prompts: list[tuple[int, int]], capacity_chunks: int
) -> None:
    seen = SeenPrefixes()
    sent = [
        prefix_keys([1] * shared * CHUNK_TOKENS + [2] * own * CHUNK_TOKENS + [3]) for shared, own in prompts
    ]
    for keys in sent:
        seen.add(keys, capacity_chunks * CHUNK_TOKENS)
        assert len(seen) <= capacity_chunks
        for known in sent:
            assert sum(key in seen for key in known) == seen.num_known(known)


# ---- placement ------------------------------------------------------------------------------------------


def dispatcher(reach: float, admission: Admission | None = None) -> Dispatcher:
    """Two open instances of 100 blocks; the first was sent PROMPT before, and has reported it."""
    made = Dispatcher(
        "backlog", headroom={}, api_servers=1, server_index=0, admission=admission, prefix_reach=reach
    )
    made.set_table([DispatchEntry(uid, f"i{uid}", True) for uid in (1, 2)])
    made.sent(1, len(PROMPT), 0, KEYS)
    return made


def chosen(made: Dispatcher, used_blocks: int, prompt: list[int] = PROMPT) -> Choice:
    """With so many blocks of the first instance in use by one request, and none of the second."""
    made.observe(report(uid=1, used_blocks=used_blocks, running=1, taken={0: 1}))
    made.observe(report(uid=2, running=0))
    choice = made.choose(len(prompt), 0, prefix=prefix_keys(prompt))
    assert isinstance(choice, Choice)
    return choice


def test_a_known_beginning_is_followed_while_its_instance_is_nearly_as_free() -> None:
    choice = chosen(dispatcher(2.0), used_blocks=50)
    assert (choice.uid, choice.num_cached_tokens) == (1, 3 * CHUNK_TOKENS)
    assert "384 tokens of the prompt were there before" in choice.reason


def test_a_known_beginning_is_not_followed_to_a_crowded_instance() -> None:
    assert chosen(dispatcher(2.0), used_blocks=51).uid == 2


def test_an_unknown_prompt_goes_where_it_is_freest() -> None:
    assert chosen(dispatcher(2.0), used_blocks=10, prompt=[9] * len(PROMPT)).uid == 2


def test_a_reach_of_1_has_freeness_alone_decide() -> None:
    assert chosen(dispatcher(1.0), used_blocks=10).uid == 2


def test_the_longest_known_beginning_wins() -> None:
    made = dispatcher(2.0)
    short = PROMPT[:CHUNK_TOKENS] + [8] * CHUNK_TOKENS
    made.sent(2, len(short), 0, prefix_keys(short))
    made.observe(report(uid=1, used_blocks=40, running=1, taken={0: 1}))
    made.observe(report(uid=2, used_blocks=20, running=1, taken={0: 1}))
    choice = made.choose(len(PROMPT), 0, prefix=KEYS)
    assert isinstance(choice, Choice) and choice.uid == 1


def test_a_known_beginning_does_not_make_room() -> None:
    made = dispatcher(2.0, Admission(reserve_blocks=0))
    made.observe(report(uid=1, used_blocks=60, running=1, taken={0: 1}))
    made.observe(report(uid=2, used_blocks=10, running=8))
    assert isinstance(made.choose(50 * 16, 0, prefix=KEYS), Hold)


def test_a_dead_instances_prompts_are_forgotten() -> None:
    made = dispatcher(2.0)
    made.set_table([DispatchEntry(2, "i2", True)])
    made.set_table([DispatchEntry(uid, f"i{uid}", True) for uid in (1, 2)])
    assert chosen(made, used_blocks=10).uid == 2
