"""Manifests that render, and that KubeRay accepts.

With RAYMILL_KUBERAY_CRDS=<folder of KubeRay's CRD files> they are also validated against the schemas of the
CRDs; see docs/kubernetes.md.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from raymill.config import load

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
    return [
        o["spec"].get("rayClusterSpec", o["spec"]) for o in objects if o["kind"].startswith("Ray")
    ]


@pytest.fixture(params=["base", "overlays/gpu8"])
def objects(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return render(K8S / request.param)


def test_every_object_is_named_once(objects: list[dict[str, Any]]) -> None:
    names = [(found["kind"], found["metadata"]["name"]) for found in objects]
    assert len(names) == len(set(names))
    assert ("RayJob", "raymill-prepare") in names
    assert ("RayJob", "raymill-pretrain") in names
    assert ("RayCluster", "raymill") in names


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
    assert checked == 3


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
