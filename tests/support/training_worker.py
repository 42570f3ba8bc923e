"""A worker process that tests can stop, kill and go on with. Run as `python FILE TARGET OPTIONS`.

It reads commands from its standard input and answers each with a line of JSON.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

import paramd
from paramd.errors import ParamdError


def main() -> None:
    target, options = sys.argv[1], json.loads(sys.argv[2])
    session = paramd.connect(target, **options["connect"])
    params = paramd.ParameterDict("n_", session=session)
    params.get("w", shape=(4,), init="zeros")
    params.initialize()
    trainer = paramd.Trainer(params, "sgd", {"learning_rate": 1.0}, **options["trainer"])
    say({"clock": trainer.join(), "rank": trainer.rank})
    for line in sys.stdin:
        command, *arguments = line.split()
        try:
            say(obey(command, arguments, session, trainer))
        except ParamdError as err:
            say({"error": type(err).__name__, "message": str(err)})
    session.close()


def obey(
    command: str, arguments: list[str], session: paramd.Session, trainer: paramd.Trainer
) -> dict[str, Any]:
    if command == "step":
        values = trainer.step(1, grads={"n_w": np.full(4, float(arguments[0]), "f4")}, pull=True)
        assert values is not None
        return {"value": float(values["n_w"][0]), "clock": trainer.clock}
    if command == "join":
        return {"clock": trainer.join(), "rank": trainer.rank}
    assert command == "barrier", command
    return {"index": session.barrier("b")}


def say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
