"""Hints in the words of the command line: what pgembed's SQL functions tell a person in psql, as commands to type."""

from __future__ import annotations

import re
import shlex

# A function that hints call, and the command that does the same; {} are the call's positional literals, in order.
COMMANDS = {
    "add_encoder": "pgembed encoder add {} {}",
    "remove_encoder": "pgembed encoder remove {}",
    "drop_distilled": "pgembed encoder distill {} --drop",
    "attach": "pgembed attach {} {} --encoder ENCODER --text '{{column}}' --image COLUMN",
    "detach": "pgembed detach {} {}",
    "retry": "pgembed retry {} --embedding {}",
    "resume": "pgembed resume {} --embedding {}",
    "reconcile": "pgembed reconcile {} --embedding {}",
    "drop_view": "pgembed view drop {}",
    "learn_view": "pgembed view learn --help",
    "grant_role": "pgembed grant {} {}",
    "revoke_role": "pgembed revoke {} {}",
}
_CALL = re.compile(r"SELECT pgembed\.(\w+)\(([^)]*)\);?")
_LITERAL = re.compile(r"(?<!=> )'((?:[^']|'')*)'")
# Arguments, JSON and views that hints name, and the options and commands for them.
_OTHERS = (
    (re.compile(r"\b(embedding|stale|storage|mode|prefer) => '?(\w+)'?"), r"--\1 \2"),
    (re.compile(r"\blimit=(\d+)|\.limit\((\d+)\)"), r"--limit \1\2"),
    (re.compile(r'\.fuse\("(\w+)"\)'), r"--method \1"),
    (re.compile(r'\{"(text|image|screenshot)": \{"column": "(\w+)"\}\}'), r"--\1 \2"),
    (re.compile(r'"as": "(path|url)"'), r"--image-as \1"),
    (re.compile(r"SELECT \* FROM pgembed\.(failures|status);"), r"pgembed \1,"),
)


def as_commands(text: str) -> str:
    """The text with SQL that has a command replaced by it; all else stays as it is."""
    text = _CALL.sub(_command, text)
    for pattern, command in _OTHERS:
        text = pattern.sub(command, text)
    return text


def _command(call: re.Match[str]) -> str:
    template = COMMANDS.get(call[1])
    if template is None:
        return call[0]
    literals = [shlex.quote(value.replace("''", "'")) for value in _LITERAL.findall(call[2])]
    return template.format(*literals, "", "").rstrip()
