"""The service without HTTP: who may do what, how much, and what is done. `shoal.apps.service` serves it."""
