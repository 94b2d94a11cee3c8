"""Several adapters: one after another, and in weighted combinations held against PEFT's own add_weighted_adapter."""

import numpy as np
import peft
import pytest
import torch
from adapters import (
    LIMIT,
    adapters_of,
    both,
    config,
    error,
    ids_for,
    in_memory,
    load,
    make_base,
    same,
    streaming,
    train,
)

from exporter.errors import JobError
from exporter.stages.merge.adapter import check_combination, parse_adapter, read_adapter
from exporter.stages.merge.merge import How
from exporter.stages.merge.proof import answers

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # transformers' own, when PEFT wraps any model.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
WEIGHTS = [0.7, -0.3]


@pytest.fixture
def base(tmp_path):
    return make_base(tmp_path / "base", "llama", shard="30KB")


@pytest.fixture
def pair(base, tmp_path):
    """Two adapters on the same base, with other options each."""

    def make(first=None, second=None, kinds=("LoraConfig", "LoraConfig")):
        folders = []
        for number, options in enumerate((first or {}, second or {})):
            settings = config("llama", kinds[number], **options)
            folders.append(train(base, tmp_path / f"adapter{number}", settings, seed=number + 1, scale=0.1).path)
        return folders

    return make


def by_peft(base, folders, **how):
    """The answers of PEFT's combination, with nothing merged."""
    attached = peft.PeftModel.from_pretrained(load(base), folders[0], adapter_name="a0")
    for number, folder in enumerate(folders[1:], 1):
        attached.load_adapter(folder, f"a{number}")
    torch.manual_seed(0)
    attached.add_weighted_adapter([f"a{number}" for number in range(len(folders))], WEIGHTS, "sum", **how)
    attached.set_adapter("sum")
    return answers(attached, ids_for())


def largest_error(model, truth):
    return float(np.abs(answers(model, ids_for()) - truth).max())


@pytest.mark.parametrize("combine", ["cat", "linear", "svd"])
def test_a_combination(base, pair, tmp_path, combine):
    folders = pair()
    truth = by_peft(base, folders, combination_type=combine)
    memory, stream, model = both(base, folders, tmp_path, How(combine=combine), weights=WEIGHTS)
    assert largest_error(model, truth) < LIMIT
    assert "0.7 of LoRA adapter0 + -0.3 of LoRA adapter1" in memory["history"][0] + stream["history"][0]


@pytest.mark.parametrize("combine", ["ties", "dare_linear", "dare_ties"])
def test_a_combination_with_a_density(base, pair, tmp_path, combine):
    folders = pair()
    truth = by_peft(base, folders, combination_type=combine, density=0.5)
    in_memory(base, folders, tmp_path / "memory", How(combine=combine, density=0.5), weights=WEIGHTS)
    assert largest_error(load(tmp_path / "memory"), truth) < LIMIT
    if combine == "ties":
        streaming(base, folders, tmp_path / "streaming", How(combine=combine, density=0.5), WEIGHTS)
        same(load(tmp_path / "memory"), load(tmp_path / "streaming"))
    else:
        with pytest.raises(JobError, match=f"--combine {combine} drops weights at random.*--merge memory"):
            streaming(base, folders, tmp_path / "streaming", How(combine=combine, density=0.5), WEIGHTS)


UNLIKE = {
    "ranks": ({"r": 2}, {"r": 6}),
    "modules": ({"target_modules": ["q_proj", "k_proj"]}, {"target_modules": ["q_proj", "up_proj", "embed_tokens"]}),
    "a regex": ({"target_modules": r".*\.0\..*[qv]_proj"}, {"target_modules": ["q_proj"]}),
    "layers": ({"layers_to_transform": [0]}, {}),
    "exclusions": ({"exclude_modules": ["q_proj"]}, {"exclude_modules": ["v_proj"]}),
    "scaling": ({"use_rslora": True}, {"use_rslora": True}),
    "rsLoRA and LoRA": ({"use_rslora": True}, {"alpha_pattern": {"q_proj": 3}}),
    "rank patterns": ({"rank_pattern": {"q_proj": 7}}, {"rank_pattern": {"v_proj": 2}}),
}


@pytest.mark.parametrize("name", UNLIKE)
def test_the_exact_sum_of_adapters_that_are_unlike(base, pair, tmp_path, name):
    """`cat` is base + the weighted sum of what each changes, summed here from each one merged alone."""
    folders = pair(*UNLIKE[name])
    truth = load(base)
    for number, (folder, weight) in enumerate(zip(folders, WEIGHTS, strict=True)):
        in_memory(base, [folder], tmp_path / f"alone{number}")
        for (key, value), old in zip(
            load(tmp_path / f"alone{number}").named_parameters(), load(base).parameters(), strict=True
        ):
            truth.get_parameter(key).data += weight * (value.data - old.data)
    _, _, model = both(base, folders, tmp_path, How(combine="cat"), weights=WEIGHTS)
    assert largest_error(model, answers(truth, ids_for())) < LIMIT


@pytest.mark.parametrize("combine", ["svd", "ties"])
def test_modules_that_only_one_of_them_changes(base, pair, tmp_path, combine):
    """Streaming sees one module at a time: it must not forget that there is another adapter."""
    folders = pair(*UNLIKE["modules"])
    density = {"density": 0.6} if combine == "ties" else {}
    truth = by_peft(base, folders, combination_type=combine, **density)
    _, _, model = both(base, folders, tmp_path, How(combine=combine, **density), weights=WEIGHTS)
    assert largest_error(model, truth) < LIMIT


def test_one_after_another(base, tmp_path):
    """The second one is trained on the first one's merged model, and of another kind."""
    first = train(base, tmp_path / "first", config("llama"))
    in_memory(base, [first.path], tmp_path / "once")
    second = train(
        tmp_path / "once",
        tmp_path / "second",
        config("llama", use_dora=True, target_modules=["embed_tokens", "q_proj"]),
    )
    memory, _, model = both(base, [first.path, second.path], tmp_path)
    assert error(second, model) < LIMIT
    assert [step["adapter"] for step in memory["proof"]["steps"]] == ["LoRA first", "DoRA second"]


def test_the_second_one_is_on_embeddings_that_the_first_one_untied(tmp_path):
    base = make_base(tmp_path / "base", "tied")
    first = train(base, tmp_path / "first", config("tied", target_modules=["lm_head"]))
    in_memory(base, [first.path], tmp_path / "once")
    second = train(
        tmp_path / "once", tmp_path / "second", config("tied", trainable_token_indices=[int(ids_for()[0, 0])])
    )
    _, _, model = both(base, [first.path, second.path], tmp_path)
    assert error(second, model) < LIMIT


REFUSED = {
    "DoRA": (({"use_dora": True}, {}), "cat", None, "is DoRA: only LoRA's factors can be weighted"),
    "PiSSA": (({}, {"init_lora_weights": "pissa"}), "cat", None, "is PiSSA: only LoRA's factors"),
    "modules_to_save": (({"modules_to_save": ["lm_head"]}, {}), "cat", None, "holds base_model.model.lm_head.weight"),
    "tokens": (({"trainable_token_indices": [3]}, {}), "cat", None, "trainable_tokens_delta: only LoRA's"),
    "ranks": (({"r": 2}, {"r": 6}), "linear", None, r"of one rank \(there are: adapter0 2, adapter1 6\); take cat"),
    "no density": (({}, {}), "ties", None, "--density is for --combine ties, dare_linear, dare_ties, which need it"),
    "a density": (({}, {}), "cat", 0.5, "not for cat"),
    "unknown": (({}, {}), "dare", 0.5, "unknown combination 'dare'; did you mean"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_combination_that_is_refused(pair, name):
    options, combine, density, says = REFUSED[name]
    with pytest.raises(JobError, match=says) as refusal:
        check_combination(adapters_of(pair(*options), WEIGHTS), combine, density)
    assert len(str(refusal.value).splitlines()) == 1


def test_adalora_in_a_combination_is_refused(pair):
    folders = pair({"init_r": 4, "total_step": 9, "target_modules": ["q_proj"]}, kinds=("AdaLoraConfig", "LoraConfig"))
    with pytest.raises(JobError, match="is AdaLoRA: only LoRA's factors"):
        check_combination(adapters_of(folders, WEIGHTS), "cat", None)


def test_weights(pair, tmp_path):
    folders = pair()
    assert check_combination(adapters_of(folders), None, None) is None
    assert check_combination(adapters_of(folders, WEIGHTS), None, None) == "cat"
    with pytest.raises(JobError, match=r"give every adapter a weight, or none: .*adapter1 has none"):
        check_combination(adapters_of(folders, [1.0, None]), "cat", None)
    with pytest.raises(JobError, match="--density is for --combine"):
        check_combination(adapters_of(folders), None, 0.5)
    with pytest.raises(JobError, match="--combine ties needs two adapters or more"):
        check_combination([read_adapter(folders[0], 1.0)], "ties", 0.5)
    with pytest.raises(JobError, match="--combine cat needs adapters"):
        check_combination([], "cat", None)
    (tmp_path / "lora=2").mkdir()
    assert parse_adapter(str(tmp_path / "lora=2")) == (tmp_path / "lora=2", None)
    assert parse_adapter(f"{tmp_path}/lora=2=0.5") == (tmp_path / "lora=2", 0.5)
    for text, says in (("lora=heavy", "'heavy' is no weight; write DIR=0.7"), ("lora=nan", "must be a finite number")):
        with pytest.raises(JobError, match=says):
            parse_adapter(text)
