"""Bearer tokens of the admin API: who may call it, and in which role."""

import hmac
import os
import secrets
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from llumnix.admin.schema import Role
from llumnix.errors import ConfigError

ADMIN_NAME = "admin"
ADMIN_TOKEN_FILE = "admin.token"


class TokenSetting(Protocol):
    """An entry of `admin.tokens` in the configuration."""

    @property
    def name(self) -> str:
        """Who it is, for the audit log."""
        ...

    @property
    def role(self) -> Role:
        """What it may do."""
        ...

    @property
    def token_file(self) -> str | os.PathLike[str]:
        """Where the secret is; mode 0600."""
        ...


@dataclass(frozen=True)
class Token:
    """A name for the audit log, a role, and the secret itself, which no repr shows."""

    name: str
    role: Role
    secret: str = field(repr=False)


class TokenBook:
    """All tokens that are let in; names and secrets are unique."""

    def __init__(self, tokens: Iterable[Token]) -> None:
        self._tokens = tuple(tokens)
        for label, values in (
            ("name", [token.name for token in self._tokens]),
            ("secret", [token.secret for token in self._tokens]),
        ):
            if len(set(values)) < len(values):
                names = ", ".join(token.name for token in self._tokens)
                raise ConfigError(
                    f"admin.tokens: two tokens share one {label}, expected each its own ({names})"
                )

    @property
    def empty(self) -> bool:
        """Whether nobody is let in."""
        return not self._tokens

    def identify(self, authorization: bytes | None) -> Token | None:
        """Return the token in an Authorization header; the time taken tells nothing about the secrets."""
        scheme, _, given = (authorization or b"").partition(b" ")
        if scheme.lower() != b"bearer":
            return None
        found = None
        for token in self._tokens:
            if hmac.compare_digest(token.secret.encode(), given.strip()):
                found = token
        return found


def load_tokens(state_dir: Path, settings: Iterable[TokenSetting] = ()) -> TokenBook:
    """Return the admin token, made at the first start, and those of the configuration."""
    tokens = [Token(ADMIN_NAME, "operator", ensure_admin_token(state_dir))]
    for setting in settings:
        if setting.name == ADMIN_NAME:
            raise ConfigError(
                f"admin.tokens: the name {ADMIN_NAME!r} belongs to {ADMIN_TOKEN_FILE}, expected another"
            )
        path = Path(setting.token_file).expanduser()
        tokens.append(Token(setting.name, setting.role, read_token(path, f"admin.tokens {setting.name!r}")))
    return TokenBook(tokens)


def ensure_admin_token(state_dir: Path) -> str:
    """Return the secret in `<state_dir>/admin.token`, which is made, mode 0600, where it is missing."""
    path = state_dir / ADMIN_TOKEN_FILE
    state_dir.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        # Written aside and linked into place: no reader and no crash ever leaves half a token.
        descriptor, draft = tempfile.mkstemp(prefix=f".{ADMIN_TOKEN_FILE}.", dir=state_dir)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_urlsafe(32) + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.link(draft, path)
        except FileExistsError:
            pass  # another process was first: its token holds
        finally:
            Path(draft).unlink()
    return read_token(path, "admin token")


def read_token(path: Path, key: str) -> str:
    """Return the secret in a file that only its owner can read; ConfigError names `key` and the file."""
    try:
        mode = path.stat().st_mode & 0o777
        secret = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{key}: token file {path} cannot be read: {error}") from error
    if mode & 0o077:
        raise ConfigError(
            f"{key}: token file {path} has mode {mode:04o}, expected 0600 (others can read the secret)"
        )
    if not secret or any(char.isspace() for char in secret):
        raise ConfigError(f"{key}: token file {path} holds no token, expected one line without spaces")
    return secret
