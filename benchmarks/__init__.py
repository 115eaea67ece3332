"""Programs that measure speed; nothing here is a test, and no test asserts a time."""
