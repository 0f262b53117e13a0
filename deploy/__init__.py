"""Deployment: setting up this checkout, the local stack without Docker (later Dockerfiles, Prometheus, Grafana, Helm)."""
