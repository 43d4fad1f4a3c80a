from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests do not depend on where the user keeps runs."""
    monkeypatch.delenv("CIRCUITFIND_OUTPUTS", raising=False)
