"""The pods of a job in Kubernetes: one for each machine, with its container, devices, volumes and shared memory."""

from __future__ import annotations

from typing import Any

from ehm.deploy.launch.plan import JobPlan
from ehm.deploy.launch.processes import NodePlace, list_starter_words
from ehm.deploy.launch.volumes import Volume

__all__ = ["describe_container", "describe_pod", "list_labels"]

_CONTAINERS = {"kubeflow": "node", "pytorchjob": "pytorch", "volcano": "node"}
"""The name that each kind expects its container to have."""
_HCCN = Volume("/etc/hccn.conf", "/etc/hccn.conf", is_read_only=True)
"""The addresses of the NPUs' own network cards, which HCCL reads between machines."""
_POD_IP = "$(POD_IP)"


def describe_pod(plan: JobPlan, container: dict[str, Any]) -> dict[str, Any]:
    """Return the specification of a pod with ``container`` in it."""
    # all but PyTorchJob start the whole job again, and not the pod that failed
    pod: dict[str, Any] = {"restartPolicy": "OnFailure" if plan.kind == "pytorchjob" else "Never"}
    if plan.node_selector:
        pod["nodeSelector"] = dict(plan.node_selector)
    pod["containers"] = [container]
    pod["volumes"] = [
        *(_describe_volume(number, volume) for number, volume in enumerate(_list_volumes(plan))),
        # data workers hand their batches over in it, and a container has 64 MB by default
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": plan.shm}},
    ]
    return pod


def describe_container(plan: JobPlan) -> dict[str, Any]:
    """Return the container that runs the command of a machine."""
    command, *arguments = _list_words(plan)
    return {
        "name": _CONTAINERS[plan.kind],
        "image": plan.image,
        # instead of the entry point of the image, which is ehm itself
        "command": [command],
        "args": arguments,
        "env": _list_variables(plan),
        "resources": _describe_resources(plan),
        "volumeMounts": _list_mounts(plan),
    }


def _list_words(plan: JobPlan) -> list[str]:
    """Return the command of a machine in the notation of Kubernetes, which replaces ``$(NAME)``."""
    # what users write is theirs: $$( is a plain $(
    arguments = [word.replace("$(", "$$(") for word in plan.arguments]
    if plan.kind == "pytorchjob":
        # the operator sets torchrun's other flags by variables, PET_NNODES and the like
        return ["python", "-m", "torch.distributed.run", f"--local-addr={_POD_IP}", "-m", "ehm.cli", *arguments]
    return [*list_starter_words(plan, _find_place(plan)), *arguments]


def _find_place(plan: JobPlan) -> NodePlace:
    """Return the place of a pod in the variables of Kubeflow Trainer, or of Volcano's plug-ins env and svc."""
    nodes = str(plan.nodes)
    if plan.kind == "kubeflow":
        return NodePlace(
            nodes, "$(PET_NODE_RANK)", "$(PET_MASTER_ADDR)", "$(PET_MASTER_PORT)", own_address=_POD_IP, job=plan.name
        )
    return NodePlace(nodes, "$(VC_TASK_INDEX)", f"{plan.name}-node-0.{plan.name}", "29500", _POD_IP, plan.name)


def _list_variables(plan: JobPlan) -> list[dict[str, Any]]:
    """Return the environment of a container."""
    # the pod's address: its name alone is not known to the other machines
    variables: list[dict[str, Any]] = [
        {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
    ]
    if plan.kind == "volcano" and plan.device.is_ascend:
        # the scheduler's plug-in for Ascend chooses NPUs, and Ascend's container runtime mounts those named here
        annotation = f"metadata.annotations['{plan.device.resource}']"
        source = {"fieldRef": {"fieldPath": annotation}}
        variables.append({"name": "ASCEND_VISIBLE_DEVICES", "valueFrom": source})
    for name, value in plan.environment.items():
        variables.append({"name": name, "value": value.replace("$(", "$$(")})
    return variables


def _describe_resources(plan: JobPlan) -> dict[str, Any]:
    """Return the devices, processors and memory of a machine, requested and as a limit."""
    amounts: dict[str, Any] = {}
    if plan.cpus is not None:
        amounts["cpu"] = str(plan.cpus)
    if plan.memory is not None:
        amounts["memory"] = plan.memory
    if plan.device.resource:
        amounts[plan.device.resource] = str(plan.per_node)
    # copies: YAML would write one mapping as an alias of the other
    return {"requests": dict(amounts), "limits": dict(amounts)}


def _list_mounts(plan: JobPlan) -> list[dict[str, Any]]:
    """Return where a container sees its volumes."""
    mounts: list[dict[str, Any]] = []
    for number, volume in enumerate(_list_volumes(plan)):
        mount: dict[str, Any] = {"name": f"volume-{number}", "mountPath": volume.path}
        if volume.is_read_only:
            mount["readOnly"] = True
        mounts.append(mount)
    return [*mounts, {"name": "shm", "mountPath": "/dev/shm"}]


def list_labels(plan: JobPlan) -> dict[str, str]:
    """Return the labels of a pod: by Ascend's one its scheduler knows jobs for the 910B."""
    labels = {"app.kubernetes.io/name": "ehm", "app.kubernetes.io/instance": plan.name}
    if plan.device.is_ascend:
        labels["ring-controller.atlas"] = "ascend-910b"
    return labels


def _list_volumes(plan: JobPlan) -> list[Volume]:
    if plan.device.is_ascend and plan.nodes > 1:
        return [*plan.volumes, _HCCN]
    return list(plan.volumes)


def _describe_volume(number: int, volume: Volume) -> dict[str, Any]:
    name = f"volume-{number}"
    if volume.is_host_folder:
        return {"name": name, "hostPath": {"path": volume.source}}
    return {"name": name, "persistentVolumeClaim": {"claimName": volume.source}}
