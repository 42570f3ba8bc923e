"""Makes copies readable, without a call, for processes of the same host; see `shared_copies`."""

from __future__ import annotations

from dataclasses import dataclass

from paramd.context import Context
from paramd.errors import MemoryLimitError
from paramd.spec import Part, TensorHead
from paramd_server.arrays.directory import Directory, Slot
from paramd_server.core.initialization import finish_deferred
from paramd_server.core.parts import check_part
from paramd_server.core.registry import Registry
from paramd_server.core.shared_copies import SharedCopies, changing
from paramd_server.core.stored_parameter import StoredParameter

__all__ = ["Found", "Sharing"]


@dataclass(frozen=True)
class Found:
    """One copy of a parameter.

    Attributes:
        head: its shape, dtype, storage type and context.
        slot: of the directory; None where it cannot be read in shared memory.
        layout: of the slot: as long as the slot has it, the head holds.
    """

    head: TensorHead
    slot: int | None = None
    layout: int = 0


class Sharing:
    """Finds copies for processes of the same host.

    Args:
        registry: of the server.

    Raises:
        OSError: where the system has no memory of the kind that is needed.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.directory = Directory(registry.epoch)

    def locate(
        self, name: str, context: Context | None, current: Context, part: Part | None
    ) -> Found:
        """Where a copy is. It is moved to shared memory when it is asked for first.

        Args:
            name: of the parameter.
            context: as in Selector.
            current: the caller's current context.
            part: as in Selector.

        Raises:
            What stands at GetData in parameter_service.proto, but for the storage type.
        """
        with self._registry.hold([name]) as parameters:
            (parameter,) = parameters
            check_part(parameter.current, part)
            finish_deferred(parameter)
            context = parameter.resolve(context, current)
            head = TensorHead(
                name=name,
                shape=parameter.shape,
                dtype=parameter.current.dtype,
                stype=parameter.current.stype,
                context=context,
            )
            slot = self._share(parameter, context)
            return Found(head) if slot is None else Found(head, slot.number, slot.layout)

    def _share(self, parameter: StoredParameter, context: Context) -> Slot | None:
        devices, buffer = self._registry.devices, parameter.copies[context]
        if not buffer.nbytes:
            return None
        if devices.place(buffer) is None:
            try:
                moved = devices.share(buffer)
            except MemoryLimitError:
                # It is sent like any other.
                return None
            if moved is None or devices.place(moved) is None:
                return None
            with changing([parameter]):
                parameter.copies[context] = moved
        if parameter.shared is None:
            parameter.shared = SharedCopies(self.directory, devices)
        return parameter.shared.slot(parameter, context)
