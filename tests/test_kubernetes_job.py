"""The Kubernetes Job retries what deserves it: its codes are the table in `errors.py`."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from batchrank.cli import cli
from batchrank.errors import AGAIN, ExitCode

JOB = Path(__file__).parents[1] / "configs" / "kubernetes-job.yaml"


@pytest.fixture(scope="module")
def spec() -> dict[str, Any]:
    """The Job's spec."""
    read: dict[str, Any] = yaml.safe_load(JOB.read_text("utf-8"))
    assert (read["apiVersion"], read["kind"]) == ("batch/v1", "Job")
    return read["spec"]


def container(spec: dict[str, Any]) -> dict[str, Any]:
    (only,) = spec["template"]["spec"]["containers"]
    return only


def actions(spec: dict[str, Any]) -> list[tuple[int, str]]:
    """Every exit code that a rule names, with what is done."""
    rules = [rule for rule in spec["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    for rule in rules:
        assert rule["onExitCodes"]["operator"] == "In"
        assert rule["onExitCodes"]["containerName"] == container(spec)["name"]
        assert rule["onExitCodes"]["values"] == sorted(rule["onExitCodes"]["values"])
    return [(code, rule["action"]) for rule in rules for code in rule["onExitCodes"]["values"]]


def test_every_code_but_0_has_one_action(spec: dict[str, Any]) -> None:
    named = sorted(code for code, _ in actions(spec))
    assert named == sorted(code for code in ExitCode if code)


def test_the_codes_that_deserve_it_are_tried_again_and_no_others(spec: dict[str, Any]) -> None:
    wanted = {code: "FailJob" for code in ExitCode if code} | {
        ExitCode.IO_FAILED: "Count",
        ExitCode.TRY_LATER: "Count",
        ExitCode.INTERRUPTED: "Ignore",
        ExitCode.TERMINATED: "Ignore",
    }
    assert dict(actions(spec)) == wanted
    assert {code for code, action in wanted.items() if action != "FailJob"} == AGAIN


def test_a_pod_that_the_cluster_takes_away_is_replaced(spec: dict[str, Any]) -> None:
    """Before its exit code is looked at: the first rule that fits decides."""
    first = spec["podFailurePolicy"]["rules"][0]
    assert (first["action"], first["onPodConditions"]) == (
        "Ignore",
        [{"type": "DisruptionTarget", "status": "True"}],
    )
    assert spec["podReplacementPolicy"] == "Failed"
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] == 30
    assert spec["backoffLimit"] > 0


def test_its_command_is_one_of_ours_and_takes_no_key(spec: dict[str, Any]) -> None:
    one = container(spec)
    program, name, *more = [*one["command"], *one["args"]]
    assert program == "batchrank"
    given = cli.commands[name].make_context(name, list(more)).params
    mounts = {mount["name"]: mount["mountPath"] for mount in one["volumeMounts"]}
    assert given["inputs"][0].startswith(mounts["rows"] + "/")
    assert given["out"].startswith(mounts["scores"] + "/")
    (key,) = one["env"]
    assert set(key) == {"name", "valueFrom"}
    assert key["valueFrom"]["secretKeyRef"]["key"] == key["name"] == "DASHSCOPE_API_KEY"


def test_the_output_outlives_the_pod(spec: dict[str, Any]) -> None:
    volumes = {volume["name"]: volume for volume in spec["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container(spec)["volumeMounts"]} == set(volumes)
    assert "persistentVolumeClaim" in volumes["scores"]
