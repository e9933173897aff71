"""The Kubernetes Jobs retry what deserves it: their codes are the table in `errors.py`."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from batchrank.cli.main import cli
from batchrank.errors import AGAIN, ExitCode
from batchrank.state.shards import COUNT, KUBERNETES, of_environment

CONFIGS = Path(__file__).parents[1] / "configs"
INDEXED = CONFIGS / "kubernetes-indexed-job.yaml"


@pytest.fixture(
    scope="module", params=[CONFIGS / "kubernetes-job.yaml", INDEXED], ids=lambda p: p.stem
)
def spec(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The spec of a Job, then that of one in shards."""
    return read(request.param)


def read(job: Path) -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load(job.read_text("utf-8"))
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
    if spec.get("completionMode") == "Indexed":  # these two are one worker's, and stop no other
        wanted |= {ExitCode.ROWS_FAILED: "FailIndex", ExitCode.BOUND_REACHED: "FailIndex"}
    assert dict(actions(spec)) == wanted
    assert {code for code, action in wanted.items() if not action.startswith("Fail")} == AGAIN


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
    assert spec.get("backoffLimit", spec.get("backoffLimitPerIndex")) > 0


def test_its_command_is_one_of_ours_and_takes_no_key(
    spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = container(spec)
    program, name, *more = [*one["command"], *one["args"]]
    assert program == "batchrank"
    for index, variable in enumerate([KUBERNETES, COUNT]):
        monkeypatch.setenv(variable, str(index))  # 0 of 1
    given = cli.commands[name].make_context(name, list(more)).params
    mounts = {mount["name"]: mount["mountPath"] for mount in one["volumeMounts"]}
    assert given["inputs"][0].startswith(mounts["rows"] + "/")
    assert given["out"].startswith(mounts["scores"] + "/")
    (key,) = [entry for entry in one["env"] if entry["name"] != COUNT]
    assert set(key) == {"name", "valueFrom"}
    assert key["valueFrom"]["secretKeyRef"]["key"] == key["name"] == "DASHSCOPE_API_KEY"


def test_the_output_outlives_the_pod(spec: dict[str, Any]) -> None:
    volumes = {volume["name"]: volume for volume in spec["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container(spec)["volumeMounts"]} == set(volumes)
    assert "persistentVolumeClaim" in volumes["scores"]


def test_the_workers_are_as_many_as_they_are_told() -> None:
    """Each pod is one of them, by the index that Kubernetes gives it and the number in `env`."""
    spec = read(INDEXED)
    one = container(spec)
    assert spec["completionMode"] == "Indexed"
    assert "--shard=auto" in one["args"]
    given = {entry["name"]: entry["value"] for entry in one["env"] if "value" in entry}
    workers = [of_environment({**given, KUBERNETES: str(index)}) for index in range(8)]
    assert [str(worker) for worker in workers] == [f"{index}/8" for index in range(8)]
    assert spec["completions"] == spec["parallelism"] == 8
