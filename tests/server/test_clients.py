"""What the page on clients says, tried with the running server: its commands, and the paths in everybody's settings."""

import json
import re
import shutil
import subprocess

import pytest

from tests.test_handbook import blocks, page

PAGE = page("clients.md")
HERE = "http://127.0.0.1:8080"
COMMANDS = [line for block in blocks("bash", PAGE) for line in block.splitlines() if line.startswith("curl ")]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.split()[2].removeprefix(HERE))
def test_commands_are_answered(server, command):
    done = subprocess.run(command.replace(HERE, server.url), shell=True, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    if '"stream"' in command:
        assert done.stdout.endswith("data: [DONE]\n\n")
    else:
        assert "error" not in {key for key, value in json.loads(done.stdout).items() if value}
    assert "MCM" in done.stdout or not re.search("chat|completions|responses|messages", command)


def test_every_surface_is_asked_by_a_command(server):
    asked = {re.search(r"8080(/\S+)", command)[1] for command in COMMANDS}
    paths = {route.path for route in server.app.app.routes}
    left = {path for path in paths if path.startswith("/v1/") and path not in asked}
    assert left == {"/v1/models/{name:path}", "/v1/messages/count_tokens", "/v1/detokenize"}


def test_paths_in_settings_are_there(server):
    paths = {route.path for route in server.app.app.routes}
    named = re.findall(r"http://(?:127.0.0.1|host.docker.internal):8080(/[\w/]*)?", PAGE)
    assert len(named) > 12 and {path for path in named if path not in ("", "/v1") and path not in paths} == set()


def test_a_program_in_a_container_is_let_in_by_its_name_for_this_machine(start, server):
    own = start(allow_host=("host.docker.internal",))
    headers = {"Host": "host.docker.internal:8080"}
    assert own.http.get("/v1/models", headers=headers).status_code == 200
    assert server.http.get("/v1/models", headers=headers).status_code == 403
