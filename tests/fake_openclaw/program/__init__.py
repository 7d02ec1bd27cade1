"""The program that stands in for OpenClaw; `main.run` is where it begins."""
