import threading

import pytest
import torch
from torch import nn

from medseg.events import Cancelled
from medseg.inference.stopping import stopping_between_layers
from medseg.inference.store import choices_path


class Counting(nn.Module):
    """Counts its calls, and may ask for the end."""

    def __init__(self, calls, stop=None):
        super().__init__()
        self.calls, self.stop = calls, stop

    def forward(self, x):
        self.calls.append(self)
        if self.stop is not None:
            self.stop.set()
        return x


def test_a_network_stops_before_the_layer_that_comes_after_the_wish():
    calls, stop = [], threading.Event()
    network = nn.Sequential(Counting(calls), Counting(calls, stop), Counting(calls))
    with stopping_between_layers(stop.is_set), pytest.raises(Cancelled):
        network(torch.zeros(1))
    assert calls == [network[0], network[1]]


def test_networks_of_other_threads_and_later_ones_go_on():
    calls = []
    network = nn.Sequential(Counting(calls), Counting(calls))
    with stopping_between_layers(lambda: True):
        other = threading.Thread(target=network, args=(torch.zeros(1),))
        other.start()
        other.join()
    assert len(calls) == 2
    network(torch.zeros(1))
    assert len(calls) == 4


@pytest.mark.parametrize(
    ("platform", "environ", "expected"),
    [
        ("linux", {"XDG_CACHE_HOME": "/c"}, "/c/medseg/numerics.json"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/medseg/numerics.json"),
    ],
)
def test_measured_choices_lie_where_the_system_keeps_caches(platform, environ, expected):
    assert choices_path(environ, platform=platform).as_posix() == expected


@pytest.mark.parametrize(("platform", "end"), [("linux", ".cache"), ("darwin", "Library/Caches")])
def test_without_a_setting_the_cache_lies_in_the_home_folder(platform, end):
    assert choices_path({}, platform=platform).parent.parent.as_posix().endswith(end)
