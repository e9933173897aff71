"""configs/kubernetes-job.yaml is what Kubernetes' own schemas call a Job, field by field
(kubernetes-validate ships them). No cluster is asked.
"""

import subprocess
from pathlib import Path

import pytest
from peer import PEERS, ROOT, environment

JOB = ROOT / "configs" / "kubernetes-job.yaml"


def validate(manifest: Path, version: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [PEERS / "kubernetes/bin/kubernetes-validate", "-k", version, "--strict", manifest],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(),
        check=False,
    )


@pytest.mark.parametrize("version", ["1.31", "1.34", "1.37"])
def test_the_job_has_the_form_that_kubernetes_wants(version: str) -> None:
    done = validate(JOB, version)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"passed for resource job/batchrank-2026-11-24 against version {version}" in (
        done.stdout + done.stderr
    )


@pytest.mark.parametrize("field", ["podFailurePolicy", "podReplacementPolicy", "secretKeyRef"])
def test_a_misspelt_field_would_be_found(tmp_path: Path, field: str) -> None:
    wrong = tmp_path / "job.yaml"
    wrong.write_text(JOB.read_text().replace(f"{field}:", f"{field[:-1]}:"))
    assert validate(wrong, "1.37").returncode != 0
