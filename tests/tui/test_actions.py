"""Actions: Esc sends nothing, confirming sends exactly one request, read-only none, refusals are shown."""

import pytest
from textual.pilot import Pilot

from llumnix_tui.client import AdminError
from llumnix_tui.commands import (
    Command,
    Target,
    abort,
    add_instances,
    cordon,
    drain,
    migrate,
    remove,
    set_priority,
)
from llumnix_tui.dialogs.base import Dialog
from tests.tui.canned import NOW, Canned, CannedSource
from tests.tui.conftest import app_of, notices, running, settled
from tests.tui.shown import shown

I0 = Target("instance", "i0")
# Keys that open an action's dialog, and the command that its confirmation sends.
ACTIONS: list[tuple[list[str], Command]] = [
    (["c"], cordon(I0)),
    (["d"], drain(I0, None)),
    (["minus"], remove("i0")),
    (["plus"], add_instances(1)),
    (["2", "m"], migrate("cmpl-0", None)),
    (["2", "r"], set_priority("cmpl-0", "high")),
    (["2", "x"], abort("cmpl-0")),
]


def canned_source(**values: str) -> CannedSource:
    return CannedSource(Canned().snapshot(), **values)  # type: ignore[arg-type]


async def confirm(pilot: Pilot[None]) -> None:
    """Go from Cancel, where every dialog begins, to the button that confirms, and press it."""
    assert pilot.app.focused is not None
    assert pilot.app.focused.id == "cancel"
    await pilot.press("right", "enter")
    await settled(pilot)


async def test_confirming_sends_exactly_one_request() -> None:
    source = canned_source()
    async with running(source) as pilot:
        for keys, command in ACTIONS:
            await pilot.press("1", *keys)
            assert isinstance(pilot.app.screen, Dialog), command
            assert source.sent == []
            await confirm(pilot)
            assert source.sent == [command]
            shown_by = f"Done: {command.what}" if "/drain" not in command.path else "waits for nothing"
            assert shown_by in "\n".join((*notices(pilot), shown(pilot.app)))
            source.sent.clear()
            await pilot.press("escape")


@pytest.mark.parametrize("leaving", ["escape", "enter"])
async def test_leaving_a_dialog_sends_nothing(leaving: str) -> None:
    """Esc leaves, and so does Enter, as every dialog begins on Cancel."""
    source = canned_source()
    async with running(source) as pilot:
        for keys, command in ACTIONS:
            await pilot.press("1", *keys)
            assert isinstance(pilot.app.screen, Dialog), command
            await pilot.press(leaving)
            assert not isinstance(pilot.app.screen, Dialog)
        assert source.sent == []
        assert notices(pilot) == []


@pytest.mark.parametrize("how", ["--read-only", "viewer"])
async def test_read_only_offers_and_sends_nothing(how: str) -> None:
    source = canned_source(role="viewer" if how == "viewer" else "operator")
    async with running(source, read_only=how == "--read-only") as pilot:
        for keys, _ in ACTIONS:
            await pilot.press("1", *keys)
            assert not isinstance(pilot.app.screen, Dialog)
        await pilot.press("1", "u")
        assert not isinstance(pilot.app.screen, Dialog)
        text = shown(pilot.app)
        assert "cordon" not in text.splitlines()[-1]
        assert "read-only" in text.splitlines()[0]
        assert source.sent == []


async def test_a_refused_action_shows_the_servers_reason() -> None:
    source = canned_source()
    source.refusal = AdminError("instance i0 is the last one that serves [/not markup]", "refused")
    async with running(source) as pilot:
        await pilot.press("c")
        await confirm(pilot)
        assert len(source.sent) == 1
        assert notices(pilot) == [
            "cordon instance i0: refused: instance i0 is the last one that serves [/not markup]"
        ]
        assert "cordon instance i0: refused" in shown(pilot.app)


async def test_a_forbidden_action_makes_the_app_read_only() -> None:
    source = canned_source()
    source.refusal = AdminError("token dash has role viewer; POST needs role operator", "forbidden")
    async with running(source) as pilot:
        await pilot.press("c")
        await confirm(pilot)
        await pilot.press("c")
        assert not isinstance(pilot.app.screen, Dialog)
        assert len(source.sent) == 1


async def test_marked_rows_are_acted_on_together_and_each_failure_is_shown() -> None:
    source = canned_source()
    async with running(source) as pilot:
        await pilot.press("2", "space", "j", "space", "x")
        assert "cmpl-0, cmpl-2" in shown(pilot.app)
        source.refusal = AdminError("no such request", "not_found")
        await confirm(pilot)
        assert source.sent == [abort("cmpl-0"), abort("cmpl-2")]
        assert len(notices(pilot)) == 2
        assert "selected" not in shown(pilot.app)


async def test_a_migration_goes_to_the_chosen_target() -> None:
    source = canned_source()
    async with running(source) as pilot:
        await pilot.press("2", "m", "j", "j")
        chosen = [text for text in shown(pilot.app).splitlines() if "then" in text]
        await confirm(pilot)
        assert [command.body for command in source.sent] == [{"to": "i2"}]
        # The freest afterwards comes first; i3 drains and the source i1 is where it is.
        assert [text.split("│")[1].split()[0] for text in chosen] == ["i0", "i2"]


async def test_a_wrong_timeout_is_explained_and_sends_nothing() -> None:
    source = canned_source()
    async with running(source) as pilot:
        await pilot.press("d", "shift+tab", "shift+tab", *"soon", "enter")
        assert "'soon', expected seconds above 0" in shown(pilot.app)
        assert source.sent == []
        assert "X" not in shown(pilot.app)
        await pilot.press(*["backspace"] * 4, "tab", "space", "shift+tab", "enter")
        assert "▐X▌ then abort" in shown(pilot.app)
        assert "timeout: nothing, expected seconds" in shown(pilot.app)
        await pilot.press(*"2.5", "enter")
        await settled(pilot)
        assert source.sent == [drain(I0, 2.5, "abort")]


async def test_a_drain_is_followed_until_it_is_safe_to_remove() -> None:
    canned = Canned()
    source = CannedSource(canned.snapshot())
    async with running(source) as pilot:
        await pilot.press("G", "d")
        await confirm(pilot)
        text = shown(pilot.app)
        assert "drain" in text
        assert "3 requests run; 1 migration is under way" in text
        assert "✔ safe to remove" not in text
        later = canned.snapshot(NOW + 5)
        drained = later.instances[3].model_copy(
            update={"state": "drained", "running": 0, "waiting": 0, "blockers": (), "safe_to_remove": True}
        )
        later = later.model_copy(update={"instances": (*later.instances[:3], drained)})
        app_of(pilot).store.take(later)
        await settled(pilot)
        assert "instance i3  ○ drained  ✔ safe to remove" in shown(pilot.app)
        await pilot.press("escape")
        assert [command.what for command in source.sent] == ["drain instance i3"]


async def test_many_drains_are_summed_up_and_can_be_scrolled_by_keys() -> None:
    async with running(CannedSource(Canned(8).snapshot())) as pilot:
        await pilot.press(*["space"] * 8, "d")
        await confirm(pilot)

        def visible() -> list[str]:
            assert "0 of 8 safe to remove" in shown(pilot.app)
            return [f"i{number}" for number in range(8) if f"instance i{number} " in shown(pilot.app)]

        assert visible()[0] == "i0" and "i7" not in visible()
        for key, there, gone in (("G", "i7", "i0"), ("g", "i0", "i7"), ("pagedown", "i4", "i0")):
            await pilot.press(key)
            await settled(pilot)
            assert there in visible() and gone not in visible(), key
        for keys, there in (
            (["k"] * 40, "i0"),
            (["j"] * 40, "i7"),
            (["up"] * 40, "i0"),
            (["down"] * 40, "i7"),
        ):
            await pilot.press(*keys)
            await settled(pilot)
            assert there in visible(), keys


async def test_selected_rows_that_are_hidden_are_not_acted_on_and_it_is_said() -> None:
    source = canned_source()
    async with running(source) as pilot:
        for screen, keys in (("1", "cdu"), ("2", "mrx")):
            await pilot.press(screen, "space", "slash", *("i3" if screen == "1" else "cmpl-17"), "enter")
            for key in keys:
                await pilot.press(key)
                assert not isinstance(pilot.app.screen, Dialog)
                assert "selected rows are hidden" in notices(pilot)[-1]
                pilot.app.clear_notifications()
        assert source.sent == []


async def test_a_nodes_row_cannot_be_removed_and_it_is_said() -> None:
    source = CannedSource(Canned(num_nodes=2).snapshot())
    async with running(source) as pilot:
        await pilot.press("minus")
        assert not isinstance(pilot.app.screen, Dialog)
        assert "a node cannot be removed here" in notices(pilot)[-1]


async def test_a_nodes_row_drains_the_node() -> None:
    source = CannedSource(Canned(num_nodes=2).snapshot())
    async with running(source) as pilot:
        await pilot.press("d")
        await confirm(pilot)
        assert [(command.method, command.path) for command in source.sent] == [
            ("POST", "/v1/nodes/node-0/drain")
        ]
