"""All the families by name, decoders first."""

from __future__ import annotations

from bench.families.decoders import DECODERS
from bench.families.encoders import ENCODERS

FAMILIES = DECODERS | ENCODERS
