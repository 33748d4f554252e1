"""MuJoCo LIBERO: tasks, scenes, the expert and the recorder."""

from pokevla_jax.sim.upstream import choose_gl

# MuJoCo reads the OpenGL back-end once, when it is first imported, and every path to it here leads through this package.
choose_gl()
