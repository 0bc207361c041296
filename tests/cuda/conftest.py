"""The tests of this folder run in one process of their own, where torch believes in a GPU: see `tools/fake_cuda`.

They are ordinary functions. Their arguments are sent to that process, so they must be picklable.
"""

from collections.abc import Iterator

import pytest
from fake_cuda.worker import Worker

_worker = Worker()


@pytest.fixture(scope="session", autouse=True)
def _ends_worker() -> Iterator[None]:
    yield
    _worker.close()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool:
    """Run a test of this folder there, and fail with its traceback."""
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    failure = _worker.run(pyfuncitem.module.__name__, pyfuncitem.originalname, arguments)
    if failure is not None:
        pytest.fail(failure, pytrace=False)
    return True
