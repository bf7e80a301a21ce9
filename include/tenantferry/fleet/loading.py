"""Read ``fleet.yaml``: one bad tenant is an error of its own, not of the fleet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from tenantferry.fleet.declaration import Fleet, Router, Settings, Target, Tenant
from tenantferry.fleet.operation import Archive, Grace, Watch, Waves
from tenantferry.fleet.reading import FleetError, read_document

__all__ = ["FleetError", "load_fleet"]

Model = TypeVar("Model", bound=BaseModel)

# How the fleet is run; each may be left out.
_OPERATION: Mapping[str, type[BaseModel]] = {
    "grace": Grace,
    "archive": Archive,
    "waves": Waves,
    "watch": Watch,
}
_TOP_LEVEL = {"target", "routers", "defaults", "tenants", *_OPERATION}


def load_fleet(path: Path) -> Fleet:
    """
    Read and check the declared fleet.

    A tenant that is not valid is listed in `Fleet.broken`; the others stay usable.

    :raises FleetError: if the file itself, its target, its routers or its defaults are not valid.
    """
    document = _read_document(path)
    target = _parse(Target, document.get("target"), path, '"target"')
    routers = {
        name: _resolve_paths(_parse(Router, value, path, f'router "{name}"'), path.parent)
        for name, value in _mapping(document.get("routers"), path, '"routers"').items()
    }
    # "defaults:" whose lines are all commented out says nothing.
    declared = document.get("defaults")
    defaults = {} if declared is None else _mapping(declared, path, '"defaults"')
    _parse(Settings, defaults, path, '"defaults"')
    entries = document.get("tenants")
    if not isinstance(entries, list):
        raise FleetError(
            f'"tenants" in fleet file "{path}" is not a list',
            hint='Declare each tenant as an entry that starts with "- key: <slug>".',
        )

    tenants: dict[str, Tenant] = {}
    broken: dict[str, str] = {}
    repeated = _find_repeated(entries)
    for number, entry in enumerate(entries, start=1):
        name = _name_of(entry, number)
        try:
            tenants[name] = _parse_tenant(
                entry,
                name=name,
                defaults=defaults,
                routers=routers,
                repeated=repeated,
                path=path,
            )
        except FleetError as error:
            broken[name] = str(error)
    for name in broken:
        # A key that stands twice is broken as a whole: neither entry can be trusted.
        tenants.pop(name, None)
    operation = {
        name: _parse(model, document[name], path, f'"{name}"')
        for name, model in _OPERATION.items()
        if document.get(name) is not None
    }
    whole = {
        "target": target,
        "routers": routers,
        "tenants": tenants,
        "broken": broken,
        **operation,
    }
    return _parse(Fleet, whole, path, "the fleet")


def _read_document(path: Path) -> dict[str, Any]:
    document = _mapping(read_document(path), path, "the document")
    if unknown := sorted(document.keys() - _TOP_LEVEL):
        raise FleetError(
            f'fleet file "{path}" has unknown fields: {", ".join(unknown)}',
            hint=f"Known fields are {', '.join(sorted(_TOP_LEVEL))}.",
        )
    return document


def _mapping(value: object, path: Path, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FleetError(
            f'{place} in fleet file "{path}" is not a mapping',
            detail=f"It is {type(value).__name__}.",
        )
    for key in value:
        if not isinstance(key, str):
            raise FleetError(
                f'{place} in fleet file "{path}" has a field whose name is not a text',
                detail=f"YAML reads it as {type(key).__name__}: {key!r}.",
                hint="Put it in quotes.",
            )
    return value


def _parse(model: type[Model], value: object, path: Path, place: str) -> Model:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problems = [
            f"{_field_of(problem['loc']) or place}: {problem['msg']}"
            for problem in error.errors(include_url=False, include_input=False)
        ]
        raise FleetError(
            f'{place} in fleet file "{path}" is not valid', detail="; ".join(problems) + "."
        ) from None


def _field_of(location: tuple[int | str, ...]) -> str:
    # pydantic marks a mapping's key that is wrong itself with a last part "[key]".
    return ".".join(str(part) for part in location if part != "[key]")


def _parse_tenant(
    entry: object,
    *,
    name: str,
    defaults: Mapping[str, Any],
    routers: Mapping[str, Router],
    repeated: Mapping[str, set[str]],
    path: Path,
) -> Tenant:
    place = f'tenant "{name}"'
    fields = _mapping(entry, path, place)
    tenant = _parse(Tenant, _merge(defaults, fields), path, place)
    if tenant.router not in routers:
        raise FleetError(
            f'{place} in fleet file "{path}" is not valid',
            detail=f'router: there is no router "{tenant.router}".',
            hint=f"Declared routers are {', '.join(sorted(routers)) or 'none'}.",
        )
    for field, value in _identities(fields).items():
        if value in repeated[field]:
            raise FleetError(
                f'{place} in fleet file "{path}" is not valid',
                detail=f'{field}: "{value}" stands in more than one tenant.',
                hint="Two tenants must not share a key, an id, an alias or a source database.",
            )
    return tenant


def _merge(defaults: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**defaults, **fields}
    for name in ("tables", "throttle"):
        if isinstance(defaults.get(name), dict) and isinstance(fields.get(name), dict):
            merged[name] = {**defaults[name], **fields[name]}
    return merged


def _name_of(entry: object, number: int) -> str:
    key = entry.get("key") if isinstance(entry, dict) else None
    return key if isinstance(key, str) and key else f"#{number}"


def _identities(entry: Mapping[str, Any]) -> dict[str, str]:
    """Return what must not stand twice in a fleet: field to value, as text."""
    found = {"key": str(entry.get("key")), "id": str(entry.get("id")).lower()}
    found["alias"] = str(entry.get("alias", entry.get("key")))
    source = entry.get("source")
    if isinstance(source, dict):
        found["source"] = f"{source.get('conn_id')}/{source.get('database', '')}"
    return found


def _find_repeated(entries: list[object]) -> dict[str, set[str]]:
    counts: dict[str, Counter[str]] = {
        field: Counter() for field in ("key", "id", "alias", "source")
    }
    for entry in entries:
        if isinstance(entry, dict):
            for field, value in _identities(entry).items():
                counts[field][value] += 1
    return {field: {v for v, n in counter.items() if n > 1} for field, counter in counts.items()}


def _resolve_paths(router: Router, folder: Path) -> Router:
    return router.model_copy(
        update={
            "instances": [
                instance.model_copy(update={"aliases_file": folder / instance.aliases_file})
                for instance in router.instances
            ]
        }
    )
