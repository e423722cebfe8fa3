"""The Kubernetes manifests, as an API server, the KubeRay operator and Pod Security "restricted" would judge them.

The operator's resource definitions are test data next to the checkout; without them the schema tests are skipped. What
a schema cannot say is written here as rules, and broken variants prove that schema and rules refuse something.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from dataengine.config.load import load_config
from dataengine.download.guard import refused

REPO = Path(__file__).parent.parent
DATA = Path(os.environ.get("DATAENGINE_TEST_DATA", REPO.parent / "shared" / "data"))

Tree = dict[str, Any]


@cache
def rayjob_schema() -> Tree:
    """What a v1 RayJob may hold, unknown fields refused."""
    path = DATA / "kuberay" / "ray.io_rayjobs.yaml"
    if not path.exists():
        pytest.skip(f"{path} is absent; set DATAENGINE_TEST_DATA to the folder that holds kuberay/")
    definition = yaml.load(path.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = (item for item in definition["spec"]["versions"] if item["name"] == "v1")
    schema: Tree = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}  # the API server's own
    return schema


def strict(schema: Any) -> Any:
    """`schema` with unknown fields refused wherever fields are named, as a strict API server does."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: strict(item) for name, item in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        found.pop("type", None)  # some generators leave one that is too narrow
    return found


def schema_faults(job: Tree) -> Iterator[str]:
    for error in jsonschema.Draft7Validator(rayjob_schema()).iter_errors(job):
        yield f"{'.'.join(map(str, error.absolute_path))}: {error.message}"


def groups(job: Tree) -> list[Tree]:
    cluster = job["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def pods(job: Tree) -> list[Tree]:
    """Every pod template: submitter, head, worker groups."""
    return [job["spec"]["submitterPodTemplate"], *(group["template"] for group in groups(job))]


def containers(pod: Tree) -> list[Tree]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def operator_faults(job: Tree) -> Iterator[str]:
    """What KubeRay refuses or ignores although its schema admits it."""
    spec, name = job["spec"], job["metadata"]["name"]
    if len(name) > 47 or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield f"name: {name} is no DNS label of at most 47 characters"
    for wanting in ("ttlSecondsAfterFinished", "suspend"):
        if spec.get(wanting) and not spec.get("shutdownAfterJobFinishes"):
            yield f"{wanting}: needs shutdownAfterJobFinishes"
    if spec.get("deletionStrategy") and spec.get("shutdownAfterJobFinishes"):
        yield "deletionStrategy: excludes shutdownAfterJobFinishes"
    if spec.get("backoffLimit") and spec.get("clusterSelector"):
        yield "backoffLimit: excludes clusterSelector"
    if spec.get("submissionMode") != "K8sJobMode":
        yield "submissionMode: submitter settings count in K8sJobMode only"
    for group in spec["rayClusterSpec"]["workerGroupSpecs"]:
        if not group.get("minReplicas") == group.get("replicas") == group.get("maxReplicas") != 0:
            yield f"{group['groupName']}: without an autoscaler minReplicas, replicas and maxReplicas are one number"


def cluster_faults(job: Tree) -> Iterator[str]:
    """What would run, and run badly."""
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    auth = cluster.get("authOptions", {})
    if auth.get("mode") != "token" or auth.get("enableK8sTokenAuth"):
        yield "authOptions: without a token whoever reaches the dashboard runs code"
    if cluster["headGroupSpec"]["rayStartParams"].get("num-cpus") != "0":
        yield "head: num-cpus must be 0, or parts run beside the driver"
    if cluster["headGroupSpec"].get("serviceType", "ClusterIP") != "ClusterIP" or spec.get("runtimeEnvYAML"):
        yield "head: its service stays inside, and code comes with the image"
    if not spec.get("activeDeadlineSeconds"):
        yield "activeDeadlineSeconds: a run that hangs must end"
    for pod in pods(job):
        for container in containers(pod):
            yield from container_faults(container, cluster.get("rayVersion", ""))


def container_faults(container: Tree, ray_version: str) -> Iterator[str]:
    name, resources = container["name"], container.get("resources", {})
    if not container["image"].endswith(f"ray{ray_version}") or not ray_version:
        yield f"{name}: image {container['image']} does not hold rayVersion {ray_version}"
    limits = resources.get("limits", {})
    if not {"cpu", "memory"} <= limits.keys() or resources.get("requests") != limits:
        yield f"{name}: limits and requests must be the same, cpu and memory among them"
    environment = {item["name"]: item for item in container.get("env", [])}
    if environment.get("RAY_USAGE_STATS_ENABLED", {}).get("value") != "0":
        yield f"{name}: RAY_USAGE_STATS_ENABLED must be 0"
    for key, item in environment.items():
        if re.search("KEY|SECRET|TOKEN|PASSWORD", key) and "secretKeyRef" not in item.get("valueFrom", {}):
            yield f"{name}: {key} must come from a secret"


VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


def security_faults(job: Tree) -> Iterator[str]:
    """Pod Security Standard "restricted", and of ours: read-only root, no service account token."""
    for pod in pods(job):
        spec = pod["spec"]
        for sharing in ("hostNetwork", "hostPID", "hostIPC"):
            if spec.get(sharing):
                yield f"{sharing} is not restricted"
        if spec.get("automountServiceAccountToken") is not False:
            yield "automountServiceAccountToken must be false"
        for volume in spec.get("volumes", []):
            if not volume.keys() - {"name"} <= VOLUMES:
                yield f"volume {volume['name']}: its type is not restricted"
        for container in containers(pod):
            yield from confinement_faults(container, spec.get("securityContext", {}))


def confinement_faults(container: Tree, of_pod: Tree) -> Iterator[str]:
    own = container.get("securityContext", {})
    settings, capabilities = {**of_pod, **own}, own.get("capabilities", {})
    confined = {
        "runAsNonRoot": settings.get("runAsNonRoot") is True and settings.get("runAsUser") != 0,
        "seccompProfile": settings.get("seccompProfile", {}).get("type") in ("RuntimeDefault", "Localhost"),
        "capabilities": capabilities.get("drop") == ["ALL"] and not capabilities.get("add"),
        "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False and not own.get("privileged"),
        "readOnlyRootFilesystem": own.get("readOnlyRootFilesystem") is True,
        "hostPort": not any(port.get("hostPort") for port in container.get("ports", [])),
    }
    yield from (f"{container['name']}: {name} is not restricted" for name, holds in confined.items() if not holds)


def rule_faults(job: Tree) -> list[str]:
    return [fault for check in (operator_faults, cluster_faults, security_faults) for fault in check(job)]


@pytest.fixture
def job() -> Tree:
    """The RayJob, with the image that the kustomization gives it."""
    found: Tree = yaml.safe_load((REPO / "k8s" / "rayjob.yaml").read_text())
    (image,) = yaml.safe_load((REPO / "k8s" / "kustomization.yaml").read_text())["images"]
    for pod in pods(found):
        for container in containers(pod):
            assert container["image"] == image["name"]
            container["image"] = f"{image['newName']}:{image['newTag']}"
    untied: Tree = json.loads(json.dumps(found))  # anchors share objects, mutations must not
    return untied


def test_rayjob_fits_the_schema(job: Tree) -> None:
    assert list(schema_faults(job)) == []


def test_rayjob_keeps_the_rules(job: Tree) -> None:
    assert rule_faults(job) == []


def _head(job: Tree) -> Tree:
    found: Tree = job["spec"]["rayClusterSpec"]["headGroupSpec"]
    return found


def _gpu(job: Tree) -> Tree:
    found: Tree = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][1]
    return found


def _container(group: Tree) -> Tree:
    found: Tree = group["template"]["spec"]["containers"][0]
    return found


def _drop(tree: Tree, name: str) -> None:
    del tree[name]


Mutations = dict[str, tuple[Callable[[Tree], Any], str]]

MISFITS: Mutations = {
    "a misspelt field": (lambda job: _gpu(job).update(tempalte={}), "tempalte"),
    "a string for a number": (lambda job: job["spec"].update(backoffLimit="2"), "backoffLimit"),
    "a bad quantity": (lambda job: _container(_gpu(job))["resources"]["limits"].update(memory="64 GB"), "memory"),
    "an auth mode there is not": (lambda job: job["spec"]["rayClusterSpec"]["authOptions"].update(mode="on"), "'on'"),
    "a misspelt security field": (
        lambda job: _container(_head(job))["securityContext"].update(readOnlyRootFileSystem=True),
        "readOnlyRootFileSystem",
    ),
}

BREACHES: Mutations = {
    "a long name": (lambda job: job["metadata"].update(name="n" * 48), "47"),
    "a TTL without shutdown": (lambda job: _drop(job["spec"], "shutdownAfterJobFinishes"), "ttlSecondsAfterFinished"),
    "no maximum": (lambda job: _drop(_gpu(job), "maxReplicas"), "maxReplicas"),
    "no token": (lambda job: _drop(job["spec"]["rayClusterSpec"], "authOptions"), "authOptions"),
    "parts on the head": (lambda job: _drop(_head(job)["rayStartParams"], "num-cpus"), "num-cpus"),
    "a public dashboard": (lambda job: _head(job).update(serviceType="LoadBalancer"), "service"),
    "another Ray": (lambda job: job["spec"]["rayClusterSpec"].update(rayVersion="2.59.0"), "2.59.0"),
    "more GPUs than asked": (
        lambda job: _container(_gpu(job))["resources"]["limits"].update({"nvidia.com/gpu": "2"}),
        "limits and requests",
    ),
    "a secret in the open": (
        lambda job: _container(_head(job))["env"].append({"name": "AWS_SECRET_ACCESS_KEY", "value": "hunter2"}),
        "secret",
    ),
    "root": (lambda job: _gpu(job)["template"]["spec"]["securityContext"].update(runAsUser=0), "runAsNonRoot"),
    "no seccomp": (lambda job: _drop(pods(job)[0]["spec"]["securityContext"], "seccompProfile"), "seccomp"),
    "a capability": (
        lambda job: _container(_gpu(job))["securityContext"]["capabilities"].update(add=["SYS_PTRACE"]),
        "capabilities",
    ),
    "a writable root": (
        lambda job: _drop(_container(_head(job))["securityContext"], "readOnlyRootFilesystem"),
        "readOnlyRootFilesystem",
    ),
    "a folder of the node": (
        lambda job: _gpu(job)["template"]["spec"]["volumes"].append({"name": "disk", "hostPath": {"path": "/"}}),
        "disk",
    ),
    "a service account": (
        lambda job: _drop(_gpu(job)["template"]["spec"], "automountServiceAccountToken"),
        "automount",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_schema_refuses(job: Tree, name: str) -> None:
    mutate, wanted = MISFITS[name]
    mutate(job)
    found = list(schema_faults(job))
    assert any(wanted in fault for fault in found), found


@pytest.mark.parametrize("name", BREACHES)
def test_rules_refuse(job: Tree, name: str) -> None:
    mutate, wanted = BREACHES[name]
    mutate(job)
    found = rule_faults(job)
    assert any(wanted in fault for fault in found), found


def test_pods_can_write_where_they_must(job: Tree) -> None:
    for pod in pods(job):
        scratch = {volume["name"] for volume in pod["spec"]["volumes"] if "emptyDir" in volume}
        for container in containers(pod):
            writable = {mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] in scratch}
            home = next(item["value"] for item in container["env"] if item["name"] == "HOME")
            assert {"/tmp", home} <= writable


def test_only_gpu_workers_hold_gpus(job: Tree) -> None:
    held = {
        pod["spec"]["containers"][0]["name"] + str(number): "nvidia.com/gpu"
        in containers(pod)[0]["resources"]["limits"]
        for number, pod in enumerate(pods(job))
    }
    assert held == {"ray-job-submitter0": False, "ray-head1": False, "ray-worker2": False, "ray-worker3": True}
    assert _gpu(job)["template"]["spec"]["tolerations"]


def test_entrypoint_runs_the_config_that_the_head_mounts(job: Tree) -> None:
    program, script, config, *options = shlex.split(job["spec"]["entrypoint"])
    assert (program, options[0], len(options)) == ("python", "--set", 2)
    workdir = re.search(r"^WORKDIR (\S+)$", (REPO / "Dockerfile").read_text(), re.MULTILINE)
    assert workdir is not None
    assert (REPO / Path(script).relative_to(workdir[1])).is_file()
    head = _head(job)["template"]["spec"]
    (volume,) = (item for item in head["volumes"] if item.get("configMap"))
    (mount,) = (item for item in head["containers"][0]["volumeMounts"] if item["name"] == volume["name"])
    assert mount["mountPath"] == str(Path(config).parent)
    (generated,) = yaml.safe_load((REPO / "configs" / "kustomization.yaml").read_text())["configMapGenerator"]
    assert generated == {"name": volume["configMap"]["name"], "files": [Path(config).name]}
    assert load_config(REPO / "configs" / Path(config).name, options[1:]).root.startswith("s3://")


def test_config_fits_the_cluster(job: Tree) -> None:
    execution = load_config(REPO / "configs" / "openuni_24m.yaml").execution
    cpu, gpu = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    cores = {group["groupName"]: int(_container(group)["resources"]["limits"]["cpu"]) for group in (cpu, gpu)}
    for stage in (execution.sources, execution.download, execution.dedup, execution.select, execution.emit):
        assert stage.num_gpus == 0
        assert stage.num_cpus <= cores["cpu"]
    assert execution.download.max_workers == cpu["replicas"] * cores["cpu"] / execution.download.num_cpus
    per_gpu = 1 / execution.score.num_gpus
    assert per_gpu == int(per_gpu)
    assert per_gpu * execution.score.num_cpus <= cores["gpu"]


@pytest.fixture
def policies() -> dict[str, Tree]:
    found = yaml.safe_load_all((REPO / "k8s" / "networkpolicy.yaml").read_text())
    return {policy["metadata"]["name"]: policy["spec"] for policy in found}


def test_network_is_closed_unless_opened(policies: dict[str, Tree], job: Tree) -> None:
    assert policies.pop("default-deny") == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for name, policy in policies.items():
        selected = policy["podSelector"]["matchLabels"]
        for pod in pods(job):
            labels = {**pod["metadata"]["labels"], "ray.io/node-type": "head"}  # the operator adds the second one
            assert selected.items() <= labels.items(), name
        for rule in [*policy.get("ingress", []), *policy.get("egress", [])]:
            assert rule.get("from") or rule.get("to"), f"{name} opens to everyone"


@pytest.mark.parametrize(
    ("address", "is_open"),
    [
        *((address, True) for address in ("1.1.1.1", "52.216.0.1", "151.101.1.1", "2606:4700::1111", "2a00:1450::1")),
        *((address, False) for address in ("0.0.0.0", "10.0.0.1", "100.64.0.1", "127.0.0.1", "168.63.129.16")),
        *((address, False) for address in ("169.254.169.254", "172.31.255.255", "192.0.0.192", "192.168.1.1")),
        *((address, False) for address in ("198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::1")),
        *((address, False) for address in ("fd00:ec2::254", "fe80::1", "ff02::1", "64:ff9b::a00:1", "2002:a00:1::1")),
    ],
)
def test_egress_reaches_public_addresses_only(policies: dict[str, Tree], address: str, is_open: bool) -> None:
    (rule,) = policies["public-web"]["egress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": port} for port in (80, 443)]
    target = ipaddress.ip_address(address)
    reached = any(
        target in ipaddress.ip_network(peer["ipBlock"]["cidr"])
        and not any(target in ipaddress.ip_network(block) for block in peer["ipBlock"]["except"])
        for peer in rule["to"]
    )
    assert reached is is_open
    assert refused(address) is not is_open, "the downloader's guard and the network policy disagree"


def test_kustomize_renders(job: Tree) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not on this machine")
    done = subprocess.run(
        ["kubectl", "kustomize", str(REPO / "k8s")], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    rendered = {(item["kind"], item["metadata"]["name"]): item for item in yaml.safe_load_all(done.stdout)}
    assert rendered["ConfigMap", "dataengine-configs"]["data"] == {
        "openuni_24m.yaml": (REPO / "configs" / "openuni_24m.yaml").read_text()
    }
    assert {item["metadata"].get("namespace", "dataengine") for item in rendered.values()} == {"dataengine"}
    assert rendered["RayJob", "openuni-24m"]["spec"] == job["spec"]
    assert len([kind for kind, _ in rendered if kind == "NetworkPolicy"]) == 5


def test_image_is_pinned_and_not_root() -> None:
    lines = (REPO / "Dockerfile").read_text().splitlines()
    bases = [line.split()[1] for line in lines if line.startswith("FROM")]
    assert all(base == "scratch" or re.fullmatch(r"\w+:\d[\w.-]+", base) for base in bases), bases
    users = [line.split()[1] for line in lines if line.startswith("USER")]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1]), "Kubernetes can only tell from a number"
    locked = re.search(r"^ray==(\S+)", (REPO / "requirements.lock").read_text(), re.MULTILINE)
    job = yaml.safe_load((REPO / "k8s" / "rayjob.yaml").read_text())
    assert locked is not None
    assert locked[1] == job["spec"]["rayClusterSpec"]["rayVersion"]
