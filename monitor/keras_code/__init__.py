"""A run's interventions as plain Keras code: `unstuck export --to keras`.

`changes` turns the answers of a recording into calls at steps, `helpers` holds the code those calls need, `module`
puts both together. What is written needs Keras alone, no part of this project.
"""

from monitor.keras_code.module import write_callback

__all__ = ["write_callback"]
