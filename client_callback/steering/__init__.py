"""Between batches: commands are carried out, verified and answered here."""
