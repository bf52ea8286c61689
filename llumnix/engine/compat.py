"""The one place that knows which vLLM this release was written for."""

from __future__ import annotations

from llumnix.errors import UnsupportedVersionError

SUPPORTED_VLLM = ("0.32.0",)


def check_vllm_version() -> str:
    """The installed vLLM's version; raises UnsupportedVersionError for one we were not written for."""
    from vllm.version import __version__ as installed

    version = installed.split("+")[0]
    if version not in SUPPORTED_VLLM:
        supported = " or ".join(SUPPORTED_VLLM)
        raise UnsupportedVersionError(
            f"vLLM {installed} is installed, but this llumnix works with {supported} only: "
            "its scheduler's internals are used and change between releases."
        )
    return version
