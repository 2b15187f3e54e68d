"""A fuzzer: whatever goes in, out comes a right answer or one line that says what is wrong.

A kind of input (prompts, config.json, traces, …) is a file here with a `Kind`: how to make an input from a seeded
`random.Random`, and how to put it to use and judge what happens. Judged is always the same: either the answer is right,
as far as that is cheap to tell, or there is one line (a `DGemmaError`; on a command line the last line of stderr and
exit code 1 or 2). Never another exception, a hang, a file half written, an input changed, a process left behind, or a
control character sent to a terminal.

An input may take `Kind.seconds` in all, 30 s unless the kind says otherwise. Those limits are generous, as machines
that run tests are busy; what they catch is work that does not end.

    python -m tests.fuzz                            the kinds
    python -m tests.fuzz --kind config --seed 7     replays one input; --count 100 also those behind it
    python -m tests.fuzz --minutes 15               all kinds by turns, other seeds than the tests
"""
