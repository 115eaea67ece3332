"""What `./sca` can do, a module a command."""
