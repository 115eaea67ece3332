"""./sca bench: speed and quality, in tables, JSON and figures; `./sca bench NAME --help` lists the arguments."""

from __future__ import annotations

import argparse

from commands.benches import bridge, engine, judged, served
from commands.console import add_build_argument, load_settings, quiet_libraries

BENCHES = {**engine.BENCHES, **bridge.BENCHES, **served.BENCHES, **judged.BENCHES}
EPILOG = f"{', '.join((*engine.BENCHES, *bridge.BENCHES))} run without a server; the other benchmarks need ./sca serve."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a subcommand for each benchmark."""
    parser.epilog = EPILOG
    names = parser.add_subparsers(dest="what", required=True, metavar="NAME")
    for name, bench in BENCHES.items():
        subparser = names.add_parser(
            name, help=bench.summary, description=f"{bench.summary[0].upper()}{bench.summary[1:]}."
        )
        add_build_argument(subparser)
        bench.add_arguments(subparser)


def run(arguments: argparse.Namespace) -> int:
    """Run the benchmark: it prints its results, and writes them to build/bench/NAME.json."""
    settings = load_settings()
    quiet_libraries()
    BENCHES[arguments.what].run(arguments, settings)
    return 0
