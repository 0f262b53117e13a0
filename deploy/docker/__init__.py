"""Dockerfiles, and the two scripts that they carry."""
