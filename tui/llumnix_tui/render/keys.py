"""The footer and the help text, both made from the bindings in force."""

from collections.abc import Sequence
from dataclasses import dataclass

from llumnix_tui.render.states import state
from llumnix_tui.render.text import ACCENT, MUTED, STRONG, Line, joined, line, width_of

# Never left out: how to find the others, and how to leave.
ESSENTIAL = ("help", "quit")
WORDS = (
    ("running", "takes requests"),
    ("starting", "or pending: comes up"),
    ("cordoned", "gets no new requests"),
    ("draining", "its requests move away"),
    ("drained", "empty: safe to remove"),
    ("failed", "or dead: gave up, or gone"),
)
FIGURES = (
    ("KV █▒·", "used, held by virtual usage beyond it (headroom, queue), free"),
    ("FREE", "freeness: free blocks per running request, after headroom (Algorithm 1)"),
    ("n/m", "running/waiting requests; of migrations: in/out, sent/skipped blocks"),
    ("STEP", "milliseconds per engine step"),
)


@dataclass(frozen=True)
class Key:
    """One binding: `group` stands in the footer for all keys that share it."""

    key: str
    does: str
    group: str = ""


def footer(keys: Sequence[Key], width: int) -> Line:
    """Return the keys in one line; where room is short, the last ones are left out."""
    entries = _grouped([(key.key, key.group or key.does) for key in keys], "")
    shown = list(entries)
    while len(shown) > len(ESSENTIAL) and width_of(_footer_line(shown)) > width:
        expendable = [entry for entry in shown if entry[1] not in ESSENTIAL]
        shown.remove(expendable[-1])
    return _footer_line(shown)


def help_lines(keys: Sequence[Key]) -> list[Line]:
    """Return the keys with what they do, then the legend."""
    entries = _grouped([(key.key, key.does) for key in keys if key.does], " ")
    entries.append(("Shift+letter", "sort by the column with this letter underlined; again: the other way"))
    shown = [joined((line(f"{key:>14}", ACCENT), line(does))) for key, does in entries]
    states = [joined((line(" "), state(word), line(text, MUTED))) for word, text in WORDS]
    figures = [joined((line(f"  {name:8}", STRONG), line(text, MUTED))) for name, text in FIGURES]
    return [*shown, (), line("States", STRONG), *states, (), line("Figures", STRONG), *figures]


def _grouped(pairs: Sequence[tuple[str, str]], between: str) -> list[tuple[str, str]]:
    """Return (keys, text) with the keys of the same text together."""
    by_text: dict[str, list[str]] = {}
    for key, text in pairs:
        by_text.setdefault(text, []).append(key)
    return [(between.join(keys), text) for text, keys in by_text.items()]


def _footer_line(entries: Sequence[tuple[str, str]]) -> Line:
    return joined([((key, ACCENT), (f" {text}", "")) for key, text in entries], " ")
