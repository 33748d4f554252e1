"""The synthetic dataset, written once, and what is made of it."""

import pytest

from pokevla_jax.data.normalize import compute_statistics
from pokevla_jax.data.records import open_dataset
from pokevla_jax.data.tokenize import load_tokenizer
from tests.data import synthetic


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """Read only: a test that damages files writes its own."""
    return open_dataset(synthetic.write(tmp_path_factory.mktemp("balls")))


@pytest.fixture(scope="session")
def statistics(dataset):
    return compute_statistics(dataset)


@pytest.fixture(scope="session")
def tokenizer(dataset):
    return load_tokenizer("compact", (info.instruction for info in dataset.episodes))
