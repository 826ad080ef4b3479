"""Leaves drawings out of what nbval compares, as it does pictures: their last digits depend on the machine."""


def pytest_collectstart(collector):
    """Add SVG to the outputs that are not compared."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("image/svg+xml",)
