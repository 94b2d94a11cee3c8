"""`exporter verify`: whether an output folder holds what was written, of one model, and what its report tells of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exporter.report.files import read_report
from exporter.store import MANIFEST, damage, read_manifest


def verified(output: Path) -> dict[str, list[str]]:
    """What is wrong with each artifact of a folder, by its own folder's name; no lines: it is whole.

    Empty where there is no artifact. Raises JobError where there is a report that cannot be read.
    """
    manifests = [*output.glob(MANIFEST), *sorted(output.glob(f"*/{MANIFEST}"))]
    found = {path.parent: read_manifest(path.parent) for path in manifests}
    broken = {
        place.resolve().name: ["its manifest cannot be read"] if manifest is None else damage(place, manifest)
        for place, manifest in found.items()
    }
    whole = {place.name: manifest for place, manifest in found.items() if manifest is not None}
    told = read_report(output) if found and (output / "report.json").is_file() else None
    for name, line in _strangers(whole, told):
        broken.setdefault(name, []).append(line)
    return broken


def _strangers(manifests: Mapping[str, Mapping[str, Any]], report: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """(artifact, why it does not belong to the others): of another model, or not what the report's row was measured on.

    Manifests of an exporter that did not write the model's hash yet say nothing of it.
    """
    models = {name: str(one["model_sha256"]) for name, one in manifests.items() if one.get("model_sha256")}
    trained = report is None or any(report["model"][stage] is not None for stage in ("prune", "qat"))
    reference = models.pop("reference", "")
    if reference and not trained:  # else the reference is of the model before that
        models["reference"] = reference
    kind = "the report's" if report is not None else "the others'"
    wanted = str(report["model"]["sha256"]) if report is not None else next(iter(models.values()), "")
    lines = [
        (name, f"it is of another model ({model[:12]}) than {kind} ({wanted[:12]})")
        for name, model in models.items()
        if model != wanted
    ]
    for row in report["results"] if report is not None else ():
        name = row["path"]
        if name is not None and name not in manifests:
            lines.append((name, "the report tells of it, and it has no manifest that can be read"))
        elif name is not None and row["artifact"]["bytes"] not in (None, _weights(manifests[name])):
            lines.append((name, f"it is not what the report tells of, which had {row['artifact']['bytes']} bytes"))
    return lines


def _weights(manifest: Mapping[str, Any]) -> int:
    return sum(int(manifest["files"][name]["bytes"]) for name in manifest["weights"])
