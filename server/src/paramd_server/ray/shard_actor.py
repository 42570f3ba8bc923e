"""The Ray actor of one shard."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Any, Final

import ray
from ray.exceptions import GetTimeoutError, RayError

from paramd_server.ray.plan import ShardPlan, ShardStatus, shard_actor_name
from paramd_server.ray.shard_process import ShardProcess

__all__ = ["ShardActor"]

# How long shard 0's actor may take to say where it serves.
_ASK_S: Final = 5.0


class ShardActor:
    """Keeps the server of one shard running, as a child process, on Ray's behalf.

    The server is no part of this process, so that neither waits for the other's interpreter. When
    Ray starts the actor again, here or on another node, the server begins with what is saved.

    Args:
        plan: what it is started with.
    """

    def __init__(self, plan: ShardPlan) -> None:
        logging.basicConfig(
            level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
        )
        self._plan = plan
        self._failure = ""
        self._process: ShardProcess | None = None
        context: Any = ray.get_runtime_context()
        self._node_id: str = context.get_node_id()
        with warnings.catch_warnings():
            # Ray 2.60 warns of what it asks itself for here.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._restarted: bool = context.was_current_actor_reconstructed
        self._node: str = ray.util.get_node_ip_address()
        # Ray's own directory of this cluster on this machine, which goes when that goes.
        directory = Path(context.get_temp_dir(), context.get_session_name(), "paramd")
        try:
            host = plan.host(self._node)
        except ValueError as err:
            # An actor whose constructor raises is gone; this one can say why.
            self._failure = str(err)
            return
        self._process = ShardProcess(
            plan,
            host,
            directory / plan.namespace / shard_actor_name(plan.name, plan.shard),
            coordinator=self._coordinator,
            forgive=self._restarted,
        )

    def await_address(self, wait_s: float) -> str:
        """Waits a moment until the shard serves. Gives its address; '' where it does not.

        Args:
            wait_s: seconds.
        """
        return "" if self._process is None else self._process.await_address(wait_s)

    def status(self) -> ShardStatus:
        """How the shard is now."""
        process = self._process
        return ShardStatus(
            shard=self._plan.shard,
            address="" if process is None else process.address,
            node_id=self._node_id,
            node=self._node,
            actor_pid=os.getpid(),
            server_pid=0 if process is None else process.pid,
            num_starts=0 if process is None else process.num_starts,
            restarted=self._restarted,
            failure=self._failure or ("" if process is None else process.failure),
        )

    def plan(self) -> ShardPlan:
        """What it is started with."""
        return self._plan

    def placement_group(self) -> Any:
        """That in which the cluster's actors are."""
        return ray.util.get_current_placement_group()

    def stop(self) -> int:
        """Ends the server in order, saving what it holds. Gives its exit status."""
        return 0 if self._process is None else self._process.stop()

    def _coordinator(self) -> str:
        """Where shard 0 serves; '' where it does not, or nobody says."""
        name = shard_actor_name(self._plan.name, 0)
        try:
            actor: Any = ray.get_actor(name, namespace=self._plan.namespace)
            # Not to wait there: it may be a new actor that follows an old one.
            address: str = ray.get(actor.await_address.remote(0.0), timeout=_ASK_S)
        except (ValueError, GetTimeoutError, RayError):
            return ""
        return address
