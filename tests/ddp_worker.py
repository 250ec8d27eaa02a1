"""One of several processes that train together; a module of its own, since it is spawned."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from medseg.models.table import build_network


def train_in_step(rank: int, world: int, names: list[str], meeting: str, folder: str) -> None:
    """Two steps of every network on different images; gradients of the last go to ``folder``."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    for name in names:
        torch.manual_seed(0)
        network = build_network(name, {"preset": "tiny", "in_channels": 1, "out_channels": 2})
        parallel = DistributedDataParallel(network, broadcast_buffers=False)
        torch.manual_seed(1 + rank)
        for _ in range(2):
            network.zero_grad()
            x = torch.randn(2, 1, *(2 * step for step in network.size_multiple))
            answer = parallel(x)
            heads = answer if isinstance(answer, tuple) else (answer,)
            losses = [
                F.cross_entropy(head, torch.zeros_like(head[:, 0], dtype=torch.int64))
                for head in heads
            ]
            # a step that left a weight out would fail at the next forward pass
            torch.stack(losses).sum().backward()
        gradients = {
            key: weight.grad
            for key, weight in network.named_parameters()
            if weight.grad is not None
        }
        torch.save({"images": x, "gradients": gradients}, f"{folder}/{name}-{rank}.pt")
    dist.destroy_process_group()
