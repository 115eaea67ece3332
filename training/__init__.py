"""How the default checkpoint is made; nothing that serves imports it."""
