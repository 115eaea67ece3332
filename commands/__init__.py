"""The commands of `./sca`, one module a command."""

VERSION = "0.9.0"  # equal to the version in pyproject.toml, which the containers do not have
