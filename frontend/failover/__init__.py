"""Several Triton servers: health probes, the choice of a server, and moves of conversations whose server is lost."""
