"""Scripted demonstrators for LIBERO's tasks: what to do in any state, read from the simulator.

An expert has no memory. Where it is in the task (above the object, descending, closing, lifting, carrying, lowering,
opening) follows from the present state alone, so it labels every state that a learner or a random burst may reach:
a half-closed gripper, a dropped or toppled object, a hand that was pushed aside. Motion is proportional to the
distance that is left and gated by smooth functions of the state, so that neighbouring states get neighbouring actions.

``expert`` chooses by the goal in the task file who acts: ``basket``, ``pick_place``, ``drawer``, ``push`` or ``knob``.
``hand``, ``grasps`` and ``obstacles`` are what they share.
"""
