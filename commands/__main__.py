"""Reads the command line and runs the command; what a user can mend ends in one line, not in a traceback."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys

from commands.console import UserError

COMMANDS = {
    "serve": "bring up Triton and the bridge, and print the address",
    "talk": "play a WAV to the running bridge and keep its answer as a WAV",
    "soak": "hold conversations for hours, a sample of them held against transformers",
    "replay": "play a recorded conversation to the server again, and say where the answer differs",
    "doctor": "say what is in order here and what to do about the rest",
    "bridge": "run the bridge alone, next to a Triton that somebody else runs",
    "export": "build the model repository from a checkpoint, without serving it",
    "bench": "measure how fast it is, in tables and JSON",
    "capacity": "say what a replica and a cluster hold, from measured ticks",
    "audit": "ask osv.dev whether a pinned dependency has a known vulnerability",
    "test": "run every check: lint, types, audit, tests",
}


def main() -> int:
    """Exit status of the command."""
    parser = argparse.ArgumentParser(prog="./sca", description="Full-duplex Qwen3-Omni on NVIDIA Triton.")
    parser.add_argument("--config", metavar="TOML", help="a file with settings that differ from config/default.toml")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary.capitalize() + ".")
        if name in sys.argv:  # the others may need packages that this place does not have
            command = importlib.import_module(f"commands.{name}")
            command.add_arguments(subparser)
            subparser.set_defaults(run=command.run)
    arguments = parser.parse_args()
    if arguments.config:
        os.environ["SCA_CONFIG"] = os.path.abspath(arguments.config)

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill ends things in order, as Ctrl-C does
    try:
        status: int = arguments.run(arguments)
    except UserError as error:
        print(f"sca: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return status


if __name__ == "__main__":
    sys.exit(main())
