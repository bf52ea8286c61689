"""Tokens: made once, private, unique, and refused when others can read them."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from llumnix.admin.schema import Role
from llumnix.admin.tokens import Token, TokenBook, ensure_admin_token, load_tokens
from llumnix.errors import ConfigError


@dataclass(frozen=True)
class Setting:
    name: str
    role: Role
    token_file: Path


def write_token(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_the_admin_token_is_made_once_and_private(tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    first = ensure_admin_token(state_dir)
    assert (state_dir / "admin.token").stat().st_mode & 0o777 == 0o600
    assert len(first) >= 32
    assert ensure_admin_token(state_dir) == first
    assert [path.name for path in state_dir.iterdir()] == ["admin.token"]
    assert ensure_admin_token(tmp_path / "other") != first


def test_tokens_of_the_configuration_get_their_roles(tmp_path: Path) -> None:
    file = write_token(tmp_path / "dash.token", "dash-secret\n")
    book = load_tokens(tmp_path, [Setting("dash", "viewer", file)])
    dash = book.identify(b"Bearer dash-secret")
    admin = book.identify(f"Bearer {ensure_admin_token(tmp_path)}".encode())
    assert dash is not None and (dash.name, dash.role) == ("dash", "viewer")
    assert admin is not None and (admin.name, admin.role) == ("admin", "operator")


@pytest.mark.parametrize(
    "header",
    [
        None,
        b"",
        b"Bearer",
        b"Bearer ",
        b"Bearer secre",
        b"Bearer secrets",
        b"Basic secret",
        b"secret",
        b"Bearer \xff",
    ],
)
def test_anything_but_the_secret_is_nobody(header: bytes | None) -> None:
    assert TokenBook([Token("a", "operator", "secret")]).identify(header) is None


def test_a_secret_is_in_no_repr() -> None:
    assert "hush" not in repr(Token("a", "viewer", "hush"))


@pytest.mark.parametrize(
    ("text", "mode", "words"), [("s\n", 0o644, "0644"), ("\n", 0o600, "no token"), ("a b", 0o600, "no token")]
)
def test_a_bad_token_file_is_refused_by_name(tmp_path: Path, text: str, mode: int, words: str) -> None:
    file = write_token(tmp_path / "x.token", text, mode)
    with pytest.raises(ConfigError, match=words) as caught:
        load_tokens(tmp_path, [Setting("x", "viewer", file)])
    assert "x.token" in str(caught.value)


def test_a_missing_token_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gone"):
        load_tokens(tmp_path, [Setting("x", "viewer", tmp_path / "gone")])


def test_names_and_secrets_are_unique() -> None:
    with pytest.raises(ConfigError, match="name"):
        TokenBook([Token("a", "viewer", "s1"), Token("a", "viewer", "s2")])
    with pytest.raises(ConfigError, match="secret") as caught:
        TokenBook([Token("a", "viewer", "hush"), Token("b", "operator", "hush")])
    assert "hush" not in str(caught.value)


def test_the_name_admin_is_taken(tmp_path: Path) -> None:
    file = write_token(tmp_path / "x.token", "s")
    with pytest.raises(ConfigError, match="admin"):
        load_tokens(tmp_path, [Setting("admin", "viewer", file)])
