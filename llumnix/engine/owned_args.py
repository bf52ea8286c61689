"""vLLM arguments that llumnix sets itself, each with what an operator does instead or why it is fixed."""

from __future__ import annotations

_ONE_CACHE = (
    "an image seen by one instance would reach another as a hash only, so vLLM's multimodal caches are off"
)
_ONE_NODE = "Ray places the instances, and the workers of one stay on its node"
_REPLICAS = "the instances are llumnix's own replicas: set instances.count"
_HOOK = "llumnix needs this hook of vLLM for itself"
_NO_ACCESS_LOG = "no access log is written; GET /v1/requests of the admin API shows who runs"

_OWNED = {
    "api_key": "set http.api_keys",
    "api_server_count": "set http.api_servers",
    "config": "this file is the configuration",
    "data_parallel_supervisor_port": _REPLICAS,
    "device_ids": "Ray gives each instance its GPUs: set instances.gpus_per_instance",
    "disable_access_log_for_endpoints": _NO_ACCESS_LOG,
    "disable_log_stats": "the scheduler and /metrics live on these statistics",
    "disable_uvicorn_access_log": _NO_ACCESS_LOG,
    "distributed_executor_backend": "llumnix chooses it by tensor_parallel_size and pipeline_parallel_size",
    "dp_supervisor_probe_failure_threshold": _REPLICAS,
    "dp_supervisor_probe_interval_s": _REPLICAS,
    "dp_supervisor_probe_timeout_s": _REPLICAS,
    "elastic_ep_max_dp_size": _REPLICAS,
    "enable_elastic_ep": _REPLICAS,
    "grpc": "the endpoint is HTTP",
    "grpc_port": "the endpoint is HTTP",
    "headless": "llumnixd starts engines and API servers itself",
    "help": "it is an option of vLLM's command line",
    "host": "set http.host",
    "master_addr": _ONE_NODE,
    "master_port": _ONE_NODE,
    "mm_ipc_gpu_memory_gb": "API servers and instances share no GPU memory",
    "mm_processor_cache_gb": _ONE_CACHE,
    "mm_processor_cache_type": _ONE_CACHE,
    "mm_shm_cache_max_object_size_mb": _ONE_CACHE,
    "mm_tensor_ipc": "any API server must be able to reach any instance, so tensors go with the request",
    "model": "set model.path",
    "model_tag": "set model.path",
    "nnodes": _ONE_NODE,
    "node_rank": _ONE_NODE,
    "port": "set http.port",
    "prefix_caching_hash_algo": "block hashes must agree between instances, so it is sha256_cbor in all",
    "ray_workers_use_nsight": "the workers of an instance are no Ray workers",
    "scheduler_cls": _HOOK,
    "scheduling_policy": 'it is "priority", which [priorities] needs',
    "served_model_name": "set model.served_name",
    "shutdown_timeout": "set http.drain_timeout_s",
    "ssl_certfile": "set http.tls_cert",
    "ssl_keyfile": "set http.tls_key",
    "uds": "set http.host and http.port",
    "uvicorn_log_level": "set logging.level",
    "worker_cls": _HOOK,
    "worker_extension_cls": _HOOK,
}


def owner(name: str) -> str | None:
    """Why an operator cannot set this argument of vLLM's; None where it is free."""
    if name.startswith("data_parallel_"):
        return _REPLICAS
    return _OWNED.get(name)
