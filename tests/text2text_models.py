"""Small random checkpoints of encoder-decoders, with a tokenizer of words; texts and pairs for them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers as t
from tokenizers import Tokenizer, models, pre_tokenizers, processors

SPECIAL = ("<pad>", "</s>", "<unk>", "<s>")
WORDS = (*(f"word{i}" for i in range(250)), ".", "?")
VOCABULARY = len(SPECIAL) + len(WORDS)
_IDS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 3, "decoder_start_token_id": 0}
_T5 = {
    "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4,
    "relative_attention_max_distance": 32, "relative_attention_num_buckets": 16,
}  # fmt: skip
_BART = {
    "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "max_position_embeddings": 256,
    "forced_eos_token_id": None, "forced_bos_token_id": None,
}  # fmt: skip
_FLAN = _T5 | {"relative_attention_max_distance": 128, "relative_attention_num_buckets": 32}
_FLAN |= {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
FAMILIES = {
    "T5": lambda: t.T5ForConditionalGeneration(t.T5Config(**_IDS, **_T5)),
    "Flan": lambda: t.T5ForConditionalGeneration(t.T5Config(**_IDS, **_FLAN)),
    "MT5": lambda: t.MT5ForConditionalGeneration(t.MT5Config(**_IDS, **_T5, tie_word_embeddings=False)),
    "Bart": lambda: t.BartForConditionalGeneration(t.BartConfig(**_IDS, **_BART)),
    "MBart": lambda: t.MBartForConditionalGeneration(t.MBartConfig(**_IDS, **_BART)),
    "Marian": lambda: t.MarianMTModel(t.MarianConfig(**_IDS, **_BART)),
    "Pegasus": lambda: t.PegasusForConditionalGeneration(t.PegasusConfig(**_IDS, **_BART)),
}


def text(paragraphs: int = 120, first: int = 0) -> str:
    """Paragraphs of two sentences each, none like another; of 250 there are no more."""
    lines = []
    for number in range(first, first + paragraphs):
        words = [f"word{(number * number * 31 + i * (number + 7)) % 250}" for i in range(24)]
        lines.append(f"{' '.join(words[:14])}. {' '.join(words[14:])}.")
    return "\n".join(lines)


def pairs(file: Path, count: int = 40) -> Path:
    """Sources with targets of other lengths, as JSON lines."""
    lines = []
    for number in range(count):
        words = [f"word{(number * 17 + i * (number + 3)) % 250}" for i in range(9 + number % 13)]
        lines.append(json.dumps({"source": " ".join(words), "target": " ".join(words[::-2])}))
    file.write_text("\n".join(lines))
    return file


def words(folder: Path, length: int = 256) -> t.PreTrainedTokenizerFast:
    """A tokenizer that ends each text as T5's does."""
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate((*SPECIAL, *WORDS))}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    plain.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    named = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "bos_token": "<s>"}
    inputs = ["input_ids", "attention_mask"]
    fast = t.PreTrainedTokenizerFast(tokenizer_object=plain, model_max_length=length, model_input_names=inputs, **named)
    fast.save_pretrained(folder)
    return fast


def random(family: str, size: float = 0.15) -> t.PreTrainedModel:
    """A model whose answers differ from text to text, which the usual initialization's hardly do."""
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and not (family in ("Marian", "Pegasus") and "position" in name):  # sines
                # T5 divides what its tied head answers by the square root of the width.
                large = (family, name) == ("T5", "shared.weight") or "embed_positions" in name or "relative" in name
                parameter.normal_(0, 8 * size if large else size)
    return model


def checkpoint(folder: Path, family: str) -> Path:
    random(family).save_pretrained(folder)
    words(folder)
    return folder


def pieces(folder: Path) -> Path:
    """A T5 of version 1.1 with a sentencepiece unigram, which is what llama.cpp's converter reads of one."""
    import sentencepiece

    folder.mkdir(parents=True)
    (folder / "text").write_text(text(400), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / "spiece"), vocab_size=VOCABULARY, model_type="unigram",
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    fast = t.T5Tokenizer.from_pretrained(folder, extra_ids=0, model_max_length=256)
    assert len(fast) <= VOCABULARY
    fast.save_pretrained(folder)
    random("Flan", 0.08).save_pretrained(folder)  # llama.cpp looks its GELU up in a table of float16
    return folder
