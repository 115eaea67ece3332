"""The settings of every part, read once from TOML and the environment."""

from config.settings import Settings, SettingsError

__all__ = ["Settings", "SettingsError"]
