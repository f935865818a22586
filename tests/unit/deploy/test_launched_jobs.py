"""The files of jobs against what their clusters publish of these kinds, and what is refused before it is queued.

``kubeflow_trainer_api`` holds Kubeflow's and Kubernetes' own models of TrainJob, TrainingRuntime and pods: what they
do not know is lost on the way through them. Of PyTorchJob and Volcano's Job, the fields that we write are below, as
their custom resource definitions have them; with EHM_CRDS, a folder of these definitions, the files are held against
them as well.
"""

import os
import subprocess
from pathlib import Path

import jsonschema_rs
import pytest
import yaml
from kubeflow_trainer_api import models

import ehm
from ehm.cli import main
from ehm.deploy.launch.command import launch
from ehm.errors import BackendError, ConfigError

TRAIN = ("train", "--config", "pretrain/vit_base_evolved", "--set", "data.source=/data/$(it's)")
ON_VOLUME = (*TRAIN, "--out", "/runs/Base_1")
PODS = {"image": "registry.example/ehm:npu", "volume": ["photos:/data:ro", "runs:/runs", "/scratch:/cache"]}
KINDS = ("kubeflow", "pytorchjob", "volcano")
CRDS = os.environ.get("EHM_CRDS")


def field_of(kind):
    return {"type": kind}


def fields_of(required=(), **properties):
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def list_of(items):
    return {"type": "array", "items": items}


TEXT, NUMBER, ANYTHING = field_of("string"), field_of("integer"), field_of("object")
REPLICAS = fields_of(
    replicas=NUMBER, restartPolicy={"enum": ["Always", "OnFailure", "Never", "ExitCode"]}, template=ANYTHING
)
PYTORCHJOB = fields_of(
    required=["pytorchReplicaSpecs"],
    nprocPerNode=TEXT,
    elasticPolicy=fields_of(rdzvBackend=TEXT, minReplicas=NUMBER, maxReplicas=NUMBER, maxRestarts=NUMBER),
    runPolicy=fields_of(
        cleanPodPolicy=TEXT, backoffLimit=NUMBER, schedulingPolicy=fields_of(queue=TEXT, minAvailable=NUMBER)
    ),
    pytorchReplicaSpecs={"type": "object", "additionalProperties": REPLICAS},
)
POLICIES = list_of(
    fields_of(
        event={"enum": ["*", "PodFailed", "PodEvicted", "TaskCompleted", "TaskFailed"]},
        action={"enum": ["AbortJob", "RestartJob", "RestartTask", "TerminateJob", "CompleteJob"]},
    )
)
VOLCANO = fields_of(
    schedulerName=TEXT,
    queue=TEXT,
    minAvailable=NUMBER,
    maxRetry=NUMBER,
    plugins={"type": "object", "additionalProperties": list_of(TEXT)},
    policies=POLICIES,
    tasks=list_of(fields_of(name=TEXT, replicas=NUMBER, policies=POLICIES, template=ANYTHING)),
)


def write(tmp_path, kind, device="npu", arguments=ON_VOLUME, **flags):
    """Write the job of four nodes with eight devices each, and return its documents."""
    file = launch(arguments, kind=kind, device=device, nodes=4, per_node=8, out=tmp_path, **flags)
    return list(yaml.safe_load_all(file.read_text(encoding="utf-8")))


def assert_known(model, values):
    """Check that a model of Kubernetes or Kubeflow takes values and knows every field of them."""
    assert model.from_dict(values).to_dict() == values


def pod_of(kind, documents):
    """Return the template of the pods in a job."""
    spec = documents[0]["spec"]
    if kind == "kubeflow":
        return spec["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    if kind == "pytorchjob":
        return spec["pytorchReplicaSpecs"]["Worker"]["template"]
    return spec["tasks"][0]["template"]


def close(schema):
    """Return the schema of a custom resource definition without room for fields that it does not name."""
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema["additionalProperties"] = False
    for part in (*schema.get("properties", {}).values(), schema.get("items"), schema.get("additionalProperties")):
        if isinstance(part, dict):
            close(part)
    return schema


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("device", ["cuda", "npu"])
def test_a_job_has_the_fields_that_its_kind_knows(kind, device, tmp_path):
    flags = {"queue": "train", "namespace": "vision", "node_selector": ["host-arch=huawei-arm"], "cpus": 96}
    documents = write(tmp_path, kind, device, env=["A=$(B)"], memory="200Gi", **flags, **PODS)
    if kind == "kubeflow":
        runtime, job = documents
        assert_known(models.TrainerV1alpha1TrainingRuntime, runtime)
        assert_known(models.TrainerV1alpha1TrainJob, job)
        assert job["spec"]["runtimeRef"] == {"kind": "TrainingRuntime", "name": runtime["metadata"]["name"]}
    else:
        jsonschema_rs.validate(PYTORCHJOB if kind == "pytorchjob" else VOLCANO, documents[0]["spec"])
    assert {document["metadata"]["name"] for document in documents} == {"base-1"}
    assert_known(models.IoK8sApiCoreV1PodTemplateSpec, pod_of(kind, documents))
    pod = pod_of(kind, documents)["spec"]
    (container,) = pod["containers"]
    resources = documents[1]["spec"]["trainer"]["resourcesPerNode"] if kind == "kubeflow" else container["resources"]
    resource = {"cuda": "nvidia.com/gpu", "npu": "huawei.com/Ascend910"}[device]
    assert resources["limits"] == resources["requests"] == {"cpu": "96", "memory": "200Gi", resource: "8"}
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert set(mounted) == {"/data", "/runs", "/cache", "/dev/shm"} | ({"/etc/hccn.conf"} if device == "npu" else set())
    sources = {volume["name"]: volume for volume in pod["volumes"]}
    assert sources[mounted["/runs"]]["persistentVolumeClaim"] == {"claimName": "runs"}
    assert sources[mounted["/cache"]]["hostPath"] == {"path": "/scratch"}
    assert sources[mounted["/dev/shm"]]["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Gi"}
    assert {"name": "A", "value": "$$(B)"} in container["env"]  # Kubernetes would put in its own B


@pytest.mark.skipif(not CRDS, reason="EHM_CRDS names no folder of custom resource definitions")
@pytest.mark.parametrize("kind", KINDS)
def test_a_job_fits_the_custom_resource_definition(kind, tmp_path):
    schemas = {}
    for path in Path(CRDS).glob("*.yaml"):
        for definition in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            for version in definition["spec"]["versions"]:
                key = (definition["spec"]["names"]["kind"], f"{definition['spec']['group']}/{version['name']}")
                schemas[key] = version["schema"]["openAPIV3Schema"]
    for document in write(tmp_path, kind, "cuda", queue="train", **PODS):
        key = (document["kind"], document["apiVersion"])
        if key not in schemas:
            pytest.skip(f"EHM_CRDS has no definition of {key}")
        jsonschema_rs.validate(close(schemas[key]["properties"]["spec"]), document["spec"])


@pytest.mark.parametrize(
    ("kind", "device", "words"),
    [
        (
            "kubeflow",
            "npu",
            ["--rdzv-endpoint=$(PET_MASTER_ADDR):$(PET_MASTER_PORT)", "--max-restarts=3", "--nnodes=4"],
        ),
        ("kubeflow", "mindspore", ["--node_rank=$(PET_NODE_RANK)", "--worker_num=32", "--local_worker_num=8"]),
        ("volcano", "npu", ["--rdzv-endpoint=base-1-node-0.base-1:29500", "--nproc-per-node=8"]),
        ("volcano", "mindspore", ["--node_rank=$(VC_TASK_INDEX)", "--master_addr=base-1-node-0.base-1"]),
        ("pytorchjob", "cuda", ["--local-addr=$(POD_IP)"]),
    ],
)
def test_the_processes_of_a_pod_find_the_others(kind, device, words, tmp_path):
    documents = write(tmp_path, kind, device, **PODS)
    if kind == "kubeflow":
        arguments = documents[1]["spec"]["trainer"]["args"]
    else:
        arguments = pod_of(kind, documents)["spec"]["containers"][0]["args"]
    assert set(words) <= set(arguments)
    # the rest is the command of ehm, whose $( is no variable of Kubernetes
    command = arguments[arguments.index("ehm.cli") + 1 :]
    written = [word.replace("$(", "$$(") for word in ON_VOLUME]
    assert command == [*written, "--device", device, "--resume"]


def test_a_pytorchjob_may_start_with_fewer_nodes(tmp_path):
    (job,) = write(tmp_path, "pytorchjob", "cuda", min_nodes=2, restarts=5, **PODS)
    policy = {"rdzvBackend": "c10d", "minReplicas": 2, "maxReplicas": 4, "maxRestarts": 5}
    assert job["spec"]["elasticPolicy"] == policy
    assert job["spec"]["nprocPerNode"] == "8"


def batch_options(text):
    """Return the options of a batch file."""
    lines = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")]
    return dict(line.partition("=")[::2] for line in lines)


def test_a_batch_file_asks_for_its_nodes_and_takes_options_of_the_site(tmp_path):
    file = launch(
        ON_VOLUME,
        kind="slurm",
        device="npu",
        nodes=4,
        min_nodes=2,
        per_node=8,
        queue="train",
        time="24:00:00",
        interface="eth0",
        sbatch=["gres=ascend910b:8", "account=vision"],
        setup=[". /shared/venv/bin/activate"],
        image="ehm.sqsh",
        volume=["/data:/data:ro", "/runs:/runs"],
        out=tmp_path,
    )
    text = file.read_text()
    subprocess.run(["bash", "-n", file], check=True)
    options = batch_options(text)
    assert options["nodes"] == "2-4"
    assert options["ntasks-per-node"] == "1"
    assert {"requeue", "exclusive"} <= set(options)
    assert options["open-mode"] == "append"
    assert options["signal"] == "B:USR1@120"
    assert (options["partition"], options["time"], options["account"]) == ("train", "24:00:00", "vision")
    assert options["gres"] == "ascend910b:8"
    assert "export HCCL_SOCKET_IFNAME=eth0" in text
    assert ". /shared/venv/bin/activate" in text
    assert "--container-image=ehm.sqsh --container-mounts=/data:/data:ro,/runs:/runs" in text
    assert "'data.source=/data/$(it'\"'\"'s)'" in text  # as the shell hands it on unchanged


def test_a_batch_file_of_mindspore_starts_msrun(tmp_path):
    file = launch(ON_VOLUME, kind="slurm", device="mindspore", nodes=2, per_node=8, cpus=64, out=tmp_path)
    text = file.read_text()
    assert '"--worker_num=$(($SLURM_JOB_NUM_NODES * 8))"' in text
    assert '"--node_rank=$SLURM_NODEID"' in text
    assert "exclusive" not in batch_options(text)
    assert "srun --kill-on-bad-exit=1 --cpus-per-task=64 bash" in text


@pytest.mark.parametrize(
    ("arguments", "flags", "sentence"),
    [
        (["probe", "--config", "a"], {}, "-- probe: a cluster may stop a job at any moment"),
        (["train", "--out", "/runs/a"], {}, "add --config, a file or a name"),
        (TRAIN, {}, "add --out, a folder that all machines share"),
        ([*ON_VOLUME, "--device", "npu"], {}, "--device npu: belongs before the --"),
        (ON_VOLUME, {"device": "auto"}, "--device auto: name the devices"),
        (ON_VOLUME, {"nodes": 0}, "--nodes 0: expected at least 1"),
        (ON_VOLUME, {"nodes": 2, "min_nodes": 3}, "--min-nodes 3: expected 1 to 2"),
        (ON_VOLUME, {"nodes": 2, "min_nodes": 1, "kind": "volcano"}, "--min-nodes: a job of kind volcano"),
        (ON_VOLUME, {"nodes": 3}, "3 processes (3 nodes of 1) cannot share it evenly"),
        ([*ON_VOLUME, "--set", "mask.ratio=2"], {}, "mask.ratio"),
        (ON_VOLUME, {"volume": ["/data:/data"]}, "--volume: needs --image"),
        (ON_VOLUME, {"volume": ["runs:/data"], "image": "a"}, "Slurm mounts folders of its machines"),
        (ON_VOLUME, {"volume": ["/data"], "image": "a"}, "--volume /data: expected SOURCE:/PATH"),
        (ON_VOLUME, {"namespace": "a"}, "are for Kubernetes"),
        (ON_VOLUME, {"env": ["A"]}, "--env A: expected KEY=VALUE"),
        (ON_VOLUME, {"kind": "kubeflow"}, "--image: name an image"),
        (ON_VOLUME, {"kind": "kubeflow", "image": "a"}, "--out /runs/Base_1: is on no volume"),
        (ON_VOLUME, {"kind": "volcano", "image": "a", "volume": ["runs:/runs:ro"]}, "is on no volume"),
        (ON_VOLUME, {"kind": "volcano", **PODS, "time": "1:00:00"}, "are for Slurm"),
        (ON_VOLUME, {"kind": "pytorchjob", "device": "mindspore", **PODS}, "runs torch alone"),
        (["train", "--config", "my.yaml", "--out", "/runs/a"], {"kind": "volcano", **PODS}, "neither in the image"),
    ],
)
def test_what_would_fail_on_the_cluster_is_one_sentence_here(arguments, flags, sentence, tmp_path):
    with pytest.raises(ConfigError) as caught:
        ehm.launch(arguments, **{"kind": "slurm", "device": "cuda", "out": tmp_path / "jobs", **flags})
    assert sentence in str(caught.value)
    assert not (tmp_path / "jobs").exists()


def test_a_job_is_submitted_by_the_clusters_own_command(tmp_path, monkeypatch, capsys):
    sbatch = tmp_path / "sbatch"
    sbatch.write_text('#!/bin/sh\necho "Submitted batch job 7: $(basename "$1")"\n')
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    flags = ["launch", "--kind", "slurm", "--device", "cpu", "--out", str(tmp_path / "jobs"), "--submit"]
    assert main([*flags, "--", *ON_VOLUME]) == 0
    assert "Submitted batch job 7: base-1.sbatch" in capsys.readouterr().out
    sbatch.write_text("#!/bin/sh\necho 'sbatch: error: invalid partition' >&2\nexit 1\n")
    assert main([*flags, "--", *ON_VOLUME]) == 1
    assert "sbatch: error: invalid partition" in capsys.readouterr().err
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendError, match="kubectl is not on this machine"):
        launch(ON_VOLUME, kind="volcano", device="cpu", out=tmp_path / "jobs", submit=True, **PODS)
