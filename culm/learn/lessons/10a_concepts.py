# %% [markdown]
# # Lesson 10a: Sentences, concepts and thoughts
#
# **The question.** A language model decides token by token, and a token is a part of a word. People
# plan in larger units. Can a model think in *sentences*, or in states that are no words at all?
#
#     bytes -> tokens -> words -> sentences -> texts
#     |----- lesson 4a ------|    |-- this one --|
#
# Two answers: a Large Concept Model (arXiv 2412.08821) predicts the next sentence as a vector, a
# *concept*. Coconut (arXiv 2412.06769) lets a model feed its own states back, instead of writing
# its thoughts down.

# %%
import torch

from culm.eval import plots
from culm.learn import practice
from culm.learn.lesson import exercise, replaced, show

torch.manual_seed(0)
torch.set_num_threads(1)

# %% [markdown]
# ## How large is a unit?
#
# Larger units make shorter sequences, and there are more different ones. Tokens that are merged
# more often (lesson 4a) come at a price: a larger table, and rows that are rarely trained. No
# table has all sentences: from there on, vectors are needed.


# %%
@exercise("concepts.sentences")
def sentences(text):
    """A text -> a list of sentences; joined, they give the text."""
    raise NotImplementedError


from culm.tokenizer.reference_bpe import ReferenceBPE

story = (
    "The wind rose in the night. A door slammed! Who was there? Nobody answered. The old dog "
    "lifted its head, and slept again. In the morning the yard was white with snow. "
)
corpus = practice.text(("textwrap",))[:15_000]
bpe = ReferenceBPE.train([corpus], merges=400)
lengths = {}
for merges in (0, 25, 50, 100, 200, 400):
    smaller = ReferenceBPE(bpe.merges[:merges])
    lengths[merges] = len(corpus.encode()) / len(smaller.encode(corpus))
show(
    "units",
    plots.lines,
    {"tokens": list(lengths.items())},
    "merges of the tokenizer",
    "bytes of a token",
)
print(f"sentences: {len(story) / len(sentences(story)):.0f} bytes each")

# %% [markdown]
# ## From a sentence to a vector
#
# An autoencoder gives the vectors: an encoder reads a sentence and averages its states to a
# concept; a decoder writes the sentence from it. Both are trained together until the sentence
# comes back (`culm/concept/model.py`). The concepts are then brought to the same scale in each
# dimension. Outliers must not decide that scale, so median and quartiles are used.


# %%
@exercise("concepts.normalized")
def normalized(concepts):
    """(N, C) -> (N, C)."""
    raise NotImplementedError


concepts = torch.randn(500, 2) * torch.tensor([0.1, 20.0])
concepts[0] = 5000.0
print("deviation after it:", [round(float(x), 2) for x in normalized(concepts)[1:].std(0)])

# %% [markdown]
# Is a predicted concept good? Rank all sentences of the test by their cosine to it. Where is the
# true one? The mean of 1 / rank is 1 if it is always the first.


# %%
@exercise("concepts.mrr")
def mrr(predicted, truth):
    """(N, C), (N, C) -> a number from 0 to 1."""
    raise NotImplementedError


truth = torch.randn(200, 16)
found = [(s / 4, mrr(truth + s / 4 * torch.randn(200, 16), truth)) for s in range(0, 20, 2)]
show("mrr", plots.lines, {"200 sentences": found}, "noise in the prediction", "mean of 1 / rank")

# %% [markdown]
# ## The mean of all that may follow
#
# After "She opened the door." many sentences may follow. A network with a squared error predicts
# their *mean*, which may be no sentence at all. Two remedies. The first: make concepts discrete,
# coarse to fine (*residual quantisation*). Each codebook quantises what the ones before left over;
# then predict codes with probabilities, as with tokens.


# %%
@exercise("concepts.codes")
def codes(vectors, entries):
    """vectors: (N, C), entries: (codebooks, codes, C) -> (N, codebooks) numbers."""
    raise NotImplementedError


from culm.concept.codes import Codebooks

vectors = torch.randn(600, 8)
books = Codebooks(5, 16, 8)
books.fit(vectors, seed=0)
numbers = codes(vectors, books.entries)
left = [
    (count, (vectors - books.parts(numbers)[:, :count].sum(1)).square().mean().item())
    for count in range(6)
]
show("codes", plots.lines, {"16 codes each": left}, "codebooks", "squared error per number")

# %% [markdown]
# The second: *diffusion*. Mix concepts with more and more noise, and learn to take it away. To
# sample, start with noise and clean it up step by step: each run ends at another concept that may
# follow.


# %%
@exercise("concepts.noisy")
def noisy(concepts, noise, kept):
    """concepts, noise: (N, C), kept: (N,) shares -> (N, C)."""
    raise NotImplementedError


x, noise = torch.randn(2, 400, 64)
shares = torch.linspace(0, 1, 11)
seen = []
for share in shares.tolist():
    mixed = noisy(x, noise, torch.full((400,), share))
    seen.append((share, torch.cosine_similarity(mixed, x).mean().item()))
line = [(share, share**0.5) for share in torch.linspace(0, 1, 50).tolist()]
show(
    "noise", plots.expected, seen, line, "share that is kept", "cosine to the concept",
    ("its root", "seen"),
)  # fmt: skip

# %% [markdown]
# *Guidance* (arXiv 2207.12598): estimate with and without the context, and go further in the
# direction in which the context points. Too much of it, and all samples look alike.


# %%
@exercise("concepts.guided")
def guided(with_context, without, weight):
    """(N, C), (N, C) -> (N, C)."""
    raise NotImplementedError


# %% [markdown]
# ## The library's version
#
# `culm/concept/squared_error.py`, `culm/concept/quantized.py` and `culm/concept/two_tower.py` are
# three networks on the same trunk; `culm/concept/diffusion.py` has the noise. The language is as
# simple as possible: after a concept c follows c rotated in a fixed way, plus or minus a fixed
# d. A coin decides, so nobody can know.
#
# ## An experiment: predict what a coin decides
#
# Prediction: the squared error ends at the mean, 0 along d. Codes and diffusion give about as many
# +1 as -1, and little between. In the diffusion, the noise is mixed by your function.

# %%
from culm.concept import denoising
from culm.concept.diffusion import Diffusion, Sampler
from culm.concept.network import Chances, ConceptTrunk
from culm.concept.quantized import Quantized
from culm.concept.squared_error import Base
from culm.concept.two_tower import TwoTower
from culm.model.attention.gqa import GQA

DIM = 8
turn = torch.linalg.qr(torch.randn(DIM, DIM)).Q
along = torch.zeros(DIM)
along[0] = 1.0


def texts(count):
    """(count, 2, C): a concept, and one that follows it."""
    first = torch.randn(count, DIM) * 0.5
    coin = torch.randint(2, (count, 1)) * 2.0 - 1
    return torch.stack((first, first @ turn + coin * along), 1)


def my_noisy(concepts, noise, kept):
    return noisy(concepts.flatten(0, -2), noise.flatten(0, -2), kept.flatten()).view_as(concepts)


def trained(config, steps):
    network = config.initialized(DIM, seed=0)
    network.calibrate(texts(2000)[:, 1], seed=0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    present = torch.ones(64, 2, dtype=torch.bool)
    for step in range(steps):
        chances = Chances.of(0, step, range(64))  # of the noise of each text
        loss = sum(network.loss(texts(64), present, chances).values()) / 64
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


trunk = ConceptTrunk(width=32, layers=1, context=4, attention=(GQA(heads=2),))
plain = Sampler(guidance=1.0, rescale=0.0, noise=1.0, steps=20)
kinds = {
    "squared error": (Base(trunk=trunk), 250),
    "codes": (Quantized(trunk=trunk, codebooks=3, codes=16), 300),
    "diffusion": (
        TwoTower(
            trunk=trunk, denoiser_layers=1, denoiser_heads=2,
            diffusion=Diffusion(steps=40, self_conditioning=False),
        ),
        500,
    ),
}  # fmt: skip
curves = {}
edges = torch.linspace(-2, 2, 21)
with replaced(denoising, "noisy", my_noisy):
    for name, (config, steps) in kinds.items():
        network, test = trained(config, steps), texts(400)
        with torch.no_grad():
            guess = network.predictions(test[:, :1], plain, network.random((400, 1)))[:, 0]
        offset = (guess - test[:, 0] @ turn) @ along
        counts = torch.histc(offset, 20, -2, 2)
        curves[name] = list(zip((edges[:-1] + 0.1).tolist(), counts.tolist(), strict=True))
        print(f"{name:<14} mean {offset.mean():+.2f}, mean size {offset.abs().mean():.2f}")
show("coin", plots.lines, curves, "predicted concept along d", "of 400 samples")

# %% [markdown]
# ## Thoughts without words
#
# A model that reasons writes its steps, and pays a token for each word. But a step need not be
# words: append the last *state* to what the model reads, as if it were the embedding of a token.
# That is a *continuous thought* (`culm/concept/thoughts.py`). `embed` gives the vectors of tokens,
# `states` the last states of a model that reads vectors.


# %%
@exercise("thoughts.thoughts")
def thoughts(embed, states, tokens, count):
    """tokens: (T,) -> (count, E), the states that were appended."""
    raise NotImplementedError


# %% [markdown]
# How does a model learn what to think? It starts with steps in words. At each stage one step more
# becomes a thought, the first ones first (`culm/objective/coconut.py`). Only what is written is
# learned, and the gradient flows back through the thoughts.


# %%
@exercise("thoughts.staged")
def staged(question, steps, answer, stage):
    """Lists of ids -> one list: 97 begins the thoughts, 98 is one, 99 ends them."""
    raise NotImplementedError


for stage in range(4):
    print(stage, staged([1, 2], [[11, 12, 13], [21, 22], [31, 32]], [5], stage))
writing = [
    (n, len(staged([1, 2], [[11, 12, 13], [21, 22], [31, 32]], [5], n)) - 2) for n in range(4)
]
show("stages", plots.lines, {"after the question": writing}, "stage", "tokens and thoughts")

# %% [markdown]
# ## What goes wrong in practice
#
# - **The autoencoder is the limit.** What it does not restore, no network can say. Measure the
#   restored sentences first.
# - **Near the mean.** A small squared error can mean that all predictions are the same. Look at
#   ranks (`mrr`), and at the spread of the predictions.
# - **Sentences are split badly.** Code, lists and tables have none. Abbreviations end none: the
#   library's rules (`culm/concept/sentences.py`) know that.
# - **Thoughts that nobody can read.** A wrong chain of words can be checked, a state cannot.
# - **n thoughts are n + 1 forwards.** They cannot be computed at once, so training is slower.
