"""Read a YAML file in which every field stands once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tenantferry.errors import PermanentError


class FleetError(PermanentError):
    """The fleet file, or one tenant of it, is not usable."""


class _RepeatedFieldError(Exception):
    """A mapping says one field twice."""

    def __init__(self, field: str, line: int, first_line: int) -> None:
        super().__init__(field, line, first_line)
        self.field, self.line, self.first_line = field, line, first_line


class _Loader(yaml.SafeLoader):
    """The safe loader, which would silently keep the last of two equal fields."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """
        Compose one mapping.

        Not when it is constructed: by then "<<" has put another mapping's fields beside its own,
        which may override them.

        :raises _RepeatedFieldError: if it says one field twice.
        """
        node = super().compose_mapping_node(anchor)
        first_lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line, name = key.start_mark.line + 1, (key.tag, key.value)
            if name in first_lines:
                raise _RepeatedFieldError(key.value, line, first_lines[name])
            first_lines[name] = line
        return node


def read_document(path: Path) -> object:
    """
    Return what a YAML file says.

    :raises FleetError: if it cannot be read, is not YAML, or says a field twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - the safe one, and a check
    except OSError as error:
        raise FleetError(
            f'could not read fleet file "{path}"',
            detail=str(error),
            hint="Set TENANTFERRY_FLEET to the file, or create it.",
        ) from None
    except UnicodeDecodeError as error:
        raise FleetError(
            f'fleet file "{path}" is not UTF-8',
            detail=f"Byte {error.start + 1} cannot be read.",
            hint="Save it as UTF-8.",
        ) from None
    except _RepeatedFieldError as error:
        raise FleetError(
            f'fleet file "{path}" says a field twice in one mapping',
            detail=f'Line {error.line}: "{error.field}" stands in line {error.first_line} already.',
            hint="Keep one of the two.",
        ) from None
    # Values such as the date 2026-02-30 fail in Python, not in YAML.
    except (yaml.YAMLError, ValueError) as error:
        raise FleetError(f'fleet file "{path}" is not YAML', detail=str(error)) from None
