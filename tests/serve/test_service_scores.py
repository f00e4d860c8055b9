"""Log-probabilities of prompts and answers from the service."""

from dataclasses import replace

import pytest
from asking import ENDLESS, GREEDY, HI, collected, run, until
from reciter import TEXT

from culm.serve import refusal
from culm.serve.query import Query
from culm.serve.service import Service


def test_tokens_come_with_their_scores() -> None:
    async def story(service: Service) -> None:
        found = await collected(await service.ask(Query("reciter", ["A"], 3, GREEDY, logprobs=2)))
        scores = [score for piece in found[0] for score in piece.scores]
        assert bytes(score.token for score in scores) == b"BCD"
        for score in scores:
            assert -0.2 < score.logprob < 0
            assert len(score.top) == 2
            assert score.top[0] == (score.token, pytest.approx(score.logprob))

    run(story)


@pytest.mark.parametrize("limit", [0, 1])
def test_a_prompt_is_scored_where_it_is_echoed(limit: int) -> None:
    async def story(service: Service) -> None:
        query = Query("reciter", [[65, 66, 67]], limit, GREEDY, logprobs=1, echo=True)
        found = await collected(await service.ask(query))
        assert "".join(piece.text for piece in found[0]) == "ABCD"[: 3 + limit]
        assert found[0][-1].finish == "length"
        scores = found[0][0].scores
        assert [score.token for score in scores] == [65, 66, 67]
        assert scores[0].logprob is None
        exact = service.model.logprobs([65, 66, 67]).tolist()
        assert [score.logprob for score in scores[1:]] == pytest.approx(exact, abs=1e-5)
        assert await service.score([65, 66, 67], ranks=1) == scores

    run(story)


def test_every_generated_token_has_a_score() -> None:
    """The one that ends the turn too; tokens that a stop string removed have none."""

    async def story(service: Service) -> None:
        everything = Query("reciter", [HI], sampling=GREEDY, logprobs=0)
        answer = await service.ask(everything)
        found = await collected(answer)
        scores = [score for piece in found[0] for score in piece.scores]
        assert len(scores) == answer.account.generated_tokens == len(TEXT.encode()) + 1
        assert scores[-1].token == service.model.tokenizer.end_of_turn
        stopped = replace(everything, stop=(TEXT[5:8],))
        found = await collected(await service.ask(stopped))
        assert bytes(s.token for piece in found[0] for s in piece.scores) == TEXT[:5].encode()

    run(story)


def test_a_stop_token_of_an_evaluation_has_a_score() -> None:
    """A client cuts its scores at the end: one entry too few would shift all."""

    async def story(service: Service) -> None:
        ids = [*TEXT[-3:].encode()]  # the end of the turn follows
        query = Query("reciter", [ids], 1, GREEDY, logprobs=1, echo=True)
        found = await collected(await service.ask(query))
        scores = [score for piece in found[0] for score in piece.scores]
        assert len(scores) == len(ids) + 1
        exact = service.worker._engine.score([ids])[0].tolist()
        assert [s.logprob for s in scores[1:-1]] == pytest.approx(exact, abs=1e-5)
        assert scores[-1].token == service.model.tokenizer.end_of_turn
        assert found[0][-1].finish == "stop"

    run(story)


def test_long_prompts_are_scored_in_steps_between_those_of_the_others() -> None:
    """Scoring counts as a request, shares the engine, and ends with its client."""

    async def story(service: Service) -> None:
        ids = tuple(b"ABC" * 600)
        score = Query("reciter", [ids], 0, GREEDY, logprobs=0, echo=True)
        answers = [await service.ask(score) for _ in range(service.worker.capacity - 1)]
        stream = await service.ask(ENDLESS)
        assert service.worker.open == service.worker.capacity
        for query in (score, ENDLESS):
            with pytest.raises(refusal.Overloaded):
                await service.ask(query)
        with pytest.raises(refusal.Overloaded):
            await service.score(ids)
        pieces = stream.pieces()
        for _ in range(5):
            await anext(pieces)
        # A fast machine may have read one or two to their end, but it takes turns with the stream.
        assert service.worker.open > service.worker.capacity // 2
        for answer in answers[1:]:
            answer.leave()
        await pieces.aclose()
        (piece,) = (await collected(answers[0]))[0]
        exact = service.model.logprobs(ids).tolist()
        assert [s.logprob for s in piece.scores[1:]] == pytest.approx(exact, abs=1e-4)
        await until(lambda: not service.worker.thread.readings)
        assert service.idle

    run(story)


def test_choices_of_an_echoed_prompt_wait_for_its_scores() -> None:
    async def story(service: Service) -> None:
        query = Query("reciter", ["AB", "KLM"], 2, GREEDY, choices=2, logprobs=0, echo=True)
        found = await collected(await service.ask(query))
        texts = ["ABCD", "ABCD", "KLMNO", "KLMNO"]
        for choice, text in enumerate(texts):
            assert "".join(piece.text for piece in found[choice]) == text
            assert len([s for piece in found[choice] for s in piece.scores]) == len(text)
            assert found[choice][-1].finish == "length"

    run(story)


def test_what_cannot_be_scored_disturbs_nobody() -> None:
    async def story(service: Service) -> None:
        for ids, adapter in (([], None), ([9999], None), ([65], "nobody")):
            with pytest.raises(refusal.InvalidRequest):
                await service.score(ids, adapter=adapter)
        assert service.idle

    run(story)
