"""Small random CLIP checkpoints, with their image processor and a byte-pair tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers as t
from tokenizers import pre_tokenizers
from transformers.models.clip.tokenization_clip import CLIPTokenizer

SIDE, POSITIONS, SIZE = 32, 24, 558
WORDS = ("photo", "dog", "cat", "of", "the", "and", "with", "bird", "picture", "sea", "night", "rectangle", "circle")
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
_TEXT = {
    "vocab_size": SIZE, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
    "max_position_embeddings": POSITIONS, "bos_token_id": SIZE - 2, "pad_token_id": SIZE - 1,
}  # fmt: skip
_VISION = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "image_size": SIDE,
    "patch_size": 8,
}  # fmt: skip


def words() -> CLIPTokenizer:
    """As CLIP's: bytes, each also as the end of a word, then merges, then the two special tokens: the highest numbers.

    The merges are of words that candidate texts have, from the left; made and not trained, they are always the same.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    known = {piece: number for number, piece in enumerate([*letters, *(f"{letter}</w>" for letter in letters)])}
    merges = []
    for word in WORDS:
        made = word[0]
        for number, letter in enumerate(word[1:], 2):
            piece = f"{letter}</w>" if number == len(word) else letter
            if made + piece not in known:
                merges.append((made, piece))
                known[made + piece] = len(known)
            made += piece
    assert len(known) == SIZE - 2, len(known)
    known |= {BOS: SIZE - 2, EOS: SIZE - 1}
    return CLIPTokenizer(vocab=known, merges=merges, pad_token=EOS, model_max_length=POSITIONS)


def checkpoint(folder: Path, *, legacy: bool = False, spread: float = 0.15) -> Path:
    """A random model whose answers differ from picture to picture and text to text.

    `legacy`: its config.json names the token 2 as a text's end, as OpenAI's do: the highest number is the end.
    """
    torch.manual_seed(0)
    text = t.CLIPTextConfig(**_TEXT, eos_token_id=2 if legacy else SIZE - 1)
    config = t.CLIPConfig(
        text_config=text.to_dict(), vision_config=t.CLIPVisionConfig(**_VISION).to_dict(), projection_dim=32
    )
    model = t.CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, spread)
            elif parameter.ndim == 1:  # norms and biases as no two are
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif parameter.ndim == 4:
                parameter.normal_(0, 1.5 / parameter[0].numel() ** 0.5)
    model.save_pretrained(folder)
    words().save_pretrained(folder)
    t.CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(
        folder
    )
    return folder
