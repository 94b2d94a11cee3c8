"""model.litertlm: the same program with its tokenizer and what a conversation is written as, for LiteRT-LM.

https://github.com/google-ai-edge/LiteRT-LM: its engine on phones opens this one file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from exporter.errors import BuildError
from exporter.targets.litert.convert import DECODE, MASK
from exporter.targets.litert.flatbuffer import read_model, signatures
from exporter.targets.litert.held import FILE
from exporter.types import Checkpoint

BUNDLE = "model.litertlm"
# LiteRT-LM hands a message's content to the template as a list of parts, of which a text model's knows nothing:
# it stops at the first message. This goes before the model's own: the texts of the parts, joined.
_TEXTS = """{%- set told = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- if message.content is string or message.content is not sequence -%}
{%- set told.messages = told.messages + [message] -%}
{%- else -%}
{%- set one = namespace(text="") -%}
{%- for part in message.content -%}{%- set one.text = one.text ~ part.text -%}{%- endfor -%}
{%- set told.messages = told.messages + [dict(message, content=one.text)] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = told.messages %}"""


def write_bundle(folder: Path, checkpoint: Checkpoint) -> None:
    """Writes it beside the program in an artifact's folder. Raises BuildError for a tokenizer of another form."""
    from litert_lm_builder import litertlm_builder

    tokenizer = folder / "tokenizer.json"
    if not tokenizer.is_file():
        raise BuildError("--litert-bundle: LiteRT-LM reads tokenizer.json, and this model's tokenizer has another form")
    with TemporaryDirectory() as name:
        facts = Path(name) / "metadata.pb"
        facts.write_bytes(_metadata(folder, checkpoint).SerializeToString())
        builder = litertlm_builder.LitertLmFileBuilder()
        builder.add_system_metadata(
            litertlm_builder.Metadata("model", checkpoint.source, litertlm_builder.DType.STRING)
        )
        builder.add_llm_metadata(str(facts))
        builder.add_hf_tokenizer(str(tokenizer))
        builder.add_tflite_model(str(folder / FILE), litertlm_builder.TfLiteModelType.PREFILL_DECODE)
        with (folder / BUNDLE).open("wb") as file:
            builder.build(file)


def _metadata(folder: Path, checkpoint: Checkpoint) -> Any:
    from litert_lm_builder.runtime.proto import llm_metadata_pb2, llm_model_type_pb2
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, trust_remote_code=checkpoint.trust_remote_code)
    metadata = llm_metadata_pb2.LlmMetadata()
    begin = tokenizer("x").input_ids[:1]
    if begin and begin[0] == tokenizer.bos_token_id:  # only where the model is used to read it
        metadata.start_token.token_ids.ids.append(begin[0])
    for token in _ends(folder):
        metadata.stop_tokens.add().token_ids.ids.append(token)
    if tokenizer.chat_template:
        metadata.jinja_prompt_template = _TEXTS + tokenizer.chat_template
    metadata.max_num_tokens = _longest(folder / FILE)
    # What LiteRT-LM knows of a family beyond this is of images, sounds and tools.
    metadata.llm_model_type.CopyFrom(llm_model_type_pb2.LlmModelType(generic_model=llm_model_type_pb2.GenericModel()))
    return metadata


def _ends(folder: Path) -> Iterator[int]:
    """The tokens that end a text: generation_config.json's, or config.json's where it names none."""
    for name in ("generation_config.json", "config.json"):
        file = folder / name
        said = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id") if file.is_file() else None
        if said is not None:
            yield from said if isinstance(said, list) else [said]
            return


def _longest(file: Path) -> int:
    """Tokens of the cache."""
    for name, definition, graph in signatures(read_model(file)):
        for one in definition.inputs:
            if name == DECODE and one.name.decode() == MASK:
                return int(graph.tensors[one.tensorIndex].shape[-1])
    raise AssertionError(f"{file} has no {DECODE} with a {MASK}")
