"""GGUF artifacts: every precision exported and run, what the folder holds, importance matrices, parts, refusals."""

import json
import re
from pathlib import Path
from tempfile import mkdtemp

import gguf_checkpoints
import numpy as np
import pytest
from gguf import GGUFReader

from exporter.errors import BuildError, JobError
from exporter.job import Job
from exporter.pipeline.sections import read_sections
from exporter.targets.gguf.imatrix import ImportanceMatrix, from_calibration, read_imatrix, write_imatrix
from exporter.targets.gguf.options import GgufOptions
from exporter.targets.gguf.runner import GgufDecoder
from exporter.targets.gguf.target import GGUF, calibrates, prepare
from exporter.targets.gguf.types import DEMAND_MATRIX, FILE_TYPES, FLOATS, TENSOR_TYPES
from exporter.types import GENERATION, Preparation

# Bits that a weight takes, blocks' scales included, where every row is a multiple of 256.
BITS = {
    "f32": 32, "f16": 16, "bf16": 16, "q8_0": 8.5, "q6_k": 6.5625, "q5_k_m": 5.6, "q5_k_s": 5.5, "q5_1": 6, "q5_0": 5.5,
    "q4_k_m": 4.7, "q4_k_s": 4.6, "q4_1": 5, "q4_0": 4.5, "iq4_nl": 4.5, "iq4_xs": 4.3, "q3_k_m": 3.9, "iq3_xxs": 3.3,
    "q2_k": 3.2, "iq2_xs": 2.5,
}  # fmt: skip


# (above how many bits of a weight, the least correlation of the logits); random weights are harder than a trained
# model's. Measured: 0.9996 at 8.5 bits, 0.985 at 5.5, 0.948 at 4.5, 0.898 at 3.9, 0.796 at 3.0, 0.55 at 2.3.
CORRELATION = [(8, 0.999), (5.4, 0.98), (4, 0.94), (3.5, 0.88), (3, 0.78), (0, 0.5)]


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A Llama whose rows are multiples of 256: nothing falls back."""
    return gguf_checkpoints.make(
        "LlamaForCausalLM", tmp_path_factory.mktemp("wide"), hidden_size=256, intermediate_size=512, head_dim=64
    )


@pytest.fixture(scope="module")
def statistics(wide, tmp_path_factory):
    """exporter.quantization.calibrate's folder for it."""
    return gguf_checkpoints.calibrated(wide, tmp_path_factory.mktemp("statistics") / "done")


@pytest.fixture(scope="module")
def exported(wide, statistics, converter_cache, tmp_path_factory):
    """`exported(precision, **options)`: the folder and what the target says of it, each made once."""
    made, base = {}, tmp_path_factory.mktemp("exported")

    def export(precision, **options):
        key = (precision, tuple(sorted(options.items())))
        if key not in made:
            folder = Path(mkdtemp(dir=base))
            (folder / "scratch").symlink_to(base)  # one float16 file for all
            wanted = gguf_checkpoints.request(
                wide, precision, folder, converter_cache, options=GgufOptions(**options), calibration=statistics
            )
            made[key] = wanted.folder, GGUF.export(wanted)
        return made[key]

    return export


def weights(folder, told):
    return folder / told.weights[0]


@pytest.mark.parametrize("precision", GGUF.precisions)
def test_every_precision_is_exported_and_runs(precision, exported, wide):
    folder, told = exported(precision)
    reader = GGUFReader(weights(folder, told))
    assert int(reader.get_field("general.file_type").contents()) == FILE_TYPES[precision]
    matrices = [tensor for tensor in reader.tensors if tensor.name.startswith("blk.") and len(tensor.shape) > 1]
    bits = 8 * sum(int(tensor.n_bytes) for tensor in matrices) / sum(int(tensor.n_elements) for tensor in matrices)
    assert bits == pytest.approx(BITS[precision], rel=0.12)
    assert "in the place of" not in told.notes[0]
    ids = np.arange(5, 69)
    with GgufDecoder(weights(folder, told), 1) as runner, gguf_checkpoints.reference(wide) as reference:
        got, expected = runner.logits(ids), reference.logits(ids)
        correlation = np.corrcoef(got.ravel(), expected.ravel())[0, 1]
        assert correlation > next(least for beyond, least in CORRELATION if bits > beyond)
        decoded = [runner.prefill(ids[:32]), *(runner.step(int(token)) for token in ids[32:])]
        assert np.corrcoef(np.stack(decoded).ravel(), got[31:].ravel())[0, 1] > 0.99


def test_float16_is_converted_once_for_all_quantized_precisions(exported):
    folder, _ = exported("q8_0")
    exported("q4_0")
    scratch = (folder.parent / "scratch").resolve()
    assert {path.name for path in scratch.glob("*.done")} <= {"f16.done", "f32.done", "bf16.done"}
    before = (scratch / "f16.gguf").stat().st_mtime_ns
    exported("q5_0")
    assert (scratch / "f16.gguf").stat().st_mtime_ns == before


def test_types_that_fall_back_are_reported_as_what_they_are(tmp_path, converter_cache):
    narrow = gguf_checkpoints.make("LlamaForCausalLM", tmp_path)  # rows of 64 and 128
    wanted = gguf_checkpoints.request(narrow, "q4_k_m", tmp_path, converter_cache)
    told = GGUF.export(wanted)
    kinds = {
        tensor.tensor_type.name for tensor in GGUFReader(weights(wanted.folder, told)).tensors if len(tensor.shape) > 1
    }
    assert kinds == {"Q5_0", "Q8_0"}
    assert "Q5_0" in told.notes[0]
    assert "Q8_0 in the place of q4_k_m's own types, whose blocks of 256 do not divide the rows" in told.notes[0]
    assert "without importance matrix" in told.notes


def test_the_matrix_is_pytorchs_and_changes_what_is_written(exported, wide, statistics):
    folder, told = exported("q4_0")
    matrix = read_imatrix(folder / "imatrix.gguf")
    assert len(matrix.sums) == 14  # seven in each of two layers; the output layer is left out, as by llama.cpp's tool
    assert f"importance matrix of 14 tensors over {int(matrix.counts['blk.0.ffn_down.weight'][0])} tokens" in str(told)
    columns = matrix.means()["blk.1.ffn_down.weight"]
    assert columns.shape == (512,)
    np.testing.assert_allclose(columns, gguf_checkpoints.mean_squares(wide, statistics, 1), rtol=1e-4)
    plain, _ = exported("q4_0", imatrix="off")
    assert not (plain / "imatrix.gguf").exists()
    tensors = [
        {tensor.name: np.array(tensor.data) for tensor in GGUFReader(path).tensors}
        for path in (weights(folder, told), weights(plain, told))
    ]
    unlike = {name for name, data in tensors[0].items() if not np.array_equal(data, tensors[1][name])}
    assert unlike == set(matrix.sums)


def test_a_matrix_of_llama_cpp_is_read_and_gives_the_same_file(exported):
    folder, told = exported("iq4_xs")
    other, again = exported("iq4_xs", imatrix=folder / "imatrix.gguf")
    assert weights(folder, told).read_bytes() == weights(other, again).read_bytes()


def test_matrices_survive_writing_and_reading(tmp_path):
    rng = np.random.default_rng(0)
    sums = {"blk.0.ffn_down.weight": rng.random(96) * 1e6, "blk.0.ffn_up_exps.weight": rng.random((3, 64))}
    counts = {"blk.0.ffn_down.weight": np.array([4096.0]), "blk.0.ffn_up_exps.weight": np.array([7.0, 0.0, 9.0])}
    write_imatrix(ImportanceMatrix(sums, counts, "text.txt", 8, 512), tmp_path / "imatrix.gguf")
    matrix = read_imatrix(tmp_path / "imatrix.gguf")
    assert (matrix.dataset, matrix.chunks, matrix.chunk_size) == ("text.txt", 8, 512)
    for name, data in sums.items():
        np.testing.assert_allclose(matrix.sums[name].reshape(data.shape), data, rtol=1e-6)
        np.testing.assert_array_equal(matrix.counts[name], counts[name])
    experts = matrix.means()["blk.0.ffn_up_exps.weight"].reshape(3, 64)
    np.testing.assert_allclose(experts[0], sums["blk.0.ffn_up_exps.weight"][0] / 7, rtol=1e-6)
    assert (experts[1] == 1).all()  # an expert that was never used, as llama.cpp's quantizer has it


def test_llama_cpps_own_reader_opens_our_matrix(exported):
    """libggml's gguf_init_from_file, which its tools load importance matrices with."""
    folder, _ = exported("q4_0")
    names = gguf_checkpoints.opened_by_ggml(folder / "imatrix.gguf")
    assert "blk.0.attn_q.weight.in_sum2" in names
    assert "blk.0.attn_q.weight.counts" in names


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"no", "not a GGUF file"), (b"GGUF" + bytes(20), "not a GGUF file"), (None, "but no importance matrix")],
)
def test_what_is_no_matrix_is_refused(content, says, tmp_path, exported):
    file = tmp_path / "imatrix.gguf"
    folder, told = exported("q8_0")
    file.write_bytes(weights(folder, told).read_bytes() if content is None else content)
    with pytest.raises(JobError, match=says):
        read_imatrix(file)


def preparation(path, cache, precision="q4_k_m", offline=False, **options):
    config, options = json.loads((path / "config.json").read_text()), GgufOptions(**options)
    return Preparation(path, config, GENERATION, precision, options, cache, offline, 512, None)


@pytest.mark.parametrize("precision", ["iq2_xs", "iq3_xxs"])
def test_types_that_demand_a_matrix_are_refused_without_before_any_work(precision, wide, converter_cache):
    assert calibrates(precision, GgufOptions())
    assert prepare(preparation(wide, converter_cache, precision)) is None
    assert "importance matrix" in prepare(preparation(wide, converter_cache, precision, imatrix="off"))
    assert "importance matrix" in prepare(
        preparation(wide, converter_cache, "q4_0", imatrix="off", tensor=("ffn_up=iq2_s",))
    )


def test_only_types_that_make_use_of_a_matrix_ask_for_a_calibration():
    wanted = {precision for precision in GGUF.precisions if calibrates(precision, GgufOptions())}
    assert wanted == GGUF.precisions.keys() - {*FLOATS, "q8_0"}
    assert not any(calibrates(precision, GgufOptions(imatrix="off")) for precision in GGUF.precisions)
    assert DEMAND_MATRIX & GGUF.precisions.keys() == {"iq2_xs", "iq3_xxs"}


def test_tensor_types_are_overridden(exported):
    folder, told = exported("q4_0", tensor=("ffn_down=q6_k", "blk.0.attn_v=f16"))
    kinds = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(weights(folder, told)).tensors}
    assert {kinds["blk.0.ffn_down.weight"], kinds["blk.1.ffn_down.weight"]} == {"Q6_K"}
    assert (kinds["blk.0.attn_v.weight"], kinds["blk.1.attn_v.weight"]) == ("F16", "Q4_0")
    with GgufDecoder(weights(folder, told), 1) as runner:
        assert np.isfinite(runner.logits(np.arange(5, 25))).all()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tensor": "ffn_down"}, "--gguf-tensor 'ffn_down': give PATTERN=TYPE, such as 'ffn_down=q6_k'"),
        (
            {"tensor": ["a=f16", "ffn_down=q6_x"]},
            "--gguf-tensor 'ffn_down=q6_x': unknown tensor type 'q6_x'; did you mean",
        ),
        ({"tensor": ["(=q6_k"]}, "--gguf-tensor '(=q6_k': '(' is no regular expression"),
        ({"split_max_size": "4 GB"}, "--gguf-split-max-size '4 GB': give a number of bytes, or one with K, M or G"),
        ({"split_max_size": 0}, "--gguf-split-max-size 0: give a number of bytes"),
        ({"split_max_size": True}, "--gguf-split-max-size True: give a number of bytes"),
        ({"imatrix": 3}, "--gguf-imatrix 3: input should be 'auto' or 'off'"),
        ({"split_size": "4G"}, "unknown option of gguf 'split_size'; did you mean split_max_size"),
    ],
    ids=str,
)
def test_wrong_options_are_named(options, says):
    with pytest.raises(JobError, match="^" + re.escape(says)):
        read_sections(Job(model="tiny", output="out", gguf=options))


def test_what_a_section_may_hold_is_read_as_it_is_meant():
    job = Job(model="tiny", output="out", gguf={"tensor": "a=f16", "imatrix": False, "split_max_size": "4G"})
    options = read_sections(job).targets["gguf"]
    assert options == GgufOptions(tensor=("a=f16",), imatrix="off", split_max_size=4_000_000_000)
    assert GgufOptions.model_validate(read_sections(job).resolved(["gguf"])["gguf"]) == options  # what the report keeps


def test_a_pattern_that_fits_no_tensor_is_refused(exported):
    with pytest.raises(JobError, match=r"ffn_dwon=q6_k fits no tensor; there are: .*blk\.N\.ffn_down\.weight"):
        exported("q4_0", tensor=("ffn_dwon=q6_k",))


def test_a_file_above_the_limit_becomes_parts_that_run(exported):
    whole, told = exported("q8_0")
    parts, split = exported("q8_0", split_max_size="700K")
    assert len(split.weights) > 2
    assert split.weights[0] == told.weights[0].replace(".gguf", f"-00001-of-{len(split.weights):05d}.gguf")
    assert {path.name for path in parts.glob("*.gguf")} == set(split.weights)
    assert all((parts / name).stat().st_size <= 700_000 for name in split.weights)
    ids = np.arange(5, 45)
    with GgufDecoder(weights(whole, told), 1) as one, GgufDecoder(weights(parts, split), 1) as many:
        np.testing.assert_array_equal(one.logits(ids), many.logits(ids))
        assert one.tokenize("<s> Hello  world").tolist() == many.tokenize("<s> Hello  world").tolist()
    assert exported("q8_0", split_max_size="1G")[1].weights == told.weights
    with pytest.raises(BuildError, match="give more"):
        exported("q8_0", split_max_size="100K")


def test_transformers_reads_the_same_weights_from_the_f16_file(exported, wide):
    """An independent reader: its names, its permutation of the rotary rows, its arithmetic."""
    import torch
    import transformers

    folder, told = exported("f16")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=told.weights[0], dtype=torch.float32)
    original = transformers.AutoModelForCausalLM.from_pretrained(wide, dtype=torch.float32).state_dict()
    loaded = model.state_dict()
    assert loaded.keys() == original.keys()
    for name, weight in original.items():
        expected = weight.half().float() if weight.ndim > 1 else weight
        torch.testing.assert_close(loaded[name], expected, rtol=0, atol=0)


def test_all_types_are_those_of_llama_cpp():
    """The numbers that are written here are the enums of the installed binding."""
    import llama_cpp

    prefix = {"f32": "ALL_"}
    for name, number in FILE_TYPES.items():
        upper = name.upper()
        assert getattr(llama_cpp, f"LLAMA_FTYPE_{prefix.get(name, 'MOSTLY_')}{upper}") == number
    for name, number in TENSOR_TYPES.items():
        if hasattr(llama_cpp, f"GGML_TYPE_{name.upper()}"):
            assert getattr(llama_cpp, f"GGML_TYPE_{name.upper()}") == number
        else:
            from gguf import GGMLQuantizationType

            assert GGMLQuantizationType[name.upper()] == number


def test_calibration_is_mapped_to_the_files_names(exported, statistics):
    folder, _ = exported("q4_0")
    matrix = from_calibration(statistics, (folder.parent / "scratch").resolve() / "f16.gguf")
    kinds = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    assert set(matrix.sums) == {f"blk.{layer}.{kind}.weight" for layer in range(2) for kind in kinds}
    assert {sums.dtype for sums in matrix.sums.values()} == {np.dtype(np.float64)}
