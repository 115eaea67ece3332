"""Command line of `./sca`: runs a command, and reports an error that the user can fix in one line."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys

from commands import VERSION
from commands.console import UserError, hide_secrets
from config.proxy import bypass_proxies

COMMANDS = {
    "serve": "start Triton and the bridge, and print the address",
    "talk": "send a WAV to the running bridge and write its answer to a WAV",
    "soak": "run conversations for hours, and compare a sample of them to transformers",
    "replay": "send a recorded conversation to the server again, and print where the answer differs",
    "doctor": "check this machine, and print what to do about each problem",
    "bridge": "run only the bridge, next to a running Triton",
    "export": "build the model repository from a checkpoint, without serving it",
    "bench": "measure speed and quality, in tables and JSON",
    "capacity": "compute the capacity of a replica and of a cluster from measured ticks",
    "audit": "look up known vulnerabilities of the pinned dependencies at osv.dev",
    "test": "run every check: lint, types, audit, tests",
}


def main() -> int:
    """Run the command that the command line names, and return its exit status."""
    hide_secrets()
    bypass_proxies(os.environ)
    parser = argparse.ArgumentParser(prog="./sca", description="Full-duplex Qwen3-Omni on NVIDIA Triton.")
    parser.add_argument("--version", action="version", version=f"sca {VERSION}")
    parser.add_argument("--config", metavar="TOML", help="file of settings that differ from config/default.toml")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        if name in sys.argv:  # other commands may need packages that are not installed
            command = importlib.import_module(f"commands.{name}")
            command.add_arguments(subparser)
            subparser.set_defaults(run=command.run)
    arguments = parser.parse_args()
    if arguments.config:
        os.environ["SCA_CONFIG"] = os.path.abspath(arguments.config)

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM shuts down in order, as Ctrl-C does
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
