"""Generation in other threads: the same texts, one after another and at the same time."""

import threading

import mlx.core as mx
import pytest

from mlx_dgemma import Engine, Request

PROMPT = "upper " + "abcdefghij " * 60  # long enough for two lanes of scores


@pytest.fixture(scope="module")
def engine():
    return Engine.load()


def in_threads(*tasks):
    """What each task returns, or raises, in a thread of its own."""
    results = [None] * len(tasks)

    def work(i, task):
        try:
            results[i] = task()
        except Exception as error:
            results[i] = error

    threads = [threading.Thread(target=work, args=(i, task)) for i, task in enumerate(tasks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_a_worker_thread_generates_what_the_main_thread_does(engine):
    def task():
        return engine.generate(Request(PROMPT, seed=1)).canvases

    expected = task()
    assert in_threads(task) == [expected]
    assert in_threads(task) == [expected]  # and so does the next one


def test_two_threads_at_a_time_and_the_memory_limit_is_what_it_was(engine):
    before = mx.set_memory_limit(1 << 40)
    try:
        tasks = [lambda seed=seed: engine.generate(Request(PROMPT, seed=seed)).canvases for seed in (1, 2)]
        expected = [task() for task in tasks]
        assert in_threads(*tasks) == expected
        assert mx.set_memory_limit(1 << 40) == 1 << 40
    finally:
        mx.set_memory_limit(before)


def test_a_model_that_another_thread_loaded(engine):
    (loaded,) = in_threads(Engine.load)
    assert loaded.generate(Request("roman 1994")).text == "MCMXCIV"
