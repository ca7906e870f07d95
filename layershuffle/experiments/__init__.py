"""Experiments: trainings, evaluations and studies that belong together, and how they are run.

``definition`` reads an experiment's file, ``runs`` lists what is to be run, ``check`` finds mistakes beforehand,
``execution`` executes one run, and ``local`` and ``slurm`` execute many.
"""
