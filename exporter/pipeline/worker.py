"""The process in which heavy work is done, and the table of what can be asked of it.

Each operation stands beside the code that asks for it. exporter/process.py has both ends of the pipe.
"""

from __future__ import annotations

import sys

from exporter.pipeline.asking import measure_reference
from exporter.pipeline.calibrating import collect_statistics
from exporter.pipeline.choosing import choose_policy, prepare_policy
from exporter.pipeline.distillations import check_teacher
from exporter.pipeline.distilling import distill_checkpoint
from exporter.pipeline.exporting import export_artifact
from exporter.pipeline.generating import time_generations
from exporter.pipeline.merging import merge_adapters
from exporter.pipeline.opening import measure_quality, open_for_speed, time_round
from exporter.pipeline.pictures import measure_pictures
from exporter.pipeline.plan import check_calibration
from exporter.pipeline.pruning import prune_checkpoint
from exporter.pipeline.quantized_base import dequantize_base
from exporter.pipeline.sounds import measure_sounds
from exporter.pipeline.source import inspect_checkpoint, prepare_recipe
from exporter.pipeline.speech import measure_speech
from exporter.pipeline.training import train_checkpoint
from exporter.pipeline.zeros import measure_zeros
from exporter.process import Operation, begin

OPERATIONS: dict[str, Operation] = {
    operation.__name__: operation
    for operation in (
        prepare_recipe,
        inspect_checkpoint,
        dequantize_base,
        check_calibration,
        merge_adapters,
        measure_reference,
        measure_pictures,
        measure_sounds,
        measure_speech,
        prune_checkpoint,
        check_teacher,
        distill_checkpoint,
        train_checkpoint,
        collect_statistics,
        prepare_policy,
        choose_policy,
        export_artifact,
        measure_zeros,
        measure_quality,
        open_for_speed,
        time_round,
        time_generations,
    )
}

if __name__ == "__main__":
    begin(sys.argv[1:], OPERATIONS)
