"""The caller's number of threads comes back, also after an error."""

from __future__ import annotations

import pytest
import torch

from labkit.frontends.torch_threads import torch_threads


@pytest.mark.parametrize("wanted", [1, 3])
def test_threads_are_put_back(wanted: int) -> None:
    before = torch.get_num_threads()
    with torch_threads(wanted):
        assert torch.get_num_threads() == wanted
    assert torch.get_num_threads() == before
    with pytest.raises(ZeroDivisionError), torch_threads(before + 1):
        _ = 1 / 0
    assert torch.get_num_threads() == before
