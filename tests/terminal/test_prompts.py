"""Many prompts from a file: what a line may be, where answers go, what a run goes on from."""

import json

import pytest

from mlx_dgemma.generate import main

FILE = """"roman 4"

{"prompt": "upper abc", "id": [7], "seed": 3}
{"messages": [{"role": "user", "content": "roman 1994"}]}
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.jsonl").write_text(FILE)
    return tmp_path


def run(capsys, *arguments):
    try:
        code = main([*arguments])
    except SystemExit as end:
        code = end.code
    return code, *capsys.readouterr()


def test_each_line_is_answered(place, capsys):
    code, out, err = run(capsys, "--prompts", "p.jsonl", "--quiet")
    answers = {answer["line"]: answer for answer in map(json.loads, out.splitlines())}
    assert (code, err) == (0, "")
    assert {line: answer["text"] for line, answer in answers.items()} == {1: "IV", 3: "ABC", 4: "MCMXCIV"}
    assert [(answers[line]["id"], answers[line]["seed"]) for line in (1, 3, 4)] == [(None, 0), ([7], 3), (None, 0)]
    assert answers[4]["prompt"] == "roman 1994" and answers[3]["finish_reason"] == "stop"


def test_settings_hold_for_all_lines(place, capsys):
    (place / "p.jsonl").write_text('"count 18 to 50"\n"count 3 to 60"\n')
    out = run(capsys, "--prompts", "p.jsonl", "-q", "--max-tokens", "5", "--seed", "8")[1]
    answers = [json.loads(line) for line in out.splitlines()]
    assert [(a["finish_reason"], len(a["tokens"]), a["seed"]) for a in answers] == [("length", 5, 8)] * 2


def test_prompts_from_stdin_and_a_line_to_say_how_it_went(place, capsys, monkeypatch):
    import io
    import sys

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'"roman 4"')))
    assert run(capsys, "--prompts", "-")[2] == "1 of 1 prompts are answered\n"


def test_a_run_goes_on_from_what_is_whole(place, capsys):
    assert run(capsys, "--prompts", "p.jsonl", "--output", "a.jsonl", "-q") == (0, "", "")
    whole = (place / "a.jsonl").read_bytes()
    assert run(capsys, "--prompts", "p.jsonl", "--output", "a.jsonl")[0] == 1  # it exists
    (place / "a.jsonl").write_bytes(whole[: whole.rindex(b"\n", 0, -1) + 30])  # the last answer was cut off
    kept = whole[: whole.rindex(b"\n", 0, -1) + 1]
    code, _, err = run(capsys, "--prompts", "p.jsonl", "--output", "a.jsonl", "--resume")
    assert (code, err) == (0, "3 of 3 prompts are answered\n")
    again = (place / "a.jsonl").read_bytes()
    assert again.startswith(kept) and sorted(json.loads(own)["line"] for own in again.splitlines()) == [1, 3, 4]


def test_only_what_is_left_is_written(place, capsys, monkeypatch):
    from mlx_dgemma.text.engine import Engine

    asked, many = [], Engine.stream_many

    def watched(self, requests, **options):
        asked.extend(requests)
        return many(self, asked, **options)

    run(capsys, "--prompts", "p.jsonl", "--output", "a.jsonl", "-q")
    monkeypatch.setattr(Engine, "stream_many", watched)
    assert run(capsys, "--prompts", "p.jsonl", "--output", "a.jsonl", "--resume", "-q")[0] == 0 and asked == []
    (place / "p.jsonl").write_text(FILE + '"roman 5"\n')
    assert run(capsys, "--prompts", "p.jsonl", "--output", "a.jsonl", "--resume", "-q")[0] == 0 and len(asked) == 1


@pytest.mark.parametrize("change", [("--seed", "9"), ("--max-tokens", "9"), ("--system", "s"), ("--stop", "x")])
def test_answers_of_another_run_are_not_gone_on_with(place, capsys, change):
    run(capsys, "--prompts", "p.jsonl", "--output", "a.jsonl", "-q")
    before = (place / "a.jsonl").read_bytes()
    code, _, err = run(capsys, "--prompts", "p.jsonl", "--output", "a.jsonl", "--resume", "-q", *change)
    assert code == 1 and err.startswith("error: a.jsonl:") and "--force" in err and err.count("\n") == 1
    assert (place / "a.jsonl").read_bytes() == before
    assert run(capsys, "--prompts", "p.jsonl", "--output", "a.jsonl", "--force", "-q", *change)[0] == 0


@pytest.mark.parametrize(
    "content",
    [b"{}\n", b'{"line": 1}\n', b"[]\n", b"x\n", b'{"line": [], "key": ""}\n', b"\xff\n", b"[" * 9999 + b"\n"],
)
def test_a_file_of_something_else_is_left_alone(place, capsys, content):
    (place / "a.jsonl").write_bytes(content)
    code, _, err = run(capsys, "--prompts", "p.jsonl", "--output", "a.jsonl", "--resume", "-q")
    assert code == 1 and err.startswith("error: a.jsonl:1: no answer") and (place / "a.jsonl").read_bytes() == content


def test_a_line_that_cannot_be_answered_is_told_and_asked_again(place, capsys):
    (place / "p.jsonl").write_text(json.dumps("x" * 5000) + "\n" + '"roman 4"\n')
    for resume in ((), ("--resume",)):
        code, _, err = run(capsys, "--prompts", "p.jsonl", "--output", "a.jsonl", "-q", *resume)
        assert code == 1 and err.startswith("error: line 1: ") and err.count("\n") == 1
        assert [json.loads(line)["line"] for line in (place / "a.jsonl").read_text().splitlines()] == [2]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("x", "Expecting value"), ("3", "asks nothing"), ("{}", "asks nothing"), ('""', "no text"),
        ("[]", "asks nothing"),
        ('{"prompt": 3}', "no text"), ('{"messages": []}', "no list"), ('{"messages": "x"}', "no list"),
        ('{"prompt": "x", "messages": [{}]}', "asks twice"), ('{"prompt": "x", "seed": "x"}', "seed must be"),
        ('{"prompt": "x", "seed": -1}', "seed must be"), ("[" * 9999, "recursion"), ("\udcff", "utf-8"),
    ],
)  # fmt: skip
def test_a_line_that_asks_nothing_ends_the_run_before_it_begins(place, capsys, line, told):
    (place / "p.jsonl").write_bytes(b'"roman 4"\n' + line.encode("utf-8", "surrogateescape"))
    code, out, err = run(capsys, "--prompts", "p.jsonl")
    assert (code, out) == (1, "") and err.startswith("error: p.jsonl:2: ") and err.count("\n") == 1
    assert told.lower() in err.lower()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--prompts", "p.jsonl", "roman 3"], "a prompt"), (["--prompts", "p.jsonl", "-p", "x"], "--prompt"),
        (["--prompts", "p.jsonl", "--watch"], "--watch"), (["--prompts", "p.jsonl", "--trace", "t.npz"], "--trace"),
        (["--prompts", "p.jsonl", "--choose", "a,b"], "--choose"), (["--output", "a.jsonl", "x"], "--output goes with"),
        (["--prompts", "p.jsonl", "--num-samples", "2"], "--num-samples"), (["x", "--resume"], "--resume goes with"),
        (["--prompts", "p.jsonl", "--resume"], "about --output"), (["x", "--max-batch", "2"], "goes with --prompts"),
        (["--prompts", "p.jsonl", "--max-batch", "0"], "at least 1"),
        (["--prompts", "p.jsonl", "--output", "a", "--resume", "--force"], "leave one out"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_bad_usage(place, capsys, arguments, told):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "") and told in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--prompts", "none.jsonl"], "none.jsonl: cannot be read"), (["--prompts", "."], "cannot be read"),
        (["--prompts", "p.jsonl", "--output", "."], "a folder"), (["--prompts", "/dev/null"], "cannot be read"),
        (["--prompts", "p.jsonl", "--output", "no/a.jsonl"], "its folder does not exist"),
    ],
)  # fmt: skip
def test_files_that_are_none_are_told_in_one_line(place, capsys, arguments, told):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (1, "") and told in err and err.count("\n") == 1
