"""A GGUF file as several of a limited size, as llama.cpp's own tool names and numbers them."""

from __future__ import annotations

from pathlib import Path

from exporter.errors import BuildError


def split(file: Path, limit: int) -> tuple[str, ...]:
    """Replaces a file above `limit` bytes by parts NAME-00001-of-0000N.gguf; returns the names of what is there then.

    A tensor is never divided: one that is larger than the limit is refused. The first part has all the metadata.
    """
    from gguf import GGUFEndian, GGUFReader, GGUFValueType, GGUFWriter

    if file.stat().st_size <= limit:
        return (file.name,)
    reader = GGUFReader(file)
    # The first part has the metadata, vocabulary included; the others get as little room, so that all keep the limit.
    room = limit - int(reader.data_offset) - len(reader.tensors) * int(reader.alignment)
    largest = max(reader.tensors, key=lambda tensor: tensor.n_bytes)
    if largest.n_bytes > room:
        need = limit - room + int(largest.n_bytes)
        raise BuildError(f"--gguf-split-max-size {limit}: {largest.name} and the metadata need {need} bytes; give more")
    architecture = reader.get_field("general.architecture")
    assert architecture is not None
    writer = GGUFWriter(file, architecture.contents(), endianess=GGUFEndian.LITTLE, split_max_size=room)
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            kind = field.types[0]
            inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    before = set(file.parent.glob("*.gguf"))
    writer.write_header_to_file(file)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    names = sorted(path.name for path in set(file.parent.glob("*.gguf")) - before)
    assert names
    file.unlink()
    return tuple(names)
