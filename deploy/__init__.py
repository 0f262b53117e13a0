"""Deployment: setting up this checkout, the local stack without Docker, container images, Prometheus, Grafana (later Helm)."""
