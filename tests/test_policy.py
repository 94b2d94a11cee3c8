"""The policy's file, and the grids that it speaks of."""

import pytest
import torch

from exporter.errors import JobError
from exporter.quantization.grid import levels, quantized, rounded, rounded_input
from exporter.quantization.policy import Policy, read_policy
from exporter.scheme import Scheme

SCHEMES = [
    Scheme(weight=weight, group=group, symmetric=symmetric)
    for weight in ("int4", "int8")
    for group in (None, 32)
    for symmetric in (True, False)
]
LAYERS = [f"model.layers.{n}.mlp.{kind}_proj" for n in range(3) for kind in ("up", "down")]


def matrix(seed: int = 0) -> torch.Tensor:
    return torch.randn(48, 96, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_rounded_weight_is_off_by_half_a_step_at_most(scheme):
    weight = matrix()
    codes = quantized(weight, scheme)
    error = (codes.floats() - weight).reshape(codes.codes.shape).abs()
    inside = (codes.codes > levels(scheme)[0]) & (codes.codes < levels(scheme)[1])
    assert inside.float().mean() > 0.8  # what a tried, narrower range cuts off is further away
    assert (error <= codes.scales[..., None] * 0.5001)[inside].all()
    assert codes.codes.min() >= levels(scheme)[0]
    assert codes.codes.max() <= levels(scheme)[1]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("narrowed", [False, True])
def test_a_weight_on_the_grid_keeps_its_values(scheme, narrowed):
    codes = quantized(matrix(), scheme)
    values = codes.codes.float() - codes.zeros[..., None]
    if narrowed:  # no group reaches its extreme codes: its span says nothing of its step
        values = (values * 0.6).trunc()
    on_grid = (values * codes.scales[..., None]).reshape(48, 96)
    again = rounded(on_grid, scheme)
    assert (again - on_grid).abs().max() <= 1e-6 * on_grid.abs().max()


def test_a_weight_of_zeros():
    for scheme in SCHEMES:
        assert rounded(torch.zeros(4, 64), scheme).abs().max() == 0


def test_inputs():
    x = torch.tensor([[-1.0, 0.0, 0.5, 9.0]])
    uint8 = Scheme(weight="int8", input="static", range=(-1.0, 4.1))
    assert torch.allclose(rounded_input(x, uint8), torch.tensor([[-1.0, 0.0, 0.5, 4.1]]), atol=0.02)
    int8 = Scheme(weight="int8", input="static", range=(-4.0, 4.0))
    assert torch.allclose(rounded_input(x, int8), torch.tensor([[-1.0, 0.0, 0.5, 4.0]]), atol=0.02)
    assert torch.allclose(rounded_input(x, Scheme(weight="int8", input="dynamic")), x, atol=9 / 254)
    assert rounded_input(x, Scheme(weight="int8")) is x


def test_exact_names_win_over_patterns_and_later_patterns_over_earlier():
    int8, int4 = Scheme(weight="int8"), Scheme(weight="int4", group=32)
    policy = Policy(modules={"*.up_proj": int8, "model.layers.1.*": int4, LAYERS[2]: "float"})
    found = policy.resolved(LAYERS)
    assert found == {
        LAYERS[0]: int8,
        LAYERS[1]: None,
        LAYERS[2]: None,
        LAYERS[3]: int4,
        LAYERS[4]: int8,
        LAYERS[5]: None,
    }


def test_the_file_is_read_back(tmp_path):
    static = Scheme(weight="int8", input="static", range=(-3.25, 4.5), symmetric=False)
    policy = Policy(source="it's: a 'model'", sha256="abc", modules={"a.b": static, "*.c": "float", "lm_head": static})
    (tmp_path / "policy.yaml").write_text(policy.to_yaml(), encoding="utf-8")
    assert read_policy(tmp_path / "policy.yaml") == policy
    assert "  a.b: {weight: int8, symmetric: false, input: static, range: [-3.25, 4.5]}\n" in policy.to_yaml()


def test_a_signed_input_has_a_symmetric_range(tmp_path):
    scheme = Scheme(weight="int8", input="static", range=(-3.0, 3.0), signed=True)
    assert "signed static input" in str(scheme)
    policy = Policy(modules={"a": scheme})
    (tmp_path / "policy.yaml").write_text(policy.to_yaml(), encoding="utf-8")
    assert read_policy(tmp_path / "policy.yaml") == policy
    with pytest.raises(ValueError, match=r"signed goes with 'input: static'"):
        Scheme(weight="int8", signed=True)
    with pytest.raises(ValueError, match=r"must be \[-high, high\]"):
        Scheme(weight="int8", input="static", range=(-3.0, 2.0), signed=True)


def test_a_name_that_fits_nothing_shows_the_nearest():
    with pytest.raises(
        JobError, match=r"unknown module 'model.layers.1.mlp.upproj'; did you mean .*layers.1.mlp.up_proj"
    ):
        Policy(modules={"model.layers.1.mlp.upproj": "float"}).resolved(LAYERS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("modules: [", "is not valid YAML"),
        ("layers: {}", "is no policy"),
        ("modules: {a: {weight: int3}}", "Input should be 'int8', 'int4', 'palette6' or 'palette4'"),
        ("modules: {a: {weight: int8, range: [-1, 2]}}", "range goes with 'input: static'"),
        ("modules: {a: {weight: int8, input: static, range: [1, 2]}}", "must be \\[low, high\\] around 0"),
        ("modules: {a: {weight: int8, wieght: 3}}", "a: wieght: Extra inputs are not permitted"),
        ("modules: {a: flaot}", "a: 'flaot' is neither float nor a scheme"),
        ("version: 2\nmodules: {}", "version"),
    ],
)
def test_a_file_that_is_wrong_is_said(tmp_path, text, said):
    (tmp_path / "policy.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(JobError, match=said):
        read_policy(tmp_path / "policy.yaml")
