"""The two HTTP servers: [http] (OpenAI endpoint) and [admin]."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, SecretStr, model_validator

from llumnix.config.base import Host, Name, Port, Section, Text, UserPath, is_loopback, read_secret
from llumnix.config.messages import missing, wrong
from llumnix.config.vllm_table import vllm_table


class ApiKey(Section):
    """One key of the OpenAI endpoint, and the priority classes that its requests may have."""

    name: Name = Field(description="Whose key it is: shown instead of the key.")
    key: Annotated[SecretStr, Field(strict=False, min_length=1)] | None = Field(
        default=None, examples=["..."], description="The key itself; or `key_file`."
    )
    key_file: UserPath | None = Field(
        default=None, examples=["/etc/llumnix/team-a.key"], description="File that holds the key."
    )
    priority: Text | None = Field(
        default=None,
        examples=["normal"],
        description="Class of requests that name none; that of engine_priority 0 if left out.",
    )
    max_priority: Text | None = Field(
        default=None,
        examples=["high"],
        description="Most important class that a request may ask for; any if left out.",
    )

    @model_validator(mode="after")
    def _one_source_of_the_key(self) -> Self:
        if (self.key is None) == (self.key_file is None):
            raise missing(f"http.api_keys ({self.name}): key", "either key or key_file, and not both")
        return self

    def secret(self) -> str:
        """The key; raises ConfigError when its file cannot be read."""
        if self.key is not None:
            return self.key.get_secret_value()
        assert self.key_file is not None, "one of key and key_file is set"
        return read_secret(self.key_file, f"http.api_keys ({self.name}): key_file")


class HttpConfig(Section):
    """The OpenAI endpoint: vLLM's own server over all instances."""

    host: Host = Field(
        default="127.0.0.1", description="Address to listen at; off loopback `api_keys` must be set."
    )
    port: Port = Field(default=8000, description="Port to listen at, shared by all API servers.")
    api_servers: int = Field(default=1, ge=1, description="API server processes.")
    max_queued: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        examples=[1024],
        description="Requests that may wait for an instance; more are answered 429 with Retry-After. No "
        "limit if left out.",
    )
    drain_timeout_s: float = Field(
        default=30.0,
        ge=0,
        description="After the first signal, how long running requests may finish before they are aborted.",
    )
    api_keys: tuple[ApiKey, ...] = Field(
        default=(),
        strict=False,
        examples=[[{"name": "team-a", "key": "...", "priority": "normal", "max_priority": "high"}]],
        description="Keys, one of which a request must bear as its token: name, key or key_file (a file "
        "that holds it), priority (class of requests that name none), max_priority (the most "
        "important class it may ask for). Everyone is let in when there are none.",
    )
    allow_anonymous: bool = Field(
        default=False, description="Let everyone in off loopback too, without `api_keys`."
    )
    tls_cert: UserPath | None = Field(
        default=None,
        examples=["/etc/llumnix/cert.pem"],
        description="TLS certificate chain (PEM); with `tls_key`.",
    )
    tls_key: UserPath | None = Field(
        default=None, examples=["/etc/llumnix/key.pem"], description="TLS private key (PEM); with `tls_cert`."
    )
    vllm: Annotated[Mapping[str, Any], AfterValidator(vllm_table("http.vllm"))] = Field(
        default_factory=dict,
        examples=[{"enable_auto_tool_choice": True, "tool_call_parser": "hermes"}],
        description="Any argument of vLLM's OpenAI server by its vLLM name (chat_template, "
        "tool_call_parser, ...).",
    )

    @model_validator(mode="after")
    def _nobody_gets_in_by_accident(self) -> Self:
        if not is_loopback(self.host) and not self.api_keys and not self.allow_anonymous:
            expected = "a loopback address, or http.api_keys, or http.allow_anonymous = true"
            raise wrong("http.host", self.host, expected)
        if self.tls_cert is None and self.tls_key is not None:
            raise missing("http.tls_cert", "a certificate, as http.tls_key is set")
        if self.tls_key is None and self.tls_cert is not None:
            raise missing("http.tls_key", "a private key, as http.tls_cert is set")
        return self

    @model_validator(mode="after")
    def _every_key_is_somebodys(self) -> Self:
        _refuse_double("http.api_keys", [k.name for k in self.api_keys])
        owners: dict[str, str] = {}
        for entry in self.api_keys:
            if entry.key is None:
                continue
            other = owners.setdefault(entry.key.get_secret_value(), entry.name)
            if other != entry.name:
                raise wrong(f"http.api_keys ({entry.name}): key", "", f"another key than that of {other}")
        return self


class AdminToken(Section):
    """One more token of the admin API, beside the one made at the first start."""

    name: Name = Field(description="Whose token it is: stands in the journal.")
    role: Literal["operator", "viewer"] = Field(
        default="viewer", description="operator: everything; viewer: reads only."
    )
    token_file: UserPath = Field(description="File that holds the token.")

    def secret(self) -> str:
        """The token; raises ConfigError when its file cannot be read."""
        return read_secret(self.token_file, f"admin.tokens ({self.name}): token_file")


class AdminConfig(Section):
    """The admin API, which the terminal interface uses; always with a token (state_dir/admin.token)."""

    host: Host = Field(default="127.0.0.1", description="Address to listen at.")
    port: Port = Field(default=8001, description="Port to listen at.")
    tokens: tuple[AdminToken, ...] = Field(
        default=(),
        strict=False,
        examples=[[{"name": "ops", "role": "operator", "token_file": "/etc/llumnix/ops.token"}]],
        description="Further tokens: name, role (operator: everything; viewer: reads only), token_file.",
    )

    @model_validator(mode="after")
    def _every_token_is_somebodys(self) -> Self:
        _refuse_double("admin.tokens", [t.name for t in self.tokens])
        return self


def _refuse_double(key: str, names: list[str]) -> None:
    for name, times in Counter(names).items():
        if times > 1:
            raise wrong(f"{key}: name", name, "every name once")
