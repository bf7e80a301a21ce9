"""What all parts of the fleet file are made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

# Every name made of a key (slot, publication, role, schema, origin, Dag) must fit into
# NAMEDATALEN - 1 = 63 bytes; the longest prefix is "tenantferry_" with 12. A slot name allows
# lower-case letters, digits and underscores only.
MAX_KEY_LENGTH = 48
TenantKey = Annotated[str, Field(pattern=rf"^[a-z][a-z0-9_]{{0,{MAX_KEY_LENGTH - 1}}}$")]
Name = Annotated[str, Field(min_length=1, max_length=63)]
QualifiedName = Annotated[str, Field(pattern=r"^[^.]+\.[^.]+$")]
PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Declared(BaseModel):
    """A mapping of the file: it has no other fields, and never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)
