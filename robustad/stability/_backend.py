"""Whether the backend's arithmetic rounds each operation once, as error-free transforms need."""


def require_error_free() -> None:
    """Raises `BackendError` where `verify_backend` finds that error-free transforms do not hold."""
