"""What a shard says of the part that it holds of a parameter."""

from __future__ import annotations

from dataclasses import replace

from paramd.errors import ShapeMismatchError
from paramd.spec import ParameterSpec, Part, Shape, merge_shapes, shape_is_known

__all__ = ["check_part", "merge_part", "shown_shape", "whole_shape"]


def whole_shape(spec: ParameterSpec) -> Shape | None:
    """The shape of the whole parameter, of which the spec may be that of a part."""
    return spec.shape if spec.part is None else spec.part.shape


def shown_shape(spec: ParameterSpec) -> str:
    """The shape for messages; of a part, that of the whole parameter too."""
    if spec.part is None:
        return str(spec.shape)
    return f"{spec.shape} ({_shown_rows(spec.part)})"


def _shown_rows(part: Part) -> str:
    steps = "" if part.step == 1 else f" in steps of {part.step}"
    return f"{part.count} rows from {part.begin}{steps} of shape {part.shape}"


def merge_part(now: ParameterSpec, shape: Shape | None, part: Part | None) -> ParameterSpec:
    """A spec that learns the shape, and what part of it is here.

    Args:
        now: what is known.
        shape: what else is; with `part`, its local shape, else that of the whole parameter.
        part: what of the parameter this shard holds, or is to hold.

    Returns:
        The spec with the shape that both describe, a part's where one of them has one.

    Raises:
        ValueError: where they contradict each other, or where one says that a part is here and
            the other one has the whole shape without a part.
    """
    if part is None and now.part is None:
        return replace(now, shape=merge_shapes(now.shape, shape))
    if part is None or now.part is None:
        vague = shape if part is None else now.shape
        told = now.part or part
        assert told is not None
        if shape_is_known(vague):
            raise ValueError("a part against all of it")
        merge_shapes(vague, told.shape)
        return replace(now, shape=told.local_shape, part=told)
    if part != now.part:
        raise ValueError("one part against another")
    return now


def check_part(spec: ParameterSpec, part: Part | None) -> None:
    """Checks what a caller took to be here, when it computed where elements are.

    Args:
        spec: as it is now.
        part: of what the caller knew; None where it knows of no shards.

    Raises:
        ShapeMismatchError: where another part is here. The parameter was made anew meanwhile.
    """
    if part is not None and part != spec.part:
        raise ShapeMismatchError(
            f"Parameter '{spec.name}': this is for {_shown_rows(part)}, but here is "
            f"{shown_shape(spec)}",
            parameter=spec.name,
        )
