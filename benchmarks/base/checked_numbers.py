"""The check that every group of settings makes of its numbers."""


def require_at_least(settings: object, **least: float) -> None:
    """Raise ValueError naming the first setting, of those given with their smallest value, that is smaller, or that
    holds a smaller number."""
    for name, smallest in least.items():
        value = getattr(settings, name)
        for number in value if isinstance(value, tuple) else (value,):
            if not number >= smallest:
                raise ValueError(f"{name} must be {smallest} or more, got {number}")
