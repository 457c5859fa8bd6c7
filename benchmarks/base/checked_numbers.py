"""The check that every group of settings makes of its numbers."""


def require_at_least(settings: object, **least: float) -> None:
    """Raise ValueError naming the first setting, of those given with their smallest value, that is smaller."""
    for name, smallest in least.items():
        if not getattr(settings, name) >= smallest:
            raise ValueError(f"{name} must be {smallest} or more, got {getattr(settings, name)}")
