# The image of ray_gke.sh: the one of ./Dockerfile with the simulator, OpenGL in software, and what KubeRay asks of Ray.
# Build at the project's root: docker build -f launch/gke/evaluate.Dockerfile --build-arg BASE=IMAGE -t IMAGE-evaluate .
ARG BASE
FROM ${BASE}
RUN apt-get update && apt-get install -y --no-install-recommends \
    libosmesa6 libegl1 libgles2 libgl1-mesa-dri wget && rm -rf /var/lib/apt/lists/*
COPY requirements.txt requirements-sim.txt constraints.txt ./
# Jobs and health checks go through Ray's dashboard, which is an extra of its package.
RUN pip install --no-cache-dir -c constraints.txt "ray[default]==$(sed -n 's/^ray==//p' requirements.txt)" \
  && pip install --no-cache-dir --no-deps -r requirements-sim.txt
ENTRYPOINT []
