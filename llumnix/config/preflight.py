"""What a configuration asks of this machine, checked before anything is started."""

from __future__ import annotations

import errno
import socket
import ssl
from pathlib import Path

from llumnix.config.messages import wrong
from llumnix.config.root import Config

_BUILTIN_MODELS = ("tiny",)


def check_ports(config: Config) -> None:
    """Refuses addresses and ports that cannot be listened at; binds each for a moment."""
    check_node_ip(config)
    check_port("http", config.http.host, config.http.port)
    check_port("admin", config.admin.host, config.admin.port)
    if config.ray.address == "local" and config.ray.port is not None:
        check_port("ray", config.ray.node_ip, config.ray.port)


def check_node_ip(config: Config) -> None:
    """Refuses a ray.node_ip that is no address of this machine."""
    check_port("ray", config.ray.node_ip, 0)


def check_port(section: str, host: str, port: int) -> None:
    """Refuses one address that cannot be listened at, naming it as `section`.port or its host."""
    host_key = "ray.node_ip" if section == "ray" else f"{section}.host"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError):
        raise wrong(host_key, host, "an address of this machine") from None
    with socket.socket(family, kind, protocol) as probe:
        # Connections of an earlier run may linger; only a listener is in the way.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise wrong(
                    f"{section}.port", port, f"a free port, but something listens at {host}:{port}"
                ) from None
            if error.errno == errno.EACCES:
                raise wrong(f"{section}.port", port, "a port that this user may listen at") from None
            raise wrong(host_key, host, f"an address of this machine ({error.strerror})") from None


def hold_port(host: str, port: int) -> socket.socket | None:
    """Keep check_port of others from finding the port free until the socket is closed; it does not listen.

    Our API servers, which share the port by SO_REUSEPORT, may bind it all the same. None: it cannot be held.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    holder = socket.socket(family, kind, protocol)
    try:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(address)
    except OSError:
        holder.close()
        return None
    return holder


def check_model(config: Config) -> None:
    """Refuses a model path that names a directory which is not there; a hub id is vLLM's to find."""
    if config.builtin_model is not None:
        if config.builtin_model not in _BUILTIN_MODELS:
            raise wrong("model.path", config.model.path, "builtin:tiny, the one model that is built in")
        return
    if config.model.path.startswith(("/", "./", "../", "~")) and existing_path(config.model.path) is None:
        raise wrong("model.path", config.model.path, "a directory that is there, a hub id or builtin:tiny")


def existing_path(path: str) -> Path | None:
    """The file or directory that `path` names, with ~ written out; None where there is none."""
    try:
        expanded = Path(path).expanduser()
        return expanded if expanded.exists() else None
    except (OSError, RuntimeError, ValueError):
        # Too long, of an unknown ~user, or with a NUL inside: nothing can be there.
        return None


def check_files(config: Config) -> None:
    """Refuses certificates, keys and tokens that cannot be read or used."""
    for key in ("tls_cert", "tls_key"):
        path: Path | None = getattr(config.http, key)
        if path is None:
            continue
        try:
            path.open("rb").close()
        except OSError as error:
            raise wrong(f"http.{key}", str(path), f"a readable file ({error.strerror})") from None
    if config.http.tls_cert is not None:
        _check_certificate(config.http.tls_cert, config.http.tls_key)
    for entry in config.http.api_keys:
        entry.secret()
    for token in config.admin.tokens:
        token.secret()


def _check_certificate(certificate: Path, key: Path | None) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_verify_locations(certificate)
    except ssl.SSLError:
        raise wrong("http.tls_cert", str(certificate), "a certificate chain in PEM form") from None
    try:
        # Nobody can be asked for a password.
        context.load_cert_chain(certificate, key, password="")
    except ssl.SSLError:
        raise wrong(
            "http.tls_key", str(key), "the private key of http.tls_cert in PEM form, not encrypted"
        ) from None
