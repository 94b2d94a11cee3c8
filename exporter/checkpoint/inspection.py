"""What transformers and optimum know of a checkpoint: its task and how long a text it takes. Runs in a worker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from exporter.checkpoint.ctc import check_characters
from exporter.checkpoint.experts import expert_layers, split_experts
from exporter.checkpoint.extractor import rate_of, read_extractor
from exporter.checkpoint.folder import has_tokenizer
from exporter.checkpoint.linear import linear_layers, weighted_layers
from exporter.checkpoint.load import check_config, code_beside, read_config
from exporter.checkpoint.model import is_native, load_model, trust_code
from exporter.checkpoint.processor import picture_shape, read_processor
from exporter.checkpoint.renamed import renaming, wrapper_of
from exporter.checkpoint.speech import check_speech
from exporter.checkpoint.tokenizer import check_fit, embedding_of, lacks_padding, read_tokenizer, rows_of
from exporter.checkpoint.two_towers import check_towers
from exporter.checkpoint.weights import again, stored_tensors
from exporter.errors import JobError, one_line, unknown
from exporter.form import FORMS, IMAGE_FEATURES, IMAGES, PIXELS, SAMPLES, SPEECH, SPEECH_CTC, TEXT2TEXT, ZERO_SHOT
from exporter.types import FEATURES, TASKS

_BLOCK = 1 << 24  # bytes of a tensor that are compared at a time
_TRAINED_WITH = "masked_spec_embed"  # what takes the place of masked frames: in training alone
_NO_LIMIT = 1 << 20  # tokenizers without a limit of their own say 10^30; XLNet's configuration says -1


def inspect(
    model: str,
    path: Path,
    task: str | None,
    trust: bool,
    provided: dict[str, int],
    labels: int | None,
    measured: bool,
    tokenizer: Path,
) -> dict[str, Any]:
    """task, max_length (tokens, None: no limit), parameters (numbers; a tied weight counts once), unused tensors,
    notes, linear layers, those of them that are an expert's, and config. Raises JobError.

    `provided` are the parameters that adapters bring, with their rows (a head with `labels` classes among them), which
    the checkpoint may lack. `measured`: only the tasks that can be measured are taken. `tokenizer`: the folder whose
    tokenizer the model gets.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    file = read_config(path)
    check_config(model, path, file, trust)
    leftover = _leftover_code(model, path, file, trust)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_code(path, trust))
    except (StrictDataclassError, ValueError, KeyError, OSError, ImportError) as error:
        raise JobError(f"transformers cannot read the configuration of {model}: {one_line(error)}") from error
    task = _task(config, task, model, measured)
    if task in FORMS and FORMS[task].inputs == "pixels":
        return _of_pictures(model, path, task, trust, config)
    if task == SPEECH_CTC:
        return _of_sounds(model, path, task, trust, config)
    if task == SPEECH:
        check_speech(model, path, config, trust)
    words = read_tokenizer(tokenizer, trust)
    unused, empty = _fit(model, path, task, trust, set(provided), labels)
    if lacks_padding(empty) and not provided:
        raise JobError(
            f"{model} finds a text's last token by pad_token_id, and its config.json names none, so it answers no "
            f"batch; add the training's there (the tokenizer's: pad {words.pad_token_id}, eos {words.eos_token_id})"
        )
    notes = _check_tokenizer(words, tokenizer, path, empty, provided, trust)
    notes = [*leftover, *_untied(path, empty), *notes]
    parameters = sum(one.numel() for one in empty.parameters())
    split_experts(empty)
    named = "max_target_positions" if task == SPEECH else "max_position_embeddings"
    limits = [getattr(config.get_text_config(), named, None), words.model_max_length]
    known = [int(limit) for limit in limits if limit is not None and 0 < limit < _NO_LIMIT]
    return {
        "task": task,
        "max_length": min(known) if known else None,
        "parameters": parameters,
        "unused": unused,
        "notes": notes,
        "linear_layers": list(linear_layers(empty)),
        "experts": list(expert_layers(empty)),
        "config": {key: value for key, value in config.to_dict().items() if not (leftover and key == "auto_map")},
    }


def _of_pictures(model: str, path: Path, task: str, trust: bool, config: Any) -> dict[str, Any]:
    """The same of a model that reads pictures: its processor must make them all of the size that the model takes."""
    unused, empty = _fit(model, path, task, trust, set(), None)
    notes = check_towers(model, path, trust, empty) if FORMS[task].matches else []
    shape = picture_shape(read_processor(path, trust))
    seen = getattr(config, "vision_config", config)
    size, channels = getattr(seen, "image_size", None), getattr(seen, "num_channels", None)
    # Of a model that takes any size its config.json may still name that of its training.
    fixed = getattr(seen, "patch_size", None) is not None and isinstance(size, int)
    if (fixed and shape[1:] != (size, size)) or (channels is not None and shape[0] != channels):
        raise JobError(
            f"the image processor of {model} makes pictures of {' x '.join(map(str, shape))}, and its config.json "
            f"wants {channels} x {size} x {size}: one of the two is another model's"
        )
    return _without_tokens(task, unused, empty) | {"notes": notes}


def _of_sounds(model: str, path: Path, task: str, trust: bool, config: Any) -> dict[str, Any]:
    """The same of a model that hears, and writes characters: its extractor and its tokenizer must fit it."""
    unused, empty = _fit(model, path, task, trust, set(), None)
    if empty.main_input_name != SAMPLES:
        raise JobError(
            f"{model} reads {empty.main_input_name}, and of CTC models those are measured that read {SAMPLES}, the "
            "samples of a sound: wav2vec2, HuBERT, WavLM and their like"
        )
    rate_of(read_extractor(path, trust))
    check_characters(model, path, config.to_dict(), trust)
    return _without_tokens(task, unused, empty)


def _without_tokens(task: str, unused: str, empty: Any) -> dict[str, Any]:
    return {
        "task": task,
        "max_length": None,
        "parameters": sum(one.numel() for one in empty.parameters()),
        "unused": unused,
        "notes": [],
        "linear_layers": list(weighted_layers(empty)),
        "experts": [],
        "config": empty.config.to_dict(),
    }


def _untied(path: Path, empty: Any) -> list[str]:
    """A note on a config.json that ties embeddings of which the weights hold two, unlike each other."""
    first, last = empty.get_input_embeddings(), empty.get_output_embeddings()
    if last is None or not empty.config.tie_word_embeddings or getattr(first, "weight", None) is last.weight:
        return []
    names = {id(module): name for name, module in empty.named_modules()}
    stored = stored_tensors(path)
    pair = [stored.get(f"{names[id(module)]}.weight") for module in (first, last)]
    if None in pair or all(np.array_equal(*blocks) for blocks in zip(*map(_blocks, pair), strict=True)):
        return []
    told = "config.json ties output and input embedding (tie_word_embeddings), and the weights hold two that "
    return [
        f"{told}differ: both were used, as transformers 5 does; set it to false for programs that read one of them."
    ]


def _blocks(stored: Any) -> Iterator[Any]:
    for begin in range(stored.begin, stored.end, _BLOCK):
        yield replace(stored, begin=begin, end=min(stored.end, begin + _BLOCK)).read()


def _leftover_code(model: str, path: Path, file: dict[str, Any], trust: bool) -> list[str]:
    """A note on code that config.json names and that is not here, where transformers needs none. Raises JobError."""
    names = [str(name) for name in (file.get("auto_map") or {}).values()]
    if not names or code_beside(path, file):
        return []
    if is_native(file):
        return [f"config.json names code that is not beside it ({names[0]}): transformers' own was used."]
    if not trust:
        raise JobError(f"{model} needs Python code ({names[0]}); read it, then run again with --trust-remote-code")
    if not any("--" in name for name in names):
        raise JobError(f"{model} lacks the Python code that its config.json names ({names[0]}); copy it there")
    return []


def _check_tokenizer(
    tokenizer: Any, folder: Path, base: Path, empty: Any, provided: Mapping[str, int], trust: bool
) -> list[str]:
    """Notes on how the tokenizer fits the embedding that the model will have. Raises JobError."""
    embedding = embedding_of(empty)
    names = (f"{name}.weight" for name, module in empty.named_modules() if module is embedding)
    rows = next((provided[name] for name in names if name in provided), rows_of(empty))
    own = has_tokenizer(base) and folder != base
    return check_fit(tokenizer, folder, rows, read_tokenizer(base, trust) if own else None)


def _task(config: Any, asked: str | None, model: str, measured: bool) -> str:
    """The task that was asked for, or the one of the checkpoint's architecture, in the words of optimum."""
    import transformers
    from optimum.exporters.tasks import TasksManager
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    )

    if asked is not None:
        task = _by_architecture(TasksManager.map_from_synonym(asked), config.architectures or [])
        if task in TASKS:
            return str(task)
        if task not in TasksManager.get_all_tasks():
            raise JobError(unknown("task", asked, TASKS))
        if measured:
            raise JobError(f"exporter does not measure {task}, only {', '.join(TASKS)}; 'exporter merge' merges it")
        return str(task)
    names = [name for name in config.architectures or [] if hasattr(transformers, name)]
    # A model with code of its own says by its auto_map which of transformers' auto classes loads it.
    names += [name for name in getattr(config, "auto_map", None) or {} if name.startswith("AutoModel")]
    if not names:
        raise JobError(f"the architecture of {model} is not known; give --task with one of {', '.join(TASKS)}")
    try:
        named = getattr(transformers, names[0])
        task = TasksManager.infer_task_from_model(named)
        if names[0] in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values():
            task = TEXT2TEXT  # optimum takes BART's and mBART's, which can fill masks too, for models of that alone
        if names[0] in MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES.values():
            task = ZERO_SHOT  # optimum takes CLIP for one of its towers
        elif task == FEATURES and getattr(named, "main_input_name", None) == PIXELS:
            task = IMAGE_FEATURES  # optimum does not tell it from a model of texts
        task = _by_architecture(task, names)
    except ValueError:
        # optimum passes over models of which transformers has two of one kind, such as DeiT's.
        known = [name for one in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.values() for name in _tuple(one)]
        task = IMAGES if names[0] in known else "an unknown task"
        measured = measured or task not in TASKS
    if measured and task not in TASKS:
        choices = ", ".join(TASKS)
        raise JobError(f"{names[0]} is for {task}, which exporter does not measure; give --task with one of {choices}")
    return str(task)


def _by_architecture(task: str, names: Sequence[str]) -> str:
    """Speech recognition, which optimum has one name for, is of two kinds: CTC's answers are frames', not a text's."""
    if task == SPEECH and any(name.endswith("ForCTC") for name in names):
        return SPEECH_CTC
    return str(task)


def _tuple(value: str | Sequence[str]) -> Sequence[str]:
    return (value,) if isinstance(value, str) else value


def _fit(model: str, path: Path, task: str, trust: bool, provided: set[str], labels: int | None) -> tuple[str, Any]:
    """The tensors that the model has no place for, in words ("": none), and the model without weights.

    transformers fills what a checkpoint lacks with random numbers: nothing of that may be exported. Raises JobError for
    it. On the meta device no weight is read; names and shapes come from the files' headers.
    """
    reading: dict[str, Any] = {"device_map": "meta", "output_loading_info": True, "ignore_mismatched_sizes": True}
    if labels is not None:
        reading["num_labels"] = labels
    try:
        empty, found = load_model(path, task, "float32", trust, **reading)
    except (ValueError, KeyError, OSError, ImportError, RuntimeError) as error:
        raise JobError(f"transformers cannot load {model} for {task}: {one_line(error)}") from error
    unlike = sorted(key for key in found["mismatched_keys"] if key[0] not in provided)
    misfits = [f"{name} is {list(stored)}, not {list(wanted)}" for name, stored, wanted in unlike]
    # A pooler is computed from the hidden states, which are what is compared.
    lacks = sorted({*found["missing_keys"]} - provided)
    lacks = [name for name in lacks if not (task == SPEECH_CTC and name.endswith(_TRAINED_WITH))]
    lacks = [name for name in lacks if not (task in (FEATURES, IMAGE_FEATURES) and name.startswith("pooler."))]
    if misfits:
        raise JobError(f"the weights of {model} do not fit its config.json: {_few(misfits)}; {again(path)}")
    if lacks:
        _refuse_renamed(model, path, lacks)
        if lacks == ["lm_head.weight"] and not empty.config.tie_word_embeddings:
            raise JobError(
                f"{model} has no weights for lm_head.weight, and its config.json says that it does not share the input "
                "embedding's: set tie_word_embeddings to true there, if it was tied in training"
            )
        raise JobError(
            f"{model} has no weights for {_few(lacks)}, and random ones would take their place: its config.json does "
            f"not fit its weights, or it was not trained for {task} (--task)"
        )
    return _few(sorted(found["unexpected_keys"])), empty


def _refuse_renamed(model: str, path: Path, lacks: list[str]) -> None:
    """Refuses a checkpoint whose tensors have all the names that a wrapper gave them. Raises JobError."""
    stored = stored_tensors(path)
    if factor := next((name for name in stored if ".lora_A." in name), None):
        raise JobError(
            f"{model} is a base with an adapter in it that is not merged ({factor}); "
            "save the adapter alone where it was trained (PEFT's save_pretrained) and give it with --adapter"
        )
    if found := wrapper_of(stored.keys(), lacks):
        mark, owner = found
        raise JobError(
            f"the tensors of {model} are named with {mark!r}, which {owner} puts there, and transformers finds none of "
            f"them; write them with their own names: {renaming(path, mark)}"
        )


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
