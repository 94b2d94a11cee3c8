"""Importance matrices: of each weight matrix, the mean square of every input column.

Read and written in llama.cpp's own GGUF format (tools/imatrix: `NAME.in_sum2` and `NAME.counts`, both float32), so that
its tools can use ours and we theirs. Sums are kept in float64 until they are handed over.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exporter.errors import JobError
from exporter.runner import Floats
from exporter.targets.gguf.header import read_header

_SUM, _COUNT = ".in_sum2", ".counts"
_DATASETS, _CHUNKS, _CHUNK_SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"


@dataclass(frozen=True)
class ImportanceMatrix:
    """`sums`: float64 [columns] of squares by the name of the GGUF tensor; [experts, columns] where it stacks experts.

    `counts`: tokens that each sum is over, float64 [1] or [experts].
    """

    sums: Mapping[str, NDArray[np.float64]]
    counts: Mapping[str, NDArray[np.float64]]
    dataset: str
    chunks: int
    chunk_size: int

    def means(self) -> dict[str, Floats]:
        """What the quantizer takes: float32 [columns], experts one after the other; 1 for those never used."""
        result = {}
        for name, sums in self.sums.items():
            counts = self.counts[name].reshape(-1, 1)
            rows = sums.reshape(len(counts), -1)
            means = np.divide(rows, counts, out=np.ones_like(rows), where=counts > 0)
            result[name] = means.astype(np.float32).ravel()
        return result


def read_imatrix(file: Path) -> ImportanceMatrix:
    """llama.cpp's imatrix GGUF. Raises JobError for anything else, its old .dat format included."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
    except (OSError, ValueError, IndexError) as error:
        raise JobError(
            f"--gguf-imatrix {file} is not a GGUF file ({error}); an old .dat becomes one with: "
            f"llama-imatrix --in-file {file} --output-format gguf -o imatrix.gguf"
        ) from error
    if any(reader.get_field(key) is None for key in (_DATASETS, _CHUNKS, _CHUNK_SIZE)):
        raise JobError(f"--gguf-imatrix {file} is a GGUF file, but no importance matrix: it has no {_CHUNKS}")
    tensors = {tensor.name: np.array(tensor.data, np.float64) for tensor in reader.tensors}
    sums = {name.removesuffix(_SUM): data for name, data in tensors.items() if name.endswith(_SUM)}
    counts = {name.removesuffix(_COUNT): data.ravel() for name, data in tensors.items() if name.endswith(_COUNT)}
    if not sums or sums.keys() != counts.keys():
        raise JobError(f"--gguf-imatrix {file} is damaged: not every tensor has both {_SUM[1:]} and {_COUNT[1:]}")
    if not all(np.isfinite(data).all() for data in tensors.values()):
        raise JobError(f"--gguf-imatrix {file} holds NaN or Inf")
    datasets = reader.get_field(_DATASETS)
    assert datasets is not None
    chunks, size = (int(_contents(reader, key)) for key in (_CHUNKS, _CHUNK_SIZE))
    return ImportanceMatrix(sums, counts, ", ".join(datasets.contents() or []), chunks, size)


def _contents(reader: object, key: str) -> int:
    field = reader.get_field(key)  # type: ignore[attr-defined]
    return int(field.contents())


def write_imatrix(matrix: ImportanceMatrix, file: Path) -> None:
    """Writes llama.cpp's imatrix GGUF."""
    from gguf import GGUFWriter

    writer = GGUFWriter(file, arch="")
    writer.kv_data[0].clear()  # an importance matrix has no architecture
    writer.add_type("imatrix")
    writer.add_array(_DATASETS, [matrix.dataset])
    writer.add_uint32(_CHUNKS, matrix.chunks)
    writer.add_uint32(_CHUNK_SIZE, matrix.chunk_size)
    for name in sorted(matrix.sums):
        counts = matrix.counts[name].reshape(-1, 1)
        writer.add_tensor(name + _SUM, matrix.sums[name].reshape(len(counts), -1).astype(np.float32))
        writer.add_tensor(name + _COUNT, counts.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def from_calibration(folder: Path, model: Path) -> ImportanceMatrix:
    """The statistics of exporter.quantization.calibrate under the names that a converted model's tensors have.

    As llama.cpp's own tool does, the output layer is left out; so is what the file does not hold as a matrix.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map
    from safetensors.numpy import load_file

    header = read_header(model)
    called = header.fields["general.architecture"]
    [architecture] = [number for number, known in MODEL_ARCH_NAMES.items() if known == called]
    names = get_tensor_name_map(architecture, header.fields[f"{called}.block_count"])
    held = {tensor.name for tensor in header.tensors}
    about = json.loads((folder / "calibration.json").read_text(encoding="utf-8"))
    statistics = load_file(folder / "statistics.safetensors")
    sums, counts = {}, {}
    for module in (key.removesuffix(".squares") for key in statistics if key.endswith(".squares")):
        tensor = names.get_name(f"{module}.weight", try_suffixes=(".weight",))
        if tensor is not None and tensor.startswith("blk.") and tensor in held:
            sums[tensor] = statistics[f"{module}.squares"]
            counts[tensor] = statistics[f"{module}.rows"].astype(np.float64)
    return ImportanceMatrix(sums, counts, about["text"], about["windows"], about["window"])
