"""`export run …` in bash and zsh, whose own `export` is a builtin of that name: what `exporter shell-init` prints.

A first word that is one of exporter's commands goes to the program; everything else, flags such as --help included, is
the builtin's. A variable that is called like a command is exported with `builtin export run`, or with its value.
"""

from __future__ import annotations

from collections.abc import Iterable

SHELLS = ("bash", "zsh")

# bash still treats the words as assignments, function or not: `export A=$B` does not split, ~ and (a b) work as ever.
_FUNCTION = """\
function export {{
  case ${{1-}} in
    {words}) command exporter "$@" ;;
    *) builtin export "$@" ;;
  esac
}}
"""

# In zsh `export` is a reserved word that no function overrides. With the word disabled, assignments become ordinary
# words: `export PATH=~/bin` keeps its tilde, `export A=$(date)` is split. So at the prompt the word stays, and a typed
# line that begins with one of our commands is rewritten. Only in scripts does a function take over; and in `zsh -c`
# nothing can, because all of its text is parsed before the first command runs.
_ZSH = """\
if [[ -o zle ]]; then
  function _exporter_line {{
    local -a words=(${{(z)BUFFER}})
    [[ ${{CONTEXT-}} == start && ${{words[1]-}} == export ]] || return 0
    case ${{words[2]-}} in
      {words}) BUFFER=${{BUFFER/export/exporter}} ;;
    esac
  }}
  autoload -Uz add-zle-hook-widget && add-zle-hook-widget line-finish _exporter_line
else
  disable -r export
{function}fi
"""


def shell_init(shell: str, commands: Iterable[str]) -> str:
    """The text that `eval` turns into an `export` which knows these commands; `shell` is one of SHELLS."""
    words = "|".join(sorted(commands))
    function = _FUNCTION.format(words=words)
    return function if shell == "bash" else _ZSH.format(words=words, function=function)
