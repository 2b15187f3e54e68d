"""Chat templates that hang, grow, look around or fail: one line within the bounds, and the next one is rendered."""

import subprocess
import sys
import threading
import time

import pytest

from mlx_dgemma import DGemmaError
from mlx_dgemma.checkpoint import chat_template
from mlx_dgemma.checkpoint.chat_template import Worker, render

HANGING = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
DOUBLING = "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}"


@pytest.fixture
def worker():
    worker = Worker(seconds=10.0, size=100_000)  # in which an interpreter starts on a busy machine too
    yield worker
    worker.close()


def still_works(worker) -> bool:
    return worker.render("{{ a }}", {"a": "é<"}) == "é<"


def test_a_template_that_does_not_end_is_stopped(worker):
    began, worker.seconds = time.monotonic(), 1.0
    with pytest.raises(DGemmaError, match="took more than 1 s"):
        worker.render(HANGING, {})
    assert time.monotonic() - began < 3
    worker.seconds = 10.0
    assert still_works(worker)


def test_a_text_that_is_too_long_is_refused(worker):
    assert len(worker.render("{{ 'a' * 100000 }}", {})) == 100_000
    for length in (100_001, 500_000, 10_000_000):
        with pytest.raises(DGemmaError, match="makes more than 100,000 characters"):
            worker.render(f"{{{{ 'a' * {length} }}}}", {})
    assert still_works(worker)
    assert len(worker.render("{{ a }}", {"a": "b" * 1_000_000})) == 1_000_000  # what goes in may come out


@pytest.mark.parametrize("source", [DOUBLING, "{{ 'a' * 10**10 }}", "{{ [0] * 10**10 }}", "{{ 'a'.center(10**10) }}"])
def test_a_template_that_grows_is_stopped(worker, source):
    with pytest.raises(DGemmaError, match="chat template") as error:
        worker.render(source, {})
    assert "\n" not in str(error.value) and still_works(worker)


def test_memory_is_looked_at_where_nobody_bounds_it(worker, monkeypatch):
    worker.memory = 1 << 20  # less than any interpreter takes
    monkeypatch.setattr(chat_template, "LOOK_AFTER", 0.1)
    with pytest.raises(DGemmaError, match="used more than 1 MB"):
        worker.render(HANGING, {})


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("{{ raise_exception('no such role') }}", "refuses these messages: no such role"),
        ("{% for i in range(10**7) %}{% endfor %}", "OverflowError: Range too big"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{", "unexpected 'end of template'"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{% import 'os' as os %}", "no loader"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ ''.__class__.__mro__ }}", "undefined|unsafe"),
        ("{{ open('/etc/passwd').read() }}", "'open' is undefined"),
        ("{{ cycler.__init__.__globals__ }}", "undefined|unsafe"),
        ("{{ ('%4000000000d' % 1) | length }}", "MemoryError|ValueError|more than"),
    ],
)
def test_what_fails_is_told_in_one_line(worker, source, told):
    with pytest.raises(DGemmaError, match=told) as error:
        worker.render(source, {"messages": []})
    assert "\n" not in str(error.value) and still_works(worker)


def test_what_is_no_json_is_refused(worker):
    with pytest.raises(DGemmaError, match="they are not JSON"):
        worker.render("{{ a }}", {"a": object()})
    assert still_works(worker)


def test_threads_take_turns(worker):
    got = {}
    threads = [
        threading.Thread(target=lambda n=n: got.update({n: worker.render("{{ a }}", {"a": n * "x"})})) for n in range(9)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {n: n * "x" for n in range(9)}


def test_an_interrupt_leaves_no_half_answer_behind(worker, monkeypatch):
    assert still_works(worker)
    real = chat_template.select.select

    def interrupted(*arguments):
        monkeypatch.setattr(chat_template.select, "select", real)
        raise KeyboardInterrupt

    monkeypatch.setattr(chat_template.select, "select", interrupted)
    with pytest.raises(KeyboardInterrupt):
        worker.render("never seen", {})
    assert still_works(worker)


def test_our_own_template_is_rendered_here(monkeypatch):
    monkeypatch.setattr(Worker, "render", lambda *a: pytest.fail("a process was asked"))
    source = chat_template.OWN.read_text()
    given = {"bos_token": "<bos>", "messages": [{"role": "user", "content": "a"}], "add_generation_prompt": True}
    assert render(source, given).startswith("<bos><|turn>user\na<turn|>")
    with pytest.raises(DGemmaError, match="refuses these messages"):
        render(source, {**given, "messages": 3})


def test_no_process_is_left_behind():
    code = "from mlx_dgemma.checkpoint import chat_template as c; c.render('x', {}); print(c._worker()._process.pid)"
    pid = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    for _ in range(50):
        alive = subprocess.run(["ps", "-p", pid, "-o", "stat="], capture_output=True, text=True).stdout.strip()
        if not alive or alive.startswith("Z"):
            return
        time.sleep(0.1)
    pytest.fail("the process that renders outlives the one that asked")
