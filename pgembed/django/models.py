"""No models: Django tells an app of migrations where it has this module."""
