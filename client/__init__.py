"""Small clients, one a language and protocol; each stands alone."""
