import pytest

from benchmarks import __main__ as cli
from benchmarks import data
from benchmarks.run import results
from tests.benchmarks.problems import QUICK


@pytest.fixture(scope="session")
def digits():
    return data.load("digits")


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """The results of a quick run."""
    out = tmp_path_factory.mktemp("out")
    assert (
        cli.main(["run", "permuted-digits", "--methods", "rgo,stl", *QUICK, "--out", str(out)]) == 0
    )
    return out


@pytest.fixture
def jobs_run(folder, monkeypatch):
    """Runs nothing; the jobs that would have been."""
    found = []

    def run(job, *args):
        found.append(job)
        return results.load_all(folder)[0]._replace(method=job.method, config=job.description)

    monkeypatch.setattr(cli.Job, "run", run)
    return found


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """Decoded arrays are kept apart from the user's."""
    monkeypatch.setenv("RGO_JAX_CACHE", str(tmp_path / "cache"))
