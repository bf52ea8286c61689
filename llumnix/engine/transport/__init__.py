"""Moving KV blocks between instances: one interface, four transports, imported by name when needed."""

from llumnix.engine.transport.base import (
    Channel,
    Endpoint,
    EndpointUsage,
    OnDone,
    Outcome,
    OutcomeKind,
    Transfer,
    TransportError,
    TransportSettings,
)
from llumnix.engine.transport.blocks import KVBlocks
from llumnix.engine.transport.choice import (
    Choice,
    SideFacts,
    choose,
    default_settings,
    local_facts,
    open_endpoint,
)

__all__ = [
    "Channel",
    "Choice",
    "Endpoint",
    "EndpointUsage",
    "KVBlocks",
    "OnDone",
    "Outcome",
    "OutcomeKind",
    "SideFacts",
    "Transfer",
    "TransportError",
    "TransportSettings",
    "choose",
    "default_settings",
    "local_facts",
    "open_endpoint",
]
