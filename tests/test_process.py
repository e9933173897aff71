"""What a process sets for itself is taken back, and leaves a user's own settings alone."""

import gc
import os

import pytest

from batchrank.session.process import rarely_collected, spare_threads


def test_garbage_is_looked_for_as_before_once_the_last_run_has_ended() -> None:
    before = gc.get_threshold()
    first, second = rarely_collected(), rarely_collected()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert gc.get_threshold()[0] > before[0]
    second.__exit__(None, None, None)
    assert gc.get_threshold() == before


def test_a_users_number_of_threads_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    spare_threads()
    assert os.environ["OPENBLAS_NUM_THREADS"] == "3"
    monkeypatch.delenv("OPENBLAS_NUM_THREADS")
    spare_threads()
    assert os.environ["OPENBLAS_NUM_THREADS"] == "1"
