"""Compressed constants in the MIL evaluator, against what coremltools.optimize, which made them, decompresses."""

import warnings

import numpy as np
import pytest
from mil_programs import build, evaluate, random, save

from exporter.targets.coreml.inspection import inspect
from exporter.targets.coreml.mil.operators import OPERATORS

X = random(3, 64)
WEIGHT = random(96, 64, seed=1)
SPARSE = np.where(random(96, 64, seed=2) > 0, WEIGHT, 0).astype(np.float32)


def _linear(weight, folder, target, precision):
    program = build({"y": lambda mb, x: mb.linear(x=x, weight=weight)}, {"x": X}, target)
    return save(program, folder, precision, target, passes=_passes())


def _passes():
    import coremltools as ct

    return ct.PassPipeline.DEFAULT


def _quantized(mode, dtype, granularity="per_channel", **more):
    def compress(model):
        import coremltools.optimize.coreml as cto

        config = cto.OpLinearQuantizerConfig(mode=mode, dtype=dtype, granularity=granularity, **more)
        return cto.linear_quantize_weights(model, cto.OptimizationConfig(global_config=config))

    return compress


def _palettized(bits, granularity="per_tensor", joint=False, **more):
    def compress(model):
        import coremltools.optimize.coreml as cto

        config = cto.OpPalettizerConfig(mode="uniform", nbits=bits, granularity=granularity, **more)
        return cto.palettize_weights(model, cto.OptimizationConfig(global_config=config), joint_compression=joint)

    return compress


def _pruned(model):
    import coremltools.optimize.coreml as cto

    config = cto.OpThresholdPrunerConfig(threshold=1e-3, minimum_sparsity_percentile=0.1)
    return cto.prune_weights(model, cto.OptimizationConfig(global_config=config))


# The target and the compression; the operator that must be in the package, and the type that its numbers are stored in.
COMPRESSIONS = {
    "int8_ios16": ("iOS16", _quantized("linear_symmetric", "int8"), "constexpr_affine_dequantize", "int8"),
    "uint8_ios16": ("iOS16", _quantized("linear", "uint8"), "constexpr_affine_dequantize", "uint8"),
    "int8": ("iOS18", _quantized("linear_symmetric", "int8"), "constexpr_blockwise_shift_scale", "int8"),
    "int4": (
        "iOS18",
        _quantized("linear_symmetric", "int4", "per_block", block_size=32),
        "constexpr_blockwise_shift_scale",
        "int4",
    ),
    "uint4": (
        "iOS18",
        _quantized("linear", "uint4", "per_block", block_size=32),
        "constexpr_blockwise_shift_scale",
        "uint4",
    ),
    **{
        f"palettized{bits}_ios16": ("iOS16", _palettized(bits), "constexpr_lut_to_dense", "uint8")
        for bits in (2, 4, 6, 8)
    },
    **{f"palettized{bits}": ("iOS18", _palettized(bits), "constexpr_lut_to_dense", f"uint{bits}") for bits in (3, 6)},
    "palettized4_grouped": (
        "iOS18",
        _palettized(4, "per_grouped_channel", group_size=16),
        "constexpr_lut_to_dense",
        "uint4",
    ),
    "pruned_ios16": ("iOS16", _pruned, "constexpr_sparse_to_dense", "uint8"),
    "pruned": ("iOS18", _pruned, "constexpr_sparse_to_dense", "uint1"),
    "pruned_palettized": (
        "iOS18",
        lambda model: _palettized(4, joint=True)(_pruned(model)),
        "constexpr_lut_to_sparse",
        "uint4",
    ),
    "pruned_int8": (
        "iOS18",
        lambda model: _joint_int8(_pruned(model)),
        "constexpr_sparse_blockwise_shift_scale",
        "int8",
    ),
}


def _joint_int8(model):
    import coremltools.optimize.coreml as cto

    config = cto.OptimizationConfig(global_config=cto.OpLinearQuantizerConfig(mode="linear_symmetric", dtype="int8"))
    return cto.linear_quantize_weights(model, config, joint_compression=True)


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_a_compressed_weight_is_what_coremltools_decompresses(name, tmp_path):
    import coremltools as ct
    import coremltools.optimize.coreml as cto

    target, compress, operator, kind = COMPRESSIONS[name]
    weight = SPARSE if name.startswith("pruned") else WEIGHT
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its k-means', and its temporary folders'
        float_path = _linear(weight, tmp_path, target, "FLOAT32")
        model = compress(ct.models.MLModel(str(float_path), skip_model_load=True))
        model.save(str(tmp_path / "compressed.mlpackage"))
        cto.decompress_weights(model).save(str(tmp_path / "decompressed.mlpackage"))
    found = inspect(tmp_path / "compressed.mlpackage")
    assert operator in found["functions"][0]["operators"]
    assert found["bytes"][kind] > 0
    got = evaluate(tmp_path / "compressed.mlpackage", {"x": X})["y"]
    np.testing.assert_allclose(got, evaluate(tmp_path / "decompressed.mlpackage", {"x": X})["y"], rtol=1e-5, atol=1e-5)
    close = X @ weight.T
    assert np.corrcoef(got.ravel(), close.ravel())[0, 1] > (0.85 if "2" in name or "3" in name else 0.97)


def test_activations_are_quantized(tmp_path):
    scale, shift = np.array([0.02, 0.01, 0.03], np.float32), np.array([3, -5, 0], np.int8)

    def through(mb, x):
        small = mb.quantize(input=x, scale=scale, zero_point=shift, axis=0, output_dtype="int8")
        return mb.dequantize(input=small, scale=scale, zero_point=shift, axis=0)

    def plain(mb, x):
        return mb.dequantize(
            input=mb.quantize(input=x, scale=np.float32(0.01), output_dtype="uint8"), scale=np.float32(0.01)
        )

    found = evaluate(save(build({"y": through, "z": plain}, {"x": X}), tmp_path), {"x": X})
    import torch

    wanted = torch.fake_quantize_per_channel_affine(
        torch.from_numpy(X), torch.from_numpy(scale), torch.from_numpy(shift.astype(np.int32)), 0, -128, 127
    )
    np.testing.assert_allclose(found["y"], wanted.numpy(), atol=1e-6)
    np.testing.assert_allclose(found["z"], np.clip(np.rint(X / np.float32(0.01)), 0, 255) * 0.01, atol=1e-6)


def test_a_palette_of_vectors():
    """The specification's own example: two vectors of three numbers, along either axis."""
    indices = np.array([[[0, 0], [1, 0]], [[1, 1], [0, 0]]], np.uint8)
    lut = np.array([[1, 2, 3], [4, 5, 6]], np.float32).reshape(1, 1, 1, 2, 3)
    run = OPERATORS["constexpr_lut_to_dense"].run
    along_1 = [[[1, 1], [2, 2], [3, 3], [4, 1], [5, 2], [6, 3]], [[4, 4], [5, 5], [6, 6], [1, 1], [2, 2], [3, 3]]]
    np.testing.assert_array_equal(run(indices=indices, lut=lut, vector_axis=1), along_1)
    along_2 = [[[1, 2, 3, 1, 2, 3], [4, 5, 6, 1, 2, 3]], [[4, 5, 6, 4, 5, 6], [1, 2, 3, 1, 2, 3]]]
    np.testing.assert_array_equal(run(indices=indices, lut=lut, vector_axis=2), along_2)


def test_float16_constants_are_cast():
    run = OPERATORS["constexpr_cast"].run
    np.testing.assert_array_equal(run(source_val=X, output_dtype="fp32"), X)
