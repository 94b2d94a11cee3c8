"""States and float16 in the MIL evaluator: what is read stays as it was, and what is declared is rounded."""

import numpy as np
import pytest
from mil_programs import build, random, save

from exporter.targets.coreml.mil.evaluator import Evaluator


def _stateful(body, folder, inputs):
    """A program with the inputs, float16 or int32, and a state [4, 2, 3] that is called cache."""
    import coremltools as ct
    from coremltools.converters import mil
    from coremltools.converters.mil.mil import types

    specs = [mil.Builder.TensorSpec(shape=shape, dtype=getattr(types, kind)) for shape, kind in inputs.values()]
    specs.append(mil.Builder.StateTensorSpec(shape=(4, 2, 3), dtype=types.fp16))
    names = ", ".join([*inputs, "cache"])
    namespace = {"body": body, "mb": mil.Builder}
    exec(f"def program({names}): return body(mb, {names})", namespace)
    program = mil.Builder.program(input_specs=specs, opset_version=ct.target.iOS18)(namespace["program"])
    return save(program, folder, "FLOAT16")


def _update(mb, old, x, at):
    begin = mb.concat(values=[at, np.array([0, 0], np.int32)], axis=0)
    end = mb.concat(values=[mb.add(x=at, y=np.int32(1)), np.array([2, 3], np.int32)], axis=0)
    return mb.slice_update(x=old, update=x, begin=begin, end=end)


def _sum(mb, x, name):
    return mb.reduce_sum(x=x, axes=[0, 1, 2], keep_dims=True, name=name)


def _in_place(mb, x, at, cache):
    new = mb.coreml_update_state(state=cache, value=_update(mb, mb.read_state(input=cache), x, at))
    return _sum(mb, new, "total")


def _old_is_read_later(mb, x, at, cache):
    old = mb.read_state(input=cache)
    view = mb.slice_by_index(x=old, begin=[0, 0, 0], end=[4, 2, 3])
    new = mb.coreml_update_state(state=cache, value=_update(mb, old, x, at))
    return _sum(mb, new, "total"), mb.identity(x=view, name="before")


def _twice(mb, x, at, cache):
    first = mb.coreml_update_state(state=cache, value=_update(mb, mb.read_state(input=cache), x, at))
    again = _update(mb, first, mb.mul(x=x, y=np.float16(2)), mb.add(x=at, y=np.int32(1)))
    return _sum(mb, mb.coreml_update_state(state=cache, value=again), "total")


INPUTS = {"x": ((1, 2, 3), "fp16"), "at": ((1,), "int32")}


@pytest.mark.parametrize(("body", "owned"), [(_in_place, 1), (_old_is_read_later, 0), (_twice, 2)])
@pytest.mark.parametrize("half", [False, True])
def test_a_state_is_kept_between_predictions(body, owned, half, tmp_path):
    evaluator = Evaluator(_stateful(body, tmp_path, INPUTS), half)
    assert sum(step.owned for step in evaluator.plans["main"].steps) == owned
    states, cache = evaluator.new_states(), np.zeros((4, 2, 3), np.float32)
    outputs = []
    for at in range(3):
        x = random(1, 2, 3, seed=at).astype(np.float16).astype(np.float32)
        outputs.append((cache.copy(), evaluator.run({"x": x, "at": np.array([at])}, states)))
        cache[at] = x
        if body is _twice:
            cache[at + 1] = 2 * x
        np.testing.assert_array_equal(states["cache"], cache)
        np.testing.assert_allclose(outputs[-1][1]["total"], cache.sum(), rtol=1e-3 if half else 1e-6)
    if body is _old_is_read_later:
        for before, found in outputs:  # later predictions did not change what was handed out
            np.testing.assert_array_equal(found["before"], before)


def test_two_readers_have_a_state_each(tmp_path):
    evaluator = Evaluator(_stateful(_in_place, tmp_path, INPUTS), half=True)
    one, other = evaluator.new_states(), evaluator.new_states()
    evaluator.run({"x": np.ones((1, 2, 3)), "at": np.array([0])}, one)
    assert one["cache"].sum() == 6
    assert other["cache"].sum() == 0


def test_float16_is_emulated_where_it_is_declared(tmp_path):
    """A sum of what float16 can hold and what it cannot; what is declared float32 is not rounded."""

    def body(mb, x):
        small = mb.cast(x=x, dtype="fp16")
        total = mb.add(x=small, y=np.float16(1))
        return mb.square(x=mb.cast(x=total, dtype="fp32"))

    x = np.array([2.0**-11, 2.0**-10, 3e-8, 65519, 70000, -70000], np.float32)
    path = save(build({"y": body}, {"x": x}), tmp_path)
    with np.errstate(over="ignore"):
        wanted = (x.astype(np.float16) + np.float16(1)).astype(np.float32) ** 2
    np.testing.assert_array_equal(Evaluator(path, half=True).run({"x": x})["y"], wanted)
    np.testing.assert_array_equal(Evaluator(path, half=False).run({"x": x})["y"], np.square(x + np.float32(1)))


def test_a_product_is_summed_in_float32_and_rounded_once(tmp_path):
    x, weight = random(5, 300, seed=1), random(7, 300, seed=2)

    def body(mb, x):
        return mb.linear(x=mb.cast(x=x, dtype="fp16"), weight=weight.astype(np.float16), bias=np.ones(7, np.float16))

    path = save(build({"y": body}, {"x": x}), tmp_path)
    exact = x.astype(np.float16).astype(np.float64) @ weight.astype(np.float16).astype(np.float64).T + 1
    found = Evaluator(path, half=True).run({"x": x})["y"]
    np.testing.assert_array_equal(found, found.astype(np.float16))
    assert np.abs(found - exact).max() <= np.abs(exact).max() * 2**-11 * 1.01
    assert (
        np.abs(
            Evaluator(path, half=False).run({"x": x})["y"] - (x.astype(np.float64) @ weight.astype(np.float16).T + 1)
        ).max()
        < 1e-4
    )


def test_inputs_are_checked(tmp_path):
    evaluator = Evaluator(_stateful(_in_place, tmp_path, INPUTS), half=True)
    with pytest.raises(ValueError, match="takes x, at, not x"):
        evaluator.run({"x": np.ones((1, 2, 3))}, evaluator.new_states())
    with pytest.raises(ValueError, match=r"shape \[2, 3\] is declared as fp16\[1, 2, 3\]"):
        evaluator.run({"x": np.ones((2, 3)), "at": np.array([0])}, evaluator.new_states())
