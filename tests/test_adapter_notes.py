"""What a merge would pass over in an adapter's folder is told, or refused."""

import json

import peft
import pytest
from adapters import config, make_base, tensors, train
from safetensors.torch import save_file

from exporter.errors import JobError
from exporter.stages.merge.adapter import read_adapter
from exporter.stages.merge.told import notes_of

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # transformers' own, when PEFT wraps any model.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
KINDS = {
    "LoraConfig": {},
    "LoHaConfig": {"r": 4},
    "LoKrConfig": {"r": 4},
    "AdaLoraConfig": {"r": 8, "init_r": 4, "total_step": 10, "tinit": 1, "tfinal": 1},
    "IA3Config": {"feedforward_modules": ["down_proj"]},
}


@pytest.fixture
def base(tmp_path):
    return make_base(tmp_path / "base", "llama")


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_that_training_never_changed(base, tmp_path, kind):
    asked = config("llama", kind, **KINDS[kind])
    for scale, says in ((0, ["The adapter adapter changes nothing: the change of all its 6 modules"]), (0.05, [])):
        trained = train(base, tmp_path / "adapter", asked, scale=scale)
        notes = notes_of(read_adapter(trained.path))
        assert [note[: len(said)] for note, said in zip(notes, says, strict=True)] == says


def test_an_adapter_that_changes_one_module(base, tmp_path):
    trained = train(base, tmp_path / "adapter", config("llama"), scale=0)
    values = tensors(trained.path)
    values[next(name for name in values if "lora_B" in name)][0, 0] = 1e-6
    save_file(values, trained.path / "adapter_model.safetensors")
    assert notes_of(read_adapter(trained.path)) == []


@pytest.mark.parametrize("options", [{"modules_to_save": ["norm"]}, {"use_dora": True}])
def test_an_adapter_that_holds_more_than_factors(base, tmp_path, options):
    trained = train(base, tmp_path / "adapter", config("llama", **options), scale=0)
    assert notes_of(read_adapter(trained.path)) == []


def with_keys(base, folder, **keys):
    trained = train(base, folder, config("llama"))
    path = trained.path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
    return read_adapter(trained.path)


@pytest.mark.parametrize(
    "keys",
    [
        {"use_cubic_scaling": True, "peft_version": "0.99.0"},
        {"enable_lora": [True, False, True]},
        {"cubic_config": {"gain": 3.0}},
    ],
)
def test_a_key_that_peft_does_not_know_and_that_is_on(base, tmp_path, keys):
    with pytest.raises(JobError, match=rf"has {next(iter(keys))}, which PEFT {peft.__version__} does not know") as said:
        notes_of(with_keys(base, tmp_path / "adapter", **keys))
    assert ("saved by PEFT 0.99.0" in str(said.value)) == ("peft_version" in keys)


def test_keys_that_peft_ignores_are_told(base, tmp_path):
    off = {
        "enable_lora": None,
        "merge_weights": True,
        "use_cubic": False,
        "cubic_size": 16,
        "cubic_config": {"on": False},
    }
    [note] = notes_of(with_keys(base, tmp_path / "adapter", **off))
    assert "PEFT ignores keys of adapter's adapter_config.json: cubic_config: {'on': False}, cubic_size: 16" in note


def test_an_activated_lora(base, tmp_path):
    with pytest.raises(JobError, match="acts only after these tokens, and merged it would act always"):
        notes_of(with_keys(base, tmp_path / "adapter", alora_invocation_tokens=[5, 6]))
