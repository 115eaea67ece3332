"""Small clients, one a language and protocol, each in a self-contained file."""
