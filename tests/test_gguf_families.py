"""Families through llama.cpp's converter and engine, against PyTorch: logits, weights, tokens."""

import json

import gguf_checkpoints
import numpy as np
import pytest
import transformers
from clients import client

from exporter.measure.tokenization import TokenizedTexts, compare_tokenizer
from exporter.pipeline.packing import pack
from exporter.report.result import Figure
from exporter.targets.gguf.runner import GgufDecoder, GgufEncoder
from exporter.targets.gguf.target import GGUF
from exporter.targets.torch.target import open_checkpoint
from exporter.types import FEATURES

# The largest error of a logit (BERT: of a hidden state); they are of the order of 10. llama.cpp looks GELU up in a
# table of float16, whatever the weights are; Gemma's six random layers amplify it.
LIMITS = {"f32": 1e-4, "f16": 5e-2}
WITH_GELU = {"f32": 5e-2, "f16": 2e-1}
GELU = ("Gemma3ForCausalLM", "GPT2LMHeadModel", "BertModel")
# Texts that llama.cpp's WordPiece reads otherwise than BERT's: it drops the vowel signs of Korean and Hindi.
KNOWN_ERRORS = {"BertModel": 4}


@pytest.fixture(scope="module", params=gguf_checkpoints.FAMILIES)
def family(request, tmp_path_factory):
    return gguf_checkpoints.make(request.param, tmp_path_factory.mktemp(request.param))


def means(runner, text):
    return runner.logits(runner.tokenize(text)).mean(axis=0)


@pytest.mark.parametrize("precision", LIMITS)
def test_answers_are_pytorchs(family, precision, tmp_path, converter_cache):
    wanted = gguf_checkpoints.request(family, precision, tmp_path, converter_cache)
    exported = GGUF.export(wanted)
    architecture = json.loads((family / "config.json").read_text())["architectures"][0]
    limit = (WITH_GELU if architecture in GELU else LIMITS)[precision]
    task = wanted.checkpoint.task
    opener = GgufEncoder if task == FEATURES else GgufDecoder
    ids = np.random.default_rng(0).integers(5, 600, 97)
    with (
        open_checkpoint(family, task, 1) as reference,
        opener(wanted.folder / exported.weights[0], 1, precision == "f32") as runner,
    ):
        for length in (97, 1, 23):  # beyond Gemma's sliding window, and shorter again
            expected, got = reference.logits(ids[:length]), runner.logits(ids[:length])
            assert np.abs(expected).max() > 1
            assert got.shape == expected.shape
            np.testing.assert_allclose(got, expected, atol=limit)
        if task != FEATURES:
            steps = [runner.prefill(ids[:40]), *(runner.step(int(token)) for token in ids[40:60])]
            expected = reference.logits(ids[:60])[39:]
            np.testing.assert_allclose(np.stack(steps), expected, atol=limit)
        if task == FEATURES and precision == "f32":
            text = "Its program makes a vector of a sentence."
            pack(GGUF, family, wanted.folder, task)
            np.testing.assert_allclose(json.loads(client(wanted.folder, text)), means(runner, text), atol=limit)
        if architecture == "Qwen2ForCausalLM":  # transformers takes Qwen2's own class for it: this vocabulary is none
            return
        tokenizer = transformers.AutoTokenizer.from_pretrained(family)
        told = TokenizedTexts.of(tokenizer, gguf_checkpoints.TEXT.read_text()[:100_000])
        [errors] = compare_tokenizer(runner, told).values()
        assert errors.value == KNOWN_ERRORS.get(architecture, 0), errors.detail


def test_the_chat_template_and_special_tokens_arrive(tmp_path, converter_cache):
    import llama_cpp

    folder = gguf_checkpoints.make("Qwen3ForCausalLM", tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(
        ["<tool_response>"]
    )  # an added token that is not special, in a place that the vocabulary leaves
    tokenizer.save_pretrained(folder)
    added = tokenizer.convert_tokens_to_ids("<tool_response>")
    assert added == gguf_checkpoints.WORDS
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(added + 1)
    model.save_pretrained(folder)
    wanted = gguf_checkpoints.request(folder, "q8_0", tmp_path, converter_cache)
    exported = GGUF.export(wanted)
    with GgufDecoder(wanted.folder / exported.weights[0], 1) as runner:
        vocabulary = runner._vocabulary
        assert llama_cpp.llama_model_chat_template(runner._model, None).decode() == tokenizer.chat_template
        assert llama_cpp.llama_vocab_bos(vocabulary) == tokenizer.bos_token_id
        assert llama_cpp.llama_vocab_eos(vocabulary) == tokenizer.eos_token_id
        for token in ("<|im_end|>", "<|endoftext|>"):  # either ends a turn
            assert llama_cpp.llama_vocab_is_eog(vocabulary, tokenizer.convert_tokens_to_ids(token))
        for token in tokenizer.all_special_tokens:
            attributes = llama_cpp.llama_vocab_get_attr(vocabulary, tokenizer.convert_tokens_to_ids(token))
            assert attributes & llama_cpp.LLAMA_TOKEN_ATTR_CONTROL
        attributes = llama_cpp.llama_vocab_get_attr(vocabulary, added)
        assert attributes & llama_cpp.LLAMA_TOKEN_ATTR_USER_DEFINED
        told = TokenizedTexts.of(tokenizer, "x<tool_response> y <tool_response>\n")
        assert compare_tokenizer(runner, told)["tokenizer_errors"] == Figure(0)
    modelfile = (wanted.folder / "Modelfile").read_text()
    assert 'PARAMETER stop "<|im_end|>"' in modelfile
