"""The reversible U-Net in two processes that share a batch: one gradient, the right one."""

import os
from pathlib import Path

import torch
import torch.distributed
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from medseg.models.revunet import RevUNet, RevUNetSettings
from tests.forked import in_two_processes


def _data_parallel_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    network, x = _network_and_batch()
    # small buckets: several are reduced while the backward pass still runs
    parallel = DistributedDataParallel(network, bucket_cap_mb=0.01, find_unused_parameters=False)
    for _ in range(2):  # the second step meets the buckets as the first has rebuilt them
        network.zero_grad()
        parallel(x[rank : rank + 1]).square().mean().backward()
    gradients = {name: weight.grad for name, weight in network.named_parameters()}
    torch.save(gradients, Path(folder) / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


def _network_and_batch() -> tuple[RevUNet, Tensor]:
    torch.manual_seed(0)
    network = RevUNet(RevUNetSettings(widths=(8, 16), blocks=2, expansion=2)).double()
    return network, torch.randn(2, 4, 4, 4, 4, dtype=torch.float64)


def test_two_data_parallel_ranks_have_the_gradients_of_one_process(tmp_path: Path) -> None:
    in_two_processes(_data_parallel_rank, str(tmp_path))
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    network, x = _network_and_batch()
    network(x).square().mean().backward()
    for name, weight in network.named_parameters():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], weight.grad, rtol=1e-11, atol=1e-15)
