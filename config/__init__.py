"""The settings of every part, read once from TOML and the environment."""

from config.loader import SettingsError
from config.settings import Settings

__all__ = ["Settings", "SettingsError"]
