"""KServe's published definition of an InferenceService, as far as ehm export writes its fields."""

import jsonschema_rs
import yaml

TEXT = {"type": "string"}
AMOUNTS = {
    "type": "object",
    "additionalProperties": {
        "anyOf": [{"type": "integer"}, TEXT],
        "pattern": r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|"
        r"(\.[0-9]+))))?$",
    },
}
RESOURCES = {"requests": AMOUNTS, "limits": AMOUNTS}
PROBE = {"httpGet": {"path": TEXT, "port": {"anyOf": [{"type": "integer"}, TEXT]}}}
ENVIRONMENT = {"type": "array", "items": ({"name": TEXT, "value": TEXT}, ["name"])}
MODEL = {
    "modelFormat": ({"name": TEXT, "version": TEXT}, ["name"]),
    "protocolVersion": TEXT,
    "runtime": TEXT,
    "storageUri": TEXT,
    "resources": RESOURCES,
    "readinessProbe": PROBE,
}
CONTAINER = {
    "name": TEXT,
    "image": TEXT,
    "args": {"type": "array", "items": TEXT},
    "env": ENVIRONMENT,
    "resources": RESOURCES,
    "readinessProbe": PROBE,
    "ports": {"type": "array", "items": ({"containerPort": {"type": "integer"}, "protocol": TEXT}, ["containerPort"])},
}
SERVICE = {
    "apiVersion": {"const": "serving.kserve.io/v1beta1"},
    "kind": {"const": "InferenceService"},
    "metadata": {"name": {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 53}},
    "spec": (
        {
            "predictor": {
                "minReplicas": {"type": "integer"},
                "model": MODEL,
                "containers": {"type": "array", "items": (CONTAINER, ["name"])},
            }
        },
        ["predictor"],
    ),
}
"""Fields, or (fields, required ones), of serving.kserve.io/v1beta1 InferenceService: KServe at aaac4e294
(after v0.20.0), config/crd/full/serving.kserve.io_inferenceservices.yaml, Apache-2.0, which leaves ``metadata`` to
Kubernetes; the pattern of names is that of pkg/apis/serving/v1beta1/inference_service_validation.go."""


def make_schema(fields):
    """Return the JSON Schema of fields as above.

    The definition prunes fields that it does not know; here they are errors.
    """
    if isinstance(fields, tuple):
        return {**make_schema(fields[0]), "required": fields[1]}
    if fields.get("type") == "array":
        return {**fields, "items": make_schema(fields["items"])}
    if "anyOf" in fields or "const" in fields or isinstance(fields.get("type"), str):
        return fields
    properties = {name: make_schema(value) for name, value in fields.items()}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def read_service(text):
    """Read an InferenceService from YAML and validate it."""
    found = yaml.safe_load(text)
    jsonschema_rs.validate(make_schema(SERVICE), found)
    return found
