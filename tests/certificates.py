"""Certificates of a test's own."""

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest


def make_certificate(folder: Path, host: str) -> Path:
    """Make a key and a certificate of a host, in one file. Skip the test without openssl."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    file = folder / "both.pem"
    made = f"-keyout {file} -out {file}.crt -addext subjectAltName=DNS:{host}"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={host} {made}"
    subprocess.run(command.split(), check=True, capture_output=True)
    file.write_text(file.read_text() + Path(f"{file}.crt").read_text())
    return file


def server_context(certificate: Path) -> ssl.SSLContext:
    """Return what a server needs to speak TLS with that certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context
