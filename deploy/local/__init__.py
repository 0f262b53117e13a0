"""The local stack: Apache Kafka and MinIO on loopback, without Docker."""
