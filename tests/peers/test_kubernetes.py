"""The Jobs in configs/ are what Kubernetes' own schemas call a Job, field by field
(kubernetes-validate ships them). No cluster is asked.
"""

import subprocess
from pathlib import Path

import pytest
from peer import PEERS, ROOT, environment

JOB = ROOT / "configs" / "kubernetes-job.yaml"
INDEXED = ROOT / "configs" / "kubernetes-indexed-job.yaml"


def validate(manifest: Path, version: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [PEERS / "kubernetes/bin/kubernetes-validate", "-k", version, "--strict", manifest],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(),
        check=False,
    )


@pytest.mark.parametrize(
    ("job", "name", "version"),
    [
        *((JOB, "batchrank-2026-11-24", version) for version in ("1.31", "1.34", "1.37")),
        *((INDEXED, "batchrank-shards-2026-11-24", version) for version in ("1.34", "1.37")),
    ],
)
def test_the_job_has_the_form_that_kubernetes_wants(job: Path, name: str, version: str) -> None:
    done = validate(job, version)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"passed for resource job/{name} against version {version}" in (
        done.stdout + done.stderr
    )


@pytest.mark.parametrize(
    ("job", "field"),
    [
        *((JOB, name) for name in ("podFailurePolicy", "podReplacementPolicy", "secretKeyRef")),
        *((INDEXED, name) for name in ("backoffLimitPerIndex", "completionMode")),
    ],
)
def test_a_misspelt_field_would_be_found(tmp_path: Path, job: Path, field: str) -> None:
    wrong = tmp_path / "job.yaml"
    wrong.write_text(job.read_text().replace(f"{field}:", f"{field[:-1]}:"))
    assert validate(wrong, "1.37").returncode != 0
