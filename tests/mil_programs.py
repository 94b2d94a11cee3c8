"""Programs of MIL's builder, saved as real .mlpackage folders and evaluated: what the evaluator's tests share."""

import logging
import warnings

import numpy as np

logging.getLogger("coremltools").setLevel(logging.ERROR)  # it tells of what is only on a Mac, at each import


def save(program, folder, precision="FLOAT32", target="iOS18", passes=None):
    """The .mlpackage of a program; the builder's operators as they are, without coremltools' passes."""
    import coremltools as ct

    pipeline = ct.PassPipeline.EMPTY if passes is None else passes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own deprecated calls, and a temporary folder that it leaves to gc
        model = ct.convert(
            program,
            convert_to="mlprogram",
            compute_precision=getattr(ct.precision, precision),
            minimum_deployment_target=getattr(ct.target, target),
            pass_pipeline=pipeline,
        )
        path = folder / "model.mlpackage"
        model.save(str(path))
        del model
    return path


def build(cases, inputs, target="iOS18"):
    """One program of many cases, each a function of the builder and the inputs by name: its result is the output NAME.

    `inputs`: by name a shape, or an array whose shape and type count. Every output is float32.
    """
    import coremltools as ct
    from coremltools.converters import mil
    from coremltools.converters.mil.mil import types

    kinds = {"f": types.fp32, "i": types.int32, "b": types.bool}
    specs = [mil.Builder.TensorSpec(shape=value.shape, dtype=kinds[value.dtype.kind]) for value in inputs.values()]

    def body(*variables):
        given = dict(zip(inputs, variables, strict=True))
        return tuple(
            mil.Builder.cast(x=make(mil.Builder, **given), dtype="fp32", name=name) for name, make in cases.items()
        )

    # The builder takes the inputs' names from the function's signature.
    source = f"def program({', '.join(inputs)}): return body({', '.join(inputs)})"
    namespace = {"body": body}
    exec(source, namespace)
    return mil.Builder.program(input_specs=specs, opset_version=getattr(ct.target, target))(namespace["program"])


def evaluate(path, feeds, half=False, states=None):
    from exporter.targets.coreml.mil.evaluator import Evaluator

    return Evaluator(path, half).run(feeds, states)


def answers(cases, inputs, folder):
    """What the evaluator answers of one program of many cases, by their names; each case as `build` takes it first."""
    return evaluate(save(build({name: make for name, (make, _) in cases.items()}, inputs), folder), inputs)


def expected(case, inputs):
    """What PyTorch answers of a case, whose second is a function of the tensors by name."""
    import torch

    return case[1]({name: torch.from_numpy(value) for name, value in inputs.items()}).float().numpy()


def random(*shape, low=-2.0, high=2.0, seed=0):
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)
