"""Shared by all tests: one thread, no network."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["ACCELERATE_USE_CPU"] = "true"

import pytest

from helpers import forget_accelerate


@pytest.fixture
def fresh_accelerate():
    """For tests that build a trainer in this process."""
    yield
    forget_accelerate()
