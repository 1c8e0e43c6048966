"""Manifests that render, and that KubeRay accepts.

With RAYMILL_KUBERAY_CRDS=<folder of KubeRay's CRD files> they are also validated against the schemas of the
CRDs; see docs/kubernetes.md.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from ray.serve.schema import ServeDeploySchema

from raymill.config import load
from raymill.config.serve_checks import KEYS_VARIABLE
from raymill.serve.ray_proxy import CALLBACK, CALLBACK_VARIABLE

K8S = Path(__file__).resolve().parents[2] / "k8s"
CRDS = os.environ.get("RAYMILL_KUBERAY_CRDS")


def render(folder: Path) -> list[dict[str, Any]]:
    """Render as `kubectl kustomize` does, for the features used here: resources, namespace, images and JSON
    patches."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    used = {"apiVersion", "kind", "namespace", "resources", "images", "patches"}
    assert set(kustomization) <= used, "teach this renderer before using more of kustomize"
    objects: list[dict[str, Any]] = []
    for name in kustomization["resources"]:
        path = folder / name
        if path.is_dir():
            objects += render(path.resolve())
        else:
            objects += [document for document in yaml.safe_load_all(path.read_text()) if document]
    for rendered in objects:
        if kustomization.get("namespace") and rendered["kind"] != "Namespace":
            rendered["metadata"]["namespace"] = kustomization["namespace"]
    tags = {image["name"]: image["newTag"] for image in kustomization.get("images", [])}
    for container in containers(objects):
        if container["image"] in tags:
            container["image"] += f":{tags[container['image']]}"
    for patch in kustomization.get("patches", []):
        targets = [
            found
            for found in objects
            if found["kind"] == patch["target"]["kind"]
            and found["metadata"]["name"] == patch["target"]["name"]
        ]
        assert targets, patch["target"]
        for operation in yaml.safe_load(patch["patch"]):
            for target in targets:
                apply(target, operation)
    return objects


def apply(target: Any, operation: dict[str, Any]) -> None:
    """Apply one JSON patch operation, "add" or "replace" (RFC 6902)."""
    *parents, last = [
        part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]
    ]
    for part in parents:
        target = target[int(part)] if isinstance(target, list) else target[part]
    assert operation["op"] == "add" or last in target
    target[last] = operation["value"]


def containers(objects: Any) -> list[dict[str, Any]]:
    """Return every container anywhere in the objects."""
    found = []
    if isinstance(objects, dict):
        for key, value in objects.items():
            if key in ("containers", "initContainers") and isinstance(value, list):
                found += value
            else:
                found += containers(value)
    elif isinstance(objects, list):
        for value in objects:
            found += containers(value)
    return found


def cluster_specs(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for rendered in objects:
        spec = rendered["spec"] if rendered["kind"].startswith("Ray") else {}
        if spec:
            found.append(spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec)
    return found


@pytest.fixture(params=["base", "overlays/gpu8", "serve"])
def objects(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return render(K8S / request.param)


def test_every_object_is_named_once(objects: list[dict[str, Any]]) -> None:
    names = [(found["kind"], found["metadata"]["name"]) for found in objects]
    assert len(names) == len(set(names))
    training = {
        ("RayJob", "raymill-prepare"),
        ("RayJob", "raymill-pretrain"),
        ("RayCluster", "raymill"),
    }
    assert {name for name in names if name[0].startswith("Ray")} in (
        training,
        {("RayService", "raymill-serve")},
    )


def test_ray_is_guarded_and_work_outlives_the_cluster(objects: list[dict[str, Any]]) -> None:
    for spec in cluster_specs(objects):
        assert spec["authOptions"] == {"mode": "token"}
        assert spec["rayVersion"] == "2.60.0"
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            pod = group["template"]["spec"]
            assert pod["securityContext"]["runAsNonRoot"]
            claims = [v.get("persistentVolumeClaim", {}).get("claimName") for v in pod["volumes"]]
            assert "raymill-storage" in claims
            (container,) = pod["containers"]
            assert container["image"] == "raymill:0.1.0"
            assert not container["securityContext"]["allowPrivilegeEscalation"]
            assert container["resources"]["limits"]["memory"]
    assert any(found["kind"] == "NetworkPolicy" for found in objects)


def test_a_retried_job_resumes(objects: list[dict[str, Any]]) -> None:
    for found in objects:
        if found["kind"] == "RayJob":
            assert found["spec"]["backoffLimit"] > 0
            assert found["spec"]["shutdownAfterJobFinishes"]
            _, script, *overrides = found["spec"]["entrypoint"].split()
            loaded = load(Path(script).stem, overrides)
            assert loaded.storage.root == "/storage"
            if script.endswith("pretrain.py"):
                assert loaded.run.name == "base"
                groups = found["spec"]["rayClusterSpec"]["workerGroupSpecs"]
                assert groups[0]["replicas"] == 2


def test_the_service_is_what_jobs_serve_would_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEYS_VARIABLE, "sk-one")
    service, policy, ingress = render(K8S / "serve")
    served = yaml.safe_load(service["spec"]["serveConfigV2"])
    (application,) = served["applications"]
    module, _, name = application["import_path"].partition(":")
    assert callable(getattr(import_module(module), name))
    job = load("serve", application["args"]["overrides"])
    assert job.storage.root == "/storage"
    assert served["http_options"]["port"] == job.port == 8000
    assert served["http_options"]["host"] == job.host
    assert served["http_options"]["request_timeout_s"] > job.serve.request_s
    assert ServeDeploySchema.model_validate(served)
    (cluster,) = cluster_specs([service])
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        environment = {one["name"]: one.get("value") for one in container["env"]}
        assert environment[CALLBACK_VARIABLE] == CALLBACK
        assert KEYS_VARIABLE in environment
        assert container["ports"] == [{"name": "serve", "containerPort": 8000}]
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["replicas"] >= job.serve.replicas
    grace_s = workers["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace_s > job.serve.request_s
    (rule,) = policy["spec"]["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": 8000}]
    annotations = ingress["metadata"]["annotations"]
    assert annotations["nginx.ingress.kubernetes.io/proxy-buffering"] == "off"


def test_the_systemd_unit_starts_what_exists() -> None:
    lines = (K8S / "raymill-serve.service").read_text().splitlines()
    settings = dict(line.split("=", 1) for line in lines if "=" in line and line[0] != "#")
    python, script, *overrides = settings["ExecStart"].split()
    assert python.endswith(".venv/bin/python")
    assert (K8S.parent / script).is_file()
    job = load("serve", overrides)
    assert int(settings["TimeoutStopSec"]) > job.serve.drain_s
    assert f"127.0.0.1:{job.port}" in (K8S / "nginx.conf").read_text()


@pytest.mark.skipif(CRDS is None, reason="RAYMILL_KUBERAY_CRDS names no folder of KubeRay's CRDs")
def test_kuberays_own_schema(objects: list[dict[str, Any]]) -> None:
    schemas = {}
    for path in Path(str(CRDS)).glob("*.yaml"):
        definition = yaml.safe_load(path.read_text())
        for version in definition["spec"]["versions"]:
            schemas[definition["spec"]["names"]["kind"], version["name"]] = closed(
                version["schema"]["openAPIV3Schema"]
            )
    checked = 0
    for found in objects:
        if found["kind"].startswith("Ray"):
            schema = schemas[found["kind"], found["apiVersion"].split("/")[1]]
            problems = [
                f"{'/'.join(map(str, error.path))}: {error.message[:200]}"
                for error in Draft202012Validator(schema).iter_errors(found)
            ]
            assert problems == []
            checked += 1
    assert checked in (1, 3)


def closed(schema: Any) -> Any:
    """Return the schema with unknown properties refused, as the API server would drop them."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: closed(value) for key, value in schema.items()}
    free = result.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in result
    if result.get("type") == "object" and isinstance(result.get("properties"), dict) and not free:
        result["additionalProperties"] = False
        result["properties"].setdefault("apiVersion", {})
        result["properties"].setdefault("kind", {})
    if result.get("type") == "object" and set(result) <= {"type", "description"}:
        result.pop("type")
    return result
