"""The chart, rendered by the real Helm and checked against the schemas of Kubernetes.

Rules: nothing is asserted about text that can be asserted about the parsed document; every set of values below goes
through every general check; kinds that Kubernetes does not define (KEDA, Prometheus operator) are named in `FOREIGN`
and checked by hand.
"""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python as helm
import kubernetes_validate
import pytest
import yaml

from consumers import config
from consumers.errors import Refused
from consumers.secrets import Secrets

CHART = Path(__file__).parent.parent / "helm"
FOREIGN = {"ScaledObject", "PodMonitor", "PrometheusRule"}
KUBERNETES = ("1.29", kubernetes_validate.latest_version())

Values = dict[str, Any]
Document = dict[str, Any]

VALUES: dict[str, Values] = {
    "default": {},
    "plaintext, one of each": {
        "config": {"kafka": {"bootstrap_servers": "k-0:9092,k-1:9092", "security_protocol": "PLAINTEXT"}},
        "ingest": {"replicas": 1},
        "detect": {"replicas": 1},
    },
    "everything on": {
        "image": {"repository": "registry.example/querywarden", "digest": "sha256:" + "0" * 64},
        "imagePullSecrets": [{"name": "pull"}],
        "config": {
            "mode": "block",
            "false_alarm_budget": 0.001,
            "horizon_days": 14,
            "kafka": {"group_id": 'a "quoted" \\ <name>'},
        },
        "kafka": {"ca": {"existingConfigMap": "kafka-ca"}},
        "baselines": {"existingConfigMap": "baselines"},
        "keda": {"enabled": True, "lagThreshold": 5_000_000, "authenticationRef": "kafka-auth"},
        "metrics": {"podMonitor": {"enabled": True, "labels": {"release": "prometheus"}}},
        "networkPolicy": {
            "kafka": {"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]},
            "metrics": {
                "from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
            },
            "http": {"from": [{"podSelector": {"matchLabels": {"app": "gateway"}}}]},
            "alerts": {"ports": [443, 9093], "to": [{"ipBlock": {"cidr": "10.9.0.0/16"}}]},
        },
        "podDisruptionBudget": {"maxUnavailable": "50%"},
        "serve": {
            "port": 8443,
            "service": {"type": "LoadBalancer", "port": 443, "annotations": {"example.org/lb": "internal"}},
            "ingress": {"enabled": True, "className": "nginx", "host": "qw.example.org", "tlsSecret": "qw-tls"},
        },
        "alerts": {"existingSecret": "querywarden-alerts"},
        "monitoring": {
            "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
            "dashboards": {"enabled": True},
        },
        "ingest": {
            "extraEnv": [{"name": "QUERYWARDEN_STORE__TIMEOUT_S", "value": "5"}],
            "podAnnotations": {"example.org/team": "security"},
        },
        "priorityClassName": "important",
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"key": "dedicated", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": [{"key": "gpu", "operator": "DoesNotExist"}]}]
                }
            }
        },
        "podLabels": {"cost-centre": "17"},
    },
    "baselines by CSI, CA from a Secret, little else": {
        "baselines": {
            "existingClaim": "",
            "csi": {
                "driver": "secrets-store.csi.k8s.io",
                "readOnly": True,
                "volumeAttributes": {"secretProviderClass": "baselines"},
            },
        },
        "kafka": {"ca": {"existingSecret": "kafka-ca"}},
        "podDisruptionBudget": {"enabled": False},
        "networkPolicy": {"enabled": False},
        "serviceAccount": {"create": False, "name": "given"},
        "serve": {"enabled": False},
        "fullnameOverride": "qw",
    },
}

REFUSED: list[tuple[Values, str]] = [
    ({"config": {"mod": "block"}}, "mod"),
    ({"config": {"mode": "ban"}}, "/config/mode"),
    ({"config": {"false_alarm_budget": 0}}, "/config/false_alarm_budget"),
    ({"config": {"kafka": {"sasl_password": "hunter2"}}}, "sasl_password"),
    ({"config": {"store": {"url": "redis://:hunter2@redis"}}}, "url"),
    ({"config": {"kafka": {"bootstrap_servers": "kafka"}}}, "bootstrap_servers"),
    ({"config": {"kafka": {"security_protocol": "plain"}}}, "security_protocol"),
    ({"ingest": {"replicas": -1}}, "/ingest/replicas"),
    ({"ingest": {"extraEnv": [{"name": "QUERYWARDEN_KAFKA__SASL_PASSWORD", "value": "hunter2"}]}}, "valueFrom"),
    ({"detect": {"extraEnv": [{"name": "QUERYWARDEN_STORE__URL", "value": "redis://"}]}}, "valueFrom"),
    ({"secrets": {"existingSecret": ""}}, "existingSecret"),
    ({"secrets": {"value": "hunter2"}}, "value"),
    ({"baselines": {"existingClaim": ""}}, "/baselines"),
    ({"image": {"digest": "sha256:short"}}, "digest"),
    ({"terminationGracePeriodSeconds": 5}, "terminationGracePeriodSeconds"),
    ({"podDisruptionBudget": {"maxUnavailable": 0}}, "maxUnavailable"),
    ({"metrics": {"port": 80}}, "/metrics/port"),
    ({"replicas": 3}, "replicas"),
    ({"serve": {"port": 80}}, "/serve/port"),
    ({"serve": {"service": {"type": "ExternalName"}}}, "/serve/service/type"),
    ({"serve": {"extraEnv": [{"name": "QUERYWARDEN_HTTP__TOKEN", "value": "hunter2"}]}}, "valueFrom"),
    ({"alerts": {"url": "https://hooks.example"}}, "url"),
    ({"config": {"alerts": {"webhook": {"keys": "hunter2"}}}}, "webhook"),
    ({"monitoring": {"rules": True}}, "rules"),
]


def render(values: Values) -> list[Document]:
    with helm.Chart.load(CHART) as chart:
        rendered: dict[str, str] = chart.render(values, name="qw", namespace="security")
    texts = [text for path, text in rendered.items() if not path.endswith("NOTES.txt")]
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


def of_kind(documents: list[Document], kind: str) -> list[Document]:
    return [document for document in documents if document["kind"] == kind]


def pods(documents: list[Document]) -> dict[str, Document]:
    """Component → pod specification."""
    return {
        deployment["metadata"]["labels"]["app.kubernetes.io/component"]: deployment["spec"]["template"]["spec"]
        for deployment in of_kind(documents, "Deployment")
    }


def settings(documents: list[Document]) -> Document:
    (configmap,) = (d for d in of_kind(documents, "ConfigMap") if "querywarden.toml" in d["data"])
    return tomllib.loads(configmap["data"]["querywarden.toml"])


@pytest.fixture(scope="module", params=list(VALUES), ids=list(VALUES))
def values(request: pytest.FixtureRequest) -> Values:
    return VALUES[request.param]


@pytest.fixture(scope="module")
def documents(values: Values) -> list[Document]:
    return render(values)


# --- every set of values


def test_helm_lint_finds_nothing_to_warn_of(values: Values) -> None:
    report = helm.lint(CHART, values, strict=True)
    assert report["total_charts_linted"] == 1
    assert report["errors"] == []
    assert [m for m in report["messages"] if m["severity"] >= 2] == []


@pytest.mark.parametrize("version", KUBERNETES)
def test_every_document_is_valid_for_kubernetes(documents: list[Document], version: str) -> None:
    checked = [kubernetes_validate.validate(d, version, strict=True) for d in documents if d["kind"] not in FOREIGN]
    assert len(checked) >= 3


def test_no_two_documents_have_the_same_name(documents: list[Document]) -> None:
    names = [(d["kind"], d["metadata"]["name"]) for d in documents]
    assert len(set(names)) == len(names)


def test_every_process_runs_its_command(values: Values, documents: list[Document]) -> None:
    commands = {component: pod["containers"][0]["args"] for component, pod in pods(documents).items()}
    serve = ["serve"] if values.get("serve", {}).get("enabled", True) else []
    assert commands == {
        c: [c, "--config", "/etc/querywarden/config/querywarden.toml"] for c in ("ingest", "detect", *serve)
    }


def test_pods_satisfy_the_restricted_pod_security_standard(documents: list[Document]) -> None:
    for pod in pods(documents).values():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        allowed = {"configMap", "secret", "emptyDir", "persistentVolumeClaim", "csi"}
        assert {kind for volume in pod["volumes"] for kind in volume if kind != "name"} <= allowed
        for container in [*pod["initContainers"], *pod["containers"]]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "runAsNonRoot": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert all("hostPort" not in port for port in container.get("ports", []))


def test_only_the_two_scratch_folders_can_be_written(documents: list[Document]) -> None:
    for pod in pods(documents).values():
        kinds = {volume["name"]: next(kind for kind in volume if kind != "name") for volume in pod["volumes"]}
        mounts = pod["containers"][0]["volumeMounts"]
        writable = {mount["mountPath"] for mount in mounts if not mount.get("readOnly")}
        assert writable == {"/var/lib/querywarden", "/tmp"}
        assert all(kinds[mount["name"]] == "emptyDir" for mount in mounts if mount["mountPath"] in writable)
        mounts += pod["initContainers"][0]["volumeMounts"]
        assert kinds.keys() == {mount["name"] for mount in mounts}
        environment = {entry["name"]: entry.get("value") for entry in pod["containers"][0]["env"]}
        assert environment["NUMBA_CACHE_DIR"].startswith("/tmp/")


def test_probes_ask_the_port_that_answers(documents: list[Document]) -> None:
    for component, pod in pods(documents).items():
        (container,) = pod["containers"]
        name, variable = ("http", "HTTP") if component == "serve" else ("metrics", "METRICS")
        (bind,) = [e["value"] for e in container["env"] if e["name"] == f"QUERYWARDEN_{variable}__BIND"]
        port = int(bind.removeprefix("0.0.0.0:"))
        assert container["ports"] == [{"name": name, "containerPort": port, "protocol": "TCP"}]
        paths = {probe: container[f"{probe}Probe"]["httpGet"] for probe in ("startup", "liveness", "readiness")}
        assert {probe: get["path"] for probe, get in paths.items()} == {
            "startup": "/healthz",
            "liveness": "/healthz",
            "readiness": "/readyz",
        }
        assert {get["port"] for get in paths.values()} == {name}


def test_pods_have_limits_spread_and_time_to_drain(documents: list[Document]) -> None:
    for pod in pods(documents).values():
        for container in [*pod["initContainers"], *pod["containers"]]:
            resources = container["resources"]
            assert {"cpu", "memory"} == resources["limits"].keys() == resources["requests"].keys()
        assert pod["terminationGracePeriodSeconds"] >= 30
        assert {c["topologyKey"] for c in pod["topologySpreadConstraints"]} == {
            "kubernetes.io/hostname",
            "topology.kubernetes.io/zone",
        }


def test_ingest_is_a_static_group_member_named_after_its_pod(documents: list[Document]) -> None:
    def instance_id(component: str) -> list[Document]:
        environment = pods(documents)[component]["containers"][0]["env"]
        return [entry["valueFrom"] for entry in environment if entry["name"] == "QUERYWARDEN_KAFKA__GROUP_INSTANCE_ID"]

    assert instance_id("ingest") == [{"fieldRef": {"fieldPath": "metadata.name"}}]
    assert instance_id("detect") == []


def test_secrets_come_by_reference_only(documents: list[Document]) -> None:
    """No Secret is made, and what looks like one in the environment is a reference."""
    assert of_kind(documents, "Secret") == []
    looks_secret = re.compile(r"password|token|secret|credential|store__url", re.IGNORECASE)
    for pod in pods(documents).values():
        secret = [e for e in pod["containers"][0]["env"] if looks_secret.search(e["name"])]
        assert len(secret) >= 1
        assert all(entry.keys() == {"name", "valueFrom"} for entry in secret)
        assert all("secretKeyRef" in entry["valueFrom"] for entry in secret)
    assert [key for key, _ in leaves(settings(documents)) if looks_secret.search(key)] == ["secrets.file"]


def test_every_file_the_settings_name_is_mounted(documents: list[Document]) -> None:
    written = settings(documents)
    named = [*written["baselines"], written["secrets"]["file"], written["state_dir"]]
    named += [written["kafka"]["ssl_cafile"]] if "ssl_cafile" in written["kafka"] else []
    for pod in pods(documents).values():
        folders = [mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]]
        for path in named:
            assert any(path == folder or path.startswith(folder + "/") for folder in folders), path


def test_the_settings_are_the_values(values: Values, documents: list[Document]) -> None:
    with helm.Chart.load(CHART) as chart:
        merged = chart.merge_values(values)
    expected = dict(leaves(merged["config"]))
    if not expected["kafka.security_protocol"].startswith("SASL_"):
        del expected["kafka.sasl_mechanism"]
    written = dict(leaves(settings(documents)))
    assert {key: written.get(key) for key in expected} == expected
    assert {key for key, value in written.items() if isinstance(value, float)} == {"false_alarm_budget"}
    assert written.keys() - expected.keys() <= {
        "baselines",
        "state_dir",
        "metrics.bind",
        "secrets.file",
        "kafka.ssl_cafile",
    }


def test_the_service_accepts_its_settings(
    documents: list[Document], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File and environment together, as the pod has them; a reference stands for some text."""
    file = tmp_path / "querywarden.toml"
    (configmap,) = (d for d in of_kind(documents, "ConfigMap") if "querywarden.toml" in d["data"])
    file.write_text(configmap["data"]["querywarden.toml"])
    for component, pod in pods(documents).items():
        with monkeypatch.context() as environment:
            for entry in pod["containers"][0]["env"]:
                environment.setenv(entry["name"], entry.get("value", "referenced"))
            loaded = config.load(file)
        assert loaded.store_url == "referenced"
        assert (loaded.http.bind if component == "serve" else loaded.metrics.bind).startswith("0.0.0.0:")
        assert loaded.baselines == ("/etc/querywarden/baselines",)
        assert loaded.kafka.security_protocol == settings(documents)["kafka"]["security_protocol"]
        assert "referenced" not in repr(loaded.store)


def test_the_notes_are_written(values: Values) -> None:
    with helm.Chart.load(CHART) as chart:
        rendered = chart.render(values, name="qw", namespace="security")
    (notes,) = [text for path, text in rendered.items() if path.endswith("NOTES.txt")]
    assert "kubectl -n security rollout status deployment/" in notes
    assert "<no value>" not in notes


def test_the_copied_key_material_is_what_the_service_accepts(documents: list[Document], tmp_path: Path) -> None:
    mounted = tmp_path / "mounted.json"
    Secrets.load(mounted, create=True)
    mounted.chmod(0o440)  # as Kubernetes mounts it under an fsGroup
    with pytest.raises(Refused):
        Secrets.load(mounted)
    own = tmp_path / "own.json"
    for pod in pods(documents).values():
        command = pod["initContainers"][0]["command"]
        assert command[-1] == settings(documents)["secrets"]["file"]
        subprocess.run([*command[:-2], mounted, own], check=True)
        assert Secrets.load(own).sampling_key


# --- what one value changes


def test_the_default_lets_nobody_in_and_out_only_to_dns_kafka_and_redis() -> None:
    (policy,) = of_kind(render({}), "NetworkPolicy")
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert policy["spec"]["ingress"] == []
    assert [sorted({port["port"] for port in rule["ports"]}) for rule in policy["spec"]["egress"]] == [
        [53],
        [9092, 9093],
        [6379],
    ]
    selector = policy["spec"]["podSelector"]["matchLabels"].items()
    for deployment in of_kind(render({}), "Deployment"):
        assert selector <= deployment["spec"]["template"]["metadata"]["labels"].items()


def test_a_changed_setting_restarts_the_pods() -> None:
    def checksums(values: Values) -> set[str]:
        deployments = of_kind(render(values), "Deployment")
        return {d["spec"]["template"]["metadata"]["annotations"]["checksum/config"] for d in deployments}

    before, after = checksums({}), checksums({"config": {"mode": "block"}})
    assert len(before) == len(after) == 1
    assert before != after


def test_keda_takes_over_the_replicas_of_ingest_only() -> None:
    documents = render(VALUES["everything on"])
    replicas = {d["metadata"]["name"]: d["spec"].get("replicas") for d in of_kind(documents, "Deployment")}
    assert replicas == {"qw-querywarden-ingest": None, "qw-querywarden-detect": 2, "qw-querywarden-serve": 2}
    (scaled,) = of_kind(documents, "ScaledObject")
    assert scaled["spec"]["scaleTargetRef"] == {"name": "qw-querywarden-ingest"}
    (trigger,) = scaled["spec"]["triggers"]
    assert trigger["authenticationRef"] == {"name": "kafka-auth"}
    assert trigger["metadata"] == {
        "bootstrapServers": "kafka:9093",
        "consumerGroup": 'a "quoted" \\ <name>',
        "topic": "prediction-queries",
        "lagThreshold": "5000000",
        "activationLagThreshold": "0",
        "offsetResetPolicy": "earliest",
        "allowIdleConsumers": "false",
    }


def test_the_pod_monitor_names_a_port_that_exists() -> None:
    documents = render(VALUES["everything on"])
    (monitor,) = of_kind(documents, "PodMonitor")
    ports = {port["name"] for pod in pods(documents).values() for port in pod["containers"][0]["ports"]}
    assert {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]} == ports


def test_plaintext_asks_for_no_account() -> None:
    documents = render(VALUES["plaintext, one of each"])
    assert "SASL" not in json.dumps(documents)


def test_the_service_leads_to_serve_and_to_nothing_else(documents: list[Document]) -> None:
    services = of_kind(documents, "Service")
    assert len(services) == len([c for c in pods(documents) if c == "serve"])
    for service in services:
        chosen = service["spec"]["selector"].items()
        labels = [d["spec"]["template"]["metadata"]["labels"] for d in of_kind(documents, "Deployment")]
        reached = [label["app.kubernetes.io/component"] for label in labels if chosen <= label.items()]
        assert reached == ["serve"]
        (port,) = service["spec"]["ports"]
        assert port["targetPort"] in {p["name"] for p in pods(documents)["serve"]["containers"][0]["ports"]}
        for ingress in of_kind(documents, "Ingress"):
            (rule,) = ingress["spec"]["rules"]
            (path,) = rule["http"]["paths"]
            assert path["backend"]["service"] == {"name": service["metadata"]["name"], "port": {"name": "http"}}
            assert ingress["spec"]["tls"] == [{"hosts": [rule["host"]], "secretName": "qw-tls"}]


def test_serve_is_never_away_during_an_update(documents: list[Document]) -> None:
    for deployment in of_kind(documents, "Deployment"):
        rolling = deployment["spec"]["strategy"]["rollingUpdate"]
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        if container["name"] == "serve":
            assert rolling == {"maxSurge": 1, "maxUnavailable": 0}
            (sleep,) = [int(word) for word in container["lifecycle"]["preStop"]["exec"]["command"] if word.isdigit()]
            assert sleep + 20 <= deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        else:
            assert rolling == {"maxSurge": 0, "maxUnavailable": 1}
            assert "lifecycle" not in container


def test_every_process_has_its_disruption_budget(values: Values, documents: list[Document]) -> None:
    budgets = {
        d["metadata"]["labels"]["app.kubernetes.io/component"] for d in of_kind(documents, "PodDisruptionBudget")
    }
    on = values.get("podDisruptionBudget", {}).get("enabled", True)
    assert budgets == (pods(documents).keys() if on else set())


def test_the_secret_of_the_sinks_reaches_detect_only() -> None:
    containers = {c: pod["containers"][0] for c, pod in pods(render(VALUES["everything on"])).items()}
    given = {c: container.get("envFrom") for c, container in containers.items()}
    assert given == {"ingest": None, "detect": [{"secretRef": {"name": "querywarden-alerts"}}], "serve": None}
    assert all("envFrom" not in pod["containers"][0] for pod in pods(render({})).values())


def test_the_network_opens_for_gateways_and_sinks_when_told() -> None:
    (policy,) = of_kind(render(VALUES["everything on"]), "NetworkPolicy")
    doors = [(rule["from"], sorted(p["port"] for p in rule["ports"])) for rule in policy["spec"]["ingress"]]
    network = VALUES["everything on"]["networkPolicy"]
    assert doors == [(network["metrics"]["from"], [8443, 9464]), (network["http"]["from"], [8443])]
    assert policy["spec"]["egress"][-1] == {
        "ports": [{"protocol": "TCP", "port": 443}, {"protocol": "TCP", "port": 9093}],
        "to": network["alerts"]["to"],
    }


def test_the_rules_and_dashboards_are_those_of_the_examples() -> None:
    documents = render(VALUES["everything on"])
    (rule,) = of_kind(documents, "PrometheusRule")
    examples = CHART.parent / "examples" / "monitoring"
    assert rule["spec"] == yaml.safe_load((examples / "querywarden.rules.yml").read_text())
    assert rule["metadata"]["labels"]["release"] == "prometheus"
    (boards,) = (d for d in of_kind(documents, "ConfigMap") if "querywarden.toml" not in d["data"])
    assert boards["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert {name: json.loads(text) for name, text in boards["data"].items()} == {
        file.name: json.loads(file.read_text()) for file in (examples / "grafana").glob("*.json")
    }
    assert len(boards["data"]) == 2
    assert of_kind(render({}), "PrometheusRule") == []


@pytest.mark.parametrize(("values", "named"), REFUSED, ids=[json.dumps(values) for values, _ in REFUSED])
def test_a_wrong_value_is_refused_by_name(values: Values, named: str) -> None:
    with pytest.raises(helm.HelmValuesError, match=re.escape(named)):
        render(values)


# --- the chart's own papers


def test_the_schema_knows_every_value_and_no_other() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert schema_leaves(schema, schema["definitions"]) == {
        key for key, _ in leaves(defaults()) if not key.startswith("global")
    }


def test_the_readme_lists_every_value_with_its_default() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| `(.*?)` \|", (CHART / "README.md").read_text(), flags=re.MULTILINE)
    assert {key: json.loads(default) for key, default in rows} == dict(leaves(defaults()))
    assert len(rows) == len(dict(rows))


def test_the_chart_is_of_this_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((CHART.parent / "pyproject.toml").read_text())["project"]
    assert chart["appVersion"] == project["version"]


def defaults() -> Values:
    loaded: Values = yaml.safe_load((CHART / "values.yaml").read_text())
    return loaded


def leaves(table: Values, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted path and value of everything that is not a non-empty table."""
    for key, value in table.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{path}{key}.")
        else:
            yield path + key, value


def schema_leaves(node: Document, definitions: Document, path: str = "") -> set[str]:
    """Dotted paths that the schema admits, as far as the default values go into them."""
    node = definitions[node["$ref"].rpartition("/")[2]] if "$ref" in node else node
    children = node.get("properties", {})
    if not children or node is definitions["resourceList"]:
        keys = ("cpu", "memory") if node is definitions["resourceList"] else ()
        return {f"{path}.{key}" for key in keys} or {path}
    found = {
        leaf
        for key, child in children.items()
        if key != "global"
        for leaf in schema_leaves(child, definitions, f"{path}.{key}" if path else key)
    }
    return found
