# The toolkit as an image: no root, nothing written outside the folders that are mounted.
#
#   docker build --tag dscint .
#   docker build --tag dscint:cuda --build-arg ACCELERATOR=cuda13 .
#   docker build --tag dscint-service --target service .
#
# docs/how_to/docker.md says how to run them.
ARG BASE=python:3.12-slim

FROM ${BASE} AS build
# cuda12, cuda13, tpu or none: what JAX is installed for.
ARG ACCELERATOR=none
WORKDIR /source
RUN python3 -m venv /opt/dscint
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY configs configs
COPY dscint_jax dscint_jax
COPY tfds_builder tfds_builder
RUN extras=dicom,onnx,pacs,xlsx; \
    [ "$ACCELERATOR" = none ] || extras=$extras,$ACCELERATOR; \
    /opt/dscint/bin/python -m pip install --no-cache-dir --disable-pip-version-check \
        --constraint constraints.txt ".[$extras]"

FROM ${BASE} AS toolkit
COPY --from=build /opt/dscint /opt/dscint
# A user without a name, as docker run --user gives one, has a name and a home for what asks.
ENV PATH=/opt/dscint/bin:$PATH HOME=/tmp USER=dscint MPLCONFIGDIR=/tmp/matplotlib
USER 10001:10001
WORKDIR /work
ENTRYPOINT ["python", "-u", "-m"]
CMD ["dscint_jax.main", "--help"]

FROM toolkit AS service
EXPOSE 11112
# Healthy is who takes a connection on its port.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD ["python", "-c", \
    "import socket; socket.create_connection(('127.0.0.1', 11112), 4).close()"]
ENTRYPOINT ["python", "-u", "-m", "dscint_jax.predict.serve"]
CMD ["--help"]

# What docker build makes where no target is named.
FROM toolkit
