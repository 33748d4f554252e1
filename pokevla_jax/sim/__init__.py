"""MuJoCo LIBERO: tasks, scenes, the expert and the recorder."""

from pokevla_jax.sim.upstream import choose_gl

# MuJoCo reads the OpenGL back-end once, at its first import, and every path to it leads through this package.
choose_gl()
