"""What the launchers' tests share."""

import pytest

from tests.launch.scripts import Interpreter


@pytest.fixture
def interpreter(tmp_path):
    return Interpreter(tmp_path)
