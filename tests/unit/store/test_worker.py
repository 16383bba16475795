import threading

import pytest

from dit_lens.errors import StoreError
from dit_lens.store.worker import Worker


def test_tasks_run_in_order():
    done = []
    worker = Worker(100)
    for n in range(50):
        worker.submit(lambda n=n: done.append(n), 30, str(n))
    worker.join()
    assert done == list(range(50))
    worker.stop()


def test_a_task_over_the_bound_is_let_in_alone():
    worker = Worker(10)
    worker.submit(lambda: None, 1000, "large")
    worker.submit(lambda: None, 1000, "large")
    worker.join()
    worker.stop()


def test_the_queue_makes_the_caller_wait_when_it_is_full():
    gate, passed = threading.Event(), threading.Event()
    worker = Worker(10)
    worker.submit(gate.wait, 8, "first")

    def second():
        worker.submit(lambda: None, 8, "second")
        passed.set()

    thread = threading.Thread(target=second)
    thread.start()
    assert not passed.wait(0.05)
    gate.set()
    thread.join()
    worker.stop()
    assert passed.is_set()


def test_a_failure_is_raised_by_every_later_call_and_drops_the_rest():
    done = []
    worker = Worker(100)
    worker.submit(lambda: 1 / 0, 10, "hidden at step 3")
    with pytest.raises(StoreError, match="hidden at step 3: ZeroDivisionError"):
        worker.join()
    with pytest.raises(StoreError, match="hidden at step 3"):
        worker.submit(lambda: done.append(1), 10, "later")
    worker.stop()
    worker.stop()
    assert done == []
