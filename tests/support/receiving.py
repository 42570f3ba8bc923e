"""Feeding a receiver of tensors."""

from __future__ import annotations

from collections.abc import Iterable

from paramd.wire.tensor_receiver import TensorReceiver


def feed_all(receiver: TensorReceiver, messages: Iterable[bytes]) -> None:
    """Feeds all messages, and checks that the last tensor is complete."""
    for message in messages:
        receiver.feed(message)
    receiver.finish()
