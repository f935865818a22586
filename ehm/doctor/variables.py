"""The environment variables that change what a device does; ``ehm doctor`` shows those that are set.

Explained in docs/backends.md. Their names and meanings are those of torch 2.14, torch-npu (its list of environment
variables, Ascend/pytorch, 2026-08-21), MindSpore 2.10 and CANN.
"""

from __future__ import annotations

__all__ = ["VARIABLES"]

VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "ASCEND_RT_VISIBLE_DEVICES",
    "ASCEND_HOME_PATH",
    "ASCEND_TOOLKIT_HOME",
    "ASCEND_PROCESS_LOG_PATH",
    "ACL_OP_COMPILER_CACHE_DIR",
    "TORCH_DEVICE_BACKEND_AUTOLOAD",
    "TORCH_NPU_FALLBACK_CPU_DISABLE",
    "TORCH_NPU_USE_COMPATIBLE_IMPL",
    "TASK_QUEUE_ENABLE",
    "CPU_AFFINITY_CONF",
    "CUDA_LAUNCH_BLOCKING",
    "ASCEND_LAUNCH_BLOCKING",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_NPU_ALLOC_CONF",
    "CUBLAS_WORKSPACE_CONFIG",
    "HCCL_DETERMINISTIC",
    "HCCL_BUFFSIZE",
    "HCCL_CONNECT_TIMEOUT",
    "HCCL_EXEC_TIMEOUT",
    "HCCL_EVENT_TIMEOUT",
    "HCCL_SOCKET_IFNAME",
    "HCCL_IF_IP",
    "HCCL_IF_BASE_PORT",
    "GLOO_SOCKET_IFNAME",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "GOMP_SPINCOUNT",
    "KMP_BLOCKTIME",
    "KMP_LIBRARY",
    "WORLD_SIZE",
    "RANK",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "GLOG_v",
    "MS_COMPILER_CACHE_ENABLE",
    "MS_ROLE",
    "MS_WORKER_NUM",
    "MS_SCHED_HOST",
    "MS_SCHED_PORT",
    "RANK_ID",
    "DEVICE_ID",
)
