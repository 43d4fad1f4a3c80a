from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import families


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A second thread only waits for tensors so small."""
    with families.one_thread():
        yield
