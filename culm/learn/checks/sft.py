"""Exercises of lesson 6a: dialogues, and what of them is learned."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from culm.learn.dialogues import padded, tokenizer
from culm.learn.exercise import Exercise, Mistake, normal, whole

Messages = list[dict[str, str]]
ASKED: Messages = [{"role": "user", "content": "2 + 2?"}]
SAID: Messages = [*ASKED, {"role": "assistant", "content": "4"}]
LONG: Messages = [{"role": "system", "content": "Be short."}, *SAID, *ASKED]


def template(messages: Messages, prompt: bool) -> str:
    chat = tokenizer().chat
    ids = chat.prompt(messages) if prompt else chat.encode(messages).ids
    return tokenizer().decode(ids, specials=True)


def template_answer(messages: Messages, prompt: bool) -> str:
    said = "".join(f"<|{one['role']}|>{one['content']}<|end|>" for one in messages)
    return said + ("<|assistant|>" if prompt else "")


def _template_without_ends(messages: Messages, prompt: bool) -> str:
    return template_answer(messages, prompt).replace("<|end|>", "")


def _template_without_prompt(messages: Messages, prompt: bool) -> str:
    return template_answer(messages, False)


def learned(messages: Messages) -> list[bool]:
    return tokenizer().chat.encode(messages).learned


def learned_answer(messages: Messages) -> list[bool]:
    mask = []
    for one in messages:
        count = len(one["content"].encode())
        mask += [False] + [one["role"] == "assistant"] * (count + 1)
    return mask


def _learned_everything(messages: Messages) -> list[bool]:
    return [True] * len(learned_answer(messages))


def _learned_without_end(messages: Messages) -> list[bool]:
    mask = []
    for one in messages:
        count = len(one["content"].encode())
        mask += [False, *[one["role"] == "assistant"] * count, False]
    return mask


def targets(ids: list[int], mask: list[bool]) -> Tensor:
    return padded([(ids, mask)]).targets[0]


def targets_answer(ids: list[int], mask: list[bool]) -> Tensor:
    following = [token if own else -100 for token, own in zip(ids, mask, strict=True)][1:]
    return torch.tensor([*following, -100])


def _targets_unshifted(ids: list[int], mask: list[bool]) -> Tensor:
    return torch.tensor([token if own else -100 for token, own in zip(ids, mask, strict=True)])


def _targets_mask_unshifted(ids: list[int], mask: list[bool]) -> Tensor:
    pairs = zip(ids[1:], mask[:-1], strict=True)
    return torch.tensor([*(token if own else -100 for token, own in pairs), -100])


def answer_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=-100)


def answer_loss_answer(logits: Tensor, wanted: Tensor) -> Tensor:
    own = wanted >= 0
    found = logits.log_softmax(-1).gather(-1, wanted.clamp_min(0)[..., None])[..., 0]
    return -(found * own).sum() / own.sum()


def _loss_over_all(logits: Tensor, wanted: Tensor) -> Tensor:
    return answer_loss_answer(logits, wanted) * (wanted >= 0).sum() / wanted.numel()


def _loss_of_rows(logits: Tensor, wanted: Tensor) -> Tensor:
    pairs = zip(logits, wanted, strict=True)
    return torch.stack([answer_loss_answer(a[None], b[None]) for a, b in pairs]).mean()


EXERCISES = (
    Exercise(
        "sft.template",
        "Write each message as <|role|>content<|end|>, and after a prompt the mark of the "
        "assistant.",
        template,
        lambda g: [(SAID, False), (ASKED, True), (LONG, True)],
        template_answer,
        (
            Mistake("without <|end|> the model never learns to stop.", _template_without_ends),
            Mistake("a prompt ends with <|assistant|>.", _template_without_prompt),
        ),
    ),
    Exercise(
        "sft.learned",
        "Give for each token whether it is learned: the assistant's bytes and the end after them.",
        learned,
        lambda g: [(SAID,), (LONG[:-1],), ([*SAID, *SAID],)],
        learned_answer,
        (
            Mistake("only what the assistant says is learned.", _learned_everything),
            Mistake("the end of an answer is learned too.", _learned_without_end),
        ),
    ),
    Exercise(
        "sft.targets",
        "Shift by one: the target of a token is the next one, if that is learned, else -100.",
        targets,
        lambda g: [
            ([5, 6, 7, 8], [False, False, True, True]),
            ([1, 2, 3], [False, True, False]),
        ],
        targets_answer,
        (
            Mistake("the target of a token is the next one.", _targets_unshifted),
            Mistake("the mask of the next token counts.", _targets_mask_unshifted),
        ),
    ),
    Exercise(
        "sft.answer_loss",
        "Give the mean of -log p over all targets of the batch that are not -100.",
        answer_loss,
        lambda g: [
            (normal(g, 2, 3, 5), torch.tensor([[-100, 1, 2], [-100, -100, 4]])),
            (normal(g, 1, 4, 3), whole(g, 3, 1, 4)),
        ],
        answer_loss_answer,
        (
            Mistake("divide by the targets that count.", _loss_over_all),
            Mistake("add up over the batch and divide once.", _loss_of_rows),
        ),
    ),
)  # fmt: skip
