# MinIO from the last commit of its public repository (GNU AGPL v3): no image of it has been published since 2025, and no release holds the fix
# for conditions that are ignored without a read quorum. The version is the one of deploy/local/tools.py; Go checks the module's hash.

FROM golang:1.25.5-bookworm AS build
ENV CGO_ENABLED=0 \
    GOFLAGS= \
    GOBIN=/opt/minio
RUN go install -ldflags "-s -w" github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c

FROM alpine:3.22.2
LABEL org.opencontainers.image.title="minio" \
      org.opencontainers.image.source="https://github.com/minio/minio" \
      org.opencontainers.image.licenses="AGPL-3.0-only"
RUN addgroup -g 10002 minio \
 && adduser -D -H -u 10002 -G minio -h /data -s /sbin/nologin minio \
 && install -d -o 10002 -g 10002 -m 0750 /data
COPY --from=build /opt/minio/minio /usr/local/bin/minio
USER 10002:10002
EXPOSE 9000
VOLUME ["/data"]
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=6 CMD ["wget", "-q", "-O", "/dev/null", "http://127.0.0.1:9000/minio/health/cluster"]
ENTRYPOINT ["minio"]
CMD ["server", "--quiet", "--address", ":9000", "/data"]
