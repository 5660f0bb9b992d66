"""The places where operations are tested."""

import pytest
import torch

EMULATED = "emulated cuda"
PLACES = ["cpu", EMULATED, *(["cuda"] if torch.cuda.is_available() else [])]

# As `pytestmark` of a file: all of its tests in all places.
in_all_places = [pytest.mark.usefixtures("place"), pytest.mark.parametrize("place", PLACES, indirect=True)]
