"""Arrays of a device that NumPy does not reach, with the manners of CuPy's and PyTorch's.

No device is behind them: their memory is the host's, but it is only given away as the libraries
give theirs, and each time that it crosses to the host or back is noted.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from paramd.dlpack import HOST_DEVICE, _managed, capsule_of

Array = np.ndarray[Any, np.dtype[Any]]
CUDA = (2, 0)


class DeviceArray:
    """An array on a device, that refuses what its library refuses.

    Args:
        values: its elements.
        device: as `__dlpack_device__` gives it.

    Attributes:
        memory: the elements, for tests to look at.
        calls: what was asked of it, in order.
        crossed: a note for each time that its elements went from the device to the host or back.
    """

    def __init__(self, values: Any, device: tuple[int, int] = CUDA) -> None:
        self.memory: Array = np.array(values)
        self.calls: list[str] = []
        self.crossed: list[str] = []
        self._device = device

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.memory.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.memory.dtype

    @property
    def strides(self) -> tuple[int, ...]:
        return self.memory.strides

    def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
        self.calls.append("__array__")
        raise TypeError("implicit conversion to a NumPy array is not allowed")

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device

    def to_host(self) -> Array:
        """The elements, carried over."""
        self.crossed.append("to host")
        return self.memory.copy()

    def device_capsule(self) -> Any:
        """A capsule of the device's memory."""
        capsule = capsule_of(self.memory, (1, 0))
        tensor = _managed(capsule).tensor
        tensor.device_type, tensor.device_id = self._device
        return capsule


class CupyArray(DeviceArray):
    """As CuPy 13 and later have it."""

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        self.calls.append(f"__dlpack__ to {dl_device}")
        if dl_device is None:
            return self.device_capsule()
        assert tuple(dl_device) == HOST_DEVICE
        # With a stream the copy is only begun when this returns.
        host = self.to_host() if stream is None else np.zeros_like(self.memory)
        return capsule_of(host, max_version, copied=True)

    def get(self) -> Array:
        self.calls.append("get")
        return self.to_host()

    @property
    def flags(self) -> Any:
        return self.memory.flags

    def set(self, values: Array) -> None:
        assert isinstance(values, np.ndarray)
        assert (values.shape, values.dtype) == (self.shape, self.dtype)
        self.calls.append("set")
        self.crossed.append("to device")
        self.memory[...] = values


class OldCupyArray(CupyArray):
    """As before there were other devices to ask for."""

    def __dlpack__(self, stream: Any = None) -> Any:  # type: ignore[override]
        self.calls.append("__dlpack__")
        return self.device_capsule()


class CarelessArray(CupyArray):
    """Exports its device's memory, whatever is asked for."""

    def __dlpack__(self, **options: Any) -> Any:
        self.calls.append("__dlpack__")
        return self.device_capsule()


class HostArray:
    """An array in host memory.

    Args:
        values: its memory, which is shared.
        device: (1, 0), or (3, 0) where the memory is page-locked.
    """

    def __init__(self, values: Array, device: tuple[int, int] = HOST_DEVICE) -> None:
        self.memory = values
        self.asked: list[dict[str, Any]] = []
        self._device = device

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        self.asked.append({"dl_device": dl_device, "copy": copy})
        return capsule_of(self.memory, max_version)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device


class HostTensor(HostArray):
    """A tensor of PyTorch in host memory."""

    def detach(self) -> HostTensor:
        return self

    def copy_(self, source: HostTensor) -> None:
        self.memory[...] = source.memory


class OldHostTensor(HostTensor):
    """A tensor of PyTorch before its capsules had versions."""

    def __dlpack__(self, stream: Any = None) -> Any:  # type: ignore[override]
        return capsule_of(self.memory)


class TorchTensor(DeviceArray):
    """As PyTorch has it.

    Args:
        values: its elements.
        device: as `__dlpack_device__` gives it.
        current_device: whether its device is the one that PyTorch works on: else it is not
            exported.
        requires_grad: whether it is only given away by `detach()`.
    """

    def __init__(
        self,
        values: Any,
        device: tuple[int, int] = CUDA,
        *,
        current_device: bool = True,
        requires_grad: bool = False,
    ) -> None:
        super().__init__(values, device)
        self.current_device = current_device
        self.requires_grad = requires_grad

    def detach(self) -> TorchTensor:
        detached = TorchTensor(0, self._device, current_device=self.current_device)
        detached.memory, detached.calls, detached.crossed = self.memory, self.calls, self.crossed
        self.calls.append("detach")
        return detached

    def __dlpack__(
        self,
        *,
        stream: Any = -1,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        self.calls.append(f"__dlpack__ to {dl_device}")
        if self.requires_grad:
            raise BufferError("Can't export tensors that require gradient, use tensor.detach()")
        if not self.current_device:
            raise BufferError("Can't export tensors on a different CUDA device index.")
        if dl_device is None:
            return self.device_capsule()
        return capsule_of(self.to_host(), max_version)

    def cpu(self) -> HostTensor:
        assert not self.requires_grad
        self.calls.append("cpu")
        return HostTensor(self.to_host())

    def new_empty(self, shape: tuple[int, ...], *, device: str) -> HostTensor:
        assert device == "cpu"
        return HostTensor(np.empty(shape, self.dtype))

    def copy_(self, source: HostTensor) -> None:
        assert not self.requires_grad
        self.calls.append("copy_")
        self.crossed.append("to device")
        self.memory[...] = source.memory
