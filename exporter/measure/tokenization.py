"""An artifact's own tokenizer against the checkpoint's: the same ids on hard texts and on all of the evaluation's text.

The checkpoint's ids travel with the reference, so that they can be compared where transformers is not installed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from exporter.report.result import Figure
from exporter.runner import Ids

TOKENIZED = "tokenizer.npz"
EVALUATION = "the evaluation's text"
_AROUND = 24  # characters shown of a long text on each side of a difference

HARD = (
    "", " ", "  ", "   a", "a   ", "\n", "\n\n", " \n \n\n", "\t", "\t\ta\t", "\r\n", "a\r\nb\rc", "\u00a0",
    "a\u00a0b", "\u3000", "\u200b", "a\u200db", "\ufeffa", "Hello, world!", " Hello",
    "I'm you're we'll they'd he's I've don't", "I'M YOU'RE DON'T", "'s 's 'S ''s", "1", "12", "123", "1234",
    "1234567890", "3.14159", "1,000,000", "4 ½ months, 2² and x₁", "１２３", "١٢٣", "Ⅻ",
    "C++ c# a_b __init__ $x @y #z", "def f(x):\n    return x ** 2  # square\n\n\tif not x:\n\t\tpass",
    "{'a': [1, 2], \"b\": None}", "<div class=\"x\">&nbsp;</div>", "https://example.org/a?b=c&d=%20#e",
    "a-b--c---d----", "......!!!!??", "(((())))", "=====", "é è ü ñ ç ß", "e\u0301 n\u0303 a\u030a", "ﬁ ﬂ Å ℌ",
    "İstanbul ısı", "Größe Straße", "Ünïcödé", "Здравствуй, мир", "Γειά σου Κόσμε",
    "日本語のテキスト、カタカナ。", "中文字符测试", "한국어 문장입니다", "한국어", "مرحبا بالعالم",
    "שלום עולם", "नमस्ते दुनिया", "สวัสดีชาวโลก", "កាន់តែពិសេស", "🙂", "👩\u200d👩\u200d👧\u200d👦 🇩🇪 👍🏽",
    "🚀 (normal) 😶\u200d🌫️ (multiple)", "𝒳𝔘 𐍈", "\U0010ffff", "\x00", "\x01\x1b\x7f",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "            twelve", "a  b   c    d", "Word\n\n\n\nWord",
    "\n \n  \n   x", "<s> </s> <unk> <pad> [CLS] [SEP] [MASK]", "<|endoftext|> <|im_start|> <|im_end|>",
    "▁ ▁▁ a▁b", "Ġ Ċ ĠĊ", "##ing un##able", "camelCase PascalCase snake_case SCREAMING_CASE",
    "x=y+z;a[i]=b*c/d%e", "e.g. i.e. U.S.A. Ph.D.", "“quotes” ‘single’ «guillemets» — – …",
)  # fmt: skip


@dataclass(frozen=True)
class TokenizedTexts:
    """Texts and the checkpoint's ids of them; `starts` are the characters at which tokens begin (-1: not known)."""

    texts: tuple[str, ...]
    ids: tuple[Ids, ...]
    starts: tuple[Ids, ...]

    @classmethod
    def of(cls, tokenizer: Any, evaluation: str) -> TokenizedTexts:
        """Of a transformers tokenizer: the hard texts, its special and added tokens in context, the evaluation's."""
        added = sorted({*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()})
        contexts = [form.format(token) for token in added for form in ("{0}", "a{0}b", " {0} ", "x {0}\n{0}{0}")]
        texts = (*HARD, *contexts, evaluation)
        ids, starts = [], []
        for text in texts:
            told = tokenizer(text, return_offsets_mapping=tokenizer.is_fast)
            ids.append(np.array(told["input_ids"], np.int64))
            known = [begin for begin, _ in told["offset_mapping"]] if tokenizer.is_fast else [-1] * len(ids[-1])
            starts.append(np.array(known, np.int64))
        return cls(texts, tuple(ids), tuple(starts))

    def save(self, path: Path) -> None:
        encoded = [text.encode() for text in self.texts]
        np.savez_compressed(
            path,
            text=np.frombuffer(b"".join(encoded), np.uint8),
            text_ends=np.cumsum([len(raw) for raw in encoded]),
            ids=np.concatenate(self.ids).astype(np.int32),
            starts=np.concatenate(self.starts).astype(np.int32),
            ends=np.cumsum([len(ids) for ids in self.ids]),
        )

    @classmethod
    def load(cls, path: Path) -> TokenizedTexts:
        with np.load(path, allow_pickle=False) as data:
            texts = [piece.tobytes().decode() for piece in _pieces(data["text"], data["text_ends"])]
            ids = [piece.astype(np.int64) for piece in _pieces(data["ids"], data["ends"])]
            starts = [piece.astype(np.int64) for piece in _pieces(data["starts"], data["ends"])]
        return cls(tuple(texts), tuple(ids), tuple(starts))


def _pieces(data: NDArray[Any], ends: NDArray[Any]) -> Iterator[NDArray[Any]]:
    for begin, end in zip([0, *ends[:-1]], ends, strict=True):
        yield data[begin:end]


class Tokenizes(Protocol):
    """What reads a text's ids [T]: a runner with a tokenizer of its own."""

    def tokenize(self, text: str) -> Ids: ...


def compare_tokenizer(runner: Tokenizes, told: TokenizedTexts) -> dict[str, Figure]:
    """How many texts have other ids, with the first difference in words as its detail."""
    errors, first = 0, None
    for number, (text, expected, starts) in enumerate(zip(told.texts, told.ids, told.starts, strict=True)):
        got = runner.tokenize(text)
        if not np.array_equal(got, expected):
            errors += 1
            name = EVALUATION if number == len(told.texts) - 1 else repr(text)
            first = first or f"first of {len(told.texts)} texts: {_difference(name, text, expected, got, starts)}"
    return {"tokenizer_errors": Figure(errors, detail=first)}


def _difference(name: str, text: str, expected: Ids, got: Ids, starts: Sequence[int] | Ids) -> str:
    shared = min(len(expected), len(got))
    unlike = np.nonzero(expected[:shared] != got[:shared])[0]
    at = int(unlike[0]) if len(unlike) else shared
    where = ""
    if len(text) > 2 * _AROUND and at < len(starts) and starts[at] >= 0:
        begin = int(starts[at])
        where = f", near {text[max(begin - _AROUND, 0) : begin + _AROUND]!r}"
    answers = f"the checkpoint's tokenizer gives {_few(expected[at:])}, the artifact's {_few(got[at:])}"
    return f"{name}{where}, token {at}: {answers}"


def _few(ids: Ids) -> str:
    return f"{ids[:4].tolist()}{'…' if len(ids) > 4 else ''}" if len(ids) else "no more tokens"
