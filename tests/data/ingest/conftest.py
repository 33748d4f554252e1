"""TensorFlow is loaded while tests are collected.

Loaded later, in a process where other tests have run already, its start-up code has crashed the interpreter. Commands
that read TFRecords start a process of their own and are not concerned.
"""

import tensorflow  # noqa: F401
