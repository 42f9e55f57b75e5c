"""Pruning that processes share: `python shared_child.py RANK RANKS STORE OUT`."""

import sys

import torch
import torch.distributed as dist
from conftest import tiny_clip

import vlprune

CASES = {
    "Wanda, OWL": vlprune.WandaConfig(
        pattern="unstructured", sparsity=0.5, allocation=vlprune.OWL(m=2), batch_size=3, samples=11
    ),
    "SparseGPT, dense, ECoFLaP": vlprune.SparseGPTConfig(
        pattern="unstructured",
        sparsity=0.6,
        allocation=vlprune.ECoFLaP(samples=8, batch_size=4, draws=2),
        activations="dense",
        batch_size=4,
        samples=11,
    ),
    "RIA 2:4, weighted tokens": vlprune.RIAConfig(
        pattern="2:4", token_weight=vlprune.ATV(), batch_size=11, samples=11, offload=True
    ),
}


def run():
    """Prune in several ways; the weights and the report's numbers of each, and what was refused."""
    found = {}
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(11, 3, 32, 32, generator=generator)
    texts = torch.randint(1, 50, (11, 12), generator=generator)
    for name, config in CASES.items():
        torch.manual_seed(1)
        model = tiny_clip()
        size = config.batch_size
        pairs = list(zip(images.split(size), texts.split(size), strict=True))
        report = vlprune.prune_(model, config, pairs, progress=False)
        numbers = [(layer.name, layer.zeros, layer.target, layer.importance) for layer in report.layers]
        found[name] = (numbers, dict(model.state_dict()))
    return found


def refused(rank):
    """Return what is said of models and data that differ between ranks, and of a broken batch."""
    torch.manual_seed(1)
    model, said = tiny_clip(), []
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = vlprune.WandaConfig(pattern="unstructured", sparsity=0.5)
    images, texts = torch.zeros(2, 3, 32, 32), torch.ones(2, 12, dtype=torch.long)

    def attempt(*pairs):
        try:
            vlprune.prune_(model, config, list(pairs), progress=False)
        except (IndexError, RuntimeError, ValueError) as error:
            said.append(f"{type(error).__name__}: {error}")

    attempt((images + rank, texts), (images, texts))
    # the second batch is the second rank's, and its words are not in the vocabulary
    attempt((images, texts), (images, texts + 1000))
    said.append(all(torch.equal(value, before[name]) for name, value in model.state_dict().items()))
    with torch.no_grad():
        model.visual.proj += rank
    attempt((images, texts), (images, texts))
    return said


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank, ranks = int(sys.argv[1]), int(sys.argv[2])
    dist.init_process_group("gloo", f"file://{sys.argv[3]}", rank=rank, world_size=ranks)
    torch.save((run(), refused(rank) if ranks == 2 else None), f"{sys.argv[4]}/{rank}.pt")
    dist.destroy_process_group()
