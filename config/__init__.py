"""Settings of all components, read once from TOML files and the environment."""

from config.loader import SettingsError
from config.settings import Settings

__all__ = ["Settings", "SettingsError"]
