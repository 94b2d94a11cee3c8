"""Small random checkpoints of encoders that answer for each token, with a tokenizer of words; and a text for them."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers as t
from tokenizers import Tokenizer, models, pre_tokenizers, processors

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = (*(f"word{i}" for i in range(180)), ".", "?")
SIZES = {
    "vocab_size": len(SPECIAL) + len(WORDS), "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 128, "max_position_embeddings": 256, "pad_token_id": 0,
}  # fmt: skip
DISTIL = {"vocab_size": SIZES["vocab_size"], "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128}
LABELS = {"num_labels": 5, "id2label": dict(enumerate(("O", "B-PER", "I-PER", "B-LOC", "I-LOC")))}
CONFIGS = {
    "Bert": lambda **more: t.BertConfig(**SIZES, **more),
    "Roberta": lambda **more: t.RobertaConfig(**SIZES | {"max_position_embeddings": 258}, **more),
    "DistilBert": lambda **more: t.DistilBertConfig(**DISTIL, max_position_embeddings=256, pad_token_id=0, **more),
    "ModernBert": lambda **more: t.ModernBertConfig(**SIZES, local_attention=16, **more),
}
HEADS = {
    "fill-mask": "MaskedLM",
    "token-classification": "TokenClassification",
    "question-answering": "QuestionAnswering",
}


def text(paragraphs: int = 120) -> str:
    """Paragraphs of three sentences each, none like another."""
    lines = []
    for number in range(paragraphs):
        words = [f"word{(number * number * 31 + i * (number + 7)) % 180}" for i in range(18)]
        lines.append(f"{' '.join(words[:5])} ? {' '.join(words[5:11])}. {' '.join(words[11:])}.".replace(" ?", "?"))
    return "\n".join(lines)


def words(folder: Path, segments: bool, length: int = 256) -> None:
    """A tokenizer of two texts, as BERT's; `segments`: its model is told which of them a token is of."""
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate((*SPECIAL, *WORDS))}, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    plain.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    named = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    inputs = ["input_ids", "attention_mask", *(["token_type_ids"] if segments else [])]
    fast = t.PreTrainedTokenizerFast(tokenizer_object=plain, model_max_length=length, model_input_names=inputs, **named)
    fast.save_pretrained(folder)


def checkpoint(folder: Path, family: str, task: str) -> Path:
    """A random model whose answers differ from text to text, which the usual initialization's hardly do."""
    torch.manual_seed(0)
    config = CONFIGS[family](**LABELS if task == "token-classification" else {})
    model = getattr(t, f"{family}For{HEADS[task]}")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.15)
    model.save_pretrained(folder)
    words(folder, family == "Bert")
    return folder
