"""The count of live bytes: views, sharing, release, and equality between devices."""

import torch
from torch import nn

from medseg.ops.live_storage import LiveStorage, step_memory


def test_a_tensor_counts_from_its_making_to_its_release() -> None:
    with LiveStorage() as storage:
        a = torch.zeros(100)
        b = a + 1
        assert storage.live_bytes == 800
        del a
        assert storage.live_bytes == 400
        b.add_(1)
        assert storage.live_bytes == 400
        del b
        assert storage.live_bytes == 0
    assert storage.peak_bytes == 800


def test_views_share_the_bytes_of_their_base_and_keep_all_of_them() -> None:
    with LiveStorage() as storage:
        base = torch.zeros(10, 10)
        corner = base[:2, :2].transpose(0, 1)
        assert storage.live_bytes == 400
        del base
        assert storage.live_bytes == 400
        del corner
    assert storage.live_bytes == 0


def test_what_was_there_before_does_not_count() -> None:
    known = torch.zeros(50)
    with LiveStorage([known]) as storage:
        view = known.view(5, 10)
        assert storage.live_bytes == 0
        assert view.sum().nbytes == storage.peak_bytes == 4


def test_a_step_of_one_matrix_product_is_counted_as_on_paper() -> None:
    layer = nn.Linear(6, 5, bias=False)
    memory = step_memory(layer, torch.zeros(3, 6))
    assert memory.forward_bytes == 3 * 5 * 4
    # output, scalar sum, stacked sum and loss; then the gradient of the weight comes to it
    assert memory.peak_bytes >= 5 * 6 * 4
    assert layer.weight.grad is None


def test_the_meta_device_counts_what_the_processor_counts() -> None:
    found = []
    for device in ("cpu", "meta"):
        with torch.device(device):
            network = nn.Sequential(
                nn.Conv3d(2, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.MaxPool3d(2)
            )
            found.append(step_memory(network, torch.zeros(1, 2, 8, 8, 8)))
    assert found[0] == found[1]


def test_all_heads_of_a_network_take_part_in_the_step() -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 400)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.first(x), self.second(x)

    gradients = (4 * 4 + 4 + 4 * 400 + 400) * 4
    assert step_memory(TwoHeads(), torch.zeros(1, 4)).peak_bytes >= gradients
