"""Rows of concurrent requests run together, in turns, and every caller gets its own logits."""

import asyncio
import threading

import pytest
import torch

from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.serving.batcher import RowBatcher


class Model:
    """Returns the sum of each row, and records the batches. The first batch waits for `release`."""

    def __init__(self, *, held=False):
        self.batches = []
        self.release = threading.Event()
        if not held:
            self.release.set()

    def __call__(self, rows):
        self.batches.append([tuple(row) for row in rows])
        assert self.release.wait(10)
        return torch.tensor([[float(sum(row))] for row in rows])


async def started(model):
    """Wait until the model runs its first batch."""
    while not model.batches:
        await asyncio.sleep(0.001)


def test_each_caller_gets_the_logits_of_its_rows():
    async def run():
        batcher = RowBatcher(Model(), batch_tokens=4)
        requests = [[[number], [number, 1]] for number in range(50)]
        answers = await asyncio.gather(*map(batcher.logits, requests))
        await batcher.close()
        return answers

    for number, logits in enumerate(asyncio.run(run())):
        assert logits.tolist() == [[number], [number + 1]]


def test_requests_that_wait_run_together():
    async def run():
        model = Model(held=True)
        batcher = RowBatcher(model, batch_tokens=3)
        calls = [asyncio.create_task(batcher.logits([[1]]))]
        await started(model)
        calls += [asyncio.create_task(batcher.logits([[number]])) for number in (2, 3, 4, 5)]
        await asyncio.sleep(0.01)
        model.release.set()
        await asyncio.gather(*calls)
        await batcher.close()
        return model.batches

    assert asyncio.run(run()) == [[(1,)], [(2,), (3,), (4,)], [(5,)]]


def test_a_large_request_takes_turns_with_others():
    async def run():
        model = Model(held=True)
        batcher = RowBatcher(model, batch_tokens=2)
        large = asyncio.create_task(batcher.logits([[0, 0]] * 5))
        await started(model)
        small = asyncio.create_task(batcher.logits([[7, 7]]))
        await asyncio.sleep(0.01)
        model.release.set()
        await asyncio.gather(large, small)
        await batcher.close()
        return model.batches

    assert asyncio.run(run()).index([(7, 7)]) <= 2


def test_a_cancelled_request_does_not_run():
    async def run():
        model = Model(held=True)
        batcher = RowBatcher(model, batch_tokens=1)
        first = asyncio.create_task(batcher.logits([[1]]))
        await started(model)
        second, third = (asyncio.create_task(batcher.logits([[number]])) for number in (2, 3))
        await asyncio.sleep(0.01)
        second.cancel()
        await asyncio.sleep(0.01)
        model.release.set()
        answers = await asyncio.gather(first, third)
        await batcher.close()
        return model.batches, answers, batcher.waiting_tokens

    batches, answers, waiting = asyncio.run(run())
    assert batches == [[(1,)], [(3,)]]
    assert [answer.item() for answer in answers] == [1, 3]
    assert waiting == 0


def test_too_many_waiting_tokens_are_refused_and_the_others_answered():
    async def run():
        model = Model(held=True)
        batcher = RowBatcher(model, max_waiting=3)
        first = asyncio.create_task(batcher.logits([[1, 1]]))
        await started(model)
        with pytest.raises(TaskHeadsError) as error:
            await batcher.logits([[1, 1]])
        second = asyncio.create_task(batcher.logits([[5]]))
        model.release.set()
        answers = await asyncio.gather(first, second)
        await batcher.close()
        return error.value.problems[0].code, [answer.item() for answer in answers]

    assert asyncio.run(run()) == ("server-busy", [2, 5])


def test_an_error_reaches_its_callers_and_the_next_request_is_answered():
    def fails(rows):
        if [0] in rows:
            raise RuntimeError("no memory")
        return torch.ones(len(rows), 1)

    async def run():
        batcher = RowBatcher(fails)
        with pytest.raises(RuntimeError, match="no memory"):
            await batcher.logits([[0]])
        answer = await batcher.logits([[1]])
        await batcher.close()
        return answer.item()

    assert asyncio.run(run()) == 1


def test_close_finishes_the_waiting_requests():
    async def run():
        batcher = RowBatcher(Model(), batch_tokens=1)
        calls = [asyncio.create_task(batcher.logits([[number]])) for number in range(5)]
        await asyncio.sleep(0)
        await batcher.close()
        return [call.result().item() for call in calls]

    assert asyncio.run(run()) == [0, 1, 2, 3, 4]


def test_a_row_that_fails_does_not_fail_the_requests_of_its_batch():
    def run(rows):
        if [0] in rows:
            raise RuntimeError("a bad row")
        return torch.tensor([[float(sum(row))] for row in rows])

    async def ask():
        batcher = RowBatcher(run)
        calls = [batcher.logits([[number]]) for number in range(4)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        await batcher.close()
        return answers

    first, *others = asyncio.run(ask())
    assert isinstance(first, RuntimeError)
    assert [answer.item() for answer in others] == [1, 2, 3]


def test_an_observer_that_fails_leaves_no_request_behind():
    def fails(*_):
        raise ValueError("no metrics")

    async def ask():
        batcher = RowBatcher(lambda rows: torch.ones(len(rows), 1), observe=fails)
        with pytest.raises(ValueError, match="no metrics"):
            await asyncio.wait_for(batcher.logits([[1]]), 5)
        await batcher.close()

    asyncio.run(ask())
