"""Training of the default checkpoint; see README.md. Modules that serve import nothing of it."""
