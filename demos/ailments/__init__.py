"""Trainings that fail, one for each cause that a monitor should name, and their repaired twins.

`catalogue.AILMENTS` lists them. Each is a healthy training of `bases` with one thing changed; nothing else is rigged,
and all of them really train. `mutations` makes many more, by seeded operators. `python -m demos.ailments NAME`.
"""
