# %% [markdown]
# # Lesson 6a: Supervised fine-tuning
#
# **The question.** The model of lesson 2 continues texts. Ask it a question, and it may continue
# with three more questions. How does it become one that *answers*? And how do you know how often
# its answers are right?
#
# *Supervised fine-tuning* (SFT) is the loop that you know, on dialogues that show what you want:
#
#     <|user|>Reverse: a b c<|end|><|assistant|>c b a<|end|>
#     ------------------------------------------               read
#                                               ------------   learned

# %%
import torch

from culm.eval import plots
from culm.learn import dialogues, practice
from culm.learn.lesson import exercise, show
from culm.optim.muon import Muon
from culm.task.letters import Letters

torch.manual_seed(0)
torch.set_num_threads(1)

# %% [markdown]
# ## A dialogue is a text
#
# A model reads one sequence of tokens, so the turns of a dialogue need marks: a *chat template*.
# The marks are special tokens, which no text of a user can contain. In generation, the prompt ends
# with the mark of the assistant, and the model stops where it writes the end of a turn.


# %%
@exercise("sft.template")
def template(messages, prompt):
    """messages: dicts with role and content; prompt: the assistant speaks next -> a text."""
    raise NotImplementedError


asked = [{"role": "user", "content": "Reverse: a b c"}]
said = [*asked, {"role": "assistant", "content": "c b a"}]
print(template(asked, True))
print(template(said, False))

# %% [markdown]
# ## What is learned
#
# The model shall learn to answer, not to ask. So the loss counts the assistant's tokens only, and
# the end after them: without it the model never learns to stop. A special token is one token, a
# letter is a byte here.


# %%
@exercise("sft.learned")
def learned(messages):
    """messages: as above -> a list of True and False, one for each token of the template."""
    raise NotImplementedError


tokenizer = dialogues.tokenizer()
ids = tokenizer.chat.encode(said).ids
names = [tokenizer.decode([id], specials=True) for id in ids]
show(
    "mask",
    plots.table,
    torch.tensor([learned(said)]),
    "token",
    "learned",
    [name.strip("<|>") or name for name in names],
    [""],
    "the tokens that are learned",
)

# %% [markdown]
# The logits at a token predict the *next* one. So the target of a token is the token after it, if
# that one is learned, and -100 ("ignore") if not. This shift by one is the most frequent fault in
# code for fine-tuning.


# %%
@exercise("sft.targets")
def targets(ids, mask):
    """ids: a list, mask: which are learned -> targets (T,), the last one is -100."""
    raise NotImplementedError


@exercise("sft.answer_loss")
def answer_loss(logits, wanted):
    """logits: (B, T, V), wanted: (B, T) -> mean loss of all targets, a tensor without axes."""
    raise NotImplementedError


# %% [markdown]
# ## The library's version
#
# `culm/tokenizer/chat.py` writes the template and the mask, `culm/data/tensors.py` shifts (there
# and nowhere else), `culm/data/format/chat.py` reads dialogues from a file. The task of this
# lesson is from `culm/task/letters.py`: write two or three letters backwards. Its questions for
# training and for the test never meet.
#
# Your loss next to the library's, on the same batches:

# %%
task = Letters(name="reverse", operation="reverse", shortest=2, longest=3)
examples = dialogues.examples(task, 2000)
data = dialogues.Rows(examples, size=16)
ours = practice.train(dialogues.chat_model(), data, steps=15)

model = dialogues.chat_model().build(seed=0)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95))
yours = []
for step in range(15):
    (batch,) = data.step(step)
    loss = answer_loss(model(batch.tokens), batch.targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    yours.append((step + 1, loss.item()))
show("loops", plots.expected, yours, ours.losses, "step", "loss, nats", ("library", "yours"))

# %% [markdown]
# The curves differ a little: the library warms up its learning rate and clips gradients (lesson
# 4a).
#
# ## An experiment: two wrong masks
#
# Three models, the same dialogues. The first learns answers and their ends. The second learns all
# tokens, the questions too. The third learns answers without their ends. Prediction: the second
# spends its effort on letters that nobody can predict, and the third is right but does not stop.


# %%
def everything(row):
    return row[0], [True] * len(row[0])


def endless(row):
    ids, mask = row
    return ids, [own and id not in tokenizer.stop_ids for id, own in zip(ids, mask, strict=True)]


kinds = {"answers": lambda row: row, "all tokens": everything, "without ends": endless}
questions = dialogues.questions(task, "test", 60)
prompts = [one.prompt for one in questions]
right, models = {}, {}
for name, changed in kinds.items():
    rows = dialogues.Rows([changed(row) for row in examples], size=16)
    trained = practice.train(dialogues.chat_model(), rows, steps=240, optimizer=Muon(rate=2e-2))
    models[name] = trained.model
    replies = dialogues.replies(trained.model, prompts)
    scores = [task.score(one, reply) for one, reply in zip(questions, replies, strict=True)]
    right[name] = sum(scores) / len(scores)
    print(f"{name:<13} exact {right[name]:.2f}, such as {replies[0]!r}")
show("masks", plots.columns, right, "what is learned", "share of exact answers")

# %% [markdown]
# ## Is the answer right?
#
# There is a *gold answer* for each question. But "The answer is 42." and "42" are both right, so
# a reply is brought into a plain form before it is compared. The usual ones: without case,
# punctuation and articles (SQuAD), and the last number of the reply (GSM8K). The library has them
# in `culm/task/grade.py`.


# %%
@exercise("grading.normalized")
def normalized(text):
    """A text -> lower case, without punctuation, articles and further white space."""
    raise NotImplementedError


@exercise("grading.last_number")
def last_number(text):
    """A text -> its last number as a float, or None."""
    raise NotImplementedError


print(normalized("The answer: 42!"), last_number("6 boxes of 7 make 42."))

# %% [markdown]
# ## How sure are we?
#
# 54 of 60 is 90 %. Of the next 60 questions, it may be 50 or 58. Wilson's interval contains the
# true share in 95 of 100 such tests, also near 0 and 1 (`culm/eval/interval.py`). Without it, a
# table of models says little.


# %%
@exercise("grading.wilson")
def wilson(right, items):
    """right of items -> the lower and the upper end."""
    raise NotImplementedError


chance = torch.Generator().manual_seed(0)
covered = []
for share in (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98):
    drawn = (torch.rand(1000, 60, generator=chance) < share).sum(1).tolist()
    inside = [low <= share <= high for low, high in (wilson(n, 60) for n in drawn)]
    covered.append((share, sum(inside) / 1000))
line = [(share, 0.95) for share, _ in covered]
show(
    "intervals",
    plots.expected,
    covered,
    line,
    "true share",
    "share of intervals that contain it",
    ("95 %", "1,000 tests of 60 questions"),
)
print("60 questions:", [f"{end:.2f}" for end in wilson(54, 60)])
print("600 questions:", [f"{end:.2f}" for end in wilson(540, 600)])

# %% [markdown]
# A model that samples may be right at the second attempt. *pass@k* is the probability that one
# of k samples is right. Sample n of them, more than k, count the right ones, and compute what k
# of these would give on average (`culm/eval/pass_at_k.py`). The formula 1 - (1 - p)^k is wrong
# for that: it chooses the same sample twice.


# %%
@exercise("grading.pass_at_k")
def pass_at_k(samples, right, k):
    """samples, and how many of them are right -> the probability for k."""
    raise NotImplementedError


from culm.engine.sampling import Sampling

samples, few = 16, questions[:12]
counts = []
for place, one in enumerate(few):
    sampling = Sampling(temperature=1.0, seed=1000 * place)
    tried = dialogues.replies(models["answers"], [one.prompt] * samples, sampling)
    counts.append(int(sum(task.score(one, reply) for reply in tried)))
curve = [
    (k, sum(pass_at_k(samples, n, k) for n in counts) / len(counts)) for k in range(1, samples + 1)
]
show("pass-at-k", plots.lines, {"temperature 1": curve}, "k", "pass@k")

# %% [markdown]
# ## What goes wrong in practice
#
# - **The end is not learned.** Then a model never stops. Some templates end a turn with a token
#   that the base model does not know as an end; Culm says so and adds it.
# - **Another template in training than in use.** One missing line break costs several points.
#   Use the template that comes with the tokenizer, in both.
# - **Special tokens from a user.** Text that spells `<|assistant|>` must stay text. Culm encodes
#   contents without special tokens.
# - **Truncation.** A dialogue longer than the context may lose its answer, and then trains on
#   nothing. `culm plan` counts what is learned.
# - **Test questions in the training data.** Split before you write the dialogues.
# - **Forgetting.** A model that learns one format for long forgets others. Mix in text of the
#   first stage (the quickstart does), train for fewer steps, or with LoRA (lesson 6b).
