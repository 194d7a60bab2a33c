"""Inside the compiled train step: what is measured there, and how it is reached without changing it."""
