"""The exported network in PyTorch: these files are copied into every export and need nothing of this project."""
