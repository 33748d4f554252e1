"""What a training run will need on a TPU slice, told by the TPU compiler without a TPU.

``topologies`` knows the chips, ``compile`` lowers and compiles the very train step that would run, ``hlo`` reads the
scheduled program, ``cost`` adds up its time and its collectives, ``report`` puts it into words and JSON, ``search``
looks for the largest batch that fits, and ``calibrate`` asks how much the whole prediction flatters.
"""
