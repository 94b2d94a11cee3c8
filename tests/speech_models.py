"""Tiny random CTC models with the tokenizer and the extractor that real ones have, and sounds with transcripts."""

import json
import struct

import numpy as np

from exporter.checkpoint.sounds import drawn, read

LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVKXJQZ'"]
RATE = 16_000
SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 192,
    "conv_dim": (16, 16, 16), "conv_kernel": (10, 4, 4), "conv_stride": (5, 8, 4), "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 8, "vocab_size": 32, "pad_token_id": 0,
    "hidden_dropout": 0.0, "layerdrop": 0.0,
}  # fmt: skip


def save(folder, kind="wav2vec2", normalized=True, **more):
    """A folder as facebook/wav2vec2-base-960h has it ("group" normalization), or hubert-large ("layer")."""
    import torch
    from transformers import (
        HubertConfig,
        HubertForCTC,
        Wav2Vec2Config,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForCTC,
    )

    torch.manual_seed(0)
    config, model = {"wav2vec2": (Wav2Vec2Config, Wav2Vec2ForCTC), "hubert": (HubertConfig, HubertForCTC)}[kind]
    made = model(config(**SMALL | more)).eval()
    with torch.no_grad():  # characters that are told apart, not all blank
        made.lm_head.weight.normal_(0, 1.0)
    made.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({one: number for number, one in enumerate(LETTERS)}))
    Wav2Vec2CTCTokenizer(folder / "vocab.json").save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=normalized, return_attention_mask=False).save_pretrained(folder)
    return folder


def write_wav(file, sound, rate=RATE, channels=1, bits=16, kind=1):
    """A WAV file of float samples [T] within -1 and 1: PCM, or of kind 3 floats."""
    wide = np.repeat(np.asarray(sound, np.float64)[:, None], channels, 1)
    if kind == 3:
        data = wide.astype(f"<f{bits // 8}").tobytes()
    else:
        codes = np.rint(wide * (2 ** (bits - 1) - 1)).astype(np.int64)
        if bits == 8:
            data = (codes + 128).astype(np.uint8).tobytes()
        else:
            data = codes.astype("<i8").reshape(-1).view(np.uint8).reshape(-1, 8)[:, : bits // 8].tobytes()
    file.parent.mkdir(exist_ok=True)
    size = channels * bits // 8
    header = struct.pack("<HHIIHH", kind, channels, rate, rate * size, size, bits)
    chunks = b"".join(name + struct.pack("<I", len(body)) + body for name, body in ((b"fmt ", header), (b"data", data)))
    file.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks)
    return file


def sounds(count=10, seed=3, rate=RATE):
    return list(read(drawn(count, seed), rate))


def fed(model, file):
    """What a model of a folder is fed of a file, by its own extractor."""
    from exporter.checkpoint.extractor import extracted, read_extractor
    from exporter.checkpoint.sound_files import read_sound

    return extracted(read_extractor(model, False), read_sound(file, RATE), RATE)
