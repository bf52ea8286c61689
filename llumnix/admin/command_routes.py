"""The commands of the admin API: each calls the cluster once and leaves one audit event."""

from fastapi import APIRouter

from llumnix.admin.answers import documented
from llumnix.admin.audit import Action, audited
from llumnix.admin.routes import (
    NO_BODY,
    NO_QUERY,
    TOKEN_NEEDED,
    Actor,
    Around,
    TargetId,
    find_instance,
    find_node,
)
from llumnix.admin.schema import (
    Accepted,
    AddInstances,
    Cluster,
    DrainOptions,
    Instance,
    InstancesAdded,
    MigrateOptions,
    MigrationsBegun,
    Node,
    Request,
    RequestPatch,
    ScaleOptions,
    TerminationOptions,
)

commands = APIRouter(
    prefix="/v1",
    tags=["commands"],
    dependencies=[TOKEN_NEEDED, NO_QUERY],
    responses=documented(400, 401, 403, 404, 409, 413, 500, 503),
)


@commands.post("/cluster/scale", status_code=202)
async def scale_cluster(around: Around, actor: Actor, body: ScaleOptions) -> Cluster:
    """Have this many instances: start new ones, or drain and remove those with the fewest requests."""
    action = Action("scale", actor, "cluster", body.model_dump())
    await audited(around.journal, action, around.control.scale(body.count, actor))
    return around.control.cluster()


@commands.post("/instances", status_code=202)
async def add_instances(around: Around, actor: Actor, body: AddInstances) -> InstancesAdded:
    """Start further instances."""
    action = Action("add_instances", actor, "cluster", body.model_dump())
    ids = await audited(around.journal, action, around.control.add_instances(body.count, actor))
    return InstancesAdded(ids=tuple(ids))


@commands.delete("/instances/{instance_id}", status_code=202, dependencies=[NO_BODY])
async def remove_instance(around: Around, actor: Actor, instance_id: TargetId) -> Accepted:
    """Drain an instance, then remove it."""
    action = Action("remove_instance", actor, f"instance/{instance_id}")
    await audited(around.journal, action, around.control.remove_instance(instance_id, actor))
    return Accepted(id=instance_id)


@commands.post("/instances/{instance_id}/cordon", dependencies=[NO_BODY])
async def cordon_instance(around: Around, actor: Actor, instance_id: TargetId) -> Instance:
    """Send an instance no new requests."""
    action = Action("cordon", actor, f"instance/{instance_id}")
    await audited(around.journal, action, around.control.cordon("instance", instance_id, actor))
    return find_instance(around.control, instance_id)


@commands.post("/instances/{instance_id}/uncordon", dependencies=[NO_BODY])
async def uncordon_instance(around: Around, actor: Actor, instance_id: TargetId) -> Instance:
    """Send an instance requests again; ends a drain too."""
    action = Action("uncordon", actor, f"instance/{instance_id}")
    await audited(around.journal, action, around.control.uncordon("instance", instance_id, actor))
    return find_instance(around.control, instance_id)


@commands.post("/instances/{instance_id}/drain", status_code=202)
async def drain_instance(
    around: Around, actor: Actor, instance_id: TargetId, body: DrainOptions | None = None
) -> Instance:
    """Empty an instance; state `drained` and `safe_to_remove` are the signal."""
    options = body or DrainOptions()
    action = Action("drain", actor, f"instance/{instance_id}", options.model_dump())
    drain = around.control.drain("instance", instance_id, options, actor)
    await audited(around.journal, action, drain)
    return find_instance(around.control, instance_id)


@commands.post("/instances/{instance_id}/restart", status_code=202)
async def restart_instance(
    around: Around, actor: Actor, instance_id: TargetId, body: DrainOptions | None = None
) -> Instance:
    """Drain an instance, then replace its process; a larger `incarnation` that runs is the signal."""
    options = body or DrainOptions()
    action = Action("restart", actor, f"instance/{instance_id}", options.model_dump())
    await audited(around.journal, action, around.control.restart(instance_id, options, actor))
    return find_instance(around.control, instance_id)


@commands.post("/instances/{instance_id}/terminate", status_code=202)
async def terminate_instance(
    around: Around, actor: Actor, instance_id: TargetId, body: TerminationOptions
) -> Instance:
    """Take a termination notice (spot machines): move everything off the instance in time, and remove it."""
    action = Action("terminate", actor, f"instance/{instance_id}", body.model_dump())
    notice = around.control.terminate("instance", instance_id, body.deadline_s, actor)
    await audited(around.journal, action, notice)
    return find_instance(around.control, instance_id)


@commands.post("/nodes/{node_id}/cordon", dependencies=[NO_BODY])
async def cordon_node(around: Around, actor: Actor, node_id: TargetId) -> Node:
    """Send no new requests to any instance of a node, and place no further instance there."""
    action = Action("cordon", actor, f"node/{node_id}")
    await audited(around.journal, action, around.control.cordon("node", node_id, actor))
    return find_node(around.control, node_id)


@commands.post("/nodes/{node_id}/uncordon", dependencies=[NO_BODY])
async def uncordon_node(around: Around, actor: Actor, node_id: TargetId) -> Node:
    """Place instances on a node again, and send those there requests; ends a drain too."""
    action = Action("uncordon", actor, f"node/{node_id}")
    await audited(around.journal, action, around.control.uncordon("node", node_id, actor))
    return find_node(around.control, node_id)


@commands.post("/nodes/{node_id}/drain", status_code=202)
async def drain_node(
    around: Around, actor: Actor, node_id: TargetId, body: DrainOptions | None = None
) -> Node:
    """Cordon a node and empty its instances; `safe_to_remove` is the signal."""
    options = body or DrainOptions()
    action = Action("drain", actor, f"node/{node_id}", options.model_dump())
    await audited(around.journal, action, around.control.drain("node", node_id, options, actor))
    return find_node(around.control, node_id)


@commands.post("/nodes/{node_id}/terminate", status_code=202)
async def terminate_node(around: Around, actor: Actor, node_id: TargetId, body: TerminationOptions) -> Node:
    """Take a termination notice for every instance of a node."""
    action = Action("terminate", actor, f"node/{node_id}", body.model_dump())
    await audited(around.journal, action, around.control.terminate("node", node_id, body.deadline_s, actor))
    return find_node(around.control, node_id)


@commands.patch("/requests/{request_id}")
async def patch_request(around: Around, actor: Actor, request_id: TargetId, body: RequestPatch) -> Request:
    """Move a request to another priority class, at once."""
    action = Action("set_priority", actor, f"request/{request_id}", body.model_dump())
    change = around.control.set_priority(request_id, body.priority, actor)
    return await audited(around.journal, action, change)


@commands.delete("/requests/{request_id}", status_code=202, dependencies=[NO_BODY])
async def abort_request(around: Around, actor: Actor, request_id: TargetId) -> Accepted:
    """Abort a request with all its children; the client gets an error event."""
    action = Action("abort_request", actor, f"request/{request_id}")
    await audited(around.journal, action, around.control.abort_request(request_id, actor))
    return Accepted(id=request_id)


@commands.post("/requests/{request_id}/migrate", status_code=202)
async def migrate_request(
    around: Around, actor: Actor, request_id: TargetId, body: MigrateOptions | None = None
) -> MigrationsBegun:
    """Move a request live, all its children one by one; the id is the (first) migration's.

    409 tells why none of it can be moved.
    """
    options = body or MigrateOptions()
    action = Action("migrate", actor, f"request/{request_id}", options.model_dump())
    migrate = around.control.migrate(request_id, options.to, actor)
    return await audited(around.journal, action, migrate)
