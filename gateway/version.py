"""The version that is installed, said in one place."""

from importlib.metadata import PackageNotFoundError, version

__all__ = ["VERSION"]

try:
    VERSION = version("eventbus")
except PackageNotFoundError:  # a checkout that was never installed
    VERSION = "0.0.0"
