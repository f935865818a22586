"""The devices that a cluster can be asked for: what its schedulers call them, and the variables that they need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ehm.errors import ConfigError

__all__ = ["CLUSTER_DEVICES", "ClusterDevice", "find_device"]


@dataclass(frozen=True)
class ClusterDevice:
    """A device as clusters know it.

    ``resource`` is its name in Kubernetes and ``gres`` its name in Slurm; both are empty for processors.
    ``interface_variables`` name the network card to the libraries of collectives.
    """

    name: str
    resource: str = ""
    gres: str = ""
    starter: str = "torchrun"
    environment: Mapping[str, str] = field(default_factory=dict)
    interface_variables: tuple[str, ...] = ("GLOO_SOCKET_IFNAME",)

    @property
    def is_ascend(self) -> bool:
        """Return whether the device is an NPU of Ascend."""
        return self.resource == _ASCEND


_ASCEND = "huawei.com/Ascend910"
# nodes of a cluster start minutes apart, as each pulls its image; HCCL's own patience is two minutes
_HCCL = {"HCCL_CONNECT_TIMEOUT": "1200"}
_HCCL_INTERFACES = ("HCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")
CLUSTER_DEVICES = (
    ClusterDevice("cpu"),
    ClusterDevice(
        "cuda",
        resource="nvidia.com/gpu",
        gres="gpu",
        environment={"NCCL_DEBUG": "WARN"},
        interface_variables=("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"),
    ),
    ClusterDevice("npu", resource=_ASCEND, gres="npu", environment=_HCCL, interface_variables=_HCCL_INTERFACES),
    ClusterDevice(
        "mindspore",
        resource=_ASCEND,
        gres="npu",
        starter="msrun",
        environment=_HCCL,
        interface_variables=_HCCL_INTERFACES,
    ),
    ClusterDevice("mindspore:cpu", starter="msrun", interface_variables=()),
)
"""The devices that ``ehm launch`` asks a cluster for."""


def find_device(name: str) -> ClusterDevice:
    """Return the device of ``--device NAME``; raises ConfigError for one that no cluster is asked for."""
    wanted = "mindspore" if name == "mindspore:ascend" else name
    for device in CLUSTER_DEVICES:
        if device.name == wanted:
            return device
    known = ", ".join(device.name for device in CLUSTER_DEVICES)
    raise ConfigError(f"--device {name}: name the devices that the cluster has: {known}")
