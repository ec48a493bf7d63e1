"""What this package reaches and how fast, measured."""
