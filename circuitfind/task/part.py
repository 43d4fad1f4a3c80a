"""What every part of a task file is built on."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, StrictStr, StringConstraints, model_validator


class Part(BaseModel):
    """Base of all parts: frozen, unknown keys forbidden, hyphens in YAML."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, alias_generator=lambda name: name.replace("_", "-"), allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _note_keys(cls, data: Any, info: Any) -> Any:
        # `info` is pydantic's ValidationInfo, a protocol that cannot be checked at runtime.
        # The loader passes a dict as context; an unknown key is then answered with the nearest of these.
        if isinstance(info.context, dict) and isinstance(data, dict):
            info.context[id(data)] = [field.alias or name for name, field in cls.model_fields.items()]
        return data


Text = Annotated[StrictStr, StringConstraints(min_length=1)]
Key = Annotated[StrictStr, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
