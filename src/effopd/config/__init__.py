"""Settings: TOML in, frozen settings objects out."""
