"""A conversation with the embedded checkpoint: a thought, a call, its result, an object."""

import json
import subprocess
import sys

import pytest

from tests.embedded import TOOL, talks
from tests.screen import ROOT


@talks
@pytest.mark.slow
def test_thoughts_and_a_round_of_tools_in_a_conversation(tmp_path):
    (tmp_path / "tools.json").write_text(json.dumps([TOOL]))
    lines = [
        f"/tools {tmp_path / 'tools.json'}", "ask weather oslo", "/result é", "/result rain", "/result more",
        "/tools off", "json name ann age 31", "/think on", "add 47 82 9", f"/save {tmp_path / 'c.json'}",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "mlx_dgemma.chat"], input="\n".join(lines), capture_output=True, text=True,
        timeout=120, cwd=ROOT, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 0
    kept = json.loads((tmp_path / "c.json").read_text())["messages"]
    called = kept[1]["tool_calls"][0]["function"]
    assert called == {"name": "weather", "arguments": {"city": "oslo"}}
    assert [m["role"] for m in kept[:4]] == ["user", "assistant", "tool", "assistant"]
    assert (kept[2]["content"], kept[3]["content"]) == ("rain", "rain")  # and the result that it cannot read is gone
    assert "does not know: 'é'" in done.stderr and "no call waits for a result" in done.stderr
    assert kept[5]["content"] == '{"name": "ann", "age": 31}'
    assert (kept[7]["content"], kept[7]["reasoning"]) == ("138", "47+82=129\n129+9=138")
    assert done.stdout.rstrip().endswith("138")
