"""Start of the pip-installed Triton on a machine without containers."""
