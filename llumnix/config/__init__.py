"""The configuration of a cluster: one TOML file, read once, frozen.

Sections and their keys are documented where they are declared (cluster, scheduling, serving, root) and in
configs/reference.toml, which is generated from them.
"""

from llumnix.config.changes import bound_to_processes, changed, digests, reloaded
from llumnix.config.cluster import ClusterConfig, InstancesConfig, LoggingConfig, ModelConfig, RayConfig
from llumnix.config.effective import effective, to_toml
from llumnix.config.load import load_config, parse_config
from llumnix.config.preflight import (
    check_files,
    check_model,
    check_node_ip,
    check_port,
    check_ports,
    hold_port,
)
from llumnix.config.root import Config
from llumnix.config.scheduling import (
    AutoscaleConfig,
    LlumnixPlusPolicy,
    LlumnixPolicy,
    MigrationConfig,
    PriorityClass,
    SchedulerConfig,
)
from llumnix.config.serving import AdminConfig, AdminToken, ApiKey, HttpConfig

__all__ = [
    "AdminConfig",
    "AdminToken",
    "ApiKey",
    "AutoscaleConfig",
    "ClusterConfig",
    "Config",
    "HttpConfig",
    "InstancesConfig",
    "LlumnixPlusPolicy",
    "LlumnixPolicy",
    "LoggingConfig",
    "MigrationConfig",
    "ModelConfig",
    "PriorityClass",
    "RayConfig",
    "SchedulerConfig",
    "bound_to_processes",
    "changed",
    "check_files",
    "check_model",
    "check_node_ip",
    "check_port",
    "check_ports",
    "digests",
    "effective",
    "hold_port",
    "load_config",
    "parse_config",
    "reloaded",
    "to_toml",
]
