"""Every model of the zoo as a fixture."""

import pytest

from tests.small_models import build, initialize


@pytest.fixture(scope="session", params=["griffin", "hawk", "transformer"])
def name(request):
  return request.param


@pytest.fixture(scope="session")
def model(name):
  return build(name)


@pytest.fixture(scope="session")
def params(model):
  return initialize(model)
