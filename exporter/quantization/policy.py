"""Policy: how each linear layer is quantized, and which stay in float. One policy serves every target.

It is printed and read as YAML that a person can edit:

    version: 1
    source: smollm2-135m                  # what it was made for
    sha256: 5af9…
    modules:                              # the checkpoint's module names, or shell patterns of them
      model.layers.0.mlp.up_proj: {weight: int8, input: static, range: [-3.1, 4.2]}
      model.layers.0.mlp.down_proj: float
      "model.layers.1.*": {weight: int4, group: 32, symmetric: false}

An exact name wins over a pattern, a later pattern over an earlier one; what nothing names stays in float.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from exporter.errors import BuildError, JobError, unknown
from exporter.scheme import Scheme
from exporter.yaml_file import read_yaml

FLOAT: Literal["float"] = "float"


class Policy(BaseModel):
    """Schemes by module name or pattern. `sha256`: of the checkpoint that it was made for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    source: str | None = None
    sha256: str | None = None
    modules: dict[str, Scheme | Literal["float"]]

    def scheme(self, module: str) -> Scheme | None:
        """What a module gets; None: it stays in float."""
        found = self.modules.get(module)
        if found is None:
            fitting = [scheme for pattern, scheme in self.modules.items() if fnmatchcase(module, pattern)]
            found = fitting[-1] if fitting else FLOAT
        return None if found == FLOAT else found

    def resolved(self, modules: Iterable[str]) -> dict[str, Scheme | None]:
        """The scheme of every linear layer of a model. Raises JobError for names that fit none of them."""
        names = list(modules)
        for pattern in self.modules:
            if pattern not in names and not any(fnmatchcase(name, pattern) for name in names):
                raise JobError(f"the policy: {unknown('module', pattern, names)}")
        return {name: self.scheme(name) for name in names}

    def to_yaml(self) -> str:
        head = self.model_dump(mode="json", include={"version", "source", "sha256"}, exclude_none=True)
        lines = [yaml.safe_dump(head, sort_keys=False).rstrip(), "modules:"]
        for name, scheme in self.modules.items():
            [key, *_] = yaml.safe_dump(name).splitlines()
            lines.append(f"  {key}: {_flow(scheme) if isinstance(scheme, Scheme) else scheme}")
        return "\n".join(lines) + "\n"


def _flow(scheme: Scheme) -> str:
    """A scheme in one line: hundreds of them must be read and edited by a person."""
    values = scheme.model_dump(mode="json", exclude_defaults=True)
    text: str = yaml.safe_dump(values, default_flow_style=True, width=10_000, sort_keys=False)
    return text.rstrip()


def check_schemes(policy: Mapping[str, Scheme | None] | None, cannot_express: Callable[[Scheme], str | None]) -> None:
    """Raises BuildError for a layer's scheme that a target cannot express, or whose static input has no range."""
    for name, scheme in (policy or {}).items():
        if scheme is None:
            continue
        reason = cannot_express(scheme)
        if reason is None and scheme.input == "static" and scheme.range is None:
            reason = "its static input has no range; 'exporter run' finds one"
        if reason is not None:
            raise BuildError(f"the policy: {name}: {reason}")


def read_policy(file: Path) -> Policy:
    """A policy's YAML file. Raises JobError with the line that says what is wrong."""
    loaded = read_yaml(file, "policy")
    if not isinstance(loaded, Mapping) or not isinstance(loaded.get("modules"), Mapping):
        raise JobError(f"{file} is no policy: it must hold 'modules:', a mapping of module names to schemes")
    modules = {str(name): _scheme(file, str(name), value) for name, value in loaded["modules"].items()}
    try:
        return Policy.model_validate({**loaded, "modules": modules})
    except ValidationError as error:
        raise JobError(f"{file}: {_first(error)}") from error


def _scheme(file: Path, name: str, value: Any) -> Scheme | Literal["float"]:
    if value == FLOAT:
        return FLOAT
    if not isinstance(value, Mapping):
        raise JobError(f"{file}: {name}: {value!r} is neither float nor a scheme such as {{weight: int8}}")
    try:
        return Scheme.model_validate(value)
    except ValidationError as error:
        raise JobError(f"{file}: {name}: {_first(error)}") from error


def _first(error: ValidationError) -> str:
    detail = error.errors()[0]
    where = ".".join(str(part) for part in detail["loc"])
    return f"{where}: {detail['msg']}" if where else str(detail["msg"])
