"""The Grafana dashboard as a file, its provisioning, and a picture of it without Grafana."""
