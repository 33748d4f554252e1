"""LIBERO-Plus: LIBERO's forty tasks under seven kinds of perturbation, rebuilt from the benchmark's metadata.

``names`` reads what a task's name says, ``metadata`` lists the 10,030 tasks; ``camera``, ``robot_pose``, ``noise`` and
``language`` are the perturbations themselves, ``asset_archive`` the scenes that need the benchmark's own assets, and
``scenes`` brings an environment to an episode's start. Nothing of the benchmark's code is needed or used.
"""
