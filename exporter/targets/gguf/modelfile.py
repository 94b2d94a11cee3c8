"""Ollama's Modelfile: where the weights are, how a conversation is written down, how to sample.

Ollama's templates are Go's, a checkpoint's are Jinja. Where the Jinja template does nothing but wrap each message by
its role, the wrappings are read off what it renders, written as a Go template, and compared with Jinja on other
conversations. Where it does more than that, no template is written, and a note says so: a wrong one would be worse.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.targets.folder.kit import render

_ROLES = ("system", "user", "assistant")
_A, _B, _C = "Alpha 1", "Beta 2", "Gamma 3"  # contents that no template has
_SAMPLING = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "repetition_penalty": "repeat_penalty"}
Messages = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Wrapping:
    """What opens a conversation without a system message, stands around each role's content, and before a reply."""

    opening: str
    around: Mapping[str, tuple[str, str]]
    reply: str

    def render(self, messages: Messages) -> str:
        """What the Go template below renders."""
        text = "" if messages[0][0] == "system" else self.opening
        return text + "".join(content.join(self.around[role]) for role, content in messages) + self.reply

    def go(self) -> str:
        """As Ollama's TEMPLATE; Messages has the system message first, where there is one."""
        roles = [role for role in _ROLES if role in self.around]
        branches = [
            f"{{{{ {'if' if role == roles[0] else 'else if'} eq .Role {_quoted(role)} }}}}"
            f"{_literal(self.around[role][0])}{{{{ .Content }}}}{_literal(self.around[role][1])}"
            for role in roles
        ]
        opening = ""
        if self.opening:
            opening = f'{{{{ if ne (index .Messages 0).Role "system" }}}}{_literal(self.opening)}{{{{ end }}}}'
        loop = f"{{{{ range .Messages }}}}{''.join(branches)}{{{{ end }}}}{{{{ end }}}}"
        return f"{opening}{loop}{_literal(self.reply)}"


def modelfile(checkpoint: Path, trust_remote_code: bool = False) -> tuple[dict[str, Any], list[str]]:
    """What a Modelfile says beside its weights' name, for `written`; and notes on what it lacks."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=trust_remote_code)
    template, notes = None, []
    if tokenizer.chat_template:
        wrapping = find_wrapping(tokenizer)
        if wrapping is None:
            notes.append("the Modelfile has no TEMPLATE: the chat template does more than wrap messages by their role")
        else:
            template = wrapping.go()
    generation = checkpoint / "generation_config.json"
    settings = json.loads(generation.read_text(encoding="utf-8")) if generation.is_file() else {}
    ends = settings.get("eos_token_id", tokenizer.eos_token_id)
    stops = tokenizer.convert_ids_to_tokens(ends if isinstance(ends, list) else [] if ends is None else [ends])
    sampling = {name: settings[key] for key, name in _SAMPLING.items() if settings.get(key) is not None}
    return {"template": template, "stops": stops, "sampling": sampling}, notes


def written(weights: str, told: Mapping[str, Any], gpu_layers: int | None = None) -> str:
    """The Modelfile's text. The template stands in it as Go's: its own quotation marks are `_literal`'s work.

    `gpu_layers`: how many layers a GPU gets; None: Ollama decides.
    """
    return render("gguf", "Modelfile", {"quoted": _quoted}, weights=weights, gpu_layers=gpu_layers, **told)


def gpu_layers_of(folder: Path) -> int | None:
    """How many layers a GPU gets, as an artifact's Modelfile has it; None: all."""
    file = folder / "Modelfile"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    found = re.search(r"^PARAMETER num_gpu (\d+)\s*\Z", text, re.M)  # the last line: a chat template is no parameter
    return None if found is None else int(found[1])


def find_wrapping(tokenizer: Any) -> Wrapping | None:
    """The wrappings of a tokenizer's chat template, or None where it cannot be said so simply."""
    from jinja2.exceptions import TemplateError

    # Where the tokenizer adds the BOS token, so does the engine: the template must not write it a second time.
    bos = tokenizer.bos_token if tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id else ""

    def jinja(*messages: tuple[str, str], reply: bool = False) -> str:
        conversation = [{"role": role, "content": content} for role, content in messages]
        text = str(tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=reply))
        return text.removeprefix(bos)

    if "strftime_now" in str(tokenizer.chat_template):  # today's date would be written down for ever
        return None
    try:
        wrapping = _read_off(jinja)
    except (TemplateError, ValueError):  # a role is refused, or the contents are not there as they were
        return None
    proofs: list[Messages] = [
        [("user", "x")],
        [("user", "first"), ("assistant", "second"), ("user", "third {{ .Content }}")],
    ]
    if "system" in wrapping.around:
        proofs.append([("system", "s"), ("user", "two\nlines"), ("assistant", "a"), ("user", "b")])
    return wrapping if all(wrapping.render(one) == jinja(*one, reply=True) for one in proofs) else None


def _read_off(jinja: Callable[..., str]) -> Wrapping:
    """Raises ValueError where a content is not in what was rendered, or is wrapped otherwise in another place."""
    short, asked = jinja(("user", _A)), jinja(("user", _A), reply=True)
    answered = jinja(("user", _A), ("assistant", _B))
    long = jinja(("user", _A), ("assistant", _B), ("user", _C))
    after_user, after_assistant = short[short.index(_A) + len(_A) :], answered[answered.index(_B) + len(_B) :]
    before_assistant = _cut_start(answered[answered.index(_A) + len(_A) : answered.index(_B)], after_user)
    before_user = _cut_start(long[long.index(_B) + len(_B) : long.index(_C)], after_assistant)
    around = {"user": (before_user, after_user), "assistant": (before_assistant, after_assistant)}
    told = _system(jinja, before_user)
    opening = _cut_end(short[: short.index(_A)], before_user)
    return Wrapping(opening, around | ({"system": told} if told else {}), _cut_start(asked, short))


def _system(jinja: Callable[..., str], before_user: str) -> tuple[str, str] | None:
    """What stands around a system message; None where the template refuses one or leaves it out."""
    from jinja2.exceptions import TemplateError

    try:
        text = jinja(("system", _A), ("user", _B))
    except TemplateError:
        return None
    if _A not in text:
        return None
    return text[: text.index(_A)], _cut_end(text[text.index(_A) + len(_A) : text.index(_B)], before_user)


def _cut_start(text: str, start: str) -> str:
    if not text.startswith(start):
        raise ValueError(f"{text!r} does not begin with {start!r}")
    return text[len(start) :]


def _cut_end(text: str, end: str) -> str:
    if not text.endswith(end):
        raise ValueError(f"{text!r} does not end with {end!r}")
    return text[: len(text) - len(end)]


def _literal(text: str) -> str:
    """Text in a Go template, inside of a Modelfile's three quotation marks."""
    return text.replace("{{", '{{ "{{" }}').replace('"""', '{{ "\\"\\"\\"" }}')


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
