"""A small random Whisper, of one language or of several, with a tokenizer of words; and sentences for it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers as t
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

MEL, POSITIONS, LONGEST = 12, 50, 64  # a second of sound
PIECES = 60
SPECIAL = (
    "<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>", "<|startofprev|>",
    "<|notimestamps|>",
)  # fmt: skip
IDS = {name.strip("<|>"): PIECES + place for place, name in enumerate(SPECIAL)}
VOCABULARY = PIECES + len(SPECIAL) + 4  # the last are times
END, START = IDS["endoftext"], IDS["startoftranscript"]


def checkpoint(folder: Path, several: bool = False) -> Path:
    """A folder whose transcripts differ from sound to sound; `several` languages: the sound decides which."""
    torch.manual_seed(0)
    special = {"bos_token_id": START, "eos_token_id": END, "pad_token_id": END, "decoder_start_token_id": START}
    config = t.WhisperConfig(
        vocab_size=VOCABULARY, num_mel_bins=MEL, d_model=32, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64,
        max_source_positions=POSITIONS, max_target_positions=LONGEST, begin_suppress_tokens=None, **special,
    )  # fmt: skip
    model = t.WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and name != "model.encoder.embed_positions.weight":
                parameter.normal_(0, 0.25)
    telling = {"lang_to_id": {f"<|{name}|>": IDS[name] for name in ("en", "de")}}
    telling |= {"task_to_id": {name: IDS[name] for name in ("translate", "transcribe")}}
    telling |= {"forced_decoder_ids": [[1, None], [2, IDS["transcribe"]]]}
    model.generation_config = t.GenerationConfig(
        **special, max_length=LONGEST, suppress_tokens=[3, 5, *range(START, VOCABULARY)],
        begin_suppress_tokens=[7, END], is_multilingual=several, no_timestamps_token_id=IDS["notimestamps"],
        return_timestamps=False, **(telling if several else {"forced_decoder_ids": [[1, IDS["notimestamps"]]]}),
    )  # fmt: skip
    model.save_pretrained(folder)
    t.WhisperFeatureExtractor(feature_size=MEL, chunk_length=1).save_pretrained(folder)
    _words().save(str(folder / "tokenizer.json"))
    named = {f"{name}_token": SPECIAL[0] for name in ("bos", "eos", "unk", "pad")}
    about = {"tokenizer_class": "WhisperTokenizer", "additional_special_tokens": SPECIAL, **named}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return folder


def _words() -> Tokenizer:
    """Byte pairs as Whisper's, of the sentences alone."""
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    plain.train_from_iterator(sentences(), trainers.BpeTrainer(vocab_size=PIECES, show_progress=False))
    assert plain.get_vocab_size() == PIECES
    plain.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    begin = [(name, IDS[name.strip("<|>")]) for name in ("<|startoftranscript|>", "<|notimestamps|>", "<|endoftext|>")]
    single = f"{begin[0][0]} {begin[1][0]} $A {begin[2][0]}"
    plain.post_processor = processors.TemplateProcessing(single=single, special_tokens=begin)
    return plain


def sentences(count: int = 40) -> list[str]:
    """Short ones, of three to six words."""
    chosen = [[(number * 17 + i * (number + 3)) % 90 for i in range(3 + number % 4)] for number in range(count)]
    return [" ".join(f"word{one}" for one in words) for words in chosen]
