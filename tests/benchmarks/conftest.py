import pytest

from benchmarks import data


@pytest.fixture(scope="session")
def digits():
    return data.load("digits")
