"""`export run …` in real shells, and the builtin of that name, which must stay what it was."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
SHELLS = ("bash", "zsh")
COMMANDS = ("bench", "doctor", "report", "run", "schema", "shell-init", "targets", "verify")

# Each line's output is one thing that must hold; `export schema` stands for any command: it answers fast.
SCRIPT = r"""
eval "$(exporter shell-init SHELL)"
set -eu
export schema | grep -c json-schema.org
inside() {
  local near=1; export near; export far=2
  export schema | grep -c json-schema.org; sh -c 'echo near=$near'
}
inside
sh -c 'echo far=$far'
export FOO=bar; sh -c 'echo FOO=$FOO'
export run=1; sh -c 'echo run=$run'
export doctor= targets="a b"; sh -c 'echo targets=$targets'
verify=whole; builtin export verify; sh -c 'echo verify=$verify'
PLAIN=3; export PLAIN; sh -c 'echo PLAIN=$PLAIN'
export -p | grep -c 'FOO=.*bar'
export | grep -c 'FOO=.*bar'
code=0; export report no-such-folder 2>/dev/null || code=$?; echo status=$code
code=0; export schema "not an argument" 2>/dev/null || code=$?; echo status=$code
sh -c 'export CHILD=4; sh -c "echo CHILD=\$CHILD"'
env export schema | grep -c json-schema.org
command -v exporter >/dev/null && echo end
"""
EXPECTED = [
    "1", "1", "near=1", "far=2", "FOO=bar", "run=1", "targets=a b", "verify=whole", "PLAIN=3", "1", "1",
    "status=2", "status=2", "CHILD=4", "1", "end",
]  # fmt: skip


def shell(name):
    """The shell's path."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed: apt-get install -y {name}")
    return path


def environment():
    return {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture
def run_script(tmp_path):
    """Runs a script file without the user's own start-up files."""

    def run(name, text):
        script = tmp_path / "script"
        script.write_text(text)
        bare = {"bash": ["--norc", "--noprofile"], "zsh": ["-f"]}[name]
        command = [shell(name), *bare, script]
        return subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=60)

    return run


@pytest.mark.parametrize("name", SHELLS)
def test_commands_reach_the_program_and_all_else_the_builtin(run_script, name):
    done = run_script(name, SCRIPT.replace("SHELL", name))
    assert done.stdout.splitlines() == EXPECTED, done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize("name", SHELLS)
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_known(run_script, name, command):
    done = run_script(name, f'eval "$(exporter shell-init {name})"\nexport {command} --help')
    assert f"Usage: exporter {command}" in done.stdout, done.stderr


@pytest.mark.parametrize("name", SHELLS)
def test_arguments_arrive_as_they_were_written(run_script, name):
    done = run_script(name, f'eval "$(exporter shell-init {name})"\nexport report "a  folder of \'mine\' $HOME*"')
    assert done.returncode == 2
    assert f"a  folder of 'mine' {os.environ['HOME']}*" in done.stderr


@pytest.mark.parametrize("name", SHELLS)
def test_without_it_the_builtin_swallows_the_command(run_script, name):
    assert "Usage" not in run_script(name, "export doctor --help").stdout


def test_in_bash_assignments_are_still_assignments(run_script):
    done = run_script(
        "bash",
        'eval "$(exporter shell-init bash)"; words="a b"; export A=$words B=$(echo "c  d") C=~/bin:~/x D=(1 "2 3")\n'
        'echo "$A|$B|$C|${#D[@]}"; export -n A; sh -c \'echo "A=$A B=$B"\'; export --help | head -1',
    )
    home = os.environ["HOME"]
    assert done.stdout.splitlines()[:2] == [f"a b|c  d|{home}/bin:{home}/x|2", "A= B=c  d"], done.stderr
    assert done.stdout.splitlines()[2].startswith("export: export ")


class Prompt:
    """zsh at a terminal."""

    def __init__(self):
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.execve(shell("zsh"), ["zsh", "-f", "-i"], environment() | {"TERM": "dumb", "PS1": "READY>"})

    def type(self, line, until):
        """Enters a line; what the terminal shows up to `until`, which must come within 20 s."""
        os.write(self.terminal, line.encode() + b"\r")
        shown, end = "", time.monotonic() + 20
        while until not in shown and time.monotonic() < end:
            if select.select([self.terminal], [], [], 0.2)[0]:
                shown += os.read(self.terminal, 65536).decode(errors="replace")
        assert until in shown, shown
        return shown

    def close(self):
        os.write(self.terminal, b"exit\r")
        os.waitpid(self.pid, 0)
        os.close(self.terminal)


def test_at_zshs_prompt_the_reserved_word_stays_what_it_was():
    shell("zsh")
    prompt = Prompt()
    home = os.environ["HOME"]
    # The typed line is echoed too: what is waited for must be what the commands print, not what is typed.
    prompt.type('eval "$(exporter shell-init zsh)"; echo loaded=$((40 + 2))', "loaded=42")
    prompt.type("  export schema | grep -c json-schema.org | sed s/^/found=/", "found=1")
    prompt.type(
        "export A=~/bin:~/x B=$(echo 'c  d') C=*; sh -c 'echo \"{$A|$B|$C}\"'", f"{{{home}/bin:{home}/x|c  d|*}}"
    )
    prompt.type("export run=$((6 * 7)); sh -c 'echo run is $run'", "run is 42")
    prompt.type("echo 'export schema' | tr a-z A-Z", "EXPORT SCHEMA")
    prompt.close()
