"""An API server process: vLLM's own OpenAI app on the cluster, behind the gate."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import uvicorn
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.launcher import NoSignalServer, create_server_socket
from vllm.entrypoints.launchers.utils.constants import (
    H11_MAX_HEADER_COUNT_DEFAULT,
    H11_MAX_INCOMPLETE_EVENT_SIZE_DEFAULT,
)
from vllm.entrypoints.launchers.utils.ssl import SSLCertRefresher
from vllm.envs import VLLM_ALLOW_RUNTIME_LORA_UPDATING, VLLM_HTTP_TIMEOUT_KEEP_ALIVE
from vllm.usage.usage_lib import UsageContext
from vllm.utils.counter import AtomicCounter
from vllm.utils.system_utils import set_ulimit
from vllm.v1.engine import EngineCoreReadyResponse

from llumnix.config import Config
from llumnix.core.hold_queue import HoldQueue
from llumnix.core.policies import make_dispatcher
from llumnix.engine.args import check_server_args, server_namespace, vllm_config
from llumnix.engine.compat import check_vllm_version
from llumnix.errors import ConfigError
from llumnix.frontend.adapters import AdapterTable
from llumnix.frontend.client import ClusterClient
from llumnix.frontend.control_link import ControlLink
from llumnix.frontend.gate import Gate
from llumnix.frontend.llm import ClusterLLM
from llumnix.frontend.priority import KeyRule, PriorityRules
from llumnix.frontend.refusals import AbortedByOperator, ServiceUnavailable
from llumnix.frontend.spec import ApiServerSpec
from llumnix.frontend.stats import answer_metrics
from llumnix.log import get_logger
from llumnix.wire import (
    AbortRequest,
    ApiServerServes,
    Done,
    FromManager,
    LatencySamples,
    LostContact,
    SetPriority,
    StopServing,
    Table,
    TellRequests,
)

logger = get_logger(__name__)

_TELL_LATENCY_S = 1.0
_MANAGER_FIRST_S = 2.0
"""By so much earlier the manager, if it is there, finds an instance that hangs or is silent."""


class ApiServer:
    """One API server; `run` serves until the manager says stop. Everything is on one event loop."""

    def __init__(
        self,
        spec: ApiServerSpec,
        watch: Callable[[int, str, Callable[[int, str], None]], None],
        kill: Callable[[int], None],
    ) -> None:
        """`watch(uid, instance, died)` has `died(uid, reason)` called, on any thread, at its end.

        `kill(uid)` ends an instance that says nothing any more; it may block.
        """
        self._spec = spec
        self._watch = watch
        self._kill = kill
        self._stopping: asyncio.Event = asyncio.Event()
        self._drain_s = 0.0

    async def run(self) -> None:
        check_vllm_version()
        spec = self._spec
        self._link = ControlLink(spec.endpoints, spec.index, os.getpid())
        config = spec.config
        if VLLM_ALLOW_RUNTIME_LORA_UPDATING and config.http.api_servers > 1:
            raise ConfigError(
                f"http.api_servers = {config.http.api_servers} does not go with "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING in the environment, expected 1: an adapter is known "
                "only to the server that loaded it."
            )
        sock = create_server_socket((config.http.host, config.http.port), reuse_port=True)
        set_ulimit()
        args = server_namespace(config, spec.model)
        engine_config = vllm_config(config, spec.model, UsageContext.OPENAI_API_SERVER)
        # With the reasoning parser, which the command line has beside it.
        args.structured_outputs_config = engine_config.structured_outputs_config
        check_server_args(config, args)
        self._client = ClusterClient(
            engine_config,
            address=spec.endpoints.api_servers[spec.index],
            curve=spec.endpoints.curve,
            dispatcher=make_dispatcher(
                config.scheduling, api_servers=config.http.api_servers, server_index=spec.index
            ),
            held=HoldQueue(config.scheduling.llumnix_plus.overtake_s),
            handover=config.handover,
            silence_s=config.instances.heartbeat_timeout_s + _MANAGER_FIRST_S,
        )
        loop = asyncio.get_running_loop()
        self._client.on_silent = lambda uid: loop.run_in_executor(None, self._kill, uid)
        self._client.calls.on_state_op = self._link.send
        self._client.held_news.send = self._link.send
        self._client.on_lost = lambda uid, reason: self._link.send(LostContact(spec.index, uid, reason))
        link = asyncio.create_task(self._link.run(self._obey))
        try:
            ready = await _first_of(self._client.first_usable, link, self._stopping)
            _apply_ready(engine_config, msgspec.msgpack.decode(ready, type=EngineCoreReadyResponse))
            self._llm = ClusterLLM(engine_config, self._client)
            telling = asyncio.create_task(self._tell_latency())
            await self._serve(args, sock)
            telling.cancel()
        except asyncio.CancelledError:
            logger.info("stopped before any instance served")
        finally:
            link.cancel()
            sock.close()
            self._client.shutdown()
            await self._link.close()

    # ---- for the gate -----------------------------------------------------------------------------------

    def is_stopping(self) -> bool:
        return self._stopping.is_set()

    def is_serving(self) -> bool:
        return self._client.is_serving()

    def num_queued(self) -> int:
        return self._client.num_queued()

    # ---- the manager's commands ---------------------------------------------------------------------------

    def _obey(self, command: FromManager) -> None:
        if isinstance(command, Table):
            self._take_table(command)
        elif isinstance(command, AbortRequest):
            self._link.send(Done(command.command_id, self._abort(command)))
        elif isinstance(command, SetPriority):
            self._link.send(Done(command.command_id, self._set_priority(command)))
        elif isinstance(command, TellRequests):
            self._client.held_news.tell_rows()
            self._link.send(Done(command.command_id))
        elif isinstance(command, StopServing):
            self._drain_s = command.drain_s
            self._stopping.set()
        else:
            raise AssertionError(f"the manager sent an API server {type(command).__name__}")

    def _take_table(self, table: Table) -> None:
        came = self._client.apply_table(table)
        loop = asyncio.get_running_loop()

        def died(uid: int, reason: str) -> None:
            loop.call_soon_threadsafe(self._client.instance_lost, uid, reason)

        for entry in table.entries:
            if entry.entry.uid in came:
                self._watch(entry.entry.uid, entry.entry.instance, died)

    def _abort(self, command: AbortRequest) -> str | None:
        if command.request_id not in self._llm.output_processor.request_states:
            return f"request {command.request_id} is not running any more"
        self._llm.fail_requests([command.request_id], AbortedByOperator(command.reason))
        return None

    def _set_priority(self, command: SetPriority) -> str | None:
        if self._client.set_priority(command.request_id, command.priority):
            return None
        return f"request {command.request_id} is held no more: an instance has taken it, or it has ended"

    async def _tell_latency(self) -> None:
        while True:
            await asyncio.sleep(_TELL_LATENCY_S)
            ttft_s, tpot_s = self._llm.latency.take()
            if ttft_s or tpot_s:
                self._link.send(LatencySamples(self._spec.index, ttft_s, tpot_s))

    # ---- HTTP -------------------------------------------------------------------------------------------

    async def _serve(self, args: Namespace, sock: socket.socket) -> None:
        tasks = await self._llm.get_supported_tasks()
        app = build_app(args, tasks, self._llm.model_config)
        await init_app_state(self._llm, app.state, args, tasks)
        # Engines keep adapters by number: one loaded after a restart must not get the number of an older one.
        models = app.state.openai_serving_models
        models.lora_id_counter = AtomicCounter(os.getpid() * 1_000)
        models.lora_requests = AdapterTable(models.lora_requests, self._client.calls.adapter_unloaded)
        answer_metrics(app, self._spec.metrics_dir, self._client.membership.numbers)
        config = self._spec.config
        gate = Gate(app, admission=self, rules=_rules(config), max_queued=config.http.max_queued)
        uvicorn_config = uvicorn.Config(gate, **_uvicorn_options(args))
        uvicorn_config.h11_max_incomplete_event_size = (
            args.h11_max_incomplete_event_size or H11_MAX_INCOMPLETE_EVENT_SIZE_DEFAULT
        )
        uvicorn_config.h11_max_header_count = (  # type: ignore[attr-defined]
            args.h11_max_header_count or H11_MAX_HEADER_COUNT_DEFAULT
        )
        server = NoSignalServer(uvicorn_config)
        app.state.server = server
        with _certificates_renewed(uvicorn_config, args):
            await self._answer(server, sock)

    async def _answer(self, server: NoSignalServer, sock: socket.socket) -> None:
        """Until the manager says stop, and then until what runs is finished."""
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        while not server.started and not serving.done():
            await asyncio.sleep(0.005)
        if server.started:
            self._link.send(ApiServerServes(self._spec.index))
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not serving.done():
            await self._drain()
            server.should_exit = True
        await serving

    async def _drain(self) -> None:
        """Let what runs finish for `drain_s`, then tell the rest that it is over."""
        deadline = asyncio.get_running_loop().time() + self._drain_s
        while self._client.num_unfinished() and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.05)
        unfinished = self._llm.unfinished_ids()
        if unfinished:
            logger.warning("%d requests were still running at shutdown: aborting them", len(unfinished))
            error = ServiceUnavailable("the cluster was shut down before this request was finished")
            self._llm.fail_requests(unfinished, error)
        # The last bytes of every response go out before uvicorn counts open connections as stuck.
        await asyncio.sleep(0.1)


def _rules(config: Config) -> PriorityRules:
    return PriorityRules(
        {name: entry.engine_priority for name, entry in config.priorities.items()},
        {key.secret(): KeyRule(key.name, key.priority, key.max_priority) for key in config.http.api_keys},
    )


def _uvicorn_options(args: Namespace) -> dict[str, Any]:
    return {
        "host": args.host,
        "port": args.port,
        "log_level": "warning",
        "access_log": False,
        "timeout_keep_alive": VLLM_HTTP_TIMEOUT_KEEP_ALIVE,
        "timeout_graceful_shutdown": 2,
        "ssl_keyfile": args.ssl_keyfile,
        "ssl_certfile": args.ssl_certfile,
        "ssl_ca_certs": args.ssl_ca_certs,
        "ssl_cert_reqs": args.ssl_cert_reqs,
        "ssl_ciphers": args.ssl_ciphers,
    }


@contextlib.contextmanager
def _certificates_renewed(uvicorn_config: uvicorn.Config, args: Namespace) -> Iterator[None]:
    """With enable_ssl_refresh, files that change on disk are taken on (as vLLM's serve_http does)."""
    if not args.enable_ssl_refresh or not args.ssl_certfile:
        yield
        return
    uvicorn_config.load()
    assert uvicorn_config.ssl is not None
    refresher = SSLCertRefresher(
        uvicorn_config.ssl, key_path=args.ssl_keyfile, cert_path=args.ssl_certfile, ca_path=args.ssl_ca_certs
    )
    try:
        yield
    finally:
        refresher.stop()


async def _first_of(ready: asyncio.Future[bytes], link: asyncio.Task[None], stopping: asyncio.Event) -> bytes:
    """The first instance's answer; CancelledError if the manager says stop before there is one."""
    stop = asyncio.create_task(stopping.wait())
    either: set[asyncio.Future[Any]] = {ready, link, stop}
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if ready.done():
        return ready.result()
    if link.done():
        link.result()
    raise asyncio.CancelledError


def _apply_ready(vllm_config: Any, ready: EngineCoreReadyResponse) -> None:
    """What an engine found out while starting (as MPClient._apply_ready_response, for one of many equals)."""
    model, cache = vllm_config.model_config, vllm_config.cache_config
    model.max_model_len = min(model.max_model_len, ready.max_model_len)
    cache.num_gpu_blocks = ready.num_gpu_blocks
    cache.block_size = ready.block_size
    cache.mamba_block_size = ready.mamba_block_size
    cache.effective_attention_block_size = ready.effective_attention_block_size
    cache.kv_cache_size_tokens = ready.kv_cache_size_tokens
    cache.kv_cache_max_concurrency = ready.kv_cache_max_concurrency
