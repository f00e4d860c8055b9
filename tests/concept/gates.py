"""What the gates of concept networks share: vectors as batches, and synthetic documents."""

from collections.abc import Callable

import torch
from learning import fit
from torch import Tensor

from culm.batch import Batch, Loss, Term
from culm.concept.network import Chances, ConceptNetwork, ConceptTrunk, NetworkConfig
from culm.concept.one_tower import OneTower
from culm.concept.quantized import Quantized
from culm.concept.squared_error import Base
from culm.concept.two_tower import TwoTower
from culm.model.attention.gqa import GQA
from culm.objective.objective import Trained

DIM = 6
TRUNK = ConceptTrunk(width=24, layers=2, context=8, attention=(GQA(heads=2, qk_norm="head"),))
NETWORKS: tuple[NetworkConfig, ...] = (
    Base(trunk=TRUNK),
    OneTower(trunk=TRUNK),
    TwoTower(trunk=TRUNK, denoiser_layers=2, denoiser_heads=2),
    Quantized(trunk=TRUNK, codebooks=2, codes=4),
)
KINDS = [network.kind for network in NETWORKS]


def network_of(config: NetworkConfig, seed: int = 0, scale: float = 3.0) -> ConceptNetwork:
    """A network whose weights are large enough for every input to matter, zero ones included."""
    network = config.initialized(DIM, seed).eval()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(scale).add_(0.1 * torch.randn(parameter.shape, generator=random))
    network.calibrate(torch.randn(64, DIM, generator=random), seed)
    return network


class Vectors(Trained):
    """The objective of a network on given concepts."""

    def __init__(self, network: ConceptNetwork) -> None:
        super().__init__()
        self.network, self.steps = network, 0

    def forward(self, batch: Batch) -> Loss:
        concepts = batch.extra["concepts"]
        present = torch.ones(concepts.shape[:2], dtype=torch.bool)
        chances = Chances.of(0, self.steps, range(len(concepts)))
        self.steps += 1
        terms = self.network.loss(concepts, present, chances)
        return Loss({name: Term(total, "targets") for name, total in terms.items()})


def batch_of(concepts: Tensor) -> Batch:
    """Rows of concepts (B, S, C)."""
    rows, size = concepts.shape[:2]
    tokens = torch.zeros(rows, size, dtype=torch.int64)
    counts = {"tokens": float(rows * size), "targets": float(rows * (size - 1))}
    return Batch(tokens, tokens, tokens, counts=counts, extra={"concepts": concepts})


def trained(
    config: NetworkConfig, documents: Callable[[int], Tensor], steps: int, rate: float, seed: int
) -> ConceptNetwork:
    """A network after some steps. documents: of a step, (B, S, C); those of -1 calibrate it."""
    given = documents(-1)
    network = config.initialized(given.shape[-1], seed)
    network.calibrate(given.flatten(0, 1), seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.0)
    fit(Vectors(network), lambda step: [batch_of(documents(step))], steps, optimizer, clip=1.0)
    return network.eval()


def generator(*key: int) -> torch.Generator:
    return torch.Generator().manual_seed(sum(part * 1_000_003**i for i, part in enumerate(key)))


def forked(step: int, seed: int = 0, rows: int = 64, dim: int = 4) -> tuple[Tensor, Tensor]:
    """Documents A, then B or C, each as often as the other; and (2, C): B and C, +-mu."""
    fixed = generator(seed)
    first, mode = torch.randn(dim, generator=fixed), torch.randn(dim, generator=fixed)
    random = generator(seed, step + 2)
    signs = torch.randint(2, (rows, 1), generator=random) * 2.0 - 1
    noise = 0.05 * torch.randn(rows, 2, dim, generator=random)
    documents = torch.stack((first.expand(rows, -1), signs * mode), 1) + noise
    return documents, torch.stack((mode, -mode))


class Grammar:
    """Documents of 50 concepts, where the next one is a function of the last two."""

    def __init__(self, seed: int, concepts: int = 50, dim: int = 16) -> None:
        random = generator(seed)
        self.vectors = torch.randn(concepts, dim, generator=random)
        self.following = torch.randint(concepts, (concepts, concepts), generator=random)
        self.seed = seed

    def ids(self, step: int, rows: int = 64, length: int = 12) -> Tensor:
        """(B, S) int64."""
        random = generator(self.seed, step + 2)
        ids = list(torch.randint(len(self.vectors), (2, rows), generator=random))
        while len(ids) < length:
            ids.append(self.following[ids[-2], ids[-1]])
        return torch.stack(ids, 1)

    def documents(self, step: int) -> Tensor:
        return self.vectors[self.ids(step)]

    def recall(self, predicted: Tensor, ids: Tensor) -> float:
        """Share of predictions (B, N, C) whose nearest concept is the right one, (B, N)."""
        nearest = torch.cdist(predicted, self.vectors).argmin(-1)
        return float((nearest == ids).float().mean())
