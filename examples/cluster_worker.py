"""One worker of a cluster, such as in a container: `python -m examples.cluster_worker`.

Every worker runs this same program on handwritten digits. What differs comes from the environment:
PARAMD_TARGET (with PARAMD_TLS_CA and PARAMD_TOKEN_FILE where the servers ask for them),
PARAMD_NUM_WORKERS, and PARAMD_WORKER, a name that a worker keeps when it is started again. One that
comes late goes on where the others are; where the cluster goes back to a snapshot, so do they.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading

import click
import numpy as np

import paramd
from examples.digits_model import accuracy, gradients, load_digits
from examples.digits_worker import BATCH, STEPS, parameters

NAME = os.environ.get("PARAMD_WORKER") or socket.gethostname()
REQUIRED = 0.93
# A server that is started again, or a network that is cut, is waited for that long.
PATIENCE_S = 90.0


def say(text: str) -> None:
    """Prints a line for the container's log."""
    print(f"{NAME}: {text}", flush=True)


def train(params: paramd.ParameterDict, trainer: paramd.Trainer, steps: int, report: int) -> None:
    """Steps until the trainer's clock is at `steps`."""
    images, labels, _, _ = load_digits()
    clock = trainer.join()
    say(f"rank {trainer.rank}, begins at clock {clock}")
    generator = np.random.default_rng((trainer.rank, clock))
    values = params.pull()
    while clock < steps:
        batch = generator.integers(0, len(images), BATCH)
        grads = gradients(values, images[batch], labels[batch])
        try:
            trainer.step(BATCH, grads=grads, pull=True, out=values)
        except (paramd.errors.RolledBackError, paramd.errors.LeaseEndedError) as err:
            # The servers were away for longer than a lease lasts, or lost what was done since
            # their last snapshot: this worker takes up the cluster's clock.
            reached, clock = clock, trainer.join()
            params.pull(out=values)
            say(f"{type(err).__name__} at clock {reached}, goes on at clock {clock}")
            continue
        clock += 1
        if clock % report == 0:
            say(f"clock {clock}")


@click.command()
@click.option("--kvstore", type=click.Choice(list(STEPS)), default="dist_sync", show_default=True)
@click.option("--steps", type=int, default=STEPS["dist_sync"], show_default=True)
@click.option("--report", type=int, default=50, show_default=True, help="Steps between two lines.")
def main(kvstore: str, steps: int, report: int) -> None:
    """Train on the servers of PARAMD_TARGET, and print the accuracy that was reached."""
    with paramd.connect(worker=NAME, timeout=PATIENCE_S) as session:
        leave_on_sigterm(session)
        try:
            reached = work(kvstore, steps, report, session)
        except paramd.errors.ParamdError:
            if not session.closed:
                raise
            say("told to end")
            sys.exit(128 + signal.SIGTERM)
    if reached < REQUIRED:
        raise click.ClickException(f"expected {REQUIRED} or better")


def work(kvstore: str, steps: int, report: int, session: paramd.Session) -> float:
    """Trains, waits for the others, and gives the accuracy."""
    params = parameters()
    trainer = paramd.Trainer(params, "adam", {"learning_rate": 0.01}, kvstore)
    train(params, trainer, steps, report)
    session.barrier("trained")
    _, _, images, labels = load_digits()
    reached = accuracy(params.pull(), images, labels)
    say(f"accuracy on held-out digits after {steps} steps: {reached:.3f}")
    return reached


def leave_on_sigterm(session: paramd.Session) -> None:
    """Closes the session at the signal: nobody needs to wait for this worker any more.

    The first process of a container has no default action for it. To close is the business of
    another thread: an exception out of a signal's handler would leave gRPC's locks as they are.
    """

    def leave(*_: object) -> None:
        threading.Thread(target=session.close, name="leaving").start()

    signal.signal(signal.SIGTERM, leave)


if __name__ == "__main__":
    main()
